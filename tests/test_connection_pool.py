"""ConnectionPool: who gets a connection, when, and what becomes of servers that fail. Over real servers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from conftest import PATIENCE_S, ServerThread, call_in_loop, eventually
from pymuduo import Buffer, ConnectionPool, EventLoop, InetAddress, Lease, PoolStats, TcpConnection, Timestamp
from targets import nobody


class LineServer:
    """Settings of a server that answers each line with ``name:line``, or does not answer."""

    def __init__(self, name: str = "a") -> None:
        self.name = name
        self.lines: list[bytes] = []
        self.answers = True
        self.ups = 0

    def settings(self) -> dict[str, Any]:
        return {"connection_callback": self.on_connection, "message_callback": self.on_message}

    def on_connection(self, connection: TcpConnection) -> None:
        if connection.connected:
            self.ups += 1

    def on_message(self, connection: TcpConnection, buffer: Buffer, receive_time: Timestamp) -> None:
        while (end := buffer.find(b"\n")) >= 0:
            line = buffer.retrieve_as_bytes(end + 1)
            self.lines.append(line)
            if line == b"leave\n":
                connection.force_close()
            elif self.answers:
                connection.send(self.name.encode() + b":" + line)


class Asker:
    """A client of the pool: asks, and notes the answers. Its methods run in the pool's loop."""

    def __init__(self, pool: ConnectionPool) -> None:
        self.pool = pool
        self.answers: list[str] = []
        pool.message_callback = self.on_message

    def ask(self, line: str) -> None:
        """Ask from any thread."""
        self.pool.request(lambda lease: self.send(lease, line))

    def send(self, lease: Lease | None, line: str) -> None:
        if lease is None:
            self.answers.append(f"none for {line}")
            return
        lease.lost_callback = lambda lost: self.answers.append(f"lost {line}")
        if lease.connection.context is None:
            lease.connection.context = []
        lease.connection.context.append(lease)
        lease.connection.send(line.encode() + b"\n")

    def on_message(self, connection: TcpConnection, buffer: Buffer, receive_time: Timestamp) -> None:
        while (end := buffer.find(b"\n")) >= 0:
            self.answers.append(buffer.retrieve_as_bytes(end + 1).decode().strip())
            connection.context.pop(0).done()

    def wait_for(self, *answers: str) -> None:
        try:
            eventually(lambda: sorted(self.answers) == sorted(answers))
        except AssertionError:
            assert sorted(self.answers) == sorted(answers)


MakePool = Callable[..., ConnectionPool]


@pytest.fixture
def pool_of(loop_thread: EventLoop) -> Iterator[MakePool]:
    """Return a function that makes a pool in a loop of its own; it is started unless asked otherwise."""
    pools: list[ConnectionPool] = []

    def make(*targets: InetAddress, size: int = 1, **settings: Any) -> ConnectionPool:
        start = settings.pop("start", True)
        pool = call_in_loop(loop_thread, lambda: ConnectionPool(loop_thread, targets, "pool", size=size, **settings))
        pools.append(pool)
        pool.context = Asker(pool)
        if start:
            pool.start()
        return pool

    yield make
    for pool in pools:
        pool.close()


def address_of(server: ServerThread) -> InetAddress:
    return InetAddress.loopback(server.port)


def stats_of(pool: ConnectionPool) -> PoolStats:
    return call_in_loop(pool.loop, pool.stats)


def wait_for_up(pool: ConnectionPool, count: int) -> None:
    eventually(lambda: stats_of(pool).up == count)


def lease_of(pool: ConnectionPool) -> Lease | None:
    return call_in_loop(pool.loop, pool.lease)


def some_lease_of(pool: ConnectionPool) -> Lease:
    lease = lease_of(pool)
    assert lease is not None
    return lease


# --- asking ---


def test_a_question_is_answered(serve, pool_of):
    pool = pool_of(address_of(serve(0, **LineServer().settings())))
    asker: Asker = pool.context
    asker.ask("hello")
    asker.wait_for("a:hello")


def test_who_asks_before_anything_is_up_waits_for_it(serve, pool_of):
    server = serve(0, **LineServer().settings())
    pool = pool_of(address_of(server), start=False)
    asker: Asker = pool.context
    asker.ask("early")
    assert stats_of(pool).waiting == 1
    pool.start()
    pool.start()
    asker.wait_for("a:early")


def test_callers_are_served_in_order_over_one_connection(serve, pool_of):
    lines = LineServer()
    pool = pool_of(address_of(serve(0, **lines.settings())))
    asker: Asker = pool.context
    call_in_loop(pool.loop, lambda: [asker.ask(str(number)) for number in range(50)])
    eventually(lambda: len(asker.answers) == 50)
    assert asker.answers == [f"a:{number}" for number in range(50)]
    assert lines.ups == 1


def test_a_free_connection_is_lent_at_once_in_the_loops_thread(serve, pool_of):
    pool = pool_of(address_of(serve(0, **LineServer().settings())))
    wait_for_up(pool, 1)

    def ask() -> list[Lease | None]:
        leases: list[Lease | None] = []
        pool.request(leases.append)
        return leases

    [lease] = call_in_loop(pool.loop, ask)
    assert lease is not None
    assert lease.connection.connected
    lease.done()


def test_connections_are_spread_over_the_targets(serve, pool_of):
    servers = [serve(0, **LineServer(name).settings()) for name in "ab"]
    pool = pool_of(*map(address_of, servers), size=4)
    wait_for_up(pool, 4)
    eventually(lambda: [server.server.connection_count for server in servers] == [2, 2])
    asker: Asker = pool.context
    call_in_loop(pool.loop, lambda: [asker.ask("x") for _ in range(4)])
    asker.wait_for("a:x", "a:x", "b:x", "b:x")


def test_the_least_busy_connection_is_lent_and_none_more_often_than_allowed(serve, pool_of):
    pool = pool_of(address_of(serve(0, **LineServer().settings())), size=2, max_outstanding=2)
    wait_for_up(pool, 2)
    leases = [some_lease_of(pool) for _ in range(4)]
    assert leases[0].connection is not leases[1].connection
    assert lease_of(pool) is None
    assert stats_of(pool) == PoolStats(members=2, up=2, resting=0, leases=4, waiting=0, rests=0)
    leases[1].done()
    again = some_lease_of(pool)
    assert again.connection is leases[1].connection
    assert again is not leases[1]


def test_pipelined_questions_share_a_connection(serve, pool_of):
    lines = LineServer()
    pool = pool_of(address_of(serve(0, **lines.settings())), max_outstanding=10)
    asker: Asker = pool.context
    call_in_loop(pool.loop, lambda: [asker.ask(str(number)) for number in range(100)])
    eventually(lambda: len(asker.answers) == 100)
    assert asker.answers == [f"a:{number}" for number in range(100)]
    assert lines.ups == 1


def test_many_threads_ask_at_once_and_each_is_answered(serve, pool_of):
    pool = pool_of(address_of(serve(0, **LineServer().settings())), size=3, max_outstanding=2)
    asker: Asker = pool.context
    threads = [
        threading.Thread(target=lambda n=number: [asker.ask(f"{n}.{turn}") for turn in range(100)])
        for number in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    asker.wait_for(*[f"a:{number}.{turn}" for number in range(4) for turn in range(100)])
    assert stats_of(pool).leases == 0


# --- leases ---


def test_a_lease_is_given_back_once_from_any_thread(serve, pool_of):
    pool = pool_of(address_of(serve(0, **LineServer().settings())))
    wait_for_up(pool, 1)
    first = some_lease_of(pool)
    first.done()
    first.done()
    eventually(lambda: stats_of(pool).leases == 0)
    second = some_lease_of(pool)
    first.failed()
    call_in_loop(pool.loop, lambda: None)
    assert first.is_over
    assert not second.is_over
    assert second.connection.connected
    assert lease_of(pool) is None


def test_a_lease_ends_with_its_block(serve, pool_of):
    pool = pool_of(address_of(serve(0, **LineServer().settings())))
    wait_for_up(pool, 1)

    def well() -> TcpConnection:
        with some_lease_of(pool) as lease:
            return lease.connection

    def badly() -> None:
        with some_lease_of(pool):
            raise ValueError("no answer")

    connection = call_in_loop(pool.loop, well)
    assert stats_of(pool).leases == 0
    assert connection.connected
    with pytest.raises(ValueError, match="no answer"):
        call_in_loop(pool.loop, badly)
    eventually(lambda: connection.disconnected)
    wait_for_up(pool, 1)


def test_a_failed_lease_closes_its_connection_and_another_one_comes(serve, pool_of):
    lines = LineServer()
    pool = pool_of(address_of(serve(0, **lines.settings())))
    wait_for_up(pool, 1)
    lease = some_lease_of(pool)
    lease.failed()
    eventually(lambda: lease.connection.disconnected)
    asker: Asker = pool.context
    eventually(lambda: lines.ups == 2)
    asker.ask("x")
    eventually(lambda: lines.lines == [b"x\n"])


def test_leases_of_a_connection_that_goes_down_are_lost_and_told(serve, pool_of):
    lines = LineServer()
    pool = pool_of(address_of(serve(0, **lines.settings())), max_outstanding=3)
    asker: Asker = pool.context
    lines.answers = False
    call_in_loop(pool.loop, lambda: [asker.ask(line) for line in ("one", "leave", "two")])
    asker.wait_for("lost one", "lost leave", "lost two")
    lines.answers = True
    wait_for_up(pool, 1)
    asker.ask("again")
    asker.wait_for("lost one", "lost leave", "lost two", "a:again")


@pytest.mark.provokes_errors("bad request callback", "bad lost callback")
def test_callbacks_that_raise_are_reported_and_keep_no_connection(serve, pool_of, caplog):
    pool = pool_of(address_of(serve(0, **LineServer().settings())))
    wait_for_up(pool, 1)

    def fail(lease: Lease | None) -> None:
        raise ValueError("bad request callback")

    pool.request(fail)
    eventually(lambda: "bad request callback" in caplog.text)
    wait_for_up(pool, 1)
    lease = eventually(lambda: lease_of(pool))
    assert lease is not None

    def fail_again(lost: Lease) -> None:
        raise ValueError("bad lost callback")

    lease.lost_callback = fail_again
    lease.connection.force_close()
    eventually(lambda: "bad lost callback" in caplog.text)
    wait_for_up(pool, 1)


# --- waiting ---


def test_who_waits_for_too_long_gets_none(serve, pool_of):
    pool = pool_of(address_of(serve(0, **LineServer().settings())), wait_s=0.05)
    wait_for_up(pool, 1)
    lease = some_lease_of(pool)
    asker: Asker = pool.context
    asker.ask("one")
    asker.ask("two")
    asker.wait_for("none for one", "none for two")
    lease.done()
    assert stats_of(pool).waiting == 0


def test_no_more_wait_than_may(pool_of):
    pool = pool_of(nobody(), max_waiting=2)
    asker: Asker = pool.context
    for line in ("one", "two", "three"):
        asker.ask(line)
    asker.wait_for("none for three")
    assert stats_of(pool).waiting == 2


def test_who_does_not_want_to_wait_gets_none_at_once(pool_of):
    pool = pool_of(nobody(), wait_s=0)
    asker: Asker = pool.context
    asker.ask("one")
    asker.wait_for("none for one")


# --- servers that fail ---


def test_a_server_that_dies_and_comes_back_is_connected_to_again(serve, pool_of):
    first = ServerThread(0, address=nobody(), **LineServer("first").settings())
    pool = pool_of(address_of(first), size=2, wait_s=PATIENCE_S)
    asker: Asker = pool.context
    asker.ask("x")
    asker.wait_for("first:x")
    first.close()
    eventually(lambda: stats_of(pool).resting == 2)
    asker.ask("y")
    serve(0, address=address_of(first), **LineServer("second").settings())
    asker.wait_for("first:x", "second:y")


def test_one_of_two_targets_is_down_and_the_other_serves(serve, pool_of):
    pool = pool_of(nobody(), address_of(serve(0, **LineServer("b").settings())), size=4)
    wait_for_up(pool, 2)
    eventually(lambda: stats_of(pool).resting == 2)
    asker: Asker = pool.context
    call_in_loop(pool.loop, lambda: [asker.ask("x") for _ in range(20)])
    asker.wait_for(*["b:x"] * 20)


def test_three_failures_in_a_row_rest_a_member_and_one_success_takes_it_back(serve, pool_of):
    lines = LineServer()
    pool = pool_of(address_of(serve(0, **lines.settings())), max_outstanding=3)
    for failures in range(3):
        wait_for_up(pool, 1)
        assert stats_of(pool).rests == 0, f"after {failures} failures"
        some_lease_of(pool).failed()
    eventually(lambda: stats_of(pool).rests == 1)
    wait_for_up(pool, 1)  # on trial
    trial = some_lease_of(pool)
    assert lease_of(pool) is None
    trial.done()
    assert [lease_of(pool) is None for _ in range(4)] == [False, False, False, True]


def test_a_failure_on_trial_rests_a_member_at_once(serve, pool_of):
    pool = pool_of(address_of(serve(0, **LineServer().settings())))
    for _ in range(3):
        wait_for_up(pool, 1)
        some_lease_of(pool).failed()
    eventually(lambda: stats_of(pool).rests == 1)
    wait_for_up(pool, 1)
    some_lease_of(pool).failed()
    eventually(lambda: stats_of(pool).rests == 2)


def test_a_server_that_closes_whatever_comes_is_not_connected_to_without_a_pause(serve, pool_of):
    closed: list[TcpConnection] = []

    def close(connection: TcpConnection) -> None:
        if connection.connected:
            closed.append(connection)
            connection.force_close()

    pool = pool_of(address_of(serve(0, connection_callback=close)))
    eventually(lambda: stats_of(pool).rests)
    came = len(closed)
    assert came <= 3 + stats_of(pool).rests


def test_an_idle_connection_that_the_server_closes_is_no_failure(serve, pool_of):
    lines = LineServer()
    server = serve(0, **lines.settings())
    pool = pool_of(address_of(server))
    asker: Asker = pool.context
    for number in range(1, 6):
        asker.ask("x")
        asker.wait_for(*["a:x"] * number)
        eventually(lambda: stats_of(pool).leases == 0)
        call_in_loop(server.loop, lambda: [connection.force_close() for connection in server.server.connections])
        wait_for_ups(lines, number + 1)
        assert stats_of(pool).rests == 0


def wait_for_ups(lines: LineServer, count: int) -> None:
    eventually(lambda: lines.ups == count)


# --- callbacks and the end ---


def test_connection_callbacks_hear_of_up_and_down(serve, pool_of):
    events: list[bool] = []
    pool = pool_of(address_of(serve(0, **LineServer().settings())), start=False)
    pool.connection_callback = lambda connection: events.append(connection.connected)
    pool.start()
    wait_for_up(pool, 1)
    some_lease_of(pool).failed()
    eventually(lambda: events == [True, False, True])


def test_close_ends_everything_and_tells_who_waits(serve, pool_of):
    server = serve(0, **LineServer().settings())
    pool = pool_of(address_of(server))
    wait_for_up(pool, 1)
    asker: Asker = pool.context
    lost = some_lease_of(pool)
    lost.lost_callback = lambda lease: asker.answers.append("lost")
    asker.ask("waiting")
    pool.close()
    pool.close()
    asker.wait_for("none for waiting", "lost")
    asker.ask("late")
    asker.wait_for("none for waiting", "lost", "none for late")
    eventually(lambda: server.server.connection_count == 0)
    assert stats_of(pool).up == 0
    pool.start()
    assert stats_of(pool).up == 0


def test_a_pool_ends_with_its_loop(serve):
    server = serve(0, **LineServer().settings())
    heard: list[Lease | None] = []
    with EventLoop() as loop:
        pool = ConnectionPool(loop, address_of(server), "pool", size=2)
        unreachable = ConnectionPool(loop, nobody(), "unreachable", size=2)
        unreachable.start()
        unreachable.request(heard.append)
        pool.connection_callback = lambda connection: loop.quit()
        pool.start()
        loop.run()
    assert heard == [None]
    eventually(lambda: server.server.connection_count == 0)
    with pytest.raises(RuntimeError, match="closed"):
        pool.request(heard.append)
    pool.close()


def test_who_waits_for_a_pool_that_was_never_started_hears_of_the_loops_end():
    heard: list[Lease | None] = []
    with EventLoop() as loop:
        ConnectionPool(loop, nobody(), "pool", size=1).request(heard.append)
        assert heard == []
    assert heard == [None]


def test_a_pool_is_closed_at_the_end_of_its_block(loop):
    with ConnectionPool(loop, nobody(), "pool", size=1) as pool:
        pool.start()
    assert "closed" in repr(pool)


def test_only_its_own_thread_may_lease(pool_of):
    pool = pool_of(nobody())
    for call in (pool.lease, pool.stats):
        with pytest.raises(RuntimeError, match="belongs to thread"):
            call()


@pytest.mark.parametrize(
    "settings",
    [{"size": 0}, {"size": 1, "max_outstanding": 0}, {"size": 1, "max_waiting": -1}, {"size": 1, "wait_s": -1}],
)
def test_numbers_that_make_no_sense_are_refused(loop, settings):
    with pytest.raises(ValueError, match="ConnectionPool: "):
        ConnectionPool(loop, InetAddress.loopback(1), "pool", **settings)
    with pytest.raises(ValueError, match="no target"):
        ConnectionPool(loop, [], "pool", size=1)


def test_repr_tells_where_it_connects_to(loop):
    pool = ConnectionPool(loop, [InetAddress.loopback(1), InetAddress.loopback(2)], "pool", size=4)
    assert repr(pool) == "<ConnectionPool 'pool' 4 to 127.0.0.1:1, 127.0.0.1:2>"
