"""A server and its clients, driven through random sequences and held against a model of what each side must see.

Hypothesis makes up the sequence, and shortens one that fails; what must be seen is in ``connection_model``. What the
model is worth is tested too: it must find each of some faults that are put into the library.
"""

from __future__ import annotations

import functools
import itertools
import logging
import os
import re
import socket
import sys
from collections import Counter
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import certificates
from conftest import PATIENCE_S, ServerThread, call_in_loop, reset
from connection_model import STREAM, LibraryEnd, Pair, Reports, SocketEnd, in_this_thread
from model_steps import RAISING, SOON_S, WAYS_TO_END, WAYS_TO_SEND, Alarm, at_once
from pymuduo import COMPILED, Buffer, EventLoopThread, InetAddress, TcpClient, TcpConnection, Timestamp
from pymuduo.timer_queue import TimerQueue

EXAMPLES = int(os.environ.get("PYMUDUO_EXAMPLES", "25"))
STEPS = 40
MAX_ENDING = 3
DRAIN_S = 10 * PATIENCE_S  # a server that stops outlives the test's patience, unless it is told to hurry
STOPS = (DRAIN_S, SOON_S, 0)
TURNS = len(WAYS_TO_END) + 1  # the other one is a connection callback that raises
LARGE = 5_000_000  # more than the kernel takes
PAIRS = st.integers(0, 15)
SIDES = st.sampled_from(["server", "client"])
SIZES = st.sampled_from([1, 2, 100, 4095, 4096, 70_000, 300_000, LARGE])


server_context = functools.cache(certificates.server_context)
client_context = functools.cache(certificates.client_context)


def some_bytes(size: int) -> bytes:
    return (STREAM * (size // len(STREAM) + 1))[:size]


class Machine(RuleBasedStateMachine):
    """Draws what happens next."""

    threads = 0
    is_tls = False
    done: ClassVar[Counter[str]]  # by all examples

    def __init__(self) -> None:
        super().__init__()
        self.reports = Reports()
        self.log = logging.getLogger("pymuduo")
        self.log.addHandler(self.reports)
        self.log.propagate = False
        self.servers: list[ServerThread] = []  # the last one accepts
        self.healthy: list[Pair] = []
        self.ending: list[Pair] = []
        self.keepers: list[Pair] = []
        self.all_pairs: list[Pair] = []
        self.alarms: list[Alarm] = []
        self.ends_so_far = 0
        self.client_thread = EventLoopThread(name="client")
        self.client_loop = self.client_thread.start_loop()

    @initialize(pairs=st.integers(2, 4), first=st.integers(0, 11), acceptors=st.sampled_from(["one", "per-loop"]))
    def begin(self, pairs: int, first: int, acceptors: str) -> None:
        self.numbers = itertools.count(first)
        self.acceptors = acceptors
        self.how_many = pairs
        self.start_server()

    def start_server(self) -> None:
        tls = {"ssl_context": server_context()} if self.is_tls else {}
        server = ServerThread(self.threads, acceptors=self.acceptors, **tls, **LibraryEnd.callbacks(self.end_of))
        self.servers.append(server)
        # Nothing happens to it: so the loops live on in a server that stops.
        self.keepers.append(self.make_pair(1))
        self.fill_up()

    def end_of(self, connection: TcpConnection) -> LibraryEnd:
        if connection.context is None:
            connection.context = self.newcomer  # one connection is made at a time
        end: LibraryEnd = connection.context
        return end

    def make_pair(self, number: int | None = None, raises: str = "") -> Pair:
        """Connect; every combination of kinds has its turn."""
        number = next(self.numbers) if number is None else number
        self.newcomer = server = LibraryEnd(self.reports, is_half_open=number % 2 == 0)
        server.raises = raises
        client: LibraryEnd | SocketEnd
        if number % 3 == 0 or self.is_tls:
            client = self.connect_client(is_half_open=number % 4 < 2)
        else:
            client = self.connect_socket(is_small=number % 3 == 1)
        pair = Pair(server, client, self.servers[-1])
        self.all_pairs.append(pair)
        self.reports.wait_for(lambda: server.stage != "new", "a server's end never came up")
        return pair

    def connect_client(self, is_half_open: bool) -> LibraryEnd:
        end = LibraryEnd(self.reports, is_half_open)
        context = client_context() if self.is_tls else None
        address = InetAddress.loopback(self.servers[-1].port)
        end.client = TcpClient(self.client_loop, address, "client", ssl_context=context)
        for name, value in LibraryEnd.callbacks(lambda connection: end).items():
            setattr(end.client, name, value)
        end.client.connect()
        self.reports.wait_for(lambda: end.stage != "new", "a client's end never came up")
        return end

    def connect_socket(self, is_small: bool) -> SocketEnd:
        sock = socket.socket()
        if is_small:  # so that the kernel soon takes no more for it
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        sock.settimeout(PATIENCE_S)
        sock.connect(("127.0.0.1", self.servers[-1].port))
        return SocketEnd(sock)

    # --- what may happen ---

    def pick(self, index: int) -> Pair:
        """Return a healthy pair, and now and then one that is ending."""
        pairs = self.ending if index >= 14 and self.ending else self.healthy
        return pairs[index % len(pairs)]

    def note_step(self, pair: Pair, what: str) -> None:
        if pair.is_healthy:
            self.done[what] += 1

    @rule(index=PAIRS, size=SIZES, how=st.sampled_from(WAYS_TO_SEND))
    def server_sends(self, index: int, size: int, how: Any) -> None:
        pair = self.pick(index)
        self.note_step(pair, "send")
        pair.send(pair.server, some_bytes(size), how)

    @rule(index=PAIRS, size=SIZES, how=st.sampled_from(WAYS_TO_SEND), pieces=st.integers(1, 5))
    def client_sends(self, index: int, size: int, how: Any, pieces: int) -> None:
        pair = self.pick(index)
        self.note_step(pair, "send")
        for piece in range(pieces):
            data = some_bytes(size)[piece * size // pieces : (piece + 1) * size // pieces]
            if isinstance(pair.client, LibraryEnd):
                pair.send(pair.client, data, how)
            elif not pair.client.has_shut_down:
                pair.client.send(data)

    @rule(index=PAIRS, size=SIZES)
    def client_asks_and_server_answers(self, index: int, size: int) -> None:
        pair = self.pick(index)
        client = pair.client
        if pair.is_healthy and pair.server.is_reading:
            self.note_step(pair, "send")
            # Its callback comes before what this thread has sent, if that is still on its way to the loop.
            pair.server.in_loop(lambda: setattr(pair.server, "answer", some_bytes(size)))
            if isinstance(client, SocketEnd):
                pair.wait_for(lambda: client.send(b"?"), "a server that reads takes no byte")
            else:
                pair.send(client, b"?", in_this_thread)
            self.reports.wait_for(lambda: not pair.server.answer, "a question never arrived")

    @rule(index=PAIRS, side=SIDES, size=st.sampled_from([1, 100, 4096, 70_000]))
    def many_threads_send(self, index: int, side: str, size: int) -> None:
        """Send the same from several threads at once: so its order does not matter, but no message may be torn."""
        pair = self.pick(index)
        end = getattr(pair, side)
        if isinstance(end, SocketEnd):
            return
        self.note_step(pair, "send")
        data = some_bytes(size)
        accepted: list[bool] = []
        is_sure = pair.is_healthy

        def work() -> None:
            for _ in range(3):
                accepted.append(end.connection.send(data))
                if end.is_reading:
                    end.connection.stop_read()
                    end.connection.start_read()

        at_once(work, work, work)
        for is_accepted in accepted:
            pair.note_send(end, data, is_accepted, is_sure)

    @rule(index=PAIRS, side=SIDES, is_on=st.booleans())
    def reading_is_switched(self, index: int, side: str, is_on: bool) -> None:
        end = getattr(self.pick(index), side)
        if is_on:
            end.start_read()
        else:
            end.stop_read()

    @rule(index=PAIRS)
    def settle(self, index: int) -> None:
        """Wait until everything that must arrive has."""
        pair = self.pick(index)
        self.note_step(pair, "settle")
        pair.settle()

    @rule(
        index=st.integers(0, 9),
        seconds=st.sampled_from([0.0, 0.001, 0.02]),
        kind=st.sampled_from(["once", "repeated", "cancelled"]),
        raises=st.booleans(),
    )
    def set_timer(self, index: int, seconds: float, kind: str, raises: bool) -> None:
        server = self.servers[-1]
        loops = [self.client_loop, server.loop, *server.server.thread_pool.loops()]
        is_repeated = kind == "repeated"
        loop = loops[index % len(loops)]
        self.alarms.append(Alarm(self.reports, loop, max(seconds, 0.001 * is_repeated), is_repeated, raises))
        if kind == "cancelled":
            self.alarms[index % len(self.alarms)].cancel()

    @rule(index=PAIRS, count=st.integers(1, 5), raising=st.integers(0, 9))
    def functors_are_queued(self, index: int, count: int, raising: int) -> None:
        """All run, in their order; also after one that raises."""
        loop = self.healthy[index % len(self.healthy)].server.connection.loop
        ran: list[int] = []

        def run(number: int) -> None:
            ran.append(number)
            if number == raising:
                self.reports.raise_one("a functor")

        for number in range(count):
            loop.queue_in_loop(run, number)
        call_in_loop(loop, lambda: None)
        assert ran == list(range(count)), "functors out of order"

    @rule(index=PAIRS, side=SIDES, how=st.sampled_from(WAYS_TO_END))
    def connection_ends(self, index: int, side: str, how: Any) -> None:
        pair = self.healthy.pop(index % len(self.healthy))
        self.note_step(pair, "end")
        self.done[how.__name__] += 1
        how(pair, getattr(pair, side))
        self.replace(pair)

    @precondition(lambda self: self.ends_so_far % 2 == 1)
    @rule()
    def connection_callback_raises(self) -> None:
        pair = self.make_pair(raises="up")
        pair.is_broken = True
        self.replace(pair)

    def replace(self, pair: Pair) -> None:
        """Let a pair end beside what goes on, with a new one in its place."""
        self.ends_so_far += 1
        self.ending.append(pair)
        self.finish_ending(MAX_ENDING)
        self.fill_up()

    def fill_up(self) -> None:
        while len(self.healthy) < self.how_many:
            self.healthy.append(self.make_pair())

    @precondition(lambda self: self.ends_so_far >= 3)
    @rule(drain_s=st.sampled_from(STOPS))
    def server_stops(self, drain_s: float) -> None:
        """Stop it, and start another one."""
        self.ends_so_far = 0
        self.check_alarms()
        self.stop_server(drain_s)
        self.start_server()

    def stop_server(self, drain_s: float) -> None:
        is_in_order = drain_s == DRAIN_S
        self.done["stop in order" if is_in_order else "stop by force"] += 1
        for pair in [*self.healthy, *self.ending, *self.keepers]:
            if pair.place is self.servers[-1]:
                pair.server.has_shut_down = True
                if not is_in_order:
                    pair.is_broken = pair.is_cut_short = pair.server.needs_no_help = True
        self.servers[-1].server.stop(drain_s)
        self.ending += self.healthy
        self.healthy = []
        if not is_in_order:
            self.finish_ending(0)  # their loops end

    # --- what must be so ---

    @invariant()
    def nothing_contradicts_the_model(self) -> None:
        self.reports.check()
        for pair in [*self.healthy, *self.ending, *self.keepers]:
            pair.check()
        self.done["step"] += 1

    def finish_ending(self, how_many_go_on: int) -> None:
        while len(self.ending) > how_many_go_on:
            self.finish(self.ending.pop(0))

    def finish(self, pair: Pair) -> None:
        pair.finish()
        for end in pair.ends:
            if isinstance(end, LibraryEnd):
                self.done.update(end.counts)

    def check_alarms(self) -> None:
        for alarm in self.alarms:
            alarm.check()
            alarm.cancel()
        self.alarms = []

    def teardown(self) -> None:
        try:
            if sys.exc_info()[1] is None:  # else it has failed already
                self.check_the_end()
        finally:
            # What is no Exception says that Hypothesis breaks off.
            self.done["failure"] += isinstance(sys.exc_info()[1], Exception)
            self.clean_up()

    def check_the_end(self) -> None:
        self.end_in_turn()
        self.finish_ending(0)
        for keeper in self.keepers:
            keeper.is_broken = keeper.server.needs_no_help = True
        for server in self.servers:
            server.close()
        for keeper in self.keepers:
            self.finish(keeper)
        self.reports.check()
        raised = {id(error) for error in self.reports.raised}
        reported = {id(error) for error in self.reports.reported}
        assert raised == reported, "what callbacks have raised is not what was reported"
        assert len(self.reports.raised) == len(self.reports.reported), "an exception was reported twice"
        self.done.update(f"raised in {error}" for error in self.reports.raised)
        # One that has failed is played again, and shortened: its turn must be the same then.
        if not self.done["failure"]:
            self.done["example"] += 1

    def end_in_turn(self) -> None:
        """End a connection, and the server, in the way whose turn it is: what is drawn may leave some of them out."""
        turn = self.done["example"]
        self.check_alarms()
        time_round, way = divmod(turn, TURNS)
        if way < len(WAYS_TO_END):
            side = ("server", "client")[(way + time_round) % 2]
            self.connection_ends(turn, side, WAYS_TO_END[way])
        else:
            self.connection_callback_raises()
        self.finish(self.ending.pop())
        self.stop_server(STOPS[turn % len(STOPS)])

    def clean_up(self) -> None:
        for pair in self.all_pairs:
            pair.let_go()
        for server in self.servers:
            server.close()
        self.client_thread.stop(PATIENCE_S)
        self.log.removeHandler(self.reports)
        self.log.propagate = True


def run(kind: type[Machine], **how: Any) -> Counter[str]:
    """Run a kind of machine, and return how often it has done what."""
    kind.done = Counter()
    run_state_machine_as_test(
        kind,
        settings=settings(
            stateful_step_count=STEPS,
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
            print_blob=True,
            **how,
        ),
    )
    return kind.done


@pytest.mark.timeout(600)  # a sequence that fails is shortened, which takes its time
@pytest.mark.parametrize("is_tls", [False, True], ids=["tcp", "tls"])
@pytest.mark.parametrize("threads", [0, 2], ids=["one-loop", "three-loops"])
@pytest.mark.parametrize("poller", ["epoll", "poll"])
@pytest.mark.provokes_errors
def test_no_sequence_of_events_contradicts_the_model(monkeypatch, poller, threads, is_tls):
    monkeypatch.setenv("PYMUDUO_POLLER", poller)
    done = run(type("Machine", (Machine,), {"threads": threads, "is_tls": is_tls}), max_examples=EXAMPLES)
    # Else it has looked at connections that were ending, and at little else.
    assert done["send"] >= 2 * EXAMPLES
    assert done["message"] >= 2 * EXAMPLES
    if EXAMPLES >= TURNS:  # each has had its turn
        expected = [way.__name__ for way in WAYS_TO_END] + [f"raised in {what}" for what in ("up", *RAISING)]
        missing = [what for what in (*expected, "stop in order", "stop by force") if not done[what]]
        assert not missing, f"never came: {missing}"


# --- faults that the model must find ---


class FaultFinder(Machine):
    """Keeps what it has found: a fault that needs the right moment need not come again when Hypothesis looks twice."""

    found: ClassVar[list[str]]

    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            if sys.exc_info()[1] is not None:
                self.found.append(str(sys.exc_info()[1]))


def calls_message_after_close(original: Any, self: TcpConnection) -> None:
    original(self)
    if self.message_callback is not None and self.was_up:
        self.message_callback(self, Buffer(b"late"), Timestamp.now())


def closes_for_no_reason(original: Any, self: TcpConnection, received: Buffer) -> None:
    original(self, received)
    if self.messages_received == 2:
        self.force_close()


def drops_output_at_shutdown(original: Any, self: TcpConnection) -> None:
    self._drop_output()
    original(self)


def runs_twice(original: Any, self: TcpConnection, *args: Any) -> None:
    original(self, *args)
    original(self, *args)


def forgets_the_mark(original: Any, self: TcpConnection) -> None:
    self._above_mark = False
    original(self)


def loses_a_byte(original: Any, self: TcpConnection, data: bytes) -> Any:
    return original(self, data[1:] if len(data) > 4000 else data)


def resets_instead_of_closing(original: Any, self: TcpConnection) -> None:
    fd = os.dup(self.fd)
    original(self)
    if self.bytes_sent == 0:  # its client may not have come up yet, and would connect again
        os.close(fd)
    else:
        reset(socket.socket(fileno=fd))


def closes_without_a_word(original: Any, self: TcpConnection, *args: Any) -> None:
    self.loop.exception_handler = lambda error, source: self.force_close()
    original(self, *args)
    self.loop.exception_handler = None


def does_nothing(original: Any, self: Any, *args: Any) -> None:
    pass


FAULTS = {  # where, what it is there, and what the model says of it: a regular expression
    "message-after-close": (TcpConnection, "_handle_close", calls_message_after_close, "message after close"),
    "close-for-no-reason": (TcpConnection, "_take_message", closes_for_no_reason, "nobody has ended"),
    "output-dropped": (TcpConnection, "_shutdown_in_loop", drops_output_at_shutdown, "not all of it|was to raise"),
    "reset": (TcpConnection, "connect_destroyed", resets_instead_of_closing, "reset|not all of it has arrived"),
    "byte-lost": (TcpConnection, "_queue_output", loses_a_byte, "not what was sent"),
    "write-complete-twice": (TcpConnection, "_run_write_complete", runs_twice, "more write-completes than sends"),
    "no-high-water": (TcpConnection, "_run_high_water_mark", does_nothing, "the high-water mark was not called"),
    "no-low-water": (TcpConnection, "_run_low_water_mark", does_nothing, "the low-water mark was not called"),
    "high-water-twice": (TcpConnection, "_run_high_water_mark", runs_twice, "too little has left"),
    "high-water-again": (TcpConnection, "_check_high_water", forgets_the_mark, "too little has left"),
    "high-water-error": (TcpConnection, "_run_high_water_mark", closes_without_a_word, "not what was reported"),
    "low-water-error": (TcpConnection, "_run_low_water_mark", closes_without_a_word, "not what was reported"),
    "no-peer-shutdown": (TcpConnection, "_run_peer_shutdown", does_nothing, "the end of the peer's stream was not"),
    "goes-on-reading": (TcpConnection, "_stop_read_in_loop", does_nothing, "a message while reading is stopped"),
    "cancelled-timer-runs": (TimerQueue, "cancel", does_nothing, "after it was cancelled"),
}


@pytest.mark.skipif(COMPILED, reason="a compiled class can't be changed")
@pytest.mark.parametrize(("owner", "method", "fault", "found"), FAULTS.values(), ids=FAULTS)
@pytest.mark.provokes_errors
@pytest.mark.timeout(600)
def test_the_model_finds_a_fault(monkeypatch, owner, method, fault, found):
    original = getattr(owner, method)
    monkeypatch.setattr(owner, method, lambda self, *args: fault(original, self, *args))
    FaultFinder.found = []
    with pytest.raises((AssertionError, Flaky)):
        run(FaultFinder, max_examples=100, derandomize=True, database=None, phases=[Phase.generate])
    assert any(re.search(found, text) for text in FaultFinder.found), FaultFinder.found
