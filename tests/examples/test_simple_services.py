"""The five small services of the RFCs, with plain sockets as their clients."""

from __future__ import annotations

import datetime
import os
import select
import socket
import struct
import threading
import time

import pytest

from conftest import PATIENCE_S, receive_all, receive_exactly
from programs import PAIR_IN_KERNEL, running


def send_in_thread(sock: socket.socket, data: bytes) -> threading.Thread:
    """Send *data* and then FIN while the caller reads."""

    def send() -> None:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


@pytest.mark.parametrize("threads", ["0", "2"])
def test_echo_sends_every_byte_back_to_every_peer_and_then_its_fin(threads: str) -> None:
    with running("echo.py", "--threads", threads) as server:
        payloads = [os.urandom(3_000_000 + i) for i in range(4)]
        peers = [server.connect() for _ in payloads]
        senders = [send_in_thread(peer, payload) for peer, payload in zip(peers, payloads, strict=True)]
        for peer, payload in zip(peers, payloads, strict=True):
            with peer:
                assert receive_all(peer) == payload
        for sender in senders:
            sender.join(PATIENCE_S)


def test_echo_stops_listening_to_a_peer_that_does_not_read_and_loses_nothing() -> None:
    with running("echo.py") as server, server.connect() as peer:
        block = bytes(range(256)) * 256
        limit = 2 * PAIR_IN_KERNEL + (8 << 20)  # of two pairs, and the echo
        sent = 0
        peer.setblocking(False)
        while sent < limit and select.select([], [peer], [], 0.5)[1]:
            start = sent % len(block)
            sent += peer.send(block[start:])
        assert sent < limit
        peer.settimeout(PATIENCE_S)
        peer.shutdown(socket.SHUT_WR)
        received = receive_all(peer)
        assert len(received) == sent
        assert received == (block * (sent // len(block) + 1))[:sent]


def test_discard_sends_nothing_back_and_logs_the_throughput() -> None:
    with (
        running("discard.py", "--interval", "0.05", "--threads", "2") as server,
        server.connect() as first,
        server.connect() as second,
    ):
        first.sendall(bytes(1_000_000))
        second.sendall(bytes(1_000_000))
        rate = server.wait_for_log(r"([\d.]+) MiB/s, (\d+) messages/s of (\d+) bytes")
        assert float(rate.group(1)) > 0
        for peer in (first, second):
            peer.shutdown(socket.SHUT_WR)
            assert receive_all(peer) == b""


def test_chargen_sends_the_pattern_without_a_gap_and_logs_the_throughput() -> None:
    with running("chargen.py", "--interval", "0.05") as server, server.connect() as peer:
        lines = receive_exactly(peer, 74 * 10_000)
        ring = bytes(range(32, 127)) * 2
        for i in range(10_000):
            at = i % 95
            assert lines[74 * i : 74 * (i + 1)] == ring[at : at + 72] + b"\r\n"
        server.wait_for_log(r"[\d.]+ MiB/s")


def test_chargen_serves_others_while_one_does_not_read() -> None:
    with running("chargen.py") as server, server.connect() as idle, server.connect() as reader:
        assert len(receive_exactly(reader, 20_000_000)) == 20_000_000
        assert receive_exactly(idle, 74).startswith(b' !"#$')


def test_daytime_tells_the_date_in_words_and_hangs_up() -> None:
    with running("daytime.py") as server, server.connect() as peer:
        text = receive_all(peer).decode()
        date, _, zone = text.partition("-")
        assert zone.endswith("\r\n")
        told = datetime.datetime.strptime(date, "%A, %B %d, %Y %H:%M:%S")
        assert abs(told.timestamp() - time.time()) < PATIENCE_S


def test_time_is_four_bytes_of_seconds_since_1900() -> None:
    with running("time_server.py", "--threads", "1") as server, server.connect() as peer:
        data = receive_all(peer)
        assert len(data) == 4
        (since_1900,) = struct.unpack(">I", data)
        assert abs((since_1900 - 2_208_988_800) - time.time()) % (1 << 32) < PATIENCE_S


def test_a_peer_that_never_closes_does_not_keep_the_others_from_the_time() -> None:
    with running("daytime.py") as server, server.connect() as stubborn:
        assert receive_all(stubborn)
        for _ in range(10):
            with server.connect() as peer:
                assert receive_all(peer)
