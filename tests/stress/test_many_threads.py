"""Doors hammered from eight threads, with the interpreter switching threads as often as it can.

Here are those of loops, connections, servers and clients, alone and together; the others are in ``test_doors``, and so
is the test that none is missing.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import random
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from conftest import PATIENCE_S, call_in_loop, eventually, receive_all, receive_exactly
from eight_threads import EVERYBODY, THREADS, Peer, Serve, in_threads, settle
from pymuduo import (
    Buffer,
    ConnectionLimits,
    ConnectionState,
    EventLoop,
    EventLoopThread,
    IdleTimeouts,
    InetAddress,
    LoopStats,
    ProxyProtocol,
    ServerStats,
    TcpClient,
    TcpConnection,
    TcpServer,
    Timer,
    Timestamp,
    encode_proxy_header,
)
from targets import nobody

pytestmark = pytest.mark.usefixtures("switch_often")


# --- what each door promises ---


def functors_run_once_each_and_in_order(door: Callable[..., None], serve: Serve, loop: EventLoop) -> None:
    count = 5000
    ran: list[tuple[int, int, bool]] = []

    def run(i: int, n: int) -> None:
        ran.append((i, n, loop.is_in_loop_thread()))

    in_threads(lambda i: [door(loop, run, i, n) for n in range(count)])
    settle(loop)
    assert len(ran) == THREADS * count
    for i in EVERYBODY:
        assert [entry for entry in ran if entry[0] == i] == [(i, n, True) for n in range(count)]


def posts_say_whether_they_run(door: Callable[..., bool], serve: Serve, loop: EventLoop) -> None:
    """The loop is closed while eight threads post: what it took has run once, in order, and the rest never."""
    for _ in range(10):
        ran: list[tuple[int, int]] = []
        taken: list[list[tuple[int, int]]] = [[] for _ in EVERYBODY]
        thread = EventLoopThread(name="brief")
        brief = thread.start_loop()
        all_have_begun = threading.Barrier(THREADS + 1)
        is_closed = threading.Event()

        def work(
            i: int,
            brief: EventLoop = brief,
            ran: list[tuple[int, int]] = ran,
            taken: list[list[tuple[int, int]]] = taken,
            all_have_begun: threading.Barrier = all_have_begun,
            is_closed: threading.Event = is_closed,
        ) -> None:
            for n in range(1000):
                if n == 100:
                    all_have_begun.wait(PATIENCE_S)  # from here on it may be closed
                if not door(brief, ran.append, ((i, n),)):
                    break
                taken[i].append((i, n))
            assert is_closed.wait(PATIENCE_S)
            assert not door(brief, ran.append, ((i, -1),))

        user = threading.Thread(target=in_threads, args=(work,))
        user.start()
        all_have_begun.wait(PATIENCE_S)
        assert thread.stop(PATIENCE_S)
        is_closed.set()
        user.join()
        for i in EVERYBODY:
            assert [entry for entry in ran if entry[0] == i] == taken[i]


def a_loops_stats_only_grow_and_are_exact_in_the_end(
    door: Callable[..., LoopStats], serve: Serve, loop: EventLoop
) -> None:
    count = 1000
    settle(loop)
    before = call_in_loop(loop, loop.stats)

    def work(i: int) -> None:
        last = door(loop)
        for _ in range(count):
            loop.queue_in_loop(int)
            stats = door(loop)
            for now, then in zip(stats[:-1], last[:-1], strict=True):
                assert now >= then
            last = stats

    in_threads(work)
    settle(loop)
    after = call_in_loop(loop, loop.stats)
    assert after.functors == before.functors + THREADS * count + 3  # with the two of settle, and the one that asks
    assert after.pending_functors == 0
    assert after.wakeups - before.wakeups <= after.iterations - before.iterations


def timers_expire_once_each(door: Callable[..., Timer], serve: Serve, loop: EventLoop) -> None:
    count = 1000
    fired: list[tuple[int, int]] = []

    def work(i: int) -> None:
        rng = random.Random(i)
        for n in range(count):
            delay_s = rng.choice((-1.0, 0.0, rng.random() / 100))
            when = Timestamp.now() + delay_s if door is EventLoop.run_at else delay_s
            door(loop, when, fired.append, (i, n))

    in_threads(work)
    eventually(lambda: call_in_loop(loop, lambda: loop.timer_count) == 0)
    settle(loop)
    assert sorted(fired) == list(itertools.product(EVERYBODY, range(count)))


def timers_that_repeat_do_so_until_they_are_cancelled(
    door: Callable[..., Timer], serve: Serve, loop: EventLoop
) -> None:
    count, times, interval_us = 20, 5, 1000
    begun_us: dict[tuple[int, int], int] = {}
    timers: dict[tuple[int, int], Timer] = {}
    calls: dict[tuple[int, int], list[int]] = {key: [] for key in itertools.product(EVERYBODY, range(count))}

    def fire(key: tuple[int, int]) -> None:
        calls[key].append(time.monotonic_ns() // 1000 - begun_us[key])
        if len(calls[key]) >= times and key in timers:  # the thread may not even know it yet
            timers[key].cancel()
            loop.queue_in_loop(calls[key].append, sys.maxsize)

    def work(i: int) -> None:
        for n in range(count):
            begun_us[i, n] = time.monotonic_ns() // 1000
            timers[i, n] = door(loop, interval_us / 1e6, fire, (i, n))

    in_threads(work)
    eventually(lambda: all(moments[-1:] == [sys.maxsize] for moments in calls.values()))
    assert call_in_loop(loop, lambda: loop.timer_count) == 0
    for moments in calls.values():
        assert len(moments) > times
        assert moments[-1] == sys.maxsize  # nothing came after it was cancelled
        assert all(moment >= (n + 1) * interval_us for n, moment in enumerate(moments))


def timers_cancelled_in_the_loop_are_never_called_again(
    door: Callable[..., None], serve: Serve, loop: EventLoop
) -> None:
    """Each thread sets timers, and cancels everybody's: by hopping, and in the loop, where it holds at once."""
    count = 200
    fired: list[int] = []
    cancelled: set[int] = set()
    too_late: list[int] = []
    timers: list[tuple[int, Timer]] = []
    numbers = itertools.count()
    all_set = threading.Barrier(THREADS)

    def cancel(timer: Timer) -> None:
        if door is EventLoop.cancel:
            door(loop, timer)
        else:
            door(timer)

    def fire(number: int) -> None:
        fired.append(number)
        if number in cancelled:
            too_late.append(number)

    def cancel_in_loop(number: int, timer: Timer) -> None:
        cancel(timer)
        cancelled.add(number)

    def work(i: int) -> None:
        rng = random.Random(i)
        for _ in range(count):
            number = next(numbers)
            delay_s = rng.choice((0.0, rng.random() / 100, 3600.0))
            once = loop.run_after(delay_s, fire, number)
            timers.append((number, once))
            if number % 10 == 0:
                number = next(numbers)
                timers.append((number, loop.run_every(0.001, fire, number)))
        all_set.wait(PATIENCE_S)
        mine = timers[:]
        rng.shuffle(mine)
        for _, timer in mine[:count]:
            cancel(timer)
            cancel(timer)
        for number, timer in mine:
            if number % THREADS == i:
                loop.run_in_loop(cancel_in_loop, number, timer)

    in_threads(work)
    settle(loop)
    assert call_in_loop(loop, lambda: loop.timer_count) == 0
    assert len(cancelled) == len(timers) == next(numbers)
    assert too_late == []
    repeating = {number for number, timer in timers if timer.interval}
    once = [number for number in fired if number not in repeating]
    assert len(once) == len(set(once))


def run_returns_after_every_quit(door: Callable[..., None], serve: Serve, loop: EventLoop) -> None:
    count = 100
    returns = [0]
    ran: list[tuple[int, int]] = []
    made: queue.Queue[EventLoop] = queue.Queue()
    is_over = threading.Event()

    def run_again_and_again() -> None:
        with EventLoop("often") as often:
            made.put(often)
            while not is_over.is_set():
                often.run()
                returns[0] += 1

    runner = threading.Thread(target=run_again_and_again)
    runner.start()
    often = made.get(timeout=PATIENCE_S)

    def work(i: int) -> None:
        for n in range(count):
            before = returns[0]
            often.queue_in_loop(ran.append, (i, n))
            door(often)
            eventually(lambda before=before: returns[0] > before)

    try:
        in_threads(work)
    finally:
        is_over.set()
        door(often)
        runner.join(PATIENCE_S)
    assert not runner.is_alive()
    for i in EVERYBODY:
        assert [entry for entry in ran if entry[0] == i] == [(i, n) for n in range(count)]


def sends_keep_their_order_and_lose_nothing(door: Callable[..., bool], serve: Serve, loop: EventLoop) -> None:
    count = 2000
    peer = Peer(serve)

    def send(i: int) -> None:
        for n in range(count):
            record = b"%d %06d\n" % (i, n)
            data = (record, bytearray(record), memoryview(record), Buffer(record))[n % 4]
            assert door(peer.connection, data)

    with peer.socket:
        sender = threading.Thread(target=in_threads, args=(send,))
        sender.start()
        stream = receive_exactly(peer.socket, THREADS * count * 9)
        sender.join()
        peer.connection.shutdown()
        assert receive_all(peer.socket) == b""
    records = stream.splitlines()
    for i in EVERYBODY:
        assert [line for line in records if line.startswith(b"%d " % i)] == [b"%d %06d" % (i, n) for n in range(count)]


def what_was_sent_before_a_shutdown_arrives_and_then_the_end(
    door: Callable[..., None], serve: Serve, loop: EventLoop
) -> None:
    count = 50
    for _ in range(10):
        peer = Peer(serve)
        all_sent = threading.Barrier(THREADS)

        def work(i: int, peer: Peer = peer, all_sent: threading.Barrier = all_sent) -> None:
            for n in range(2 * count):
                if n == count:
                    all_sent.wait(PATIENCE_S)  # from here on any of the others may be the one who ends it
                peer.connection.send(b"%d %03d\n" % (i, n))
            door(peer.connection)
            assert not peer.connection.send(b"late")

        with peer.socket:
            in_threads(work)
            records = receive_all(peer.socket).splitlines()
            for i in EVERYBODY:
                mine = [line for line in records if line.startswith(b"%d " % i)]
                assert len(mine) >= count
                assert mine == [b"%d %03d" % (i, n) for n in range(len(mine))]
        assert peer.has_ended_once()


def a_connection_closed_by_many_ends_once(door: Callable[..., None], serve: Serve, loop: EventLoop) -> None:
    for _ in range(10):
        peer = Peer(serve)

        def work(i: int, peer: Peer = peer) -> None:
            if door is TcpConnection.force_close_with_delay:
                door(peer.connection, i / 2000)
            else:
                door(peer.connection)
            assert not peer.connection.send(b"late")

        with peer.socket:
            in_threads(work)
            assert receive_all(peer.socket) == b""
        assert peer.has_ended_once()
        assert call_in_loop(peer.connection.loop, lambda peer=peer: peer.connection.loop.timer_count) == 0


def reading_goes_on_where_it_stopped(door: Callable[..., None], serve: Serve, loop: EventLoop) -> None:
    """Seven threads stop and start it, the eighth is the peer; who comes last has his way."""
    is_to_read = door is TcpConnection.start_read
    other = TcpConnection.stop_read if is_to_read else TcpConnection.start_read
    received: list[bytes] = []
    peer = Peer(serve, message_callback=lambda c, b, t: received.append(b.retrieve_all_as_bytes()))
    sent = [b"%06d\n" % n for n in range(3000)]

    def work(i: int) -> None:
        if i == 0:
            for record in sent:
                peer.socket.sendall(record)
        else:
            for _ in range(500):
                other(peer.connection)
                door(peer.connection)

    with peer.socket:
        in_threads(work)
        settle(peer.connection.loop)
        assert peer.connection.is_reading == is_to_read
        if not is_to_read:
            taken = len(received)
            peer.socket.sendall(b"more\n")
            sent.append(b"more\n")
            with peer.server.connect():
                eventually(lambda: peer.server.server.connection_count == 2)
            eventually(lambda: peer.server.server.connection_count == 1)
            settle(peer.connection.loop)  # it has looked for events since, or the other one would not be gone
            assert len(received) == taken
            other(peer.connection)
        eventually(lambda: sum(map(len, received)) >= sum(map(len, sent)))
    assert b"".join(received) == b"".join(sent)


def a_server_started_by_many_starts_once(door: Callable[..., None], serve: Serve, loop: EventLoop) -> None:
    for _ in range(10):
        begun: list[EventLoop] = []
        server = call_in_loop(loop, lambda: TcpServer(loop, InetAddress.loopback(0), "many"))
        server.thread_num = 2
        server.thread_init_callback = begun.append
        server.message_callback = lambda c, b, t: c.send(b)
        in_threads(lambda i, server=server: door(server))  # type: ignore[misc]
        settle(loop)
        assert len(begun) == 2
        for _ in range(4):
            with socket.create_connection(("127.0.0.1", server.address.port), timeout=PATIENCE_S) as client:
                client.sendall(b"x")
                assert receive_exactly(client, 1) == b"x"
        assert server.stats().accepted == 4
        server.stop()
        assert server.join(PATIENCE_S)


def a_server_stopped_by_many_stops(door: Callable[..., None], serve: Serve, loop: EventLoop) -> None:
    """Some of them start it at the same time: one that was stopped says so, and has no thread and no socket left."""
    for round_number in range(10):
        events: list[str] = []
        refusals: list[str] = []
        server = call_in_loop(loop, lambda: TcpServer(loop, InetAddress.loopback(0), "many"))
        server.thread_num = 2
        server.connection_callback = lambda c, events=events: events.append("up" if c.connected else "down")
        if round_number % 2:
            server.start()
            settle(loop)
        clients = []
        for _ in range(5 * (round_number % 2)):
            clients.append(socket.create_connection(("127.0.0.1", server.address.port), timeout=PATIENCE_S))

        def work(i: int, server: TcpServer = server, refusals: list[str] = refusals) -> None:
            if i % 4 == 3:
                try:
                    server.start()
                except RuntimeError as e:
                    refusals.append(str(e))
            else:
                door(server, (0, 0.001, 5)[i % 3])

        in_threads(work)
        assert server.join(PATIENCE_S)
        assert server.connection_count == 0
        assert events.count("up") == events.count("down")
        assert all("was stopped" in refusal for refusal in refusals)
        for client in clients:
            client.close()


def a_server_joined_by_many_has_ended_for_all_of_them(door: Callable[..., bool], serve: Serve, loop: EventLoop) -> None:
    for _ in range(10):
        own: list[threading.Thread] = []
        server = call_in_loop(loop, lambda: TcpServer(loop, InetAddress.loopback(0), "many"))
        server.thread_num = 2
        server.thread_init_callback = lambda one, own=own: own.append(threading.current_thread())
        server.start()
        settle(loop)
        all_but_last = threading.Barrier(THREADS)
        with socket.create_connection(("127.0.0.1", server.address.port), timeout=PATIENCE_S):

            def work(
                i: int,
                server: TcpServer = server,
                own: list[threading.Thread] = own,
                all_but_last: threading.Barrier = all_but_last,
            ) -> None:
                assert not door(server, 0)
                all_but_last.wait(PATIENCE_S)
                if i == 0:
                    server.stop(0)
                assert door(server, PATIENCE_S)
                assert server.is_stopped
                assert server.connection_count == 0
                assert not any(thread.is_alive() for thread in own)

            in_threads(work)
            assert len(own) == 2


def a_servers_stats_only_grow_and_are_exact_in_the_end(
    door: Callable[..., ServerStats], serve: Serve, loop: EventLoop
) -> None:
    count, size = 20, 100
    server = serve(2, message_callback=lambda c, b, t: c.send(b))

    def work(i: int) -> None:
        last = door(server.server)
        for n in range(1, count + 1):
            with server.connect() as client:
                client.sendall(bytes(size))
                receive_exactly(client, size)
                stats = door(server.server)
                assert 1 <= stats.connections <= stats.accepted <= THREADS * count
                assert stats.accepted >= n
                for now, then in zip(stats[1:], last[1:], strict=True):
                    assert now >= then
                last = stats

    in_threads(work)
    eventually(lambda: server.server.connection_count == 0)
    stats = door(server.server)
    assert stats.accepted == THREADS * count
    assert stats.bytes_received == stats.bytes_sent == THREADS * count * size
    assert stats.connections == stats.refused == stats.failed == 0


def clients_made_by_many_connect_once_each(door: type[TcpClient], serve: Serve, loop: EventLoop) -> None:
    count = 10
    server = serve(1)
    events: dict[str, list[str]] = {f"{i} {n}": [] for i in EVERYBODY for n in range(count)}

    def work(i: int) -> None:
        for n in range(count):
            with door(loop, InetAddress.loopback(server.port), f"{i} {n}") as client:
                mine = events[client.name]
                client.connection_callback = lambda c, mine=mine: mine.append("up" if c.connected else "down")
                client.connect()
                eventually(lambda mine=mine: mine)

    in_threads(work)
    settle(loop)
    assert all(mine == ["up", "down"] for mine in events.values())
    assert call_in_loop(loop, lambda: loop.timer_count) == 0
    eventually(lambda: server.server.stats().accepted >= THREADS * count)  # the last one may still wait for it
    eventually(lambda: server.server.connection_count == 0)
    assert server.server.stats().accepted == THREADS * count


def a_client_told_by_many_to_connect_does_so_once(door: Callable[..., None], serve: Serve, loop: EventLoop) -> None:
    server = serve(1)
    for number in range(1, 11):
        events: list[str] = []
        with TcpClient(loop, InetAddress.loopback(server.port), "many") as client:
            client.connection_callback = lambda c, events=events: events.append("up" if c.connected else "down")
            in_threads(lambda i, client=client: [door(client) for _ in range(20)])  # type: ignore[misc]
            eventually(lambda client=client: client.connection)
            settle(loop)
            eventually(lambda number=number: server.server.stats().accepted == number)
            assert events == ["up"]
        settle(loop)
        assert events == ["up", "down"]


def a_client_told_by_many_to_disconnect_does_so_once(door: Callable[..., None], serve: Serve, loop: EventLoop) -> None:
    """It would connect again by itself; and some of them tell it to connect, until all have told it to disconnect."""
    server = serve(1)
    for _ in range(10):
        events: list[str] = []
        all_but_last = threading.Barrier(THREADS)
        with TcpClient(loop, InetAddress.loopback(server.port), "many", retry=True) as client:
            client.connection_callback = lambda c, events=events: events.append("up" if c.connected else "down")
            client.connect()
            eventually(lambda client=client: client.connection)

            def work(i: int, client: TcpClient = client, all_but_last: threading.Barrier = all_but_last) -> None:
                for n in range(20):
                    (TcpClient.connect if (i + n) % 2 else door)(client)
                all_but_last.wait(PATIENCE_S)
                door(client)

            in_threads(work)
            settle(loop)
            eventually(lambda events=events: events[-1] == "down")
            assert call_in_loop(loop, lambda: loop.timer_count) == 0
            eventually(lambda: server.server.connection_count == 0)
        settle(loop)
        assert events == ["up", "down"] * (len(events) // 2)


def a_client_told_by_many_to_stop_tries_no_more(door: Callable[..., None], serve: Serve, loop: EventLoop) -> None:
    for _ in range(10):
        failures: list[OSError] = []
        all_but_last = threading.Barrier(THREADS)
        with TcpClient(loop, nobody(), "many", retry=True, retry_delay_s=0.001, max_retry_delay_s=0.001) as client:
            client.connect_failed_callback = lambda c, error, failures=failures: failures.append(error)

            def work(i: int, client: TcpClient = client, all_but_last: threading.Barrier = all_but_last) -> None:
                for n in range(20):
                    (door if (i + n) % 2 else TcpClient.connect)(client)
                all_but_last.wait(PATIENCE_S)
                door(client)

            client.connect()
            eventually(lambda failures=failures: failures)
            in_threads(work)
            tried = call_in_loop(loop, lambda failures=failures: len(failures))
            assert call_in_loop(loop, lambda: loop.timer_count) == 0
            settle(loop)
            assert len(failures) == tried


def a_client_closed_by_many_has_ended_for_good(door: Callable[..., None], serve: Serve, loop: EventLoop) -> None:
    """It would connect again by itself; and some of them tell it to, until they hear that it is closed."""
    server = serve(1)
    for round_number in range(20):
        events: list[str] = []
        failures: list[OSError] = []
        target = nobody() if round_number % 4 == 3 else InetAddress.loopback(server.port)
        client = TcpClient(loop, target, "many", retry=True, retry_delay_s=0.001, max_retry_delay_s=0.001)
        client.connection_callback = lambda c, events=events: events.append("up" if c.connected else "down")
        client.connect_failed_callback = lambda c, error, failures=failures: failures.append(error)
        if round_number % 2:
            client.connect()
            eventually(lambda events=events, failures=failures: events or failures)

        def work(i: int, client: TcpClient = client) -> None:
            if i % 2 == 0:
                with contextlib.suppress(RuntimeError):
                    for _ in range(20):
                        client.connect()
            door(client)
            with pytest.raises(RuntimeError, match="is closed"):
                client.connect()
            door(client)

        in_threads(work)
        settle(loop)
        assert client.connection is None
        assert events == ["up", "down"] * (len(events) // 2)
        assert call_in_loop(loop, lambda: loop.timer_count) == 0
        heard = len(events), len(failures)
        eventually(lambda: server.server.connection_count == 0)
        settle(loop)
        assert (len(events), len(failures)) == heard


DOORS: list[tuple[Any, Callable[..., None]]] = [
    (EventLoop.run_in_loop, functors_run_once_each_and_in_order),
    (EventLoop.queue_in_loop, functors_run_once_each_and_in_order),
    (EventLoop.post, posts_say_whether_they_run),
    (EventLoop.run_at, timers_expire_once_each),
    (EventLoop.run_after, timers_expire_once_each),
    (EventLoop.run_every, timers_that_repeat_do_so_until_they_are_cancelled),
    (EventLoop.cancel, timers_cancelled_in_the_loop_are_never_called_again),
    (Timer.cancel, timers_cancelled_in_the_loop_are_never_called_again),
    (EventLoop.quit, run_returns_after_every_quit),
    (EventLoop.stats, a_loops_stats_only_grow_and_are_exact_in_the_end),
    (TcpConnection.send, sends_keep_their_order_and_lose_nothing),
    (TcpConnection.shutdown, what_was_sent_before_a_shutdown_arrives_and_then_the_end),
    (TcpConnection.force_close, a_connection_closed_by_many_ends_once),
    (TcpConnection.force_close_with_delay, a_connection_closed_by_many_ends_once),
    (TcpConnection.start_read, reading_goes_on_where_it_stopped),
    (TcpConnection.stop_read, reading_goes_on_where_it_stopped),
    (TcpServer.start, a_server_started_by_many_starts_once),
    (TcpServer.stop, a_server_stopped_by_many_stops),
    (TcpServer.join, a_server_joined_by_many_has_ended_for_all_of_them),
    (TcpServer.stats, a_servers_stats_only_grow_and_are_exact_in_the_end),
    (TcpClient, clients_made_by_many_connect_once_each),
    (TcpClient.connect, a_client_told_by_many_to_connect_does_so_once),
    (TcpClient.disconnect, a_client_told_by_many_to_disconnect_does_so_once),
    (TcpClient.stop, a_client_told_by_many_to_stop_tries_no_more),
    (TcpClient.close, a_client_closed_by_many_has_ended_for_good),
]


@pytest.mark.parametrize(("door", "promise"), DOORS, ids=[door.__qualname__ for door, _ in DOORS])
def test_a_door_keeps_its_promise_to_eight_threads_at_once(door, promise, serve, loop_thread):
    promise(door, serve, loop_thread)


def test_what_never_changes_is_the_same_to_every_thread(serve):
    """Names, addresses and loops of connections that come and go, of their server, and of a client of it."""
    server = serve(2, message_callback=lambda c, b, t: c.send(b))
    known: dict[TcpConnection, tuple[object, ...]] = {}
    clients: list[InetAddress] = []
    loops = server.server.thread_pool.loops()

    def facts(connection: TcpConnection) -> tuple[object, ...]:
        assert connection.state in ConnectionState
        return connection.name, connection.local_address, connection.peer_address, connection.loop

    with TcpClient(server.loop, server.server.address, "client") as client:
        client.connect()
        connection = eventually(lambda: client.connection)
        assert connection is not None
        own = facts(connection)

        def work(i: int) -> None:
            for _ in range(50):
                with server.connect() as sock:
                    clients.append(InetAddress(*sock.getsockname()))
                    sock.sendall(b"x")
                    receive_exactly(sock, 1)
                    for one in server.server.connections:
                        assert known.setdefault(one, facts(one)) == facts(one)
                    assert (client.name, client.target, client.loop) == ("client", server.server.address, server.loop)
                    assert facts(connection) == own
                    assert (server.server.name, server.server.loop, server.loop.name) == ("test", server.loop, "base")

        in_threads(work)
        clients.append(connection.local_address)  # type: ignore[arg-type]
    names, local, peers, owners = zip(*known.values(), strict=True)
    assert len(set(names)) == len(names) == 50 * THREADS + 1
    assert set(local) == {server.server.address}
    assert sorted(map(str, peers)) == sorted(map(str, clients))
    assert set(owners) == set(loops)


def test_a_shutdown_behind_the_sends_of_its_thread_loses_none_of_them(serve):
    newcomers: queue.Queue[TcpConnection] = queue.Queue()
    server = serve(2, connection_callback=lambda c: newcomers.put(c) if c.connected else None)
    for _ in range(50):
        with server.connect() as client:
            connection = newcomers.get(timeout=PATIENCE_S)

            def send_and_shut_down(connection: TcpConnection = connection) -> None:
                for n in range(100):
                    assert connection.send(b"%04d" % n)
                connection.shutdown()
                assert not connection.send(b"late")

            thread = threading.Thread(target=send_and_shut_down)
            thread.start()
            assert receive_all(client) == b"".join(b"%04d" % n for n in range(100))
            thread.join()


def test_every_door_at_once_while_peers_come_and_go(serve):
    """No exception, no hang, no connection left: whatever the order in which the calls arrive."""
    events: dict[str, list[bool]] = {}

    def on_connection(connection: TcpConnection) -> None:
        events.setdefault(connection.name, []).append(connection.connected)

    server = serve(2, connection_callback=on_connection, message_callback=lambda c, b, t: c.send(b))

    def work(i: int) -> None:
        for n in range(60):
            with server.connect() as client:
                client.sendall(b"hello")
                for connection in server.server.connections:
                    door = (n + i) % 7
                    if door == 0:
                        connection.send(b"x" * 1000)
                    elif door == 1:
                        connection.stop_read()
                    elif door == 2:
                        connection.start_read()
                    elif door == 3:
                        connection.shutdown()
                    elif door == 4:
                        connection.force_close()
                    elif door == 5:
                        connection.force_close_with_delay(0.001)
                    else:
                        assert connection.state in ConnectionState
                        assert connection.name.startswith("test-")

    in_threads(work)
    # Those whose reading was stopped with bytes unread wait for start_read: let all of them go.
    server.server.stop(0)
    assert server.server.join(PATIENCE_S)
    assert server.server.connection_count == 0
    assert all(history == [True, False] for history in events.values())


@pytest.mark.parametrize(("size", "count"), [(8, 200), (65536, 25)])  # many small ones; and such as leave the GIL
def test_broadcast_from_eight_threads_reaches_everyone_whole_and_in_order(serve, size, count):
    server = serve(2)
    messages = [[b"%d %05d\n" % (i, n) * (size // 8) for n in range(count)] for i in EVERYBODY]
    streams: list[bytes] = []

    def receive(client: socket.socket) -> None:
        with client:
            streams.append(receive_exactly(client, THREADS * count * size))

    receivers = [threading.Thread(target=receive, args=(server.connect(),)) for _ in range(5)]
    eventually(lambda: server.server.connection_count == 5 and all(c.connected for c in server.server.connections))
    for receiver in receivers:
        receiver.start()

    def broadcast(i: int) -> None:
        for message in messages[i]:
            for connection in server.server.connections:
                assert connection.send(message)

    in_threads(broadcast)
    for receiver in receivers:
        receiver.join()
    assert len(streams) == 5
    for stream in streams:
        received = [stream[at : at + size] for at in range(0, len(stream), size)]
        for i in EVERYBODY:
            assert [one for one in received if one.startswith(b"%d " % i)] == messages[i]


def test_addresses_may_be_read_while_a_load_balancer_says_what_they_are(serve):
    server = serve(2, proxy_protocol=ProxyProtocol(["127.0.0.1"]))
    header = encode_proxy_header(InetAddress("192.0.2.7", 1), InetAddress("192.0.2.8", 2))
    are_done = threading.Event()

    def come_and_go() -> None:
        for _ in range(300):
            with server.connect() as client:
                client.sendall(header)
        are_done.set()

    def read(i: int) -> None:
        while not are_done.is_set():
            for connection in server.server.connections:
                assert connection.peer_address.ip in {"127.0.0.1", "192.0.2.7"}
                assert connection.local_address.ip in {"127.0.0.1", "192.0.2.8"}

    visitor = threading.Thread(target=come_and_go)
    visitor.start()
    in_threads(read)
    visitor.join()


@pytest.mark.parametrize("acceptors", ["one", "per-loop"])
def test_a_servers_settings_may_be_replaced_while_connections_come(serve, acceptors):
    """As a certificate is renewed. Without one no handshake succeeds, but each connection takes all settings."""
    server = serve(2, acceptors=acceptors, ssl_context=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    are_done = threading.Event()

    def come_and_go() -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(are_done.set)
            for _ in range(300):
                with server.connect() as client:
                    client.sendall(b"no hello")

    def replace() -> None:
        made = server.server
        made.ssl_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.limits = ConnectionLimits(max_connections=10_000)
        made.idle_timeouts = IdleTimeouts(read_s=3600)
        made.connection_callback = lambda connection: None
        made.message_callback = lambda connection, buffer, when: None
        made.handshake_failed_callback = lambda connection, error: None

    visitor = threading.Thread(target=come_and_go)
    visitor.start()
    while not are_done.is_set():
        call_in_loop(server.loop, replace)
    visitor.join()
    eventually(lambda: server.server.connection_count == 0)


def test_stats_count_nothing_twice_while_connections_end(serve: Serve) -> None:
    server = serve(2, message_callback=lambda c, b, t: b.retrieve_all())
    ended = threading.Event()
    told: list[tuple[int, int]] = []

    def look() -> None:
        while not ended.is_set():
            stats = server.server.stats()
            told.append((stats.bytes_received, stats.messages_received))

    looker = threading.Thread(target=look)
    with contextlib.ExitStack() as idle:
        for _ in range(100):  # to be looked at, which takes time
            idle.enter_context(server.connect())
        looker.start()
        try:
            for _ in range(1000):
                with server.connect() as client:
                    client.sendall(b"1")
            eventually(lambda: server.server.stats().bytes_received == 1000)
            eventually(lambda: server.server.connection_count == 100)
        finally:
            ended.set()
            looker.join()
    for counts in zip(*told, strict=True):
        assert list(counts) == sorted(counts)
    assert server.server.stats().bytes_received == 1000
