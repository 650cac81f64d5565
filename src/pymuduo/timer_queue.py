"""The timers of one loop: muduo's ``Timer``, ``TimerId`` and ``TimerQueue``.

A binary heap ordered by expiry, in which every timer knows its place, so that cancelling takes it out at once: a
million timers that are set and cancelled leave nothing behind. One timerfd wakes the loop for the earliest of them;
it is armed once an iteration, just before the loop polls, however many timers came and went.

Time is the monotonic clock in microseconds: setting the wall clock moves no timer. The queue is touched by its
loop's thread alone; ``EventLoop.run_at``, ``run_after``, ``run_every`` and ``cancel`` are its doors.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pymuduo import _sys
from pymuduo.channel import Channel, callback_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from pymuduo.event_loop import EventLoop
    from pymuduo.timestamp import Timestamp

_NOWHERE = -1  # the place of a timer that is not in the heap


class Timer:
    """A call that a loop will make later, once or again and again; what ``EventLoop.run_after`` returns.

    Dropping the object does not cancel the timer. muduo: ``TimerId``.
    """

    __slots__ = (
        "__weakref__",
        "_args",
        "_callback",
        "_cancelled",
        "_interval_us",
        "_position",
        "_queue",
        "_sequence",
        "_when_us",
        "loop",
    )

    loop: EventLoop
    _queue: TimerQueue
    _callback: Callable[..., object]
    _args: tuple[Any, ...]
    _when_us: int
    _interval_us: int
    _sequence: int
    _position: int
    _cancelled: bool

    def callback_name(self) -> str:
        """Return what it calls, for a log line."""
        return f"timer {callback_name(self._callback)}"

    def cancel(self) -> None:
        """Never call again; from any thread, also inside the timer's own callback. Twice is harmless."""
        if self._queue.thread_id == _sys.thread_id():
            self._queue.cancel(self)
        else:
            self.loop.cancel(self)

    @property
    def interval(self) -> float:
        """Seconds between two calls; 0 for a timer that expires once."""
        return self._interval_us / 1_000_000

    def _is_before(self, other: Timer) -> bool:
        if self._when_us != other._when_us:
            return self._when_us < other._when_us
        return self._sequence < other._sequence

    def __repr__(self) -> str:
        name = getattr(self._callback, "__qualname__", repr(self._callback))
        due = (self._when_us - _sys.monotonic_us()) / 1_000_000
        kind = f"every {self._interval_us / 1_000_000} s, next" if self._interval_us else "due"
        return f"<Timer {name} cancelled>" if self._cancelled else f"<Timer {name} {kind} in {due:.6f} s>"


class TimerQueue:
    """The heap of a loop's timers and the timerfd that wakes the loop for them.

    Attributes:
        thread_id: of the loop's thread.
        needs_arming: the timerfd has to be set before the loop polls. has_expired: it has gone off.
    """

    __slots__ = (
        "_armed_us",
        "_channel",
        "_heap",
        "_loop",
        "_next_sequence",
        "fd",
        "has_expired",
        "needs_arming",
        "thread_id",
    )

    def __init__(self, loop: EventLoop) -> None:
        self._loop = loop
        self.thread_id = _sys.thread_id()
        self._heap: list[Timer] = []
        self._next_sequence = 0
        self._armed_us = 0
        self.needs_arming = False
        self.has_expired = False
        self.fd = _sys.make_timerfd()
        if self.fd < 0:
            raise OSError(-self.fd, f"timerfd_create failed: {os.strerror(-self.fd)}")
        self._channel = Channel(loop, self.fd)
        self._channel.read_callback = self._handle_read

    def start(self) -> None:
        """Begin to listen to the timerfd."""
        self._channel.enable_reading()

    def close(self) -> None:
        """Drop every timer and close the timerfd; the poller has forgotten it already."""
        for timer in self._heap:
            timer._position = _NOWHERE
        self._heap = []
        self._channel.read_callback = None
        if self.fd >= 0:
            _sys.close(self.fd)
            self.fd = -1

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, timer: Timer) -> None:
        """Take a timer in, unless it was cancelled on its way here."""
        if timer._cancelled:
            return
        timer._sequence = self._next_sequence
        self._next_sequence += 1
        timer._position = len(self._heap)
        self._heap.append(timer)
        self._sift_up(timer._position)
        if timer._position == 0 and (self._armed_us == 0 or timer._when_us < self._armed_us):
            self.needs_arming = True

    def cancel(self, timer: Timer) -> None:
        """Take a timer out; one that is being called, or has been, is left to end by itself.

        The timerfd stays as it is: a wake-up for nothing is cheaper than setting it again.
        """
        timer._cancelled = True
        if timer._position != _NOWHERE:
            self._take(timer._position)

    def arm(self) -> None:
        """Set the timerfd to the earliest timer.

        Raises:
            OSError: the kernel refused; it is tried again before the next poll.
        """
        if self._heap:
            first = self._heap[0]
            result = _sys.arm_timerfd(self.fd, first._when_us - _sys.monotonic_us())
            if result < 0:
                raise OSError(-result, f"timerfd_settime failed: {os.strerror(-result)}")
            self._armed_us = first._when_us
        self.needs_arming = False

    def run_expired(self) -> None:
        """Call every timer that is due.

        A timer cancelled by an earlier one of the same batch is not called; one added by a callback waits for the
        next iteration even if it is due, so that timers can't shut out I/O.
        """
        self.has_expired = False
        self._armed_us = 0
        now = _sys.monotonic_us()
        limit = self._next_sequence
        before_ms = _sys.coarse_ms()
        try:
            while self._heap:
                timer = self._heap[0]
                if timer._when_us > now or timer._sequence >= limit:
                    break
                self._take(0)
                try:
                    timer._callback(*timer._args)
                except Exception as e:
                    self._loop.handle_exception(e, timer)
                finally:
                    if timer._interval_us and not timer._cancelled:
                        self._repeat(timer)
                now_ms = _sys.coarse_ms()
                if now_ms != before_ms:
                    self._loop.note_time(timer, now_ms - before_ms)
                    before_ms = now_ms
        finally:
            self.needs_arming = True

    def _handle_read(self, receive_time: Timestamp) -> None:
        """Note that time is up; the timers run once the iteration's I/O is done."""
        _sys.drain_counter(self.fd)
        self.has_expired = True

    def _repeat(self, timer: Timer) -> None:
        """Put a repeating timer back in step with its first call; calls that were missed are left out."""
        timer._when_us += timer._interval_us
        behind = _sys.monotonic_us() - timer._when_us
        if behind > 0:
            timer._when_us += behind + timer._interval_us - behind % timer._interval_us
        self.add(timer)

    # --- the heap ---

    def _take(self, at: int) -> Timer:
        timer = self._heap[at]
        timer._position = _NOWHERE
        last = self._heap.pop()
        if last is not timer:
            self._heap[at] = last
            last._position = at
            self._sift_up(at)
            self._sift_down(last._position)
        return timer

    def _sift_up(self, at: int) -> None:
        timer = self._heap[at]
        while at > 0:
            up = (at - 1) // 2
            parent = self._heap[up]
            if not timer._is_before(parent):
                break
            self._heap[at] = parent
            parent._position = at
            at = up
        self._heap[at] = timer
        timer._position = at

    def _sift_down(self, at: int) -> None:
        timer = self._heap[at]
        count = len(self._heap)
        while True:
            down = 2 * at + 1
            if down >= count:
                break
            child = self._heap[down]
            if down + 1 < count:
                other = self._heap[down + 1]
                if other._is_before(child):
                    child = other
                    down += 1
            if not child._is_before(timer):
                break
            self._heap[at] = child
            child._position = at
            at = down
        self._heap[at] = timer
        timer._position = at


def new_timer(
    loop: EventLoop,
    queue: TimerQueue,
    callback: Callable[..., object],
    args: tuple[Any, ...],
    when_us: int,
    interval_us: int,
) -> Timer:
    """Return a timer for *queue*, the queue of *loop*; without the cost of parsing arguments."""
    timer = Timer.__new__(Timer)
    timer.loop = loop
    timer._queue = queue
    timer._callback = callback
    timer._args = args
    timer._when_us = when_us
    timer._interval_us = interval_us
    timer._sequence = 0
    timer._position = _NOWHERE
    timer._cancelled = False
    return timer
