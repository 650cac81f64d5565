"""Peers that mean no good: who trickle, who never read, who come only to go, who want everything for themselves."""

from __future__ import annotations

import contextlib
import random
import resource
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from certificates import server_context
from conftest import (
    PATIENCE_S,
    ServerThread,
    call_in_loop,
    eventually,
    memory_bytes,
    open_descriptors,
    receive_exactly,
    reset,
)
from pymuduo import Buffer, ConnectionLimits, IdleKind, IdleTimeouts, TcpConnection
from pymuduo.codec import LineCodec

MIB = 1 << 20
# At first a loop asks the kernel for 16 events, and for twice as many whenever it gets all that it asked for: so many
# turns until it has seen two thousand.
MANY_TURNS = 8


@pytest.fixture(autouse=True)
def many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def echo(connection: TcpConnection, buffer: Buffer, when: object) -> None:
    connection.send(buffer)


def is_served(server: ServerThread) -> bool:
    with server.connect() as client:
        client.sendall(b"is anybody there?\n")
        return receive_exactly(client, 18) == b"is anybody there?\n"


@contextlib.contextmanager
def crowd(server: ServerThread, count: int) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(server.connect()) for _ in range(count)]


@pytest.mark.parametrize("threads", [0, 2])
def test_who_trickles_a_message_for_ever_is_closed_however_many_they_are(serve, threads):
    """Slowloris: a byte now and then, never a whole line; each byte would put off a time-out for silence."""
    codec = LineCodec(lambda connection, line, when: codec.send(connection, line))
    timed_out: list[IdleKind] = []

    def close(connection: TcpConnection, kind: IdleKind) -> None:
        timed_out.append(kind)
        connection.force_close()

    idle = IdleTimeouts(message_s=0.5, callback=close)
    server = serve(threads, message_callback=codec.on_message, idle_timeouts=idle)
    with crowd(server, 1000) as attackers:
        while len(timed_out) < len(attackers):
            for attacker in attackers:
                with contextlib.suppress(OSError):
                    attacker.send(b"x")
            assert is_served(server)
        eventually(lambda: server.server.connection_count == 0)
    assert len(timed_out) == 1000
    assert set(timed_out) == {IdleKind.MESSAGE}


def test_handshakes_that_trickle_time_out(serve):
    failed: list[Exception] = []
    server = serve(
        ssl_context=server_context(),
        handshake_timeout_s=0.3,
        handshake_failed_callback=lambda connection, error: failed.append(error),
    )
    with crowd(server, 300) as attackers:
        hello = b"\x16\x03\x01\x02\x00\x01"
        for byte in hello:
            for attacker in attackers:
                with contextlib.suppress(OSError):
                    attacker.send(bytes([byte]))
        eventually(lambda: len(failed) == 300)
        assert all(isinstance(error, TimeoutError) for error in failed)
    eventually(lambda: server.server.connection_count == 0)


@pytest.mark.parametrize("way", ["max_output_bytes", "stall time-out"])
def test_who_asks_for_much_and_never_reads_is_cut_off(serve, way):
    answer = bytes(4 * MIB)

    def on_message(connection: TcpConnection, buffer: Buffer, when: object) -> None:
        if buffer.find(b"\n") >= 0 and len(buffer) == 18:
            connection.send(buffer)
        else:
            for _ in range(len(buffer)):
                connection.send(answer)  # one object, however many wait for it
            buffer.retrieve_all()

    ended: list[Exception | None] = []
    settings = (
        {"max_output_bytes": 8 * MIB} if way == "max_output_bytes" else {"idle_timeouts": IdleTimeouts(stall_s=0.3)}
    )
    server = serve(
        1,
        message_callback=on_message,
        connection_callback=lambda c: None if c.connected else ended.append(c.error),
        **settings,
    )
    with crowd(server, 50) as attackers:
        for attacker in attackers:
            attacker.sendall(b"gimme")
        eventually(lambda: len(ended) == 50)
        assert all(isinstance(error, OSError) for error in ended)
        assert is_served(server)


@pytest.mark.measures_memory
def test_who_never_reads_costs_no_memory_beyond_the_limit(serve):
    """Fifty who each ask for thirty-two times as much as may wait for them."""
    limit, size = MIB, MIB // 4
    accepted: list[int] = []
    resident: list[int] = []

    def on_message(connection: TcpConnection, buffer: Buffer, when: object) -> None:
        buffer.retrieve_all()
        count = 0
        while count < 128 and connection.send(b"x" * size):  # of its own each time: the memory is really taken
            count += 1
            resident.append(memory_bytes())
        accepted.append(count)

    server = serve(1, message_callback=on_message, max_output_bytes=limit)
    before = memory_bytes()
    with crowd(server, 50) as attackers:
        for attacker in attackers:
            attacker.sendall(b"gimme")
        eventually(lambda: len(accepted) == 50)
        eventually(lambda: server.server.connection_count == 0)
    assert max(accepted) < 128
    assert max(resident) - before < 50 * (limit + size) + 16 * MIB


@pytest.mark.parametrize("threads", [0, 1])
def test_a_flood_of_comers_and_goers_leaves_nothing(serve, threads):
    """Connects, and most of them resets. Meanwhile those who were there before get their answers in a few turns."""
    turns: list[int] = []

    def on_message(connection: TcpConnection, buffer: Buffer, when: object) -> None:
        if connection.context == "polite":
            (asked,) = struct.unpack("!q", buffer.retrieve_all_as_bytes())
            turns.append(connection.loop.iteration - asked)
            connection.send(b"!")
        else:
            connection.send(buffer)

    server = serve(threads, message_callback=on_message)
    assert is_served(server)
    eventually(lambda: server.server.connection_count == 0)
    before = len(open_descriptors())
    rng = random.Random(5)

    def flood() -> None:
        for _ in range(300):
            try:
                client = server.connect()
            except OSError:
                continue
            if rng.random() < 0.3:
                client.send(b"x" * 100)
            (reset if rng.random() < 0.7 else socket.socket.close)(client)

    with crowd(server, 50) as others:
        eventually(lambda: server.server.connection_count == 50)
        loop = server.server.connections[0].loop
        for connection in server.server.connections:
            connection.context = "polite"

        def ask() -> None:
            for other in others:
                other.sendall(struct.pack("!q", loop.iteration))

        for _ in range(5):
            floods = [threading.Thread(target=flood) for _ in range(4)]
            for thread in floods:
                thread.start()
            call_in_loop(loop, ask)  # within one turn, so all questions are there when it looks the next time
            for other in others:
                assert receive_exactly(other, 1) == b"!"
            assert is_served(server)
            for thread in floods:
                thread.join(PATIENCE_S)
                assert not thread.is_alive()
    assert len(turns) == 250
    assert max(turns) <= MANY_TURNS
    eventually(lambda: server.server.connection_count == 0)
    eventually(lambda: len(open_descriptors()) <= before)


def test_peers_that_half_close_and_stay_are_closed_for_their_silence(serve):
    """They have said FIN and keep their socket, but are never heard of again, nor do they read."""
    ended: list[Exception | None] = []
    server = serve(
        peer_shutdown_callback=lambda connection: None,
        connection_callback=lambda c: None if c.connected else ended.append(c.error),
        message_callback=echo,
        idle_timeouts=IdleTimeouts(both_s=0.3),
    )
    before = len(open_descriptors())
    with crowd(server, 100) as peers:
        for peer in peers:
            with contextlib.suppress(OSError):  # on a slow machine its time may be up already
                peer.sendall(b"bye")
                peer.shutdown(socket.SHUT_WR)
        eventually(lambda: len(ended) == 100)
        assert all(isinstance(error, TimeoutError) for error in ended)
        eventually(lambda: len(open_descriptors()) <= before + len(peers))


def test_one_address_gets_no_more_than_its_share(serve):
    limits = ConnectionLimits(max_per_address=20)
    server = serve(limits=limits, message_callback=echo)
    with crowd(server, 60) as clients:
        eventually(lambda: limits.refused_total == 40)
        served = 0
        for client in clients:
            with contextlib.suppress(ConnectionError):
                client.sendall(b"x")
                served += client.recv(1) == b"x"
        assert served == 20


@pytest.mark.parametrize("threads", [0, 1])
def test_one_who_sends_as_fast_as_it_can_does_not_starve_the_others(serve, threads):
    """Between a question and its answer the loop turns a few times, however much somebody else sends."""
    turns: list[int] = []

    def on_message(connection: TcpConnection, buffer: Buffer, when: object) -> None:
        if connection.context == "greedy":
            buffer.retrieve_all()
        elif len(buffer) == 8:
            (asked,) = struct.unpack("!q", buffer.retrieve_all_as_bytes())
            turns.append(connection.loop.iteration - asked)
            connection.send(b"!")
        else:
            connection.context = "greedy"
            buffer.retrieve_all()

    server = serve(threads, message_callback=on_message)
    is_over = threading.Event()

    def be_greedy() -> None:
        with server.connect() as sock:
            data = bytes(MIB)
            while not is_over.is_set():
                sock.sendall(data)

    greedy = threading.Thread(target=be_greedy)
    with crowd(server, 1000) as others:
        eventually(lambda: server.server.connection_count == 1000)
        loop = server.server.thread_pool.loops()[0] if threads else server.loop
        greedy.start()
        eventually(lambda: any(c.context == "greedy" for c in server.server.connections))
        for _ in range(3):
            # All ask within one turn of the loop, so all questions are there when it looks the next time.
            def ask() -> None:
                for other in others:
                    other.sendall(struct.pack("!q", loop.iteration))

            call_in_loop(loop, ask)
            for other in others:
                assert receive_exactly(other, 1) == b"!"
        is_over.set()
        greedy.join(PATIENCE_S)
    assert len(turns) == 3000
    assert max(turns) <= MANY_TURNS
    assert max(turns[1000:]) <= 2
