"""What the model test lets happen: ways to send, ways to end a connection, and timers."""

from __future__ import annotations

import threading
from collections.abc import Callable

from conftest import PATIENCE_S, call_in_loop
from connection_model import STREAM, End, LibraryEnd, Pair, Reports, SocketEnd, in_this_thread
from pymuduo import Buffer, EventLoop, Timer

SOON_S = 0.005


# --- ways to send ---


def changed_afterwards(end: LibraryEnd, data: bytes) -> bool:
    """Send what the sender goes on to use for something else."""
    copy = bytearray(data)

    def send() -> bool:
        accepted = end.connection.send(memoryview(copy))
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


def raises_in(what: str) -> Callable[[Pair, End], None]:
    """Return what makes that callback raise, and sees to it that it is called."""

    def ends(pair: Pair, end: End) -> None:
        end = end if isinstance(end, LibraryEnd) else pair.server
        pair.is_broken = True
        end.in_loop(lambda: setattr(end, "raises", what))
        end.start_read()
        other = pair.other(end)
        pair.send(end, STREAM if what == "write-complete" else STREAM * 50, in_a_functor)
        if isinstance(other, SocketEnd):
            other.send(STREAM[:100])
        else:
            pair.send(other, STREAM[:100], in_this_thread)
        if what in ("down", "close"):
            end.leave()

    ends.__name__ = f"raises_in_{what}".replace(" ", "_").replace("-", "_")
    return ends


WAYS_TO_END = (
    shuts_down,
    leaves,
    resets,
    shuts_down_within_a_time,
    closes_with_delay,
    is_ended_by_many,
    *[raises_in(what) for what in ("message", "write-complete", "high", "low", "end of stream", "down", "close")],
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
