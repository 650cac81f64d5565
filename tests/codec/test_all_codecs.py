"""What every codec promises, whatever its messages look like."""

from __future__ import annotations

import threading

import pytest

from codec_kinds import KINDS
from conftest import PATIENCE_S, receive_all
from pymuduo import TcpConnection
from pymuduo.codec import ProtocolError

MAY_REFUSE = [name for name, kind in KINDS.items() if kind.refused]


# --- on a connection ---


@pytest.mark.parametrize("name", MAY_REFUSE)
def test_what_breaks_the_rules_ends_the_connection_and_is_why(serve, name):
    told: list[ProtocolError] = []
    reasons: list[Exception | None] = []
    down = threading.Event()

    def on_connection(connection: TcpConnection) -> None:
        if not connection.connected:
            reasons.append(connection.error)
            down.set()

    def on_error(connection: TcpConnection, error: ProtocolError) -> None:
        told.append(error)
        connection.send(b"why")

    kind = KINDS[name]
    codec = kind.make(max_bytes=100)
    codec.error_callback = on_error
    server = serve(connection_callback=on_connection, message_callback=codec.on_message)
    with server.connect() as client:
        client.sendall(codec.encode(kind.wrap(b"fine")) + kind.refused)
        assert receive_all(client) == b"why"
        assert down.wait(PATIENCE_S)
    assert reasons == told
    assert isinstance(told[0], ProtocolError)
