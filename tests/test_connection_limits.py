"""ConnectionLimits: who is admitted, who is counted as the same, and how fast newcomers may come."""

from __future__ import annotations

import contextlib
import logging
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import call_in_loop, eventually
from pymuduo import InetAddress, TcpConnection
from pymuduo.connection_limits import ConnectionLimits
from pymuduo.unix_address import UnixAddress

HERE = InetAddress("127.0.0.1", 1)
THERE = InetAddress("192.0.2.7", 1)


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


# --- how many ---


def test_without_limits_everybody_is_admitted_and_counted():
    limits = ConnectionLimits()
    assert [limits.admit(HERE) for _ in range(1000)] == [None] * 1000
    assert limits.connections == limits.connections_from(HERE) == 1000
    assert limits.delay_s() == 0


def test_the_first_too_many_is_refused_and_told_why_until_somebody_leaves():
    limits = ConnectionLimits(max_connections=2)
    assert limits.admit(HERE) is None
    assert limits.admit(THERE) is None
    assert limits.admit(HERE) == "2 connections, max_connections is 2"
    limits.release(THERE)
    assert limits.admit(HERE) is None
    assert (limits.connections, limits.refused_total, limits.refused_per_address) == (2, 1, 0)


def test_one_address_can_not_take_the_places_of_others():
    limits = ConnectionLimits(max_connections=10, max_per_address=2)
    assert [limits.admit(InetAddress("192.0.2.7", port)) for port in range(1, 3)] == [None, None]
    assert limits.admit(InetAddress("192.0.2.7", 3)) == "2 connections from there, max_per_address is 2"
    assert limits.admit(HERE) is None
    assert (limits.connections, limits.refused_total, limits.refused_per_address) == (3, 1, 1)


def test_limits_may_be_changed_while_they_are_used():
    limits = ConnectionLimits()
    assert limits.admit(HERE) is None
    limits.max_connections = 0
    assert limits.admit(HERE) is not None
    limits.max_connections, limits.max_per_address = None, 1
    assert limits.admit(HERE) is not None
    assert limits.admit(THERE) is None


def test_one_release_too_many_makes_no_room():
    limits = ConnectionLimits(max_connections=1)
    limits.release(HERE)
    assert limits.admit(HERE) is None
    limits.release(THERE)
    assert limits.connections == 1
    assert limits.admit(THERE) is not None


def test_nobody_is_remembered_after_the_last_connection_from_there():
    limits = ConnectionLimits(max_per_address=1)
    addresses = [InetAddress(f"10.0.{i // 256}.{i % 256}", 1) for i in range(1000)]
    for address in addresses:
        assert limits.admit(address) is None
        assert limits.admit(address) is not None
    for address in addresses:
        limits.release(address)
    assert limits.connections == 0
    assert limits._per_address == {}


# --- who counts as the same ---


@pytest.mark.parametrize(
    ("one", "other", "are_the_same"),
    [
        ("192.0.2.7", "192.0.2.7", True),
        ("192.0.2.7", "192.0.2.8", False),
        ("::ffff:192.0.2.7", "192.0.2.7", True),
        ("::ffff:192.0.2.7", "::ffff:192.0.2.8", False),
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("fe80::1%1", "fe80::1%1", True),
        ("fe80::1%1", "fe80::2%1", False),
        ("fe80::1%1", "fe80::1%2", False),
        ("::1", "127.0.0.1", False),
    ],
)
def test_who_counts_as_the_same_address(one, other, are_the_same):
    limits = ConnectionLimits(max_per_address=1)
    assert limits.admit(InetAddress(one, 1)) is None
    assert (limits.admit(InetAddress(other, 2)) is not None) == are_the_same
    limits.release(InetAddress(one, 3))
    assert limits.connections_from(InetAddress(one, 4)) == 0


@pytest.mark.parametrize(("prefix", "are_the_same"), [(128, False), (48, True), (1, True)])
def test_how_much_of_an_ipv6_address_counts_can_be_chosen(prefix, are_the_same):
    limits = ConnectionLimits(max_per_address=1, ipv6_prefix=prefix)
    assert limits.admit(InetAddress("2001:db8:1:2::1", 1)) is None
    assert (limits.admit(InetAddress("2001:db8:1:3::1", 1)) is not None) == are_the_same


def test_unix_sockets_count_as_one_address():
    limits = ConnectionLimits(max_per_address=1)
    assert limits.admit(UnixAddress.unnamed()) is None
    assert limits.admit(UnixAddress("/run/another.sock")) is not None
    assert limits.admit(HERE) is None


def test_threads_that_come_and_go_at_once_never_exceed_a_limit_and_leave_nothing():
    limits = ConnectionLimits(max_connections=5, max_per_address=3)
    failures: list[str] = []
    start = threading.Barrier(4)

    def hammer(number: int) -> None:
        start.wait()
        addresses = [InetAddress("10.0.0.1", number + 1), InetAddress(f"10.0.1.{number}", 1)]
        admitted = []
        for turn in range(2000):
            address = addresses[turn % 2]
            if limits.admit(address) is None:
                admitted.append(address)
            if limits.connections > 5 or limits.connections_from(addresses[0]) > 3:
                failures.append(repr(limits))
            if len(admitted) > turn % 3:
                limits.release(admitted.pop())
        for address in admitted:
            limits.release(address)

    threads = [threading.Thread(target=hammer, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert limits.connections == 0
    assert limits._per_address == {}


# --- how fast ---


def test_a_burst_is_served_at_once_and_then_one_at_a_time():
    clock = Clock()
    limits = ConnectionLimits(accept_rate=10, accept_burst=3, clock=clock)
    assert [limits.delay_s() for _ in range(3)] == [0, 0, pytest.approx(0.1)]
    for _ in range(5):
        clock.now += 0.1
        assert limits.delay_s() == pytest.approx(0.1)
    clock.now += 100
    assert [limits.delay_s() for _ in range(3)] == [0, 0, pytest.approx(0.1)]


def test_a_burst_is_as_many_as_in_a_second_unless_given():
    limits = ConnectionLimits(accept_rate=50, clock=Clock())
    assert [limits.delay_s() for _ in range(50)].count(0.0) == 49
    slow = ConnectionLimits(accept_rate=0.1, clock=Clock())
    assert slow.delay_s() == pytest.approx(10)


def test_acceptors_that_share_the_limits_share_the_rate():
    limits = ConnectionLimits(accept_rate=10, accept_burst=1, clock=Clock())
    assert [limits.delay_s() for _ in range(3)] == pytest.approx([0.1, 0.2, 0.3])


@given(
    rate=st.floats(0.01, 10_000),
    burst=st.integers(1, 50),
    pauses=st.lists(st.one_of(st.just(0.0), st.floats(0, 20)), max_size=200),
)
def test_who_obeys_the_delays_accepts_no_more_than_burst_and_rate_in_any_time(rate, burst, pauses):
    clock = Clock()
    limits = ConnectionLimits(accept_rate=rate, accept_burst=burst, clock=clock)
    moments = []
    for pause in pauses:
        moments.append(clock.now)
        clock.now += limits.delay_s() + pause / rate
    for first in range(0, len(moments), 7):
        for last in range(first, len(moments)):
            most = burst + (moments[last] - moments[first]) * rate
            assert last - first + 1 <= most * (1 + 1e-6) + 1e-6


@given(rate=st.floats(0.01, 10_000), burst=st.integers(1, 50), count=st.integers(1, 200))
def test_who_obeys_the_delays_loses_no_time(rate, burst, count):
    clock = Clock()
    limits = ConnectionLimits(accept_rate=rate, accept_burst=burst, clock=clock)
    for _ in range(count):
        last = clock.now
        clock.now += limits.delay_s()
    assert last - 1000 == pytest.approx(max(0, count - burst) / rate, rel=1e-6, abs=1e-6)


@given(taken=st.integers(1, 100), idle_s=st.floats(0, 1000))
def test_debts_are_paid_and_savings_end_with_the_burst(taken, idle_s):
    clock = Clock()
    limits = ConnectionLimits(accept_rate=2, accept_burst=10, clock=clock)
    for _ in range(taken):
        limits.delay_s()
    clock.now += idle_s
    left = min(10.0, 10 - taken + 2 * idle_s)
    assert limits.delay_s() == pytest.approx(max(0.0, (2 - left) / 2), abs=1e-6)


# --- what is told ---


def test_refusals_are_logged_once_a_second_for_each_server_and_counted(caplog):
    clock = Clock()
    limits = ConnectionLimits(max_connections=0, clock=clock)
    with caplog.at_level(logging.WARNING, "pymuduo"):
        for _ in range(5):
            limits.report("web", HERE, "full")
        limits.report("chat", THERE, "full")
        clock.now += 1
        limits.report("web", THERE, "full")
        limits.report("web", THERE, "full")
    assert [record.getMessage() for record in caplog.records] == [
        "web: refused 127.0.0.1:1: full",
        "chat: refused 192.0.2.7:1: full",
        "web: refused 192.0.2.7:1: full (4 more refused since the last such line)",
    ]


def test_a_server_turns_away_who_is_too_many_and_takes_the_next_when_one_has_left(serve):
    limits = ConnectionLimits(max_connections=2)
    server = serve(2, limits=limits)
    with server.connect() as one:
        with server.connect():
            eventually(lambda: limits.connections == 2)
            with server.connect() as refused:
                assert refused.recv(1) == b""
            assert limits.refused_total == server.server.stats().refused == 1
        eventually(lambda: limits.connections == 1)
        with server.connect():
            eventually(lambda: limits.connections == 2)
        one.sendall(b"still here")
    eventually(lambda: limits.connections == 0)


@pytest.mark.parametrize("acceptors", ["one", "per-loop"])
def test_a_server_takes_no_more_newcomers_a_second_than_the_rate_and_refuses_none(serve, acceptors):
    moments: list[float] = []

    def on_connection(connection: TcpConnection) -> None:
        if connection.connected:
            moments.append(time.monotonic())

    limits = ConnectionLimits(accept_rate=20, accept_burst=2)
    begin = time.monotonic()
    server = serve(2, limits=limits, acceptors=acceptors, connection_callback=on_connection)
    with contextlib.ExitStack() as clients:
        for _ in range(6):
            clients.enter_context(server.connect())
        eventually(lambda: len(moments) == 6)
    # Each of two acceptors takes one before it hears of the other's.
    free = 2 if acceptors == "one" else 3
    assert max(moments) - begin >= (6 - free) / 20
    assert limits.refused_total == 0


def test_a_connection_is_counted_out_where_it_was_counted_in(serve):
    first, second = ConnectionLimits(), ConnectionLimits()
    server = serve(0, limits=first)
    with server.connect():
        eventually(lambda: first.connections == 1)
        call_in_loop(server.loop, setattr, server.server, "limits", second)
        with server.connect():
            eventually(lambda: second.connections == 1)
    eventually(lambda: server.server.connection_count == 0)
    assert first.connections == second.connections == 0


@pytest.mark.provokes_errors("who is that")
def test_a_newcomer_is_closed_if_the_limits_raise_and_the_next_is_served(serve, caplog):
    class Undecided(ConnectionLimits):
        def admit(self, address: InetAddress | UnixAddress) -> str | None:
            if self.refused_total == 0:
                self.refused_total = 1
                raise LookupError("who is that?")
            return super().admit(address)

    server = serve(0, limits=Undecided(), message_callback=lambda connection, buffer, when: connection.send(buffer))
    with server.connect() as one, server.connect() as other:
        assert one.recv(1) == b""
        other.sendall(b"x")
        assert other.recv(1) == b"x"
    assert "who is that?" in caplog.text


def test_repr_tells_the_counts():
    limits = ConnectionLimits(max_connections=1)
    limits.admit(HERE)
    limits.admit(HERE)
    assert repr(limits) == "<ConnectionLimits 1 connections, 1 refused>"


@pytest.mark.parametrize(
    "settings",
    [
        {"max_connections": -1},
        {"max_per_address": -1},
        {"accept_rate": 0},
        {"accept_rate": float("nan")},
        {"accept_burst": 5},
        {"accept_rate": 1, "accept_burst": 0},
        {"ipv6_prefix": 0},
        {"ipv6_prefix": 129},
    ],
)
def test_numbers_that_make_no_sense_are_refused(settings):
    with pytest.raises(ValueError, match="ConnectionLimits: "):
        ConnectionLimits(**settings)
