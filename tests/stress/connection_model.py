"""What a connection promises to those who use it: the model that ``test_model`` holds the library against.

A pair is one connection seen from both ends. An end holds each callback against the order that is promised, as it
runs, and keeps what was sent and what has come. The pair knows who has ended what; so it knows what must arrive, who
may be down, and who may refuse a send. What is not excused by that is a fault.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import random
import socket
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

from conftest import Received, call_in_loop, eventually, reset
from pymuduo import Buffer, TcpClient, TcpConnection

T = TypeVar("T")

HIGH, LOW = 100_000, 20_000  # water marks
STREAM = random.Random(1).randbytes(65_537)  # what everybody sends, again and again: no part of it looks like another

# What may come after what in the life of a connection; nothing else may. The end of the peer's stream is told of only
# where there is a callback for it.
WHILE_UP = {"message", "write-complete", "high", "low"}
NEXT = {
    "new": {"up"},
    "up": {"end of stream", "down"} | WHILE_UP,
    "end of stream": {"down"} | WHILE_UP - {"message"},
    "down": {"close"},
    "close": set(),
}


class DeliberateError(Exception):
    """What a callback raises because the model wishes it."""


class Reports(logging.Handler):
    """What the library says has gone wrong: only what was meant to may.

    The policy is the default one: what a callback raises is logged, once, and closes its connection. So a promise that
    a callback has found broken turns up here, in whatever thread that was.
    """

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.errors: list[BaseException] = []
        self.raised: list[DeliberateError] = []
        self.reported: list[DeliberateError] = []

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, DeliberateError):
            self.reported.append(error)
        else:
            self.errors.append(error or AssertionError(record.getMessage()))

    def raise_one(self, what: str) -> None:
        error = DeliberateError(what)
        self.raised.append(error)
        raise error

    def check(self) -> None:
        if self.errors:
            raise self.errors[0]

    def wait_for(self, condition: Callable[[], T], message: str = "") -> T:
        """Wait for a condition, but not after something has gone wrong: it might never come true then."""

        def look() -> T:
            self.check()
            return condition()

        return eventually(look, message)


class LibraryEnd:
    """An end that the library has: a server's, or a client's. Its ``on_…`` run in the connection's loop."""

    connection: TcpConnection

    def __init__(self, reports: Reports, is_half_open: bool) -> None:
        self.reports = reports
        self.is_half_open = is_half_open  # it outlives the end of the peer's stream, until the model ends it
        self.client: TcpClient | None = None
        self.stage = "new"
        self.counts: Counter[str] = Counter()
        self.sent = bytearray()
        self.sure = 0  # so many of them must arrive, unless the connection is broken
        self.completed = 0  # bytes sent, at the last write-complete
        self.mark = ""  # the last one that was called
        self.had_left = 0  # bytes that had left by a moment behind which the next mark is reached
        self.high_again_behind = -1  # more bytes than that have left before the high-water mark is reached again
        self.received = Received()
        self.checked = 0
        self.left = b""  # in the input buffer by the last message callback
        self.answer = b""  # to be sent by the next message callback
        self.is_reading = True
        self.raises = ""  # the callback that is to raise and has not yet
        self.has_shut_down = False  # its output was ended in good order, here or by its server
        self.refuses = False  # sends, from now on
        self.needs_no_help = False  # to go down: it was closed by force, or its peer was

    # --- its callbacks ---

    @staticmethod
    def callbacks(end_of: Callable[[TcpConnection], LibraryEnd]) -> dict[str, Any]:
        """Return what a server or a client gives to its connections."""
        return {
            "connection_callback": lambda c: end_of(c).on_connection(c),
            "message_callback": lambda c, buffer, receive_time: end_of(c).on_message(buffer),
            "write_complete_callback": lambda c: end_of(c).on_write_complete(),
            "high_water_mark_callback": lambda c, unsent: end_of(c).on_high_water_mark(unsent),
            "low_water_mark_callback": lambda c: end_of(c).on_low_water_mark(),
            "close_callback": lambda c: end_of(c).note("close"),
            "high_water_mark": HIGH,
            "low_water_mark": LOW,
        }

    def note(self, what: str) -> None:
        assert self.connection.loop.is_in_loop_thread(), f"{what} in another thread than its loop's"
        assert what in NEXT[self.stage], f"{what} after {self.stage}"
        self.counts[what] += 1
        if what in NEXT:
            self.stage = what
        if what == self.raises:
            self.raises = ""
            self.needs_no_help = True
            self.reports.raise_one(what)

    def on_connection(self, connection: TcpConnection) -> None:
        self.connection = connection
        if self.is_half_open:
            self.stay_half_open()
        assert connection.connected == (self.stage == "new")
        self.note("up" if self.stage == "new" else "down")

    def on_message(self, buffer: Buffer) -> None:
        self.note("message")
        assert self.is_reading, "a message while reading is stopped"
        content = bytes(buffer)
        assert len(content) > len(self.left), "a message without a byte that is new"
        assert content.startswith(self.left), "what was left in the buffer has changed"
        self.received += content[len(self.left) :]
        buffer.retrieve(len(content) - len(content) % 5)
        self.left = bytes(buffer)
        if self.answer:
            self.sent += self.answer
            self.sure = len(self.sent)
            assert self.send_in_loop(self.answer), "an answer was refused"
            self.answer = b""

    def on_peer_shutdown(self) -> None:
        assert self.connection.peer_has_shut_down
        self.note("end of stream")

    def on_write_complete(self) -> None:
        assert self.counts["write-complete"] < self.connection.messages_sent, "more write-completes than sends"
        assert self.mark != "high", "all has left, and the low-water mark was not called"
        self.completed = self.connection.bytes_sent
        self.note("write-complete")

    def on_high_water_mark(self, unsent: int) -> None:
        assert unsent >= HIGH
        if self.connection.layer is None:  # TLS counts what it has encrypted as sent, and as unsent too
            assert self.connection.bytes_sent > self.high_again_behind, "high water again, and too little has left"
            self.high_again_behind = self.had_left + unsent - HIGH
        self.mark = "high"
        self.note("high")

    def on_low_water_mark(self) -> None:
        assert self.mark == "high", "low water without high water before it"
        self.mark = "low"
        self.note("low")

    # --- what it is told to do; from any thread ---

    def send_in_loop(self, data: bytes | memoryview | Buffer) -> bool:
        """Send; the loop's thread, where a water mark that is reached is called before anything that comes later."""
        # A mark that is called behind this functor is reached behind this moment.
        self.connection.loop.queue_in_loop(setattr, self, "had_left", self.connection.bytes_sent)
        accepted = self.connection.send(data)
        if accepted and self.connection.output_size >= HIGH:
            self.connection.loop.queue_in_loop(self.expect_high_water)
        return accepted

    def expect_high_water(self) -> None:
        assert self.is_over or self.mark == "high", "the high-water mark was not called"

    def stop_read(self) -> None:
        self.connection.stop_read()
        self.in_loop(lambda: setattr(self, "is_reading", False))

    def start_read(self) -> None:
        self.in_loop(lambda: setattr(self, "is_reading", True))
        self.connection.start_read()

    def in_loop(self, fn: Callable[[], object]) -> None:
        """Call it in the loop, between callbacks that look at what it changes; if the loop is gone, none comes."""
        with contextlib.suppress(RuntimeError):
            call_in_loop(self.connection.loop, fn)

    def shut_down(self) -> None:
        self.has_shut_down = True
        if self.client is None:
            self.connection.shutdown()
            self.refuses = True
        else:
            self.client.disconnect()

    def stay_half_open(self) -> None:
        """Outlive the end of the peer's stream from now on; the loop's thread."""
        self.is_half_open = True
        self.connection.peer_shutdown_callback = lambda c: self.on_peer_shutdown()

    def leave(self) -> None:
        self.needs_no_help = True
        if self.client is None:
            self.connection.force_close()
            self.refuses = True
        else:
            self.client.close()

    # --- what has become of it ---

    @property
    def has_seen_end(self) -> bool:
        return self.stage == "end of stream" or self.is_over

    @property
    def is_over(self) -> bool:
        return self.stage in ("down", "close")

    def take_in(self) -> int:
        """Return how many bytes have come."""
        return len(self.received)

    def is_told_of_all(self) -> bool:
        """Whether the last callbacks of its output have run."""
        return self.completed >= self.sure and self.mark != "high"

    def check_end(self, is_broken: bool) -> None:
        """Hold what is left when it is over against the model."""
        assert self.counts["up"] == self.counts["down"] == self.counts["close"] == 1
        assert self.connection.messages_received == self.counts["message"]
        assert self.connection.disconnected
        if not is_broken:
            assert self.connection.error is None, f"ended by {self.connection.error!r}"
            assert self.connection.bytes_received == len(self.received)
            assert self.sure <= self.connection.bytes_sent <= len(self.sent)
            if self.is_half_open:
                assert self.counts["end of stream"] == 1, "the end of the peer's stream was not told"


class SocketEnd:
    """A client that is no more than a socket, and reads when the model says so."""

    is_half_open = True
    is_reading = True
    needs_no_help = False
    raises = ""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.socket = sock
        self.sent = bytearray()
        self.received = Received()
        self.checked = 0
        self.has_shut_down = False
        self.has_seen_end = False
        self.is_over = False  # by a reset

    @property
    def sure(self) -> int:
        return len(self.sent)

    def send(self, data: bytes) -> bool:
        """Send no more than the kernel takes: a server that does not read must not stop the test."""
        try:
            self.sent += data[: self.socket.send(data)]
        except BlockingIOError:
            return False
        except OSError:
            self.is_over = True
        return True

    def take_in(self) -> int:
        """Read all that has come, and return how many bytes have so far."""
        while not self.has_seen_end:
            try:
                chunk = self.socket.recv(1 << 20)
            except BlockingIOError:
                break
            except OSError:
                self.is_over = True
                chunk = b""
            self.received += chunk
            self.has_seen_end = not chunk
        return len(self.received)

    def stop_read(self) -> None:
        """Do nothing: it reads only when it is told to."""

    def start_read(self) -> None:
        self.take_in()

    def shut_down(self) -> None:
        if not self.has_shut_down and not self.is_over:
            self.has_shut_down = True
            try:
                self.socket.shutdown(socket.SHUT_WR)
            except OSError:
                self.is_over = True

    def leave(self, by_reset: bool = False) -> None:
        self.has_shut_down = self.has_seen_end = self.is_over = True
        if by_reset:
            reset(self.socket)
        self.socket.close()

    def is_told_of_all(self) -> bool:
        """Return True: nobody calls it back."""
        return True

    def check_end(self, is_broken: bool) -> None:
        """Hold what is left when it is over against the model."""
        assert is_broken or not self.is_over, "a reset"


End: TypeAlias = LibraryEnd | SocketEnd


class Pair:
    """The two ends of a connection, and what each owes the other."""

    def __init__(self, server: LibraryEnd, client: End, place: object) -> None:
        self.place = place  # the server
        self.reports = server.reports
        self.server = server
        self.client = client
        self.ends: tuple[End, End] = (server, client)
        self.is_broken = False  # somebody has ended it by force: what is on its way may be lost
        self.is_cut_short = False  # its server was stopped by force: what was to happen may not

    def other(self, end: End) -> End:
        return self.client if end is self.server else self.server

    @property
    def is_healthy(self) -> bool:
        """Whether nobody has begun to end it."""
        return not self.is_broken and not self.server.has_shut_down and not self.client.has_shut_down

    def ends_output(self, end: End) -> bool:
        """Whether the end has been told to send no more, or does so by itself because the other one has."""
        return end.has_shut_down or (self.other(end).has_shut_down and not end.is_half_open)

    def may_go_down(self, end: End) -> bool:
        """Whether the end is over in good order when it goes down now; a socket is not: that would be a reset."""
        return isinstance(end, LibraryEnd) and self.ends_output(end) and self.ends_output(self.other(end))

    def check(self) -> None:
        """Hold what has happened so far against the model: nobody goes without a reason, no byte is wrong."""
        self.reports.check()
        for end in self.ends:
            other = self.other(end)
            came = len(end.received)
            assert end.received[end.checked : came] == other.sent[end.checked : came], "not what was sent"
            end.checked = came
            if not self.is_broken:
                assert not end.has_seen_end or self.ends_output(other), "the end of a stream that nobody has ended"
                assert not end.is_over or self.may_go_down(end), "down or reset, and nobody has ended it"

    def send(self, end: LibraryEnd, data: bytes, how: Callable[[LibraryEnd, bytes], bool]) -> None:
        """Let *end* send, and note what follows from that."""
        # One that crosses threads may meet an end that has come meanwhile.
        is_sure = self.is_healthy or (how is not in_this_thread and not self.is_broken)
        self.note_send(end, data, how(end, data), is_sure)

    def note_send(self, end: LibraryEnd, data: bytes, is_accepted: bool, is_sure: bool) -> None:
        if not is_accepted:
            self.reports.check()  # what a callback has found broken ends its connection
            assert self.is_broken or self.ends_output(end), "a send was refused"
            return
        assert not end.refuses, "a send was accepted after the end"
        end.sent += data
        if is_sure:
            end.sure = len(end.sent)

    def settle(self) -> None:
        """Wait for all that must arrive, and for the callbacks that must run when it has left."""
        for end in self.ends:
            if self.other(end).is_reading and not self.is_broken:
                self.wait_for(functools.partial(self.has_arrived, end), "a byte never arrived")
                self.wait_for(end.is_told_of_all, "write-complete, or the low-water mark, was never called")

    def has_arrived(self, end: End) -> bool:
        other = self.other(end)
        has_ended = other.has_seen_end
        arrived = other.take_in() >= end.sure
        assert arrived or not has_ended, "the stream has ended, and not all of it has arrived"
        return arrived

    def finish(self) -> None:
        """Let both ends do what is left for them, and hold the whole life against the model."""
        for end in self.ends:
            end.start_read()
        self.wait_for(lambda: all(end.is_over for end in self.ends if end.needs_no_help), "it never closed by force")
        for end in self.ends:
            if not end.needs_no_help:
                end.shut_down()
        self.settle()
        self.wait_for(self.is_over, "it never went down")
        for end in self.ends:
            end.check_end(self.is_broken)
            assert self.is_cut_short or not end.raises, "a callback that was to raise was not called"
        self.let_go()

    def is_over(self) -> bool:
        if isinstance(self.client, SocketEnd):
            self.client.take_in()
            return self.server.stage == "close" and self.client.has_seen_end
        return self.server.stage == self.client.stage == "close"

    def wait_for(self, condition: Callable[[], object], message: str) -> None:
        def look() -> object:
            self.check()
            return condition()

        self.reports.wait_for(look, message)

    def let_go(self) -> None:
        """Close what the library does not; whatever has happened."""
        if isinstance(self.client, SocketEnd):
            self.client.socket.close()
        elif self.client.client is not None:
            self.client.client.close()


def in_this_thread(end: LibraryEnd, data: bytes) -> bool:
    return end.connection.send(data)
