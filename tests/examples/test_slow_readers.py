"""Whatever couples two connections lets any amount through to a slow reader, and holds hardly any of it."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
from collections.abc import Iterator

import pytest

from conftest import PATIENCE_S, receive_exactly
from programs import PAIR_IN_KERNEL, Program, running
from pymuduo import COMPILED

MIB = 1 << 20
OUR_BUFFER = MIB // 2  # which the kernel doubles, and lets be
MAX_GROWTH = 8 * MIB  # a pipe holds a mebibyte each way
MAX_UNDERWAY = 4 * OUR_BUFFER + PAIR_IN_KERNEL + MAX_GROWTH
AMOUNT = MAX_UNDERWAY * 2 // MIB * MIB
LARGE_AMOUNT = max(AMOUNT, int(float(os.environ.get("PYMUDUO_GIGABYTES", "1")) * 1024) * MIB) if COMPILED else AMOUNT
STALLS = 4
STILL_S = 0.2
GO = b"go"


class Source(threading.Thread):
    """Sends a visitor who says GO many bytes, as fast as they are taken, and tells when they are not.

    Visitors who say nothing, as those do who only find out whether it is there, are sent away.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.sent = 0
        self.is_stuck = threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, OUR_BUFFER)  # its connections inherit it
        self.listener.settimeout(PATIENCE_S)
        self.port: int = self.listener.getsockname()[1]
        self.block = os.urandom(MIB)

    def run(self) -> None:
        with self.listener:
            while self.sent < self.size:
                with self.listener.accept()[0] as peer:
                    peer.settimeout(PATIENCE_S)
                    if peer.recv(len(GO)) == GO:
                        self._send(peer)

    def _send(self, peer: socket.socket) -> None:
        peer.setblocking(False)
        patience = 0
        while self.sent < self.size:
            if not select.select([], [peer], [], STILL_S)[1]:
                self.is_stuck.set()  # and again, should somebody have cleared it
                patience += 1
                assert patience * STILL_S < PATIENCE_S, "nobody reads any more"
                continue
            patience = 0
            self.sent += peer.send(memoryview(self.block)[self.sent % MIB :])


@contextlib.contextmanager
def way_to(port: int, path: str) -> Iterator[tuple[Program, socket.socket]]:
    """Run a program and yield it with a connection that goes through it to *port*."""
    options = {
        "tcp_relay.py": ("--to", f"127.0.0.1:{port}"),
        "proxies/load_balancer.py": ("--backend", f"127.0.0.1:{port}"),
    }
    with running(path, *options.get(path, ())) as program, program.connect() as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, OUR_BUFFER)
        if path == "proxies/socks.py":
            peer.sendall(b"\4\1" + port.to_bytes(2, "big") + socket.inet_aton("127.0.0.1") + b"\0")
            assert receive_exactly(peer, 8)[:2] == b"\0\x5a"
        elif path == "proxies/http_connect.py":
            peer.sendall(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\n\r\n" % port)
            answer = b""
            while not answer.endswith(b"\r\n\r\n"):
                answer += receive_exactly(peer, 1)
            assert answer.startswith(b"HTTP/1.1 200 ")
        yield program, peer


def receive_into(peer: socket.socket, block: memoryview) -> None:
    """Fill *block* with what comes."""
    at = 0
    while at < len(block):
        count = peer.recv_into(block[at:])
        assert count, "the stream ended"
        at += count


@pytest.mark.measures_memory
@pytest.mark.parametrize(
    ("path", "size"),
    [
        ("tcp_relay.py", LARGE_AMOUNT),
        ("proxies/socks.py", AMOUNT),
        ("proxies/http_connect.py", AMOUNT),
        ("proxies/load_balancer.py", AMOUNT),
    ],
)
def test_any_amount_passes_to_a_reader_that_stalls_in_bounded_memory(path: str, size: int) -> None:
    source = Source(size)
    source.start()
    with way_to(source.port, path) as (program, peer):
        before = program.peak_bytes
        peer.sendall(GO)
        block = bytearray(MIB)
        blocks = size // MIB
        stalls = range(0, blocks // 3, blocks // 3 // STALLS)  # early, so that there is enough left to be stuck with
        for number in range(blocks):
            if number in stalls:
                source.is_stuck.clear()
                assert source.is_stuck.wait(PATIENCE_S)  # with us reading nothing
                assert source.sent - number * MIB < MAX_UNDERWAY
            receive_into(peer, memoryview(block))
            assert block == source.block
        assert peer.recv(1) == b""
        source.join(PATIENCE_S)
        assert not source.is_alive()
        assert program.peak_bytes - before < MAX_GROWTH
