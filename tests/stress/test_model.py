"""A server and its clients, driven through random sequences and held against a model of what each side must see.

The model knows, for every connection, which bytes must arrive, which may, and in which order its callbacks must run.
Hypothesis makes up the sequence, and shortens one that fails.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import threading
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from conftest import PATIENCE_S, ServerThread, call_in_loop, eventually, reset
from pymuduo import Buffer, EventLoop, TcpConnection, Timer

SIZES = st.sampled_from([1, 2, 100, 4095, 4096, 70_000, 300_000])
LARGE = 6_000_000  # more than the kernel takes
MAX_CLIENTS = 4
EXAMPLES = int(os.environ.get("PYMUDUO_EXAMPLES", "25"))
HIGH, LOW = 100_000, 20_000  # water marks
DRAIN_S = 10 * PATIENCE_S  # a server that stops outlives the test's patience, unless it is told to hurry
NOISE = bytes(range(250, 0, -1))  # what the server sends
RAISE = b"\xffraise"  # a message that makes the callback raise; no other message has such a byte


class Pair:
    """A client, its connection on the server's side, and the model of the two."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.client: socket.socket | None = None
        self.connection: TcpConnection | None = None
        self.events: list[str] = []  # of its life; appended to in the connection's loop, as the next two are
        self.marks: list[str] = []
        self.completed: list[int] = []  # bytes sent so far, at each write-complete
        self.sends = 0  # that may have been accepted
        self.server_received = bytearray()
        self.client_received = bytearray()
        self.client_sent = bytearray()
        self.must_arrive = bytearray()  # accepted by send while nothing stood in its way
        self.may_arrive = bytearray()  # accepted later
        self.is_reading = True  # the server
        self.is_ending = False  # somebody has begun to end it in good order
        self.is_broken = False  # somebody has ended it by force
        self.client_has_ended = False
        self.closed = threading.Event()
        self._noise = itertools.cycle(range(200))

    def make_bytes(self, size: int) -> bytes:
        """Return bytes that tell where in the stream they belong."""
        return bytes(itertools.islice(self._noise, size))

    def note_send(self, data: bytes, accepted: bool) -> None:
        if accepted and not (self.is_ending or self.is_broken):
            self.must_arrive += data
        elif accepted:
            self.may_arrive += data
        else:
            assert self.is_ending or self.is_broken, "a send was refused on a healthy connection"

    def drain_client(self) -> bool:
        """Take what has arrived at the client; whether its stream has ended."""
        assert self.client is not None
        while True:
            try:
                chunk = self.client.recv(1 << 20)
            except BlockingIOError:
                return False
            except OSError:
                self.is_broken = True  # reset: what was unread here is gone
                return True
            if not chunk:
                return True
            self.client_received += chunk

    def check(self) -> None:
        """Hold what has happened so far against the model."""
        assert self.client_sent.startswith(bytes(self.server_received))
        received, must = bytes(self.client_received), bytes(self.must_arrive)
        assert (must + bytes(self.may_arrive)).startswith(received)
        assert self.events in (["up"], ["up", "down"], ["up", "down", "close"]), self.events
        assert len(self.completed) <= self.sends, "a write-complete without a send"
        marks = list(self.marks)
        assert marks[:1] != ["low"], marks
        assert ("low", "low") not in itertools.pairwise(marks), marks

    def is_told_of_all(self) -> bool:
        """Whether the last callbacks of the output have run; takes what is still on its way to the client."""
        self.drain_client()
        if self.is_broken or not self.must_arrive:
            return True
        return bool(self.completed) and self.completed[-1] >= len(self.must_arrive) and self.marks[-1:] != ["high"]


class Alarm:
    """A timer, and what the model knows of it."""

    def __init__(self, loop: EventLoop, seconds: float, is_repeated: bool) -> None:
        self.loop = loop
        self.runs = 0
        self.runs_at_most: int | None = None
        self.is_repeated = is_repeated
        self.timer: Timer = loop.run_every(seconds, self.ring) if is_repeated else loop.run_after(seconds, self.ring)

    def ring(self) -> None:
        self.runs += 1

    def cancel(self) -> None:
        self.timer.cancel()
        call_in_loop(self.loop, lambda: None)
        if self.runs_at_most is None:
            self.runs_at_most = self.runs

    def check(self) -> None:
        """A timer runs once, or again and again; never when it has been cancelled."""
        if self.runs_at_most is None:
            eventually(lambda: self.runs >= 1 + 2 * self.is_repeated)
        assert self.is_repeated or self.runs <= 1
        assert self.runs_at_most is None or self.runs == self.runs_at_most


class Machine(RuleBasedStateMachine):
    """Draws what happens next."""

    threads = 0
    half_open = False

    def __init__(self) -> None:
        super().__init__()
        self.pairs: list[Pair] = []
        self.by_port: dict[int, Pair] = {}
        self.numbers = itertools.count(1)
        self.alarms: list[Alarm] = []
        self.has_stopped = False
        callbacks: dict[str, Any] = {
            "connection_callback": self.on_connection,
            "message_callback": self.on_message,
            "close_callback": self.on_close,
            "write_complete_callback": self.on_write_complete,
            "high_water_mark_callback": self.on_high_water_mark,
            "low_water_mark_callback": self.on_low_water_mark,
            "high_water_mark": HIGH,
            "low_water_mark": LOW,
        }
        if self.half_open:
            callbacks["peer_shutdown_callback"] = self.on_peer_shutdown
        self.server = ServerThread(self.threads, **callbacks)
        for loop in {self.server.loop, *self.server.server.thread_pool.loops()}:
            loop.exception_handler = None
        self.keeper = self.make_pair()  # nothing happens to it: so the loops live on in a server that stops

    # --- the server's callbacks ---

    def pair_of(self, connection: TcpConnection) -> Pair:
        pair: Pair = connection.context
        return pair

    def on_connection(self, connection: TcpConnection) -> None:
        if connection.connected:
            pair = eventually(lambda: self.by_port.get(connection.peer_address.port))
            assert pair is not None
            connection.context = pair
            pair.events.append("up")
            pair.connection = connection
        else:
            self.pair_of(connection).events.append("down")

    def on_message(self, connection: TcpConnection, buffer: Buffer, receive_time: object) -> None:
        pair = self.pair_of(connection)
        assert pair.events == ["up"], "a message outside the life of its connection"
        at = buffer.find(b"\xff")
        if at >= 0:
            pair.server_received += buffer.retrieve_as_bytes(at)
            buffer.retrieve_all()
            raise ZeroDivisionError("as the client wished")
        pair.server_received += buffer.retrieve_all_as_bytes()

    def on_peer_shutdown(self, connection: TcpConnection) -> None:
        connection.shutdown()

    def on_close(self, connection: TcpConnection) -> None:
        pair = self.pair_of(connection)
        pair.events.append("close")
        pair.closed.set()

    def on_write_complete(self, connection: TcpConnection) -> None:
        pair = self.pair_of(connection)
        assert pair.events == ["up"], "a write-complete outside the life of its connection"
        pair.completed.append(connection.bytes_sent)

    def on_high_water_mark(self, connection: TcpConnection, unsent: int) -> None:
        assert unsent >= HIGH
        pair = self.pair_of(connection)
        assert pair.events == ["up"], "a water mark outside the life of its connection"
        pair.marks.append("high")

    def on_low_water_mark(self, connection: TcpConnection) -> None:
        pair = self.pair_of(connection)
        assert pair.events == ["up"], "a water mark outside the life of its connection"
        pair.marks.append("low")

    # --- what may happen ---

    def alive(self) -> list[Pair]:
        return [pair for pair in self.pairs if pair.client is not None]

    def pick(self, index: int) -> Pair:
        alive = self.alive()
        return alive[index % len(alive)]

    has_some = precondition(lambda self: bool(self.alive()))

    def make_pair(self) -> Pair:
        pair = Pair(next(self.numbers))
        pair.client = socket.socket()
        if pair.number % 2:  # so that the kernel soon takes no more for it
            pair.client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        pair.client.settimeout(PATIENCE_S)
        pair.client.bind(("127.0.0.1", 0))
        self.by_port[pair.client.getsockname()[1]] = pair
        pair.client.connect(("127.0.0.1", self.server.port))
        pair.client.setblocking(False)
        eventually(lambda: pair.connection is not None)
        return pair

    @precondition(lambda self: len(self.alive()) < MAX_CLIENTS and not self.has_stopped)
    @rule()
    def connect(self) -> None:
        self.pairs.append(self.make_pair())

    @precondition(lambda self: len(self.pairs) >= MAX_CLIENTS and not self.has_stopped)
    @rule()
    def server_stops(self) -> None:
        self.has_stopped = True
        for pair in self.alive():
            pair.is_ending = True
        self.server.server.stop(DRAIN_S)

    @rule(seconds=st.sampled_from([0.0, 0.001, 0.02]), is_repeated=st.booleans(), index=st.integers(0, 9))
    def set_timer(self, seconds: float, is_repeated: bool, index: int) -> None:
        loops = [self.server.loop, *self.server.server.thread_pool.loops()]
        self.alarms.append(Alarm(loops[index % len(loops)], max(seconds, 0.001 * is_repeated), is_repeated))

    @precondition(lambda self: bool(self.alarms))
    @rule(index=st.integers(0, 9))
    def cancel_timer(self, index: int) -> None:
        self.alarms[index % len(self.alarms)].cancel()

    @has_some
    @rule(index=st.integers(0, 9), size=SIZES, pieces=st.integers(1, 5))
    def client_sends(self, index: int, size: int, pieces: int) -> None:
        pair = self.pick(index)
        assert pair.client is not None
        if pair.client_has_ended:
            return
        data = pair.make_bytes(size)
        for begin in range(0, size, -(-size // pieces)):
            piece = data[begin : begin + -(-size // pieces)]
            try:
                # No more than the kernel takes: a server that does not read must not stop us.
                sent = pair.client.send(piece)
            except BlockingIOError:
                sent = 0
            except OSError:
                pair.is_broken = True
                return
            pair.client_sent += piece[:sent]
            if sent < len(piece):
                # The model's bytes go on where the stream has stopped.
                pair._noise = itertools.cycle(range(200))
                for _ in range(len(pair.client_sent) % 200):
                    next(pair._noise)
                return

    @has_some
    @rule(
        index=st.integers(0, 9),
        size=SIZES | st.just(LARGE),
        how=st.sampled_from(["here", "in loop", "functor", "timer", "buffer"]),
    )
    def server_sends(self, index: int, size: int, how: str) -> None:
        pair = self.pick(index)
        connection = pair.connection
        assert connection is not None
        pair.sends += 1
        data = (NOISE * (size // len(NOISE) + 1))[:size]
        if how == "here":
            pair.note_send(data, connection.send(data))
        elif how == "in loop":
            pair.note_send(data, call_in_loop(connection.loop, connection.send, data))
        elif how == "buffer":
            pair.note_send(data, call_in_loop(connection.loop, lambda: connection.send(Buffer(data))))
        else:
            done = threading.Event()
            accepted: list[bool] = []

            def send() -> None:
                accepted.append(connection.send(data))
                done.set()

            if how == "functor":
                connection.loop.queue_in_loop(send)
            else:
                connection.loop.run_after(0.0001, send)
            assert done.wait(PATIENCE_S)
            pair.note_send(data, accepted[0])

    @has_some
    @rule(index=st.integers(0, 9))
    def client_receives(self, index: int) -> None:
        self.pick(index).drain_client()

    @has_some
    @rule(index=st.integers(0, 9), inside=st.booleans())
    def stop_reading(self, index: int, inside: bool) -> None:
        pair = self.pick(index)
        assert pair.connection is not None
        if inside:
            call_in_loop(pair.connection.loop, pair.connection.stop_read)
        else:
            pair.connection.stop_read()
        pair.is_reading = False

    @has_some
    @rule(index=st.integers(0, 9))
    def start_reading(self, index: int) -> None:
        pair = self.pick(index)
        assert pair.connection is not None
        pair.connection.start_read()
        pair.is_reading = True

    @has_some
    @rule(index=st.integers(0, 9))
    def server_shuts_down(self, index: int) -> None:
        pair = self.pick(index)
        assert pair.connection is not None
        pair.is_ending = True
        pair.connection.shutdown()

    @has_some
    @rule(index=st.integers(0, 9))
    def server_closes_by_force(self, index: int) -> None:
        pair = self.pick(index)
        assert pair.connection is not None
        pair.is_broken = True
        pair.connection.force_close()

    @has_some
    @rule(index=st.integers(0, 9))
    def client_ends_its_output(self, index: int) -> None:
        pair = self.pick(index)
        assert pair.client is not None
        # What was sent before counts as sent before only if it has gone through the loop.
        assert pair.connection is not None
        call_in_loop(pair.connection.loop, lambda: None)
        pair.is_ending = True
        pair.client_has_ended = True
        with contextlib.suppress(OSError):
            pair.client.shutdown(socket.SHUT_WR)

    @has_some
    @rule(index=st.integers(0, 9))
    def client_makes_a_callback_raise(self, index: int) -> None:
        pair = self.pick(index)
        assert pair.client is not None
        if pair.client_has_ended:
            return
        pair.is_broken = True
        pair.client_has_ended = True
        with contextlib.suppress(OSError):
            pair.client.send(RAISE)

    @has_some
    @rule(index=st.integers(0, 9), by_reset=st.booleans())
    def client_leaves(self, index: int, by_reset: bool) -> None:
        pair = self.pick(index)
        assert pair.client is not None
        pair.is_broken = True
        if by_reset:
            reset(pair.client)
        else:
            pair.client.close()
        pair.client = None
        assert pair.connection is not None
        pair.connection.start_read()  # or the bytes before the FIN would keep it
        assert pair.closed.wait(PATIENCE_S), f"{pair.connection!r} outlives its peer"
        pair.check()

    @has_some
    @rule(index=st.integers(0, 9))
    def settle(self, index: int) -> None:
        """Wait until everything that must arrive has."""
        pair = self.pick(index)
        if pair.is_reading and not pair.is_broken and not pair.is_ending:
            eventually(lambda: pair.server_received == pair.client_sent, "what the client sent never arrived")
        if not pair.is_broken:
            self.wait_for_client(pair)
        pair.check()

    def wait_for_client(self, pair: Pair) -> None:
        eventually(
            lambda: pair.drain_client() or pair.is_broken or len(pair.client_received) >= len(pair.must_arrive),
            "what the server sent never arrived",
        )
        if not pair.is_broken:
            assert pair.client_received.startswith(bytes(pair.must_arrive))
        eventually(pair.is_told_of_all, "write-complete, or the low-water mark, never came")

    @invariant()
    def nothing_contradicts_the_model(self) -> None:
        for pair in self.pairs:
            if pair.client is not None:
                pair.check()

    def teardown(self) -> None:
        try:
            for pair in self.alive():
                if not pair.is_broken:
                    self.wait_for_client(pair)
                if not pair.is_broken and not pair.is_ending:
                    assert pair.connection is not None
                    pair.connection.start_read()
                    eventually(lambda p=pair: p.server_received == p.client_sent)
                pair.check()
            for alarm in self.alarms:
                alarm.check()
            self.server.close()
            for pair in self.pairs:
                assert pair.events == ["up", "down", "close"], pair.events
        finally:
            for pair in [*self.alive(), self.keeper]:
                assert pair.client is not None
                pair.client.close()
            self.server.server.stop(0)


@pytest.mark.parametrize("half_open", [False, True], ids=["ends-with-the-peer", "answers-the-fin"])
@pytest.mark.parametrize("threads", [0, 2], ids=["one-loop", "three-loops"])
def test_no_sequence_of_events_contradicts_the_model(threads, half_open):
    kind = type("Machine", (Machine,), {"threads": threads, "half_open": half_open})
    run_state_machine_as_test(
        kind,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
