"""What the model test lets happen: ways to send, ways to end a connection, and timers."""

from __future__ import annotations

import threading
from collections.abc import Callable

from conftest import PATIENCE_S, call_in_loop
from connection_model import HIGH, STREAM, End, LibraryEnd, Pair, Reports, SocketEnd, in_this_thread
from pymuduo import Buffer, EventLoop, Timer

SOON_S = 0.005
BUFFERED = 64_000_000  # more than the kernel buffers at both ends of a connection


# --- ways to send ---


def changed_afterwards(end: LibraryEnd, data: bytes) -> bool:
    """Send what the sender goes on to use for something else."""
    copy = bytearray(data)

    def send() -> bool:
        accepted = end.send_in_loop(memoryview(copy))
        copy[:] = bytes(len(copy))
        return accepted

    return call_in_loop(end.connection.loop, send)


def in_a_functor(end: LibraryEnd, data: bytes) -> bool:
    return call_in_loop(end.connection.loop, end.send_in_loop, data)


def in_a_buffer(end: LibraryEnd, data: bytes) -> bool:
    buffer = Buffer(data)
    accepted = call_in_loop(end.connection.loop, end.send_in_loop, buffer)
    assert len(buffer) == (0 if accepted else len(data))
    return accepted


def in_a_timer(end: LibraryEnd, data: bytes) -> bool:
    done = threading.Event()
    accepted: list[bool] = []

    def send() -> None:
        accepted.append(end.send_in_loop(data))
        done.set()

    end.connection.loop.run_after(0.0001, send)
    assert done.wait(PATIENCE_S), "a timer never ran"
    return accepted[0]


WAYS_TO_SEND = (in_this_thread, changed_afterwards, in_a_functor, in_a_buffer, in_a_timer)


def at_once(*calls: Callable[[], object]) -> None:
    """Make each call in a thread of its own, all at the same moment."""
    start = threading.Barrier(len(calls))

    def run(call: Callable[[], object]) -> None:
        start.wait(PATIENCE_S)
        call()

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# --- ways to end it ---


def shuts_down(pair: Pair, end: End) -> None:
    end.shut_down()


def shuts_down_behind_output(pair: Pair, end: End) -> None:
    end = end if isinstance(end, LibraryEnd) else pair.server
    pair.other(end).stop_read()
    send_above_high_water(pair, end)
    end.shut_down()


def leaves(pair: Pair, end: End) -> None:
    pair.is_broken = True
    end.leave()
    if isinstance(end, SocketEnd):
        pair.server.needs_no_help = not pair.server.is_half_open


def resets(pair: Pair, end: End) -> None:
    pair.is_broken = True
    if isinstance(end, SocketEnd):
        end.leave(by_reset=True)
        pair.server.needs_no_help = True
    else:
        end.needs_no_help = True
        end.connection.force_close()
        end.refuses = True


def shuts_down_within_a_time(pair: Pair, end: End) -> None:
    end = end if isinstance(end, LibraryEnd) else pair.server
    pair.is_broken = end.needs_no_help = True
    end.connection.shutdown(within_s=SOON_S)
    end.refuses = True


def closes_with_delay(pair: Pair, end: End) -> None:
    end = end if isinstance(end, LibraryEnd) else pair.server
    pair.is_broken = end.needs_no_help = True
    end.connection.force_close_with_delay(SOON_S)
    end.refuses = True


def is_ended_by_many(pair: Pair, end: End) -> None:
    end = end if isinstance(end, LibraryEnd) else pair.server
    pair.is_broken = end.needs_no_help = True
    connection = end.connection
    data = STREAM[:100]
    accepted: list[bool] = []
    at_once(
        connection.shutdown,
        connection.force_close,
        lambda: connection.force_close_with_delay(0.0),
        lambda: accepted.append(connection.send(data)),
    )
    pair.note_send(end, data, accepted[0], is_sure=False)
    end.refuses = True


RAISING = ("message", "write-complete", "high", "low", "end of stream", "down", "close")


def raises_in(what: str) -> Callable[[Pair, End], None]:
    """Return what makes that callback raise, and sees to it that it is called."""

    def ends(pair: Pair, end: End) -> None:
        end = end if isinstance(end, LibraryEnd) else pair.server
        other = pair.other(end)
        end.start_read()
        if what == "high":  # it may have been reached already
            other.start_read()
            pair.settle()
        pair.is_broken = True
        end.in_loop(lambda: setattr(end, "raises", what))
        if what in ("high", "low"):
            other.stop_read()
            send_above_high_water(pair, end)
            if what == "low":
                other.start_read()
        else:
            pair.send(end, STREAM, in_a_functor)
        if isinstance(other, SocketEnd):
            other.send(STREAM[:100])
        else:
            pair.send(other, STREAM[:100], in_this_thread)
        if what == "end of stream":
            end.in_loop(end.stay_half_open)
            other.shut_down()
        elif what in ("down", "close"):
            end.leave()

    ends.__name__ = f"raises_in_{what}".replace(" ", "_").replace("-", "_")
    return ends


def send_above_high_water(pair: Pair, end: LibraryEnd) -> None:
    """Send to a peer that does not read until the kernel takes no more, and the high-water mark is reached."""

    def send() -> list[bool]:
        accepted: list[bool] = []
        while end.connection.output_size < HIGH and len(accepted) < BUFFERED // len(STREAM):
            accepted.append(end.send_in_loop(STREAM))
        return accepted

    for is_accepted in call_in_loop(end.connection.loop, send):
        pair.note_send(end, STREAM, is_accepted, is_sure=pair.is_healthy)


WAYS_TO_END = (
    shuts_down,
    shuts_down_behind_output,
    leaves,
    resets,
    shuts_down_within_a_time,
    closes_with_delay,
    is_ended_by_many,
    *map(raises_in, RAISING),
)


class Alarm:
    """A timer, and what the model knows of it. One that raises is a timer all the same."""

    def __init__(self, reports: Reports, loop: EventLoop, seconds: float, is_repeated: bool, raises: bool) -> None:
        self.reports = reports
        self.loop = loop
        self.runs = 0
        self.runs_at_most: int | None = None
        self.is_repeated = is_repeated
        self.raises = raises
        self.timer: Timer = loop.run_every(seconds, self.ring) if is_repeated else loop.run_after(seconds, self.ring)

    def ring(self) -> None:
        assert self.loop.is_in_loop_thread()
        self.runs += 1
        if self.raises:
            self.raises = False
            self.reports.raise_one("a timer")

    def cancel(self) -> None:
        self.timer.cancel()
        call_in_loop(self.loop, lambda: None)
        if self.runs_at_most is None:
            self.runs_at_most = self.runs

    def check(self) -> None:
        """A timer runs once, or again and again; never when it has been cancelled."""
        if self.runs_at_most is None:
            self.reports.wait_for(lambda: self.runs >= 1 + 2 * self.is_repeated, "a timer never ran")
        assert self.is_repeated or self.runs <= 1
        assert self.runs_at_most is None or self.runs == self.runs_at_most, "a timer ran after it was cancelled"
