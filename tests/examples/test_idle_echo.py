"""The echo server that closes idle connections."""

from __future__ import annotations

import contextlib

import pytest

from conftest import receive_all, receive_exactly
from programs import running

QUESTION = b"are you there?\n"


@pytest.mark.parametrize("threads", ["0", "2"])
def test_a_silent_peer_is_asked_once_and_then_closed(threads: str) -> None:
    with running("idle_echo.py", "--idle", "0.05", "--threads", threads) as server, server.connect() as peer:
        assert receive_all(peer) == QUESTION
        server.wait_for_log("nothing received for 0.05 s")


def test_a_peer_that_answers_is_asked_again() -> None:
    with running("idle_echo.py", "--idle", "1") as server, server.connect() as peer:
        assert receive_exactly(peer, len(QUESTION)) == QUESTION
        peer.sendall(b"yes\n")
        assert receive_exactly(peer, 4 + len(QUESTION)) == b"yes\n" + QUESTION


def test_a_peer_that_does_not_read_is_closed_though_it_sends() -> None:
    with running("idle_echo.py", "--idle", "0.2") as server, server.connect() as peer:
        with contextlib.suppress(OSError):
            for _ in range(1000):
                peer.sendall(bytes(1 << 20))
        server.wait_for_log("the peer does not read for 0.2 s")
