"""The reactor: one loop in one thread that waits for events and calls back. muduo's ``EventLoop``.

An iteration: poll → handle each channel's events → run expired timers → run pending functors → flush what
connections were sent outside their own handlers → poll.

Everything here belongs to the thread that made the loop, except the doors: ``run_in_loop``, ``queue_in_loop``,
``run_at``, ``run_after``, ``run_every``, ``cancel`` and ``quit``. A door appends to the pending functors (a list,
whose append is atomic on every build) and wakes the loop only if it may be asleep: the loop says so in ``_asleep``
*before* it looks at the functors for the last time, and a caller looks at ``_asleep`` *after* it has appended, so one
of the two always sees the other. A burst of a million calls costs a handful of wake-ups.
"""

from __future__ import annotations

import errno
import logging
import operator
import os
import signal
import threading
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from pymuduo import _sys, timer_queue, timestamp
from pymuduo.channel import BaseChannel, Channel, ChannelHost, callback_name
from pymuduo.poller import default_poller
from pymuduo.signal_wakeup import SignalHandlers, SignalWakeup
from pymuduo.timer_queue import Timer, TimerQueue
from pymuduo.timestamp import Timestamp

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from pymuduo.callbacks import ExceptionHandler

_log = logging.getLogger("pymuduo.event_loop")

_READ_AREA_BYTES = 262144 + 8  # one read's worth and a Buffer's prepend area
_FOREVER_S = 100 * 365 * 86400.0  # delays beyond a century mean "never", and would overflow the timer's integer
_MAX_FUNCTORS = 4096  # an iteration, a millisecond or two: then events get their turn, and quit is seen
_MAX_CLOSE_ROUNDS = 1000  # a removal hops twice, a chain of callbacks a few times; this is for ever
_SLOW_MS = 200  # a callback that takes so long is worth a line in the log
_SLOW_REPORT_INTERVAL_MS = 1000
_thread_loop = threading.local()
_exception_handler_of = operator.attrgetter("exception_handler")  # another thread may be setting it: behind its lock

Functor: TypeAlias = tuple[Any, ...]  # what to call, and with which arguments


class LoopStats(NamedTuple):
    """What a loop has done since it was made (``EventLoop.stats``).

    Attributes:
        iterations: polls. events: events of descriptors. functors: calls queued from elsewhere, and run.
        wakeups: how often another thread, or a signal, had to wake the loop.
        busy_s: seconds not spent waiting. longest_iteration_s: the longest time between two polls: no event was
            handled sooner than that in the worst case.
        slow_callbacks: how often a callback took ``slow_callback_s`` or more.
        pending_functors: calls that wait at this moment.
    """

    iterations: int
    events: int
    functors: int
    wakeups: int
    busy_s: float
    longest_iteration_s: float
    slow_callbacks: int
    pending_functors: int


class Flushable:
    """Something with bytes to send before its loop polls again; a connection is one."""

    __slots__ = ("_flush_queued",)

    def __init__(self) -> None:
        self._flush_queued = False

    def flush(self) -> None:
        """Send what there is."""
        raise NotImplementedError

    def force_close(self) -> None:
        """Give up: ``flush`` has raised."""
        raise NotImplementedError


class EventLoop(ChannelHost):
    """Waits for events on descriptors, for timers and for calls from other threads, and calls back.

    A thread has at most one loop, and the loop belongs to the thread that made it. Use it as a context manager, or
    call ``close`` when you are done: that ends the servers on it, and closes every descriptor it opened.

    Attributes:
        name: for logs; the thread's name unless given.
        context: yours; the library does not touch it.
        exception_handler: called as ``handler(exception, source)`` in the loop's thread when a callback raises;
            *source* is the connection, Timer, Channel or function. Replaces the policy of logging the traceback
            and closing the connection. KeyboardInterrupt and SystemExit are no accidents: they leave ``run``.
        slow_callback_s: a callback that holds the loop up for this many seconds or more is named in the log, level
            WARNING, at most once a second; 0 turns it off. The clock is a coarse one (some milliseconds), and time in
            which the thread had no processor, or waited for the interpreter's lock, counts as well.
        iteration: how many times the loop has polled.
        poll_return_time: when the last poll returned: one reading of the clock for a whole iteration. The loop's
            thread only.
        thread_id: ``threading.get_ident()`` of the loop's thread; 0 once the loop is closed.

    Raises:
        RuntimeError: this thread has a loop already.
        OSError: no descriptor is left for epoll, eventfd or timerfd.

    Not usable after ``os.fork`` in the child: make a new loop there. muduo: ``EventLoop``.
    """

    __slots__ = (
        "__weakref__",
        "_active",
        "_asleep",
        "_close_hooks",
        "_closed",
        "_closing",
        "_lock",
        "_next_slow_report_ms",
        "_open",
        "_pending",
        "_pid",
        "_poller",
        "_quit",
        "_running",
        "_signal_handlers",
        "_signals",
        "_slow_ms",
        "_taken",
        "_thread_name",
        "_timers",
        "_to_flush",
        "_wakeup_channel",
        "_wakeup_fd",
        "busy_us",
        "context",
        "event_count",
        "exception_handler",
        "functor_count",
        "iteration",
        "longest_iteration_us",
        "name",
        "read_area",
        "slow_callback_count",
        "spare_output",
        "thread_id",
        "wakeup_count",
    )

    def __init__(self, name: str | None = None) -> None:
        existing = EventLoop.current()
        if existing is not None:
            raise RuntimeError(
                f"thread {threading.current_thread().name!r} already has a loop: {existing!r} (one loop per thread)"
            )
        self._timers: TimerQueue = None  # type: ignore[assignment]
        self.thread_id = _sys.thread_id()
        self._thread_name = threading.current_thread().name
        self._pid = os.getpid()
        self._open = 0  # until everything below is there
        self._closed = 0
        self._closing = False
        self.name = self._thread_name if name is None else name
        self.context: Any = None
        self.exception_handler: ExceptionHandler | None = None
        self.iteration = 0
        self._begin_counting()
        self.read_area = bytearray(_READ_AREA_BYTES)
        self.spare_output: Any = None  # an empty OutputQueue that the next connection to send may use
        # Functors in order; other threads only append. The first _taken of them are being run, or have been.
        self._pending: list[Functor] = []
        self._taken = 0
        self._active: list[BaseChannel] = []
        self._to_flush: list[Flushable] = []
        self._close_hooks: dict[Callable[[], object], None] = {}  # in order
        # For waking the loop up, closing the eventfd, and taking functors back. Re-entrant, because a signal handler
        # may use a door while this very thread uses one.
        self._lock = threading.RLock()
        self._asleep = 0
        self._quit = 0
        self._running = 0
        self.poll_return_time = timestamp.from_us(_sys.realtime_us())
        self._signals: SignalWakeup | None = None
        self._signal_handlers: SignalHandlers | None = None
        self._poller = default_poller()
        self._wakeup_fd = _sys.make_eventfd()
        try:
            if self._wakeup_fd < 0:
                raise OSError(-self._wakeup_fd, f"eventfd failed: {os.strerror(-self._wakeup_fd)}")
            self._wakeup_channel = Channel(self, self._wakeup_fd)
            self._wakeup_channel.read_callback = self._handle_wakeup
            self._timers = TimerQueue(self)
            self._wakeup_channel.enable_reading()
            self._timers.start()
            if SignalWakeup.is_possible():
                self._signals = SignalWakeup(self)
        except BaseException:
            self._close_descriptors()
            raise
        self._open = 1
        _thread_loop.loop = self

    def _begin_counting(self) -> None:
        self.event_count = 0
        self.functor_count = 0
        self.wakeup_count = 0
        self.busy_us = 0
        self.longest_iteration_us = 0
        self.slow_callback_count = 0
        self._slow_ms = _SLOW_MS
        self._next_slow_report_ms = 0

    # --- the life of a loop ---

    @staticmethod
    def current() -> EventLoop | None:
        """Return the calling thread's loop, or None. muduo: ``getEventLoopOfCurrentThread``."""
        loop: EventLoop | None = getattr(_thread_loop, "loop", None)
        if loop is not None and not loop.is_of_this_process():
            return None  # a fork has copied it; it can't be used here
        return loop

    def run(self) -> None:
        """Serve until ``quit``; the loop's thread only. May be called again afterwards.

        Functors queued so far are run and output is flushed before it returns. A ``quit`` that came before ``run``
        counts: it returns after one round.

        Raises:
            RuntimeError: wrong thread, running already, closed, or the process was forked.
            OSError: the kernel refuses to wait, or to set a timer. Nothing is lost, and it may be run again.
            BaseException: what a callback raised, if it is no ``Exception`` (KeyboardInterrupt, SystemExit).

        muduo: ``EventLoop::loop``.
        """
        self.assert_in_loop_thread()
        if not self._open:
            raise RuntimeError(f"{self!r} is closed")
        if self._running:
            raise RuntimeError(f"{self!r} is running already")
        if not self.is_of_this_process():
            raise RuntimeError(f"{self!r} was made in process {self._pid}; a forked child needs a loop of its own")
        self._running = 1
        try:
            if self._signals is not None:
                self._signals.start()
            while not self._quit:
                self._iterate()
            self._run_pending(len(self._pending))
        finally:
            if self._signals is not None:
                self._signals.stop()
            self._quit = 0
            self._running = 0
            self._active.clear()
            self._flush()

    def quit(self) -> None:
        """Let ``run`` return after the iteration in progress; from any thread. Before ``run`` it is remembered."""
        self._quit = 1
        if self._asleep:
            self._wake_up()

    def close(self) -> None:
        """End the servers and connections of this loop, run what is queued, and close the loop's descriptors.

        The loop's thread only; twice is harmless.

        Raises:
            RuntimeError: wrong thread, or the loop is running (``quit`` first).
        """
        if not self._open or self._closing:
            return
        self.assert_in_loop_thread()
        if self._running:
            raise RuntimeError(f"{self!r} is running: quit() first, close() after run() has returned")
        self._closing = True
        errors: list[BaseException] = []
        if self.is_of_this_process():
            self._quit = 0
            self._end_everything(errors)
        with self._lock:
            self._open = 0
            self._asleep = 0
        if self.is_of_this_process():
            self._end_everything(errors)  # what other threads queued just before they could see that it is closed
        self._wakeup_channel.read_callback = None
        self._close_descriptors()
        self._closed = 1
        self.thread_id = 0  # the number may be another thread's by and by
        if EventLoop.current() is self:
            _thread_loop.loop = None
        if errors:
            raise errors[0]

    def __del__(self) -> None:
        if getattr(self, "is_open", False):
            message = f"{self!r} was never closed"
            is_ours = self.is_of_this_process()
            self._open = 0
            self._close_descriptors()
            if is_ours:
                warnings.warn(message, ResourceWarning, stacklevel=2)

    def _close_descriptors(self) -> None:
        if self._signal_handlers is not None:
            self._signal_handlers.remove_all()
            self._signal_handlers = None
        self._poller.close()
        if self._timers is not None:
            self._timers.close()
        if self._wakeup_fd >= 0:
            fd, self._wakeup_fd = self._wakeup_fd, -1
            _sys.close(fd)
        if self._signals is not None:
            self._signals.close()
            self._signals = None

    def call_at_close(self, hook: Callable[[], object]) -> None:
        """Call *hook* when the loop is closed, before its descriptors are; the loop's thread only."""
        self.assert_in_loop_thread()
        self._close_hooks[hook] = None

    def forget_at_close(self, hook: Callable[[], object]) -> None:
        """Take back ``call_at_close``; the loop's thread only."""
        self.assert_in_loop_thread()
        self._close_hooks.pop(hook, None)

    def __enter__(self) -> EventLoop:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # --- doors: from any thread ---

    def run_in_loop(self, callback: Callable[..., object], *args: Any) -> None:
        """Call ``callback(*args)`` in the loop's thread: now if that is the caller's, else as a queued functor.

        Raises:
            RuntimeError: the loop is closed.
        """
        if self._open and self.is_in_loop_thread():
            callback(*args)
        else:
            self.queue_in_loop(callback, *args)

    def queue_in_loop(self, callback: Callable[..., object], *args: Any) -> None:
        """Call ``callback(*args)`` in the loop's thread later in this iteration or in a following one; never now.

        Functors of one thread run in the order in which it queued them.

        Raises:
            RuntimeError: the loop is closed.
            TypeError: *callback* can't be called.
        """
        if not callable(callback):
            raise TypeError(f"queue_in_loop: a callable is required, got {callback!r}")
        if not self.post(callback, args):
            raise RuntimeError(f"{self!r} is closed")

    def run_at(self, when: Timestamp, callback: Callable[..., object], *args: Any) -> Timer:
        """Call ``callback(*args)`` at the moment *when*, by the clock as it stands now.

        The returned Timer can be given to ``cancel``. A moment that has passed means as soon as possible.

        Raises:
            TypeError: *when* is no Timestamp, or *callback* can't be called.
        """
        if not isinstance(when, Timestamp):
            raise TypeError(f"run_at: a Timestamp is required, got {when!r}")
        delay = (when.us - _sys.realtime_us()) / 1_000_000
        return self._add_timer(callback, args, delay, 0.0)

    def run_after(self, delay: float, callback: Callable[..., object], *args: Any) -> Timer:
        """Call ``callback(*args)`` after *delay* seconds (microsecond resolution), not before.

        Raises:
            ValueError: *delay* is not a number; a negative one means as soon as possible.
        """
        return self._add_timer(callback, args, delay, 0.0)

    def run_every(self, interval: float, callback: Callable[..., object], *args: Any) -> Timer:
        """Call ``callback(*args)`` every *interval* seconds, in step with the first call.

        Calls that a busy loop missed are left out, not made up for.

        Raises:
            ValueError: *interval* is shorter than a microsecond, or not a number.
        """
        if not interval >= 1e-6:
            raise ValueError(f"run_every: interval must be at least 0.000001 s, got {interval}")
        return self._add_timer(callback, args, interval, interval)

    def cancel(self, timer: Timer) -> None:
        """Never call *timer* again; it may be expired, cancelled, or the one whose callback this is.

        Called in the loop's thread, it holds at once, even for a timer that is due in the same iteration.

        Raises:
            ValueError: the timer belongs to another loop.
        """
        if not isinstance(timer, Timer):
            raise TypeError(f"cancel: a Timer is required, got {timer!r}")
        if timer.loop is not self:
            raise ValueError(f"cancel: {timer!r} belongs to {timer.loop!r}, not to {self!r}")
        if self.is_in_loop_thread():
            self._timers.cancel(timer)
        else:
            self.post(self._cancel_timer, (timer,))

    # --- signals ---

    def add_signal_handler(self, number: int, callback: Callable[..., object], *args: Any) -> None:
        """Call ``callback(*args)`` in the loop, as a functor, whenever the process gets the signal *number*.

        So it may use everything that the loop's thread may; a bare ``signal.signal`` handler runs between any two
        steps of the main thread. It takes the place of the handler that was there, which comes back with
        ``remove_signal_handler`` or when the loop is closed. A second one for the same signal takes the first one's.

        Raises:
            RuntimeError: this is not the main thread, which alone hears of signals.
            ValueError, OSError: the signal does not exist, or can't be caught.
            TypeError: *callback* can't be called.
        """
        self.assert_in_loop_thread()
        if not callable(callback):
            raise TypeError(f"add_signal_handler: a callable is required, got {callback!r}")
        if not SignalWakeup.is_possible():
            raise RuntimeError(f"add_signal_handler: only a loop of the main thread hears of signals, not {self!r}")
        if self._signal_handlers is None:
            self._signal_handlers = SignalHandlers(self)
        self._signal_handlers.add(number, callback, args)

    def quit_on_signals(self, *numbers: int) -> None:
        """Let ``run`` return when the process gets one of these signals; SIGINT (Ctrl-C) and SIGTERM if none is named.

        What a program's main loop wants: leaving its ``with`` block then closes what is open, in good order. It is
        ``add_signal_handler`` with ``quit`` for each; raises as that does.
        """
        for number in numbers or (signal.SIGINT, signal.SIGTERM):
            self.add_signal_handler(number, self.quit)

    def remove_signal_handler(self, number: int) -> bool:
        """Take ``add_signal_handler`` back; False if there was none."""
        self.assert_in_loop_thread()
        return self._signal_handlers is not None and self._signal_handlers.remove(number)

    # --- state ---

    @property
    def slow_callback_s(self) -> float:
        """From how many seconds on a callback is slow; 0: never. The loop's thread only."""
        return self._slow_ms / 1000

    @slow_callback_s.setter
    def slow_callback_s(self, seconds: float) -> None:
        if not seconds >= 0:
            raise ValueError(f"slow_callback_s must be 0 or more seconds, got {seconds}")
        self._slow_ms = 0 if seconds == 0 else max(1, round(min(seconds, _FOREVER_S) * 1000))

    def stats(self) -> LoopStats:
        """Return what the loop has done so far; from any thread, exact in the loop's own."""
        return LoopStats(
            iterations=self.iteration,
            events=self.event_count,
            functors=self.functor_count,
            wakeups=self.wakeup_count,
            busy_s=self.busy_us / 1_000_000,
            longest_iteration_s=self.longest_iteration_us / 1_000_000,
            slow_callbacks=self.slow_callback_count,
            pending_functors=self.pending_count,
        )

    def is_in_loop_thread(self) -> bool:
        """Whether the caller runs in the loop's thread."""
        return self.thread_id == _sys.thread_id()

    def assert_in_loop_thread(self) -> None:
        """Raise RuntimeError, naming both threads, unless the caller runs in the loop's thread."""
        if self.thread_id != _sys.thread_id():
            if self._closed:
                raise RuntimeError(f"{self!r} can't be used any more")
            raise RuntimeError(
                f"{self!r} belongs to thread {self._thread_name!r}, called from {threading.current_thread().name!r}"
            )

    @property
    def is_running(self) -> bool:
        """Whether ``run`` is in progress."""
        return bool(self._running)

    @property
    def is_open(self) -> bool:
        """Whether it takes calls: until ``close`` has done its work."""
        return bool(self._open)

    @property
    def is_closed(self) -> bool:
        """Whether ``close`` is complete."""
        return bool(self._closed)

    @property
    def pending_count(self) -> int:
        """Functors that wait to be run; from any thread. muduo: ``queueSize``."""
        return max(0, len(self._pending) - self._taken)

    @property
    def timer_count(self) -> int:
        """Timers that wait to expire; the loop's thread only."""
        return len(self._timers)

    def __repr__(self) -> str:
        state = "closed" if not self._open else "running" if self._running else "idle"
        return f"<EventLoop {self.name!r} {state}>"

    # --- for the classes that live on a loop ---

    def post(self, callback: Callable[..., object], args: tuple[Any, ...]) -> bool:
        """Queue ``callback(*args)``; False if the loop is closed, and then it will never run. From any thread.

        It is ``queue_in_loop`` for callers to whom the end of a loop is no error: one loop of a server that speaks to
        another, say, while the server stops.
        """
        if not self._open:
            return False
        functor = _sys.functor(callback, args)
        self._pending.append(functor)
        if self._asleep:
            self._wake_up()
        elif not self._open:
            return not self._take_back(functor)
        return True

    def _take_back(self, functor: Functor) -> bool:
        """Take a functor out that was queued while the loop was being closed; False if the loop has run it."""
        with self._lock:
            for at in range(len(self._pending) - 1, -1, -1):
                if self._pending[at] is functor:
                    del self._pending[at]
                    return True
        return False

    def is_of_this_process(self) -> bool:
        """Whether this process made the loop; a forked child has only a copy that can't be used."""
        return self._pid == os.getpid()

    def flush_later(self, flushable: Flushable) -> None:
        """Flush it before the loop polls again; the loop's thread only."""
        if not flushable._flush_queued:
            flushable._flush_queued = True
            self._to_flush.append(flushable)

    def renew_read_area(self) -> None:
        """Leave the read area to the memoryview that shows it, and take a new one."""
        self.read_area = bytearray(_READ_AREA_BYTES)

    def update_channel(self, channel: BaseChannel) -> None:
        """Let the poller know of a channel's interest. Once the loop is closed there is none to be had."""
        if self._closed and channel.events == 0:
            return
        self.assert_in_loop_thread()
        self._poller.update_channel(channel)

    def remove_channel(self, channel: BaseChannel) -> None:
        """Let the poller forget a channel; a loop that is closed has forgotten it."""
        if self._closed:
            return
        self.assert_in_loop_thread()
        self._poller.remove_channel(channel)

    def has_channel(self, channel: BaseChannel) -> bool:
        """Whether the poller knows the channel."""
        self.assert_in_loop_thread()
        return self._poller.has_channel(channel)

    def handle_exception(self, exception: BaseException, source: object) -> bool:
        """Report what a callback raised; True if the default policy applies (nobody has set a handler)."""
        handler = _exception_handler_of(self)
        if handler is None:
            _log.error("exception in a callback of %r", source, exc_info=exception)
            return True
        try:
            handler(exception, source)
        except Exception:
            _log.exception("exception in the exception handler, called for %r and %r", exception, source)
        return False

    # --- one iteration ---

    def _iterate(self) -> None:
        self._poll()
        begin_us = _sys.monotonic_us()
        before_ms = _sys.coarse_ms()
        active = self._active
        at, count = 0, len(active)
        self.event_count += count
        while at < count:
            channel = active[at]
            try:
                # One try for many channels: entering it costs as much as handling a small event.
                while at < count:
                    channel = active[at]
                    at += 1
                    channel.handle_event()
                    now_ms = _sys.coarse_ms()
                    if now_ms != before_ms:
                        self.note_time(channel, now_ms - before_ms)
                        before_ms = now_ms
            except BaseException as e:
                channel.handle_failure(e)
                now_ms = _sys.coarse_ms()
                self.note_time(channel, now_ms - before_ms)
                before_ms = now_ms
        active.clear()
        if self._timers.has_expired:
            self._timers.run_expired()
        if self._pending:
            self._run_pending(_MAX_FUNCTORS)
        if self._to_flush:
            self._flush()
        busy_us = _sys.monotonic_us() - begin_us
        self.busy_us += busy_us
        self.longest_iteration_us = max(self.longest_iteration_us, busy_us)

    def note_time(self, source: object, held_ms: int) -> None:
        """Report *source* if the milliseconds it took make it slow."""
        if held_ms >= self._slow_ms > 0:
            self._report_slow(source, held_ms)

    def _report_slow(self, source: object, held_ms: int) -> None:
        """Name in the log what held the loop up."""
        self.slow_callback_count += 1
        now_ms = _sys.coarse_ms()
        if now_ms >= self._next_slow_report_ms:
            self._next_slow_report_ms = now_ms + _SLOW_REPORT_INTERVAL_MS
            what = source.callback_name() if isinstance(source, (BaseChannel, Timer)) else callback_name(source)
            _log.warning("%s: %s held the loop up for %d ms", self.name, what, held_ms)

    def _poll(self) -> None:
        """Wait for events, unless there is something else to do."""
        if self._timers.needs_arming:
            self._timers.arm()
        timeout_ms = -1
        # Sleep is announced before the last look: whoever adds work after that look sees the flag and wakes us.
        self._asleep = 1
        _sys.full_fence()
        if self._pending or self._quit or self._to_flush or self._timers.has_expired:
            self._asleep = 0
            timeout_ms = 0
        try:
            self._poller.poll(timeout_ms, self._active)
        finally:
            self._asleep = 0
        self.iteration += 1
        self.poll_return_time = timestamp.from_us(_sys.realtime_us())

    def _run_pending(self, most: int) -> None:
        """Run the functors that are there now, or the first of them; what they queue waits for the next iteration."""
        pending = self._pending
        count = min(len(pending), self._taken + most)
        before_ms = _sys.coarse_ms()
        try:
            while self._taken < count:
                try:
                    while self._taken < count:  # one try for many functors
                        functor = pending[self._taken]
                        pending[self._taken] = ()  # let go of it early
                        self._taken += 1
                        self.functor_count += 1
                        _sys.call(functor)
                        now_ms = _sys.coarse_ms()
                        if now_ms != before_ms:
                            self.note_time(functor[0], now_ms - before_ms)
                            before_ms = now_ms
                except Exception as e:
                    self.handle_exception(e, functor[0])
                    now_ms = _sys.coarse_ms()
                    self.note_time(functor[0], now_ms - before_ms)
                    before_ms = now_ms
        finally:
            # Those that wait are moved, which must not cost more than what was done.
            if len(pending) - self._taken <= max(self._taken, _MAX_FUNCTORS):
                del pending[: self._taken]
                self._taken = 0

    def _end_everything(self, errors: list[BaseException]) -> None:
        """Run functors and close hooks and abandon channels until none is left; keep what is no Exception.

        Functors go first: a hook may wait for what one of them brings, such as the news of a connection's end. One
        that queues itself for ever is given up.
        """
        for _ in range(_MAX_CLOSE_ROUNDS):
            is_done = not self._to_flush
            is_done &= self._run_at_close(self._take_pending(), errors)
            hooks: list[Functor] = [(hook,) for hook in self._close_hooks]
            self._close_hooks.clear()
            is_done &= self._run_at_close(hooks, errors)
            channels = [channel for channel in self._poller.channels() if not self._is_own(channel)]
            is_done &= self._run_at_close([(channel.abandon,) for channel in channels], errors)
            if is_done:
                return
            self._flush()
        _log.warning("%r: %d functors left unrun: they queue more whenever they run", self, len(self._pending))

    def _take_pending(self) -> list[Functor]:
        """Take every functor out; another thread may take its own back at the same time."""
        with self._lock:
            waiting = self._pending[self._taken :]
            del self._pending[: self._taken + len(waiting)]
            self._taken = 0
        return waiting

    def _run_at_close(self, functors: list[Functor], errors: list[BaseException]) -> bool:
        """Run all, and return whether there were none."""
        for functor in functors:
            try:
                _sys.call(functor)
            except Exception as e:
                self.handle_exception(e, functor[0])
            except BaseException as e:
                errors.append(e)
        return not functors

    def _is_own(self, channel: BaseChannel) -> bool:
        return channel is self._wakeup_channel or channel.fd == self._timers.fd

    def _flush(self) -> None:
        """Send what connections were sent; a flush that makes more is served in the same pass."""
        to_flush = self._to_flush
        for flushable in to_flush:
            flushable._flush_queued = False
            try:
                flushable.flush()
            except Exception as e:
                if self.handle_exception(e, flushable):
                    flushable.force_close()
        to_flush.clear()

    # --- private ---

    def _wake_up(self) -> None:
        # One caller of many is enough. Two that get here at once wake the loop twice, which is harmless.
        self._asleep = 0
        with self._lock:
            if self._open:
                while _sys.signal_eventfd(self._wakeup_fd) == -errno.EINTR:
                    pass  # interrupted, it has woken nobody

    def _handle_wakeup(self, receive_time: Timestamp) -> None:
        self.wakeup_count += 1
        _sys.drain_counter(self._wakeup_fd)

    def _insert_timer(self, timer: Timer) -> None:
        self._timers.add(timer)

    def _cancel_timer(self, timer: Timer) -> None:
        self._timers.cancel(timer)

    def _add_timer(
        self, callback: Callable[..., object], args: tuple[Any, ...], delay: float, interval: float
    ) -> Timer:
        if not self._open:
            raise RuntimeError(f"{self!r} is closed")
        if not callable(callback):
            raise TypeError(f"a timer needs a callable, got {callback!r}")
        if not (delay <= 0 or delay > 0):  # no number
            raise ValueError(f"delay must be a number of seconds, got {delay}")
        delay = min(max(delay, 0.0), _FOREVER_S) * 1_000_000
        delay_us = int(delay)
        if delay_us < delay:
            delay_us += 1  # a timer may be late, never early
        interval_us = int(min(interval, _FOREVER_S) * 1_000_000 + 0.5)
        timer = timer_queue.new_timer(self, self._timers, callback, args, _sys.monotonic_us() + delay_us, interval_us)
        if self.thread_id == _sys.thread_id():
            self._timers.add(timer)
        else:
            self.queue_in_loop(self._insert_timer, timer)
        return timer
