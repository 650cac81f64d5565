"""Connector: rounds, addresses side by side, back-off, and what can go wrong. It is run in the test's own loop."""

from __future__ import annotations

import contextlib
import errno
import functools
import gc
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import PATIENCE_S, call_in_loop, open_descriptors, reset
from pymuduo import Connector, ConnectorState, EventLoop, InetAddress, UnixAddress
from pymuduo.connector import interleaved
from targets import BlackHoles, FakeResolver, address_of, listener, nobody

SOON_S = 0.001  # a back-off for tests that need several


@pytest.fixture
def resolve_to() -> Iterator[Callable[..., FakeResolver]]:
    """Return a function that makes resolvers which answer every question with the same addresses."""
    with contextlib.ExitStack() as stack:

        def make(*addresses: InetAddress) -> FakeResolver:
            resolver = FakeResolver(*addresses)
            stack.callback(resolver.end)
            return resolver

        yield make


@pytest.fixture
def listening() -> Iterator[Callable[..., socket.socket]]:
    """Return a function that makes listening sockets: ``listening(port=0, ipv6=False)``."""
    with contextlib.ExitStack() as stack:
        yield functools.partial(listener, stack)


@pytest.fixture
def black_hole() -> Iterator[BlackHoles]:
    """Return a function that makes addresses at which nobody ever answers."""
    with contextlib.ExitStack() as stack:
        yield BlackHoles(stack)


class Watched:
    """A connector of the test's loop, and what has become of it."""

    def __init__(self, loop: EventLoop, target: Any, **settings: Any) -> None:
        self.connector = Connector(loop, target, **settings)
        self.connector.new_connection_callback = self._take
        self.connector.failed_callback = self._fail
        self.sockets: list[socket.socket] = []
        self.addresses: list[Any] = []
        self.errors: list[OSError] = []
        self.states: list[ConnectorState] = []  # in the callbacks

    def _take(self, fd: int, address: Any) -> None:
        self.states.append(self.connector.state)
        self.sockets.append(socket.socket(fileno=fd))
        self.addresses.append(address)

    def _fail(self, error: OSError) -> None:
        self.states.append(self.connector.state)
        self.errors.append(error)

    def close(self) -> None:
        self.connector.stop()
        for sock in self.sockets:
            sock.close()


@pytest.fixture
def watch(loop: EventLoop) -> Iterator[Callable[..., Watched]]:
    """Return a function that makes connectors, which do not try again unless asked to."""
    made: list[Watched] = []

    def make(target: Any, **settings: Any) -> Watched:
        settings.setdefault("retry", False)
        made.append(Watched(loop, target, **settings))
        return made[-1]

    yield make
    for one in made:
        one.close()


def descriptor_count() -> int:
    return len(open_descriptors())


def run_until(loop: EventLoop, condition: Callable[[], object]) -> None:
    """Run the loop until something is true; fail if that takes too long."""

    def look() -> None:
        if condition():
            loop.quit()

    timers = [loop.run_every(0.001, look), loop.run_after(PATIENCE_S, loop.quit)]
    loop.run()
    for timer in timers:
        timer.cancel()
    assert condition(), "never came true"


def run_for(loop: EventLoop, seconds: float) -> None:
    """Run the loop for a while, in which nothing should happen."""
    loop.run_after(seconds, loop.quit)
    loop.run()


# --- one address ---


def test_it_hands_over_a_connected_non_blocking_descriptor(loop, watch, listening):
    server = listening()
    one = watch(address_of(server))
    one.connector.start()
    assert one.connector.state is ConnectorState.CONNECTING
    run_until(loop, lambda: one.sockets)
    [sock] = one.sockets
    assert sock.getpeername() == server.getsockname()
    assert not os.get_blocking(sock.fileno())
    assert not os.get_inheritable(sock.fileno())
    assert one.states == [ConnectorState.CONNECTED]
    assert one.addresses == [address_of(server)]
    accepted, peer = server.accept()
    with accepted:
        assert peer == sock.getsockname()


@pytest.mark.parametrize("no_delay", [True, False])
def test_no_delay_and_keep_alive_are_set_before_it_connects(loop, watch, listening, no_delay):
    one = watch(address_of(listening()), no_delay=no_delay)
    one.connector.start()
    run_until(loop, lambda: one.sockets)
    assert bool(one.sockets[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)) == no_delay
    assert one.sockets[0].getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_a_connection_that_nobody_takes_is_closed(loop, watch, listening):
    server = listening()
    one = watch(address_of(server))
    one.connector.new_connection_callback = None
    one.connector.start()
    run_until(loop, lambda: one.connector.state is ConnectorState.CONNECTED)
    accepted, _ = server.accept()
    with accepted:
        assert accepted.recv(1) == b""


def test_a_closed_port_fails_with_an_error_that_names_it(loop, watch):
    target = nobody()
    one = watch(target)
    one.connector.start()
    run_until(loop, lambda: one.errors)
    [error] = one.errors
    assert isinstance(error, ConnectionRefusedError)
    assert str(target) in str(error)
    assert one.connector.state is ConnectorState.IDLE


def test_nothing_is_called_inside_start_or_stop(loop, watch, tmp_path):
    """A Unix socket without a listener fails at once, one with a listener connects at once."""
    missing = watch(UnixAddress(tmp_path / "missing"))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "there"))
        server.listen()
        there = watch(UnixAddress(tmp_path / "there"))
        missing.connector.start()
        there.connector.start()
        assert (missing.states, there.states) == ([], [])
        run_until(loop, lambda: missing.errors and there.sockets)
        assert isinstance(missing.errors[0], FileNotFoundError)
        assert "unix:" in str(missing.errors[0])


def test_a_stale_unix_socket_is_refused(loop, watch, tmp_path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "stale"))
        server.listen()
    one = watch(UnixAddress(tmp_path / "stale"))
    one.connector.start()
    run_until(loop, lambda: one.errors)
    assert isinstance(one.errors[0], ConnectionRefusedError)


def test_a_failed_callback_may_start_again_at_once_as_often_as_it_likes(loop, watch, tmp_path):
    """A failure that is reported inside ``start`` would end in a RecursionError here."""
    one = watch(UnixAddress(tmp_path / "missing"))

    def start_again(error: OSError) -> None:
        one.errors.append(error)
        if len(one.errors) < 2000:
            one.connector.start()

    one.connector.failed_callback = start_again
    one.connector.start()
    run_until(loop, lambda: len(one.errors) == 2000)


def test_a_time_out_ends_a_round_that_nobody_answers(loop, watch, black_hole):
    target = black_hole()
    one = watch(target, connect_timeout_s=0.05)
    before = descriptor_count()
    one.connector.start()
    run_until(loop, lambda: one.errors)
    [error] = one.errors
    assert isinstance(error, TimeoutError)
    assert error.errno == errno.ETIMEDOUT
    assert f"connecting to {target} took more than 0.05 s" in str(error)
    assert descriptor_count() == before


def test_a_server_that_resets_at_once_is_no_accident(loop, watch, listening):
    """The reset may come before or after the loop has seen the connection; either way the connector goes on."""
    server = listening()
    one = watch(address_of(server))
    resetting = threading.Thread(target=lambda: [reset(server.accept()[0]) for _ in range(20)])
    resetting.start()
    for _ in range(20):
        one.states.clear()
        one.connector.stop()
        one.connector.start()
        run_until(loop, lambda: one.states)
    resetting.join(PATIENCE_S)
    assert len(one.sockets) + len(one.errors) == 20


SELF_CONNECT = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
if libc.unshare(0x40000000) and libc.unshare(0x10000000 | 0x40000000):  # a network of its own; a user, too
    sys.exit("77: no network namespace: " + os.strerror(ctypes.get_errno()))
import fcntl, socket, struct
from pymuduo import EventLoop, InetAddress
from pymuduo.connector import Connector
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    fcntl.ioctl(sock, 0x8914, struct.pack("16sH14s", b"lo", 0x41, b""))  # SIOCSIFFLAGS: up, running
with open("/proc/sys/net/ipv4/ip_local_port_range", "w") as ports:
    ports.write("40000 40000")
with socket.socket() as sock:
    sock.connect(("127.0.0.1", 40000))
    assert sock.getsockname() == sock.getpeername()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
with EventLoop() as loop:
    connector = Connector(loop, InetAddress.loopback(40000), retry=False)
    connector.new_connection_callback = lambda fd, address: print("connected", flush=True)
    connector.failed_callback = lambda error: (print(type(error).__name__, error), loop.quit())
    connector.start()
    loop.run_after(20, loop.quit)
    loop.run()
"""


def test_an_attempt_that_has_connected_to_itself_is_a_refusal():
    """A closed port above the first ephemeral one may be given to the attempt itself: here it is the only one."""
    done = subprocess.run(
        [sys.executable, "-c", SELF_CONNECT], capture_output=True, text=True, timeout=3 * PATIENCE_S, check=False
    )
    if "77: " in done.stderr or "Permission denied" in done.stderr or "Read-only" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ConnectionRefusedError ")
    assert "connected to itself" in done.stdout


# --- names ---


def test_a_name_is_looked_up_anew_for_each_round(loop, watch, listening, resolve_to):
    server = listening()
    resolver = resolve_to(nobody())
    one = watch(("somewhere", 80), resolver=resolver, retry=True, retry_delay_s=SOON_S)
    one.connector.start()
    run_until(loop, lambda: one.errors)
    resolver.addresses = [address_of(server)]
    run_until(loop, lambda: one.sockets)
    assert resolver.asked == len(one.errors) + 1


def test_localhost_is_a_name(loop, watch, listening):
    server = listening()
    one = watch(("localhost", server.getsockname()[1]))
    one.connector.start()
    run_until(loop, lambda: one.states)
    assert one.addresses == [address_of(server)]


def test_a_host_in_numbers_needs_no_resolver(loop, watch, listening, resolve_to):
    server = listening()
    one = watch(("127.0.0.1", server.getsockname()[1]), resolver=resolve_to())
    one.connector.start()
    run_until(loop, lambda: one.sockets)


def test_a_name_without_address_fails(loop, watch, resolve_to):
    class Nothing(FakeResolver):
        def look_up(self, host: str, port: int, family: int) -> list[InetAddress]:
            return []

    with contextlib.closing(Nothing()) as resolver:
        one = watch(("nowhere", 80), resolver=resolver)
        one.connector.start()
        run_until(loop, lambda: one.errors)
    assert "'nowhere' has no address" in str(one.errors[0])


def test_a_look_up_that_takes_too_long_is_a_time_out(loop, watch, resolve_to):
    one = watch(("slow", 80), resolver=resolve_to(), connect_timeout_s=0.05)
    one.connector.start()
    run_until(loop, lambda: one.errors)
    assert isinstance(one.errors[0], TimeoutError)
    assert "looking up slow:80 took more than 0.05 s" in str(one.errors[0])


def test_an_answer_that_comes_too_late_is_not_used(loop, watch, resolve_to, listening):
    server = listening()
    resolver = resolve_to()
    one = watch(("slow", 80), resolver=resolver, connect_timeout_s=0.01)
    one.connector.start()
    run_until(loop, lambda: one.errors)
    resolver.addresses = [address_of(server)]
    resolver.end()
    run_for(loop, 0.01)
    assert one.connector.state is ConnectorState.IDLE
    assert one.states == [ConnectorState.IDLE]


def test_a_resolver_that_was_closed_is_a_failure(loop, watch, resolve_to):
    resolver = resolve_to()
    resolver.close()
    one = watch(("somewhere", 80), resolver=resolver)
    one.connector.start()
    run_until(loop, lambda: one.errors)
    assert "closed" in str(one.errors[0])


# --- several addresses ---


def test_families_take_turns_beginning_with_that_of_the_best_address():
    four = [InetAddress("192.0.2.1", port) for port in range(3)]
    six = [InetAddress("2001:db8::1", port) for port in range(3)]
    assert interleaved([*six, *four]) == [six[0], four[0], six[1], four[1], six[2], four[2]]
    assert interleaved([four[0], *six, four[1]]) == [four[0], six[0], four[1], six[1], six[2]]
    assert interleaved(four) == four
    assert interleaved([]) == []


def test_the_first_address_that_answers_is_the_only_one_tried(loop, watch, listening, resolve_to):
    first, second = listening(ipv6=True), listening()
    one = watch(("both", 80), resolver=resolve_to(address_of(first), address_of(second)))
    one.connector.start()
    run_until(loop, lambda: one.sockets)
    assert one.addresses == [address_of(first)]
    run_for(loop, 0.3)  # longer than the next address waits
    second.settimeout(0)
    with pytest.raises(BlockingIOError):
        second.accept()


def test_an_address_that_refuses_leads_to_the_next_at_once(loop, watch, listening, resolve_to, monkeypatch):
    monkeypatch.setattr("pymuduo.connector._NEXT_ADDRESS_S", 1000.0)
    server = listening()
    refusing = [nobody(ipv6=True), nobody(), nobody(ipv6=True)]
    one = watch(("mixed", 80), resolver=resolve_to(*refusing, address_of(server)))
    one.connector.start()
    run_until(loop, lambda: one.sockets)
    assert one.addresses == [address_of(server)]
    assert one.errors == []


def test_an_address_that_is_silent_holds_the_next_one_up_for_a_moment_only(
    loop, watch, listening, resolve_to, black_hole
):
    server = listening()
    silent = black_hole(ipv6=True)
    before = descriptor_count()
    one = watch(("mixed", 80), resolver=resolve_to(silent, address_of(server)), connect_timeout_s=PATIENCE_S)
    one.connector.start()
    run_until(loop, lambda: one.sockets)
    assert one.addresses == [address_of(server)]
    assert descriptor_count() - before == 1  # the winner


def test_an_address_that_answers_late_still_wins_over_one_that_does_not_answer_at_all(
    loop, watch, resolve_to, black_hole
):
    silent = [black_hole(ipv6=True), black_hole()]
    one = watch(("mixed", 80), resolver=resolve_to(*silent), connect_timeout_s=PATIENCE_S)
    before = descriptor_count()
    one.connector.start()
    run_until(loop, lambda: descriptor_count() - before == 2)
    timer = loop.run_every(0.01, black_hole.accept_all, silent[0])  # room for the next SYN, which comes in a second
    run_until(loop, lambda: one.sockets)
    timer.cancel()
    assert one.addresses == [silent[0]]
    assert descriptor_count() - before == 1  # the winner


def test_when_all_addresses_fail_the_first_error_is_told(loop, watch, resolve_to):
    targets = [nobody(ipv6=True), nobody(), nobody()]
    one = watch(("mixed", 80), resolver=resolve_to(*targets))
    one.connector.start()
    run_until(loop, lambda: one.errors)
    assert len(one.errors) == 1
    assert str(targets[0]) in str(one.errors[0])


def test_a_time_out_ends_all_addresses(loop, watch, resolve_to, black_hole, monkeypatch):
    monkeypatch.setattr("pymuduo.connector._NEXT_ADDRESS_S", 0.001)
    silent = [black_hole(ipv6=True), black_hole()]
    before = descriptor_count()
    one = watch(("mixed", 80), resolver=resolve_to(*silent), connect_timeout_s=0.1)
    one.connector.start()
    run_until(loop, lambda: one.errors)
    assert isinstance(one.errors[0], TimeoutError)
    assert descriptor_count() == before


# --- back-off ---


def delays_asked_for(caplog: pytest.LogCaptureFixture) -> list[float]:
    """Return the back-offs in seconds that connectors have logged."""
    return [record.args[1] for record in caplog.records if "again in" in record.msg]  # type: ignore[index,misc]


def test_the_back_off_begins_with_half_a_second_and_doubles_up_to_thirty(loop, watch, caplog):
    caplog.set_level(logging.DEBUG, "pymuduo.connector")
    one = watch(nobody(), retry=True)
    for _ in range(8):
        one.connector.fail(OSError("as if"))
    assert delays_asked_for(caplog) == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert one.connector.state is ConnectorState.WAITING


def test_it_goes_on_trying_and_the_back_off_doubles_up_to_its_limit(loop, watch, caplog):
    caplog.set_level(logging.DEBUG, "pymuduo.connector")
    one = watch(nobody(), retry=True, retry_delay_s=0.001, max_retry_delay_s=0.006)
    one.connector.start()
    run_until(loop, lambda: len(one.errors) == 6)
    assert delays_asked_for(caplog)[:6] == [0.001, 0.002, 0.004, 0.006, 0.006, 0.006]
    assert one.states == [ConnectorState.WAITING] * 6


def test_jitter_blurs_the_back_off_between_half_and_the_whole(loop, watch, caplog):
    caplog.set_level(logging.DEBUG, "pymuduo.connector")
    one = watch(nobody(), retry=True, retry_delay_s=8.0, max_retry_delay_s=8.0, jitter=True)
    for _ in range(200):
        one.connector.fail(OSError("as if"))
    delays = delays_asked_for(caplog)
    assert all(4.0 <= delay <= 8.0 for delay in delays)
    assert min(delays) < 5.0
    assert max(delays) > 7.0
    assert len(set(delays)) > 100


def test_a_connection_that_outlived_the_back_off_resets_it(loop, watch, listening, caplog):
    caplog.set_level(logging.DEBUG, "pymuduo.connector")
    one = watch(address_of(listening()), retry=True, retry_delay_s=0.5)
    for _ in range(4):
        one.connector.fail(OSError("as if"))
    assert one.connector.retry_delay_s == 8.0
    one.connector.restart(lived_s=8.1)
    assert one.connector.state is ConnectorState.CONNECTING
    assert one.connector.retry_delay_s == 0.5
    run_until(loop, lambda: one.sockets)
    assert delays_asked_for(caplog) == [0.5, 1.0, 2.0, 4.0]


def test_a_server_that_accepts_and_closes_is_not_besieged(loop, watch, listening, caplog):
    caplog.set_level(logging.DEBUG, "pymuduo.connector")
    one = watch(address_of(listening()), retry=True, retry_delay_s=0.5)
    one.connector.start()
    run_until(loop, lambda: one.sockets)
    for _ in range(3):
        one.connector.restart(lived_s=0.01)
        assert one.connector.state is ConnectorState.WAITING
    assert delays_asked_for(caplog) == [0.5, 1.0, 2.0]


def test_start_after_stop_begins_with_the_first_back_off(loop, watch):
    one = watch(nobody(), retry=True, retry_delay_s=SOON_S)
    one.connector.start()
    run_until(loop, lambda: len(one.errors) == 4)
    assert one.connector.retry_delay_s == 16 * SOON_S
    one.connector.stop()
    one.connector.start()
    assert one.connector.retry_delay_s == SOON_S


def test_start_does_not_cut_a_back_off_short(loop, watch):
    one = watch(nobody(), retry=True, retry_delay_s=20.0)
    one.connector.start()
    run_until(loop, lambda: one.errors)
    one.connector.start()
    run_for(loop, 0.01)
    assert one.connector.state is ConnectorState.WAITING
    assert len(one.errors) == 1


def test_retry_may_be_changed_on_the_way(loop, watch):
    one = watch(nobody(), retry=True, retry_delay_s=SOON_S)
    one.connector.start()
    run_until(loop, lambda: len(one.errors) == 2)
    one.connector.retry = False
    run_until(loop, lambda: one.connector.state is ConnectorState.IDLE)
    assert len(one.errors) == 3
    assert loop.timer_count == 0


# --- stopping ---


def begin(one: Watched, loop: EventLoop, state: str) -> None:
    """Bring a connector into a state."""
    one.connector.start()
    if state == "just started":
        return
    if state == "connected":
        run_until(loop, lambda: one.sockets)
    elif state == "waiting":
        run_until(loop, lambda: one.connector.state is ConnectorState.WAITING)
    else:
        run_for(loop, 0.005)
        assert one.connector.state is ConnectorState.CONNECTING


STATES = ("just started", "looking up", "connecting", "connecting to several", "waiting", "connected")


@pytest.fixture
def target_for(black_hole, resolve_to, listening) -> Callable[[str], dict[str, Any]]:
    """Return a function that returns the arguments with which a connector gets into a state."""

    def choose(state: str) -> dict[str, Any]:
        if state == "looking up":
            return {"target": ("slow", 80), "resolver": resolve_to()}
        if state == "connecting":
            return {"target": black_hole()}
        if state == "connecting to several":
            return {"target": ("mixed", 80), "resolver": resolve_to(black_hole(ipv6=True), black_hole())}
        return {"target": address_of(listening()) if state == "connected" else nobody()}

    return choose


@pytest.mark.parametrize("state", STATES)
def test_stop_leaves_nothing_behind_in_any_state_and_start_begins_anew(loop, watch, target_for, listening, state):
    settings = target_for(state)
    server = listening()
    one = watch(**settings, retry=True)
    before, timers = descriptor_count(), loop.timer_count
    begin(one, loop, state)
    seen = len(one.states)
    one.connector.stop()
    one.connector.stop()
    assert one.connector.state is ConnectorState.IDLE
    assert loop.timer_count == timers
    assert descriptor_count() - before == len(one.sockets)
    run_for(loop, 0.005)
    assert len(one.states) == seen
    one.connector.target = address_of(server)
    one.connector.start()
    run_until(loop, lambda: len(one.states) == seen + 1)
    assert one.addresses[-1] == address_of(server)


@pytest.mark.parametrize("state", STATES)
def test_a_connector_that_is_stopped_and_dropped_is_gone(loop, target_for, state):
    """muduo keeps one alive for a second after its client, and its retry timer may still find it (issue 488)."""
    one = Watched(loop, **target_for(state), retry=True)
    begin(one, loop, state)
    gone = weakref.ref(one.connector)
    one.close()
    del one
    gc.collect()
    assert gone() is None
    run_for(loop, 0.005)


def test_callbacks_may_stop_and_start(loop, watch, listening):
    server = listening()
    one = watch(nobody(), retry=True, retry_delay_s=SOON_S)

    def fail(error: OSError) -> None:
        one.errors.append(error)
        one.connector.stop()
        one.connector.target = address_of(server)
        one.connector.start()

    one.connector.failed_callback = fail
    one.connector.start()
    run_until(loop, lambda: one.sockets)
    assert len(one.errors) == 1


def test_a_connection_callback_may_restart_at_once(loop, watch, listening):
    one = watch(address_of(listening()))

    def take(fd: int, address: InetAddress) -> None:
        one.sockets.append(socket.socket(fileno=fd))
        if len(one.sockets) < 3:
            one.connector.restart(lived_s=1000.0)

    one.connector.new_connection_callback = take
    one.connector.start()
    run_until(loop, lambda: len(one.sockets) == 3)
    assert one.errors == []


@pytest.mark.provokes_errors("bad failed callback")
def test_a_failed_callback_that_raises_stops_nothing(loop, watch, caplog):
    one = watch(nobody(), retry=True, retry_delay_s=SOON_S)

    def fail(error: OSError) -> None:
        one.errors.append(error)
        raise ValueError("bad failed callback")

    one.connector.failed_callback = fail
    one.connector.start()
    run_until(loop, lambda: len(one.errors) == 3)
    assert caplog.text.count("ValueError: bad failed callback") == 3


# --- no descriptor is left ---

FULL = """
import errno, json, os, resource
from pymuduo import EventLoop, InetAddress
from pymuduo.connector import Connector
import socket
server = socket.socket()
server.bind(("127.0.0.1", 0))
server.listen()
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
errors, held = [], []
with EventLoop() as loop:
    connector = Connector(loop, InetAddress.loopback(server.getsockname()[1]), retry=True, retry_delay_s=0.001)

    def fail(error):
        errors.append((error.errno == errno.EMFILE, str(error)))
        if len(errors) == 3:
            os.close(held.pop())

    connector.failed_callback = fail
    connector.new_connection_callback = lambda fd, address: (os.close(fd), loop.quit())
    while True:
        try:
            held.append(os.dup(0))
        except OSError:
            break
    connector.start()
    loop.run_after(20, loop.quit)
    loop.run()
    for fd in held:
        os.close(fd)
print(json.dumps([connector.state.value, errors]))
"""


def test_a_full_descriptor_table_is_an_error_like_others_and_it_goes_on_trying():
    done = subprocess.run(
        [sys.executable, "-c", FULL], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    state, errors = json.loads(done.stdout)
    assert state == "connected"
    assert [is_emfile for is_emfile, _ in errors] == [True] * 3
    assert "Too many open files" in errors[0][1]
    assert "127.0.0.1" in errors[0][1]


# --- what it refuses ---


@pytest.mark.parametrize(
    "settings",
    [
        {"connect_timeout_s": 0},
        {"connect_timeout_s": float("nan")},
        {"retry_delay_s": 0},
        {"retry_delay_s": -1},
        {"retry_delay_s": float("nan")},
        {"retry_delay_s": 2.0, "max_retry_delay_s": 1.0},
    ],
)
def test_numbers_that_make_no_sense_are_refused(loop, settings):
    with pytest.raises(ValueError, match="Connector: "):
        Connector(loop, nobody(), **settings)


@pytest.mark.parametrize("target", ["127.0.0.1:80", ("a",), ("a", "80"), (80, "a"), (b"a", 80), ["a", 80], None, ()])
def test_what_is_no_target_is_refused(loop, target):
    with pytest.raises(TypeError):
        Connector(loop, target)


def test_targets_at_which_nobody_can_be_are_refused(loop):
    with pytest.raises(ValueError, match="70000"):
        Connector(loop, ("a", 70000))
    with pytest.raises(ValueError, match="without a name"):
        Connector(loop, UnixAddress.unnamed())


def test_only_the_loops_thread_may_use_it(loop_thread):
    connector = call_in_loop(loop_thread, lambda: Connector(loop_thread, nobody()))
    for call in (connector.start, connector.stop, lambda: connector.restart(1.0), lambda: connector.fail(OSError())):
        with pytest.raises(RuntimeError, match="belongs to thread"):
            call()


def test_repr_tells_target_and_state(loop, watch, tmp_path: Path):
    assert repr(Connector(loop, ("somewhere", 80))) == "<Connector to somewhere:80 idle>"
    assert repr(Connector(loop, InetAddress.loopback(80, ipv6=True))) == "<Connector to [::1]:80 idle>"
    assert repr(Connector(loop, UnixAddress("/run/x"))) == "<Connector to unix:/run/x idle>"
