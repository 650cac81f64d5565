"""The TCP relay, in front of the echo example."""

from __future__ import annotations

import os
import socket
import threading

import pytest

from conftest import PATIENCE_S, receive_all, receive_exactly
from programs import running


@pytest.mark.parametrize("threads", ["0", "2"])
def test_every_byte_and_both_ends_go_through_the_relay(threads: str) -> None:
    with (
        running("echo.py") as target,
        running("tcp_relay.py", "--to", f"127.0.0.1:{target.port}", "--threads", threads) as relay,
    ):
        payload = os.urandom(5_000_000)
        with relay.connect() as one, relay.connect() as other:
            sender = threading.Thread(target=lambda: [one.sendall(payload), one.shutdown(socket.SHUT_WR)])
            sender.start()
            assert receive_all(one) == payload
            sender.join(PATIENCE_S)
            other.sendall(b"hello")
            assert receive_exactly(other, 5) == b"hello"
        relay.wait_for_log("has left: 5000000 bytes sent, 5000000 received")


def test_who_comes_in_vain_is_sent_away() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    with running("tcp_relay.py", "--to", f"127.0.0.1:{port}") as relay:
        with relay.connect() as peer:
            assert peer.recv(1) == b""
        relay.wait_for_log("can't be connected to")
