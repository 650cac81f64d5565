"""A bad network between peer and server: bytes in crumbs, late, stalled, cut off; packets lost; a cable pulled.

The first part goes through a proxy, which runs everywhere. The second one (``two_hosts.py``) has the kernel do it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import socket
import ssl
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from certificates import client_context, server_context
from conftest import PATIENCE_S, ServerThread, call_in_loop, eventually, installed
from pymuduo import Buffer, EventLoop, EventLoopThread, InetAddress, TcpClient, TcpConnection, TcpServer

MUCH = random.Random(3).randbytes(600_000)


def echo(connection: TcpConnection, buffer: Buffer, when: object) -> None:
    connection.send(buffer)


class BadNetwork:
    """A proxy that loses and doubles nothing, but breaks what passes into pieces, holds it up, and may cut it off.

    Args:
        cuts: the part of pieces with which a connection is reset instead.
    """

    def __init__(self, loop: EventLoop, target: InetAddress, seed: int, cuts: float = 0.0) -> None:
        self.loop = loop
        self.target = target
        self.random = random.Random(seed)
        self.cuts = cuts
        self.server = TcpServer(loop, InetAddress.loopback(0), "bad network")
        self.server.connection_callback = self._on_connection
        self.server.message_callback = self._on_message
        self.server.peer_shutdown_callback = self._on_fin
        self.server.start()

    def _on_connection(self, connection: TcpConnection) -> None:
        if connection.connected:
            client = TcpClient(self.loop, self.target, "beyond")
            link = Link(self, connection)
            connection.context = link.there
            client.connection_callback = link.on_connection
            client.message_callback = self._on_message
            client.peer_shutdown_callback = self._on_fin
            client.connect()
        else:
            connection.context.close()

    def _on_message(self, connection: TcpConnection, buffer: Buffer, when: object) -> None:
        connection.context.put(buffer.retrieve_all_as_bytes())

    def _on_fin(self, connection: TcpConnection) -> None:
        connection.context.put(None)


class Link:
    """Two connections, and the pipe into each."""

    def __init__(self, network: BadNetwork, here: TcpConnection) -> None:
        self.network = network
        self.ends: list[TcpConnection] = [here]
        self.there = BadPipe(self)  # from here to there
        self.here = BadPipe(self)
        self.here.out = here

    def on_connection(self, connection: TcpConnection) -> None:
        if connection.connected:
            self.ends.append(connection)
            connection.context = self.here
            self.there.out = connection
            self.there.go_on()
        else:
            self.there.close()

    def cut(self) -> None:
        for end in self.ends:
            end.force_close()


class BadPipe:
    """One direction."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.out: TcpConnection | None = None
        self.waiting: deque[bytes | None] = deque()
        self.is_held_up = False

    def put(self, data: bytes | None) -> None:
        rng = self.link.network.random
        while data:
            size = rng.choice((1, 10, 500, 5000, 50_000))
            self.waiting.append(data[:size])
            data = data[size:]
        if data is None:
            self.waiting.append(None)
        self.go_on()

    def go_on(self) -> None:
        rng = self.link.network.random
        while self.waiting and self.out is not None and not self.is_held_up:
            piece = self.waiting.popleft()
            if rng.random() < self.link.network.cuts:
                self.link.cut()
                return
            if piece is None:
                self.out.shutdown()
            else:
                self.out.send(piece)
            if rng.random() < 0.2:
                self.is_held_up = True
                # The last is what a lost packet costs: the kernel's shortest time to send it again.
                (delay_s,) = rng.choices((0.0, 0.001, 0.01, 0.2), (10, 10, 10, 1))
                self.link.network.loop.run_after(delay_s, self._end_hold_up)

    def _end_hold_up(self) -> None:
        self.is_held_up = False
        self.go_on()

    def close(self) -> None:
        """An end has gone: so has the other, when it has got what was on its way."""
        for end in self.link.ends:
            end.force_close_with_delay(0.05)


@pytest.fixture
def bad_network() -> Iterator[Callable[..., BadNetwork]]:
    with EventLoopThread(name="network") as loop:
        made: list[BadNetwork] = []

        def make(server: ServerThread, seed: int, **settings: Any) -> BadNetwork:
            address = server.server.address
            made.append(call_in_loop(loop, lambda: BadNetwork(loop, address, seed, **settings)))  # type: ignore[arg-type]
            call_in_loop(loop, lambda: None)
            return made[-1]

        yield make
        for network in made:
            network.server.stop(0)
            assert network.server.join(PATIENCE_S)


def talk(sock: socket.socket, data: bytes) -> bytes:
    """Send and receive in two threads until the echo is whole, or the stream ends."""
    received = bytearray()

    def send() -> None:
        with contextlib.suppress(OSError):
            sock.sendall(data)

    sender = threading.Thread(target=send)
    sender.start()
    with contextlib.suppress(ConnectionError):
        while len(received) < len(data) and (chunk := sock.recv(65536)):
            received += chunk
    sender.join(PATIENCE_S)
    return bytes(received)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("threads", [0, 2])
def test_crumbs_and_hold_ups_change_nothing(serve, bad_network, threads, seed):
    server = serve(threads, message_callback=echo)
    network = bad_network(server, seed)
    with socket.create_connection(("127.0.0.1", network.server.address.port), timeout=PATIENCE_S) as sock:
        assert hashlib.sha256(talk(sock, MUCH)).digest() == hashlib.sha256(MUCH).digest()
    eventually(lambda: server.server.connection_count == 0)


@pytest.mark.parametrize("seed", range(3))
def test_nor_do_they_with_tls(serve, bad_network, seed):
    server = serve(1, ssl_context=server_context(), message_callback=echo)
    network = bad_network(server, seed)
    received = bytearray()
    with EventLoopThread() as loop:
        address = network.server.address
        client = call_in_loop(
            loop,
            lambda: TcpClient(loop, address, "client", ssl_context=client_context(), server_hostname="localhost"),
        )
        client.connection_callback = lambda c: c.connected and c.send(MUCH)
        client.message_callback = lambda c, buffer, when: received.extend(buffer.retrieve_all_as_bytes())
        client.connect()
        eventually(lambda: len(received) == len(MUCH))
        assert received == MUCH
        client.close()
    eventually(lambda: server.server.connection_count == 0)


@pytest.mark.parametrize("seed", range(5))
def test_what_arrives_before_a_cut_is_the_beginning_of_what_was_sent(serve, bad_network, seed):
    server = serve(1, message_callback=echo)
    network = bad_network(server, seed, cuts=0.01)
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", network.server.address.port), timeout=PATIENCE_S) as sock:
            assert MUCH.startswith(talk(sock, MUCH))
    eventually(lambda: server.server.connection_count == 0)


@pytest.mark.parametrize("seed", range(5))
def test_a_tls_stream_that_is_cut_says_so(serve, bad_network, seed):
    ends: list[Exception | None] = []
    server = serve(
        1,
        ssl_context=server_context(),
        message_callback=echo,
        connection_callback=lambda c: None if c.connected else ends.append(c.error),
        handshake_failed_callback=lambda c, error: ends.append(error),
    )
    network = bad_network(server, seed, cuts=0.05)
    with socket.create_connection(("127.0.0.1", network.server.address.port), timeout=PATIENCE_S) as sock:
        try:
            tls = client_context().wrap_socket(sock, server_hostname="localhost")
        except (ConnectionError, ssl.SSLError):
            pass
        else:
            with tls:
                tls.settimeout(PATIENCE_S)
                with contextlib.suppress(ConnectionError, ssl.SSLError):
                    while True:
                        tls.sendall(MUCH[:5000])
                        if not tls.recv(5000):
                            break
    eventually(lambda: ends)
    assert isinstance(ends[0], (ConnectionError, ssl.SSLError))


def play_on_two_hosts(*words: str) -> None:
    """Run a scenario of ``two_hosts.py``, and skip the test where this machine or its kernel can't."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces and cables need root")
    folders = ("/usr/sbin", "/sbin")
    unshare = [installed("unshare", *folders), "--net"]
    for program in ("nsenter", "ip", "tc"):
        installed(program, *folders)
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this machine lets us have no network namespace")
    done = subprocess.run(
        [*unshare, sys.executable, str(Path(__file__).parent / "two_hosts.py"), *words],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        env={**os.environ, "PATH": os.pathsep.join([os.environ.get("PATH", os.defpath), *folders])},
    )
    if "Operation not supported" in done.stderr or "Unknown device type" in done.stderr:
        pytest.skip("this kernel has no veth")
    if "Specified qdisc kind is unknown" in done.stderr:
        pytest.skip(f"this kernel has no {words[1]}")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"


@pytest.mark.parametrize(("stall_s", "how_long"), [("3", "for-good"), ("30", "for-a-second")])
def test_a_cable_is_pulled_in_the_middle_of_a_stream(stall_s, how_long):
    play_on_two_hosts("pulled-cable", stall_s, how_long)


@pytest.mark.parametrize(
    "discipline",
    [
        pytest.param("netem loss 2% duplicate 1% delay 2ms 1ms reorder 25% 50%", id="netem"),
        pytest.param("tbf rate 50mbit burst 16kb limit 20kb", id="tbf"),  # late, and lost where the queue is full
    ],
)
def test_what_the_kernel_loses_delays_or_reorders_arrives_whole(discipline):
    play_on_two_hosts("bad-line", *discipline.split())


def test_peers_that_vanish_without_a_word_are_closed_for_their_silence_and_leave_nothing():
    play_on_two_hosts("vanished-peers")
