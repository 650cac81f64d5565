"""Every other door hammered from eight threads (see ``test_many_threads``); and none that is documented is missing."""

from __future__ import annotations

import contextlib
import functools
import importlib
import itertools
import logging
import queue
import re
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import test_many_threads
from codec_kinds import KINDS, plain
from conftest import PATIENCE_S, call_in_loop, eventually, receive_exactly
from eight_threads import EVERYBODY, THREADS, Peer, Serve, in_threads, settle
from pymuduo import (
    Buffer,
    ConnectionLimits,
    ConnectionPool,
    EventLoop,
    EventLoopThreadPool,
    IdleTimeouts,
    InetAddress,
    Lease,
    Pipe,
    Resolver,
    TcpConnection,
    UdpSocket,
    pipe,
    send_file,
)
from pymuduo.codec import Codec

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.usefixtures("switch_often")


# --- what each door promises: connections ---


def files_leave_in_order_and_each_is_told_of_once(door: Callable[..., bool], serve: Serve, loop: EventLoop) -> None:
    """Every third record is sent, the others are parts of a file."""
    count = 50
    keys = list(itertools.product(EVERYBODY, range(count)))
    records = {key: b"%d %05d\n" % key for key in keys}
    places = {key: 8 * at for at, key in enumerate(keys)}
    told: list[tuple[tuple[int, int], OSError | None]] = []
    peer = Peer(serve)

    def tell(key: tuple[int, int], connection: TcpConnection, error: OSError | None) -> None:
        told.append((key, error))

    with tempfile.TemporaryFile() as file, peer.socket:
        file.write(b"".join(records.values()))
        file.flush()

        def work(i: int) -> None:
            for n in range(count):
                key = i, n
                if n % 3 == 2:
                    assert peer.connection.send(records[key])
                else:
                    assert door(peer.connection, file.fileno(), places[key], 8, functools.partial(tell, key))

        in_threads(work)
        lines = receive_exactly(peer.socket, 8 * len(keys)).splitlines(keepends=True)
        for i in EVERYBODY:
            assert [line for line in lines if line.startswith(b"%d " % i)] == [records[i, n] for n in range(count)]
        eventually(lambda: len(told) == sum(n % 3 != 2 for _, n in keys))
        settle(peer.connection.loop)
        assert sorted(told) == [(key, None) for key in keys if key[1] % 3 != 2]
    for _ in range(5):
        files_that_do_not_leave_are_told_of_once_too(door, serve)


def files_that_do_not_leave_are_told_of_once_too(door: Callable[..., bool], serve: Serve) -> None:
    """The connection is closed while eight threads send files, of which the peer reads none."""
    taken: list[tuple[int, int]] = []
    told: list[tuple[int, int]] = []
    peer = Peer(serve)
    with tempfile.TemporaryFile() as file, peer.socket:
        file.truncate(1 << 20)

        def work(i: int) -> None:
            for n in range(1, 50):
                key = i, n
                if not door(peer.connection, file.fileno(), 0, None, lambda c, error, key=key: told.append(key)):
                    return
                taken.append(key)
                if n == 10 + i:
                    peer.connection.force_close()

        in_threads(work)
        eventually(lambda: peer.connection.disconnected)
        eventually(lambda: len(told) >= len(taken))
        settle(peer.connection.loop)
        assert sorted(told) == sorted(taken)


def messages_leave_whole_and_in_order(door: Callable[..., bool], serve: Serve, loop: EventLoop) -> None:
    """One codec of each kind for all threads; ``send_all`` takes five at a time, which stay together."""
    count, piece = 50, 5 if door is Codec.send_all else 1
    peer = Peer(serve)
    with peer.socket:
        for kind in KINDS.values():
            codec = kind.make(max_bytes=5 if kind is KINDS["fixed"] else 100)
            payloads = {(i, n): b"%d %03d" % (i, n) for i in EVERYBODY for n in range(count)}
            names = {repr(plain(kind.wrap(payload))): key for key, payload in payloads.items()}

            def work(i: int, codec: Codec = codec, kind: Any = kind, payloads: Any = payloads) -> None:
                for n in range(0, count, piece):
                    messages = [kind.wrap(payloads[i, n + k]) for k in range(piece)]
                    assert door(codec, peer.connection, messages if door is Codec.send_all else messages[0])

            in_threads(work)
            buffer = Buffer()
            received: list[tuple[int, int]] = []
            while len(received) < len(payloads):
                data = peer.socket.recv(65536)
                assert data, f"the stream ended after {len(received)} messages"
                buffer.append(data)
                received += [names[repr(plain(message))] for message in codec.decode(buffer)]
            assert len(buffer) == 0
            for i in EVERYBODY:
                assert [key for key in received if key[0] == i] == [(i, n) for n in range(count)]
            for at in range(0, len(received), piece):
                assert len({i for i, _ in received[at : at + piece]}) == 1


class Ends:
    """A server's connections in pairs, each connection with its client's socket, on two loops."""

    def __init__(self, serve: Serve) -> None:
        self.events: dict[str, list[str]] = {}
        self._newcomers: queue.Queue[TcpConnection] = queue.Queue()
        self._server = serve(2, connection_callback=self._on_connection)

    def _on_connection(self, connection: TcpConnection) -> None:
        self.events.setdefault(connection.name, []).append("up" if connection.connected else "down")
        if connection.connected:
            connection.stop_read()  # until it is coupled
            self._newcomers.put(connection)

    def make(self, stack: contextlib.ExitStack, count: int) -> list[tuple[socket.socket, TcpConnection]]:
        """Return so many; the loops take turns."""
        made = []
        for _ in range(count):
            client = stack.enter_context(self._server.connect())
            made.append((client, self._newcomers.get(timeout=PATIENCE_S)))
        return made

    def are_gone(self) -> bool:
        """Whether all have ended once."""
        eventually(lambda: self._server.server.connection_count == 0)
        return all(history == ["up", "down"] for history in self.events.values())


def pipes_made_by_many_carry_everything(door: Callable[..., Pipe], serve: Serve, loop: EventLoop) -> None:
    """Each thread makes one between two loops, and two within a loop."""
    size = 100_000
    ends = Ends(serve)
    closed: list[Pipe] = []
    made: list[Pipe] = []
    with contextlib.ExitStack() as stack:
        own = {i: ends.make(stack, 6) for i in EVERYBODY}

        def work(i: int) -> None:
            for at, (one, other) in enumerate(((0, 1), (2, 4), (3, 5))):
                client, connection = own[i][one]
                other_client, other_connection = own[i][other]
                client.sendall(b"early")
                coupled = door(connection, other_connection)
                made.append(coupled)
                coupled.closed_callback = closed.append
                data = bytes([i, at]) * (size // 2)
                client.sendall(data)
                other_client.sendall(data[::-1])
                assert receive_exactly(other_client, 5 + size) == b"early" + data
                assert receive_exactly(client, size) == data[::-1]
                for sock in (client, other_client):
                    sock.shutdown(socket.SHUT_WR)
                for sock in (client, other_client):
                    assert sock.recv(1) == b""

        in_threads(work)
    assert ends.are_gone()
    eventually(lambda: len(closed) == len(made))
    assert set(closed) == set(made)
    for one in made:
        assert (one.forth.byte_count, one.back.byte_count) == (5 + size, size)


def a_pipe_closed_by_many_ends_once(door: Callable[..., None], serve: Serve, loop: EventLoop) -> None:
    for round_number in range(10):
        ends = Ends(serve)
        closed: list[Pipe] = []
        with contextlib.ExitStack() as stack:
            made = ends.make(stack, 3)
            client, connection = made[0]
            other = made[1 + round_number % 2][1]  # on another loop, or on the same one
            coupled = pipe(connection, other)
            coupled.closed_callback = closed.append
            client.sendall(bytes(200_000))

            def work(i: int, coupled: Pipe = coupled) -> None:
                door(coupled)
                assert not coupled.one.send(b"late")
                assert not coupled.other.send(b"late")

            in_threads(work)
            eventually(lambda coupled=coupled: coupled.is_closed)
            eventually(lambda closed=closed: closed)
            settle(connection.loop)
            settle(other.loop)
            assert closed == [coupled]
        assert ends.are_gone()


# --- datagrams ---


@contextlib.contextmanager
def datagrams(loop: EventLoop) -> Iterator[tuple[UdpSocket, list[bytes]]]:
    """Give a socket that has not been started, and what it receives."""
    received: list[bytes] = []
    udp = call_in_loop(loop, lambda: UdpSocket(loop, InetAddress.loopback(0)))
    udp.message_callback = lambda udp, data, sender, when: received.append(data)
    yield udp, received
    udp.close()
    settle(loop)
    assert udp.fileno() == -1


def a_udp_socket_started_by_many_hears_each_datagram_once(
    door: Callable[..., None], serve: Serve, loop: EventLoop
) -> None:
    for _ in range(20):
        with datagrams(loop) as (udp, received), socket.socket(type=socket.SOCK_DGRAM) as sender:
            sender.connect(udp.address.sockaddr)

            def work(i: int, udp: UdpSocket = udp, sender: socket.socket = sender) -> None:
                sender.send(b"%d before" % i)
                door(udp)
                door(udp)
                sender.send(b"%d after" % i)

            in_threads(work)
            eventually(lambda received=received: len(received) >= 2 * THREADS)
            settle(loop)
            assert sorted(received) == [b"%d %s" % (i, when) for i in EVERYBODY for when in (b"after", b"before")]
            assert call_in_loop(loop, lambda udp=udp: udp.datagrams_received) == 2 * THREADS


def datagrams_reach_one_of_the_chosen_peers_and_in_the_end_the_last(
    door: Callable[..., None], serve: Serve, loop: EventLoop
) -> None:
    count = 20
    with contextlib.ExitStack() as stack:
        udp, _ = stack.enter_context(datagrams(loop))
        peers = []
        for _ in EVERYBODY:
            peer, received = stack.enter_context(datagrams(loop))
            peer.start()
            peers.append((peer.address, received))
        last, received_last = peers[0]
        all_but_last = threading.Barrier(THREADS)

        def work(i: int) -> None:
            for n in range(count):
                door(udp, peers[(i + n) % THREADS][0])
                assert udp.send(b"%d %d" % (i, n))
            all_but_last.wait(PATIENCE_S)
            door(udp, last)
            assert udp.send(b"%d last" % i)

        in_threads(work)
        settle(loop)  # it has heard of all of them
        assert udp.peer_address == last
        eventually(lambda: sum(len(received) for _, received in peers) >= THREADS * (count + 1))
        settle(loop)
        everything = sorted(data for _, received in peers for data in received)
        numbers = [b"%d" % n for n in range(count)]
        assert everything == sorted(b"%d %s" % (i, n) for i in EVERYBODY for n in [*numbers, b"last"])
        assert {b"%d last" % i for i in EVERYBODY} <= set(received_last)
        assert call_in_loop(loop, lambda: (udp.dropped, udp.errors)) == (0, 0)


def datagrams_arrive_once_each_and_in_order(door: Callable[..., bool], serve: Serve, loop: EventLoop) -> None:
    """No thread is further ahead of the receiver than its socket has room for."""
    count, window = 200, 10
    with datagrams(loop) as (udp, _), datagrams(loop) as (receiver, received):
        receiver.start()
        address = (receiver.address,) if door is UdpSocket.send_to else ()
        if door is UdpSocket.send:
            udp.connect(receiver.address)

        def work(i: int) -> None:
            for n in range(count):
                data = bytearray(b"%d %03d" % (i, n))
                assert door(udp, data, *address)
                data[:] = b"changed afterwards"
                if n % window == window - 1:
                    eventually(lambda n=n: b"%d %03d" % (i, n) in received)

        in_threads(work)
        settle(loop)
        for i in EVERYBODY:
            assert [data for data in received if data.startswith(b"%d " % i)] == [
                b"%d %03d" % (i, n) for n in range(count)
            ]
        counted = call_in_loop(loop, lambda: (udp.datagrams_sent, udp.bytes_sent, udp.dropped, udp.errors))
        assert counted == (THREADS * count, 5 * THREADS * count, 0, 0)


def a_udp_socket_closed_by_many_counts_what_it_took(door: Callable[..., None], serve: Serve, loop: EventLoop) -> None:
    """Some of them start it at the same time, and all of them send until it refuses."""
    for _ in range(20):
        taken = [0] * THREADS
        with datagrams(loop) as (udp, _), datagrams(loop) as (receiver, _):

            def work(i: int, udp: UdpSocket = udp, receiver: UdpSocket = receiver, taken: list[int] = taken) -> None:
                with contextlib.suppress(RuntimeError):
                    udp.start()
                while udp.send_to(b"x", receiver.address):
                    taken[i] += 1
                    if taken[i] == 10 * (1 + i):
                        door(udp)
                door(udp)
                assert udp.is_closed
                with pytest.raises(RuntimeError, match="closed"):
                    udp.start()

            in_threads(work)
            settle(loop)
            assert udp.fileno() == -1
            counted = call_in_loop(loop, lambda udp=udp: (udp.datagrams_sent + udp.dropped, udp.errors))
            assert counted == (sum(taken), 0)


# --- pools ---


@contextlib.contextmanager
def pool_of(serve: Serve, loop: EventLoop, **settings: Any) -> Iterator[tuple[ConnectionPool, Any]]:
    """Give a pool that has not been started, and its server."""
    server = serve(1)
    with ConnectionPool(loop, InetAddress.loopback(server.port), "many", **settings) as pool:
        yield pool, server.server
    settle(loop)
    stats = call_in_loop(loop, pool.stats)
    assert (stats.up, stats.leases, stats.waiting) == (0, 0, 0)
    eventually(lambda: server.server.connection_count == 0)
    assert call_in_loop(loop, lambda: loop.timer_count) == 0


def a_pool_started_by_many_connects_each_member_once(door: Callable[..., None], serve: Serve, loop: EventLoop) -> None:
    for _ in range(10):
        events: list[bool] = []
        with pool_of(serve, loop, size=4) as (pool, server):
            pool.connection_callback = lambda c, events=events: events.append(c.connected)
            in_threads(lambda i, pool=pool: [door(pool) for _ in range(10)])  # type: ignore[misc]
            eventually(lambda events=events, server=server: len(events) >= 4 and server.stats().accepted >= 4)
            settle(loop)
            assert server.stats().accepted == 4
            assert events == [True] * 4
        assert events == [True] * 4 + [False] * 4


def requests_are_answered_once_each_and_in_order(door: Callable[..., None], serve: Serve, loop: EventLoop) -> None:
    count = 100
    answered: list[tuple[int, int]] = []
    leases: list[int] = []
    with pool_of(serve, loop, size=2, max_outstanding=2, wait_s=10 * PATIENCE_S) as (pool, _):
        pool.start()

        def answer(key: tuple[int, int], lease: Lease | None) -> None:
            assert lease is not None
            assert loop.is_in_loop_thread()
            answered.append(key)
            leases.append(pool.stats().leases)
            loop.queue_in_loop(lease.done)

        def work(i: int) -> None:
            for n in range(count):
                door(pool, functools.partial(answer, (i, n)))

        in_threads(work)
        eventually(lambda: len(answered) >= THREADS * count)
        settle(loop)
        assert len(answered) == THREADS * count
        for i in EVERYBODY:
            assert [key for key in answered if key[0] == i] == [(i, n) for n in range(count)]
        assert max(leases) <= 4
        assert call_in_loop(loop, pool.stats).leases == 0


def a_lease_ended_by_many_ends_once(door: Callable[..., None], serve: Serve, loop: EventLoop) -> None:
    """Each thread ends each lease. The first two of three fail, if that is the door: a third would take a rest."""
    count = 100
    inboxes: list[queue.Queue[tuple[int, Lease]]] = [queue.Queue() for _ in EVERYBODY]
    numbers = itertools.count()
    fails = [door is Lease.failed and n % 3 < 2 for n in range(count)]
    with pool_of(serve, loop, size=1, wait_s=10 * PATIENCE_S) as (pool, server):
        pool.start()

        def hand_out(lease: Lease | None) -> None:
            assert lease is not None
            n = next(numbers)
            for inbox in inboxes:
                inbox.put((n, lease))

        def work(i: int) -> None:
            for n in range(count):
                number, lease = inboxes[i].get(timeout=PATIENCE_S)
                assert number == n
                end = Lease.failed if fails[n] else Lease.done
                end(lease)
                end(lease)

        for _ in range(count):
            pool.request(hand_out)
        in_threads(work)
        eventually(lambda: server.stats().accepted >= 1 + sum(fails))
        settle(loop)
        stats = eventually(lambda: next((s for s in [call_in_loop(loop, pool.stats)] if s.up), None))
        assert stats is not None
        assert (stats.leases, stats.waiting, stats.rests) == (0, 0, 0)
        assert server.stats().accepted == 1 + sum(fails)


def a_pool_closed_by_many_answers_everybody(door: Callable[..., None], serve: Serve, loop: EventLoop) -> None:
    count = 20
    for round_number in range(10):
        answered: list[tuple[int, int]] = []
        lent: list[Lease] = []
        lost: list[Lease] = []
        with pool_of(serve, loop, size=2, max_outstanding=round_number + 1) as (pool, _):
            if round_number % 2:
                pool.start()
                eventually(lambda pool=pool: call_in_loop(loop, pool.stats).up == 2)

            def answer(
                key: tuple[int, int],
                lease: Lease | None,
                answered: list[tuple[int, int]] = answered,
                lent: list[Lease] = lent,
                lost: list[Lease] = lost,
            ) -> None:
                answered.append(key)
                if lease is not None:
                    lent.append(lease)
                    lease.lost_callback = lost.append

            def work(i: int, pool: ConnectionPool = pool, answer: Callable[..., None] = answer) -> None:
                pool.start()
                for n in range(count):
                    pool.request(functools.partial(answer, (i, n)))
                    if n == i + 10:
                        door(pool)
                door(pool)

            in_threads(work)
            settle(loop)
            assert sorted(answered) == list(itertools.product(EVERYBODY, range(count)))
            eventually(lambda lent=lent, lost=lost: len(lost) >= len(lent))
            settle(loop)
            assert set(lost) == set(lent)
            assert len(lost) == len(lent)
            assert all(lease.is_over for lease in lent)


# --- names ---


class Names(Resolver):
    """Knows the names ``"i-n"``, and notes in which threads it was asked, and by how many at a time."""

    def __init__(self, max_threads: int) -> None:
        super().__init__(max_threads)
        self.threads: set[threading.Thread] = set()
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()

    def look_up(self, host: str, port: int, family: int) -> list[InetAddress]:
        """Return an address made from the name."""
        with self._lock:
            self.threads.add(threading.current_thread())
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        i, _, n = host.partition("-")
        address = InetAddress(f"10.0.{i}.{n}", port)
        with self._lock:
            self._at_once -= 1
        return [address]


def questions_are_answered_once_each(door: Callable[..., Any], serve: Serve, loop: EventLoop) -> None:
    """Every third one is an address in numbers."""
    count = 100
    answers: list[tuple[int, int, list[InetAddress], OSError | None, bool]] = []
    resolver = Names(3)

    def work(i: int) -> None:
        for n in range(count):
            host = f"127.0.{i}.{n}" if n % 3 == 0 else f"{i}-{n}"
            door(
                resolver,
                loop,
                host,
                80,
                lambda found, error, n=n: answers.append((i, n, found, error, loop.is_in_loop_thread())),
            )

    in_threads(work)
    eventually(lambda: len(answers) >= THREADS * count)
    resolver.close()
    settle(loop)
    answers.sort(key=lambda answer: answer[:2])
    assert answers == [
        (i, n, [InetAddress(f"{'10' if n % 3 else '127'}.0.{i}.{n}", 80)], None, True)
        for i in EVERYBODY
        for n in range(count)
    ]
    assert resolver.most_at_once <= 3


def a_resolver_closed_by_many_answers_what_it_took(door: Callable[..., None], serve: Serve, loop: EventLoop) -> None:
    for _ in range(10):
        taken: list[tuple[int, int]] = []
        answered: list[tuple[int, int]] = []
        resolver = Names(3)

        def note(
            key: tuple[int, int], found: object, error: object, answered: list[tuple[int, int]] = answered
        ) -> None:
            answered.append(key)

        def work(
            i: int,
            resolver: Names = resolver,
            taken: list[tuple[int, int]] = taken,
            note: Callable[..., None] = note,
        ) -> None:
            for n in itertools.count():
                if n == 5 * (i + 1):
                    door(resolver)
                    assert not any(thread.is_alive() for thread in resolver.threads)
                try:
                    resolver.resolve(loop, f"{i}-{n}", 80, functools.partial(note, (i, n)))
                except RuntimeError:
                    return
                taken.append((i, n))

        in_threads(work)
        door(resolver)
        settle(loop)
        assert sorted(answered) == sorted(taken)


def the_default_resolver_is_the_same_for_all(door: Callable[..., Resolver], serve: Serve, loop: EventLoop) -> None:
    """In a new process, where nobody has asked for it before."""
    program = f"""
import sys, threading
from pymuduo import Resolver
sys.setswitchinterval(1e-6)
start = threading.Barrier({THREADS})
found = []
def ask():
    start.wait()
    found.append(Resolver.{door.__name__}())
threads = [threading.Thread(target=ask) for _ in range({THREADS})]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len(found), len(set(found)), found[0] is Resolver.{door.__name__}())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=3 * PATIENCE_S, check=False
    )
    assert (done.stdout, done.stderr) == (f"{THREADS} 1 True\n", "")


# --- limits ---


def nobody_comes_in_beyond_the_limits(door: Callable[..., Any], serve: Serve, loop: EventLoop) -> None:
    limits = ConnectionLimits(max_connections=4, max_per_address=2)
    addresses = [InetAddress(f"192.0.2.{n}", 1) for n in range(4)]
    reasons: list[str] = []

    def work(i: int) -> None:
        for n in range(1000):
            address = addresses[(i + n) % len(addresses)]
            reason = limits.admit(address)
            assert 0 <= limits.connections_from(address) <= 2
            if reason is None:
                assert 1 <= limits.connections <= 4
                assert limits.connections_from(address) >= 1
                limits.release(address)
            else:
                reasons.append(reason)

    in_threads(work)
    assert limits.connections == 0
    assert [limits.connections_from(address) for address in addresses] == [0] * len(addresses)
    assert limits.refused_total == len(reasons)
    assert limits.refused_per_address == sum("from there" in reason for reason in reasons)


def each_newcomer_takes_one_token(door: Callable[..., float], serve: Serve, loop: EventLoop) -> None:
    count = 1000
    limits = ConnectionLimits(accept_rate=8, accept_burst=16, clock=lambda: 0.0)
    delays: list[float] = []
    in_threads(lambda i: [delays.append(door(limits)) for _ in range(count)])
    assert sorted(delays) == [max(0.0, (n - 15) / 8) for n in range(1, THREADS * count + 1)]


def refusals_are_reported_once_and_counted(door: Callable[..., None], serve: Serve, loop: EventLoop) -> None:
    count = 200
    now_s = 0.0
    limits = ConnectionLimits(clock=lambda: now_s)
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("pymuduo.connection_limits")
    log.addHandler(handler)
    try:
        in_threads(lambda i: [door(limits, "many", InetAddress("192.0.2.1", 1), "full") for _ in range(count)])
        now_s = 2.0
        door(limits, "many", InetAddress("192.0.2.1", 1), "full")
    finally:
        log.removeHandler(handler)
    assert lines == [
        "many: refused 192.0.2.1:1: full",
        f"many: refused 192.0.2.1:1: full ({THREADS * count - 1} more refused since the last such line)",
    ]


# --- threads, time-outs ---


def the_number_of_those_watched_is_that_of_those_who_are_there(
    door: Callable[..., int], serve: Serve, loop: EventLoop
) -> None:
    count = 20
    timeouts = IdleTimeouts(read_s=0.1, callback=lambda connection, kind: None)
    server = serve(2, idle_timeouts=timeouts, message_callback=lambda c, b, t: c.send(b))

    def work(i: int) -> None:
        for _ in range(count):
            with server.connect() as client:
                client.sendall(b"x")
                receive_exactly(client, 1)
                assert 1 <= door(timeouts) <= THREADS * count

    in_threads(work)
    eventually(lambda: door(timeouts) == 0)


def a_thread_pool_joined_by_many_has_ended_for_all_of_them(
    door: Callable[..., bool], serve: Serve, loop: EventLoop
) -> None:
    for _ in range(10):
        own: list[threading.Thread] = []
        may_end = threading.Event()

        def begin(one: EventLoop, own: list[threading.Thread] = own, may_end: threading.Event = may_end) -> None:
            own.append(threading.current_thread())
            one.call_at_close(lambda: may_end.wait(PATIENCE_S))

        pool = call_in_loop(loop, lambda: EventLoopThreadPool(loop, "many", 3))
        call_in_loop(loop, pool.start, begin)
        call_in_loop(loop, pool.quit, lambda: None)
        all_have_asked = threading.Barrier(THREADS, may_end.set)

        def work(
            i: int,
            pool: EventLoopThreadPool = pool,
            own: list[threading.Thread] = own,
            all_have_asked: threading.Barrier = all_have_asked,
        ) -> None:
            assert not door(pool, 0)
            all_have_asked.wait(PATIENCE_S)
            assert door(pool, PATIENCE_S)
            assert not any(thread.is_alive() for thread in own)

        in_threads(work)
        assert len(own) == 3


DOORS: list[tuple[Any, Callable[..., None]]] = [
    (send_file, files_leave_in_order_and_each_is_told_of_once),
    (Codec.send, messages_leave_whole_and_in_order),
    (Codec.send_all, messages_leave_whole_and_in_order),
    (pipe, pipes_made_by_many_carry_everything),
    (Pipe.force_close, a_pipe_closed_by_many_ends_once),
    (UdpSocket.start, a_udp_socket_started_by_many_hears_each_datagram_once),
    (UdpSocket.connect, datagrams_reach_one_of_the_chosen_peers_and_in_the_end_the_last),
    (UdpSocket.send, datagrams_arrive_once_each_and_in_order),
    (UdpSocket.send_to, datagrams_arrive_once_each_and_in_order),
    (UdpSocket.close, a_udp_socket_closed_by_many_counts_what_it_took),
    (ConnectionPool.start, a_pool_started_by_many_connects_each_member_once),
    (ConnectionPool.request, requests_are_answered_once_each_and_in_order),
    (ConnectionPool.close, a_pool_closed_by_many_answers_everybody),
    (Lease.done, a_lease_ended_by_many_ends_once),
    (Lease.failed, a_lease_ended_by_many_ends_once),
    (Resolver.resolve, questions_are_answered_once_each),
    (Resolver.close, a_resolver_closed_by_many_answers_what_it_took),
    (Resolver.default, the_default_resolver_is_the_same_for_all),
    (ConnectionLimits.admit, nobody_comes_in_beyond_the_limits),
    (ConnectionLimits.release, nobody_comes_in_beyond_the_limits),
    (ConnectionLimits.connections_from, nobody_comes_in_beyond_the_limits),
    (ConnectionLimits.delay_s, each_newcomer_takes_one_token),
    (ConnectionLimits.report, refusals_are_reported_once_and_counted),
    (IdleTimeouts.__len__, the_number_of_those_watched_is_that_of_those_who_are_there),
    (EventLoopThreadPool.join, a_thread_pool_joined_by_many_has_ended_for_all_of_them),
]


@pytest.mark.parametrize(("door", "promise"), DOORS, ids=[door.__qualname__ for door, _ in DOORS])
def test_a_door_keeps_its_promise_to_eight_threads_at_once(door, promise, serve, loop_thread):
    promise(door, serve, loop_thread)


# --- none is missing ---

EXEMPT = {
    "ProxyProtocol.is_trusted": "reads what never changes",
    "Resolver.look_up": "has no state: it asks the system",
    "TcpConnection.discard": "for its owner, of a connection that nobody else has seen",
    "TcpConnection.send_region": "what send_file calls",
}

_ANY_THREAD = re.compile(r"\bany\s+thread\b|\bthread-safe\b", re.IGNORECASE)
_ALL_OF_A_CLASS = re.compile(r"\b(from|thread\s+rule:)\s+any\s+thread\b", re.IGNORECASE)
_CONSTRUCTOR = re.compile(r"\bmade\s+in\s+any\s+thread\b", re.IGNORECASE)


def public_modules() -> list[ModuleType]:
    return [importlib.import_module(f"pymuduo{name}") for name in ("", ".codec", ".codec.protobuf", ".poller")]


def methods_of(cls: type) -> Iterator[tuple[str, Any]]:
    """Yield the names and functions of the library's public methods that a class has, operators included."""
    for owner in cls.__mro__:
        if owner.__module__.partition(".")[0] == "pymuduo":
            for name, value in vars(owner).items():
                function = getattr(value, "__func__", value)  # of a static or class method
                if callable(function) and (name.startswith("__") or not name.startswith("_")):
                    yield f"{owner.__name__}.{name}", function


def doors_by_docstring() -> Iterator[str]:
    """Yield the functions, classes (to be made) and methods that say so themselves, or whose class does."""
    for module in public_modules():
        for name in module.__all__:
            value = getattr(module, name)
            text = value.__doc__ or "" if callable(value) else ""
            if not isinstance(value, type):
                if _ANY_THREAD.search(text):
                    yield name
                continue
            if _CONSTRUCTOR.search(text):
                yield name
            for method, function in methods_of(value):
                is_of_all = _ALL_OF_A_CLASS.search(text) is not None and "__" not in method
                if is_of_all or _ANY_THREAD.search(function.__doc__ or ""):
                    yield method


def doors_by_section() -> Iterator[str]:
    """Yield the methods that the reference has below a heading that says so."""
    for page in (ROOT / "docs" / "reference").glob("*.md"):
        is_below = False
        for line in page.read_text().splitlines():
            if line.startswith("#### "):
                if is_below:
                    yield line.removeprefix("#### ")
            elif line.startswith("#"):
                is_below = _ANY_THREAD.search(line) is not None


def test_every_method_that_is_documented_for_any_thread_is_among_the_doors():
    hammered = {door.__qualname__ for door, _ in [*test_many_threads.DOORS, *DOORS]}
    documented = {*doors_by_docstring(), *doors_by_section()}
    assert documented - hammered - EXEMPT.keys() == set()
    assert hammered - documented == set()
    assert EXEMPT.keys() - documented == set()
    assert EXEMPT.keys() & hammered == set()


def test_the_table_of_doors_in_the_documentation_is_complete():
    text = (ROOT / "docs" / "design" / "architecture.md").read_text()
    section = text.partition("## Who may call what\n")[2].partition("\n## ")[0]
    named = set()
    for row in [line for line in section.splitlines() if line.startswith("| ")]:
        first, others = row.split(" | ", 1)
        for owner in re.findall(r"\w+", first):
            for name in re.findall(r"`(?:\w+\.)?(\w+)", others):
                named.add(name if owner in ("functions", name) else f"{owner}.{name}")
    documented = {*doors_by_docstring(), *doors_by_section()} - EXEMPT.keys()
    assert {re.sub(r"__(\w+)__", r"\1", door) for door in documented} - named == set()
