"""A loop in a thread of its own: muduo's ``EventLoopThread``."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from pymuduo.event_loop import EventLoop

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from pymuduo.callbacks import ThreadInitCallback

_log = logging.getLogger("pymuduo.event_loop_thread")


class EventLoopThread:
    """Starts a thread that makes a loop and runs it.

    The thread is a daemon: a program that ends does not wait for it. Stop it, or use it as a context manager, to
    have its connections closed in good order.

    Args:
        init_callback: called with the loop, in the new thread, before the loop runs.
        name: of the thread and of its loop.

    Thread rule: one thread uses it. muduo: ``EventLoopThread``.
    """

    def __init__(self, init_callback: ThreadInitCallback | None = None, name: str = "EventLoop") -> None:
        self.name = name
        self._init_callback = init_callback
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()
        self._loop: EventLoop | None = None  # while it runs
        self._started_loop: EventLoop | None = None  # set once, for start_loop: it may have ended by then
        self._error: BaseException | None = None
        self._lock = threading.Lock()  # between the thread's end and whoever wants to hear of it
        self._has_ended = False
        self._end_callback: Callable[[], object] | None = None

    @property
    def loop(self) -> EventLoop | None:
        """The loop while it runs: None before ``start_loop``, and once the thread has ended."""
        return self._loop

    def start_loop(self) -> EventLoop:
        """Start the thread, wait until its loop exists, and return the loop.

        Raises:
            RuntimeError: started already.
            BaseException: what making the loop or the init callback raised; the thread has ended then.
        """
        if self._thread is not None:
            raise RuntimeError(f"{self!r} is started already")
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
        self._thread.start()
        self._ready.wait()
        if self._started_loop is None:
            self._thread.join()
            raise self._error or RuntimeError(f"{self!r} has no loop")
        return self._started_loop

    def quit(self, end_callback: Callable[[], object] | None = None) -> None:
        """Let the loop end, and return at once.

        *end_callback* is called when it has ended: in its thread, or here if it has ended already.
        """
        with self._lock:
            has_ended = self._has_ended
            if end_callback is not None:
                self._end_callback = end_callback
        if has_ended and end_callback is not None:
            end_callback()
        loop = self._loop
        if loop is not None:
            loop.quit()

    def stop(self, timeout: float | None = None) -> bool:
        """Let the loop end and wait for the thread; False if it takes more than *timeout* seconds.

        Raises:
            RuntimeError: called in the thread itself, which would wait for itself.
        """
        self.quit()
        return self.join(timeout)

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the thread to end; False if it takes more than *timeout* seconds."""
        if self._thread is None:
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def __enter__(self) -> EventLoop:
        return self.start_loop()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self) -> None:
        try:
            with EventLoop(self.name) as loop:
                if self._init_callback is not None:
                    self._init_callback(loop)
                self._loop = self._started_loop = loop
                self._ready.set()
                loop.run()
        except BaseException as e:
            if self._ready.is_set():
                # Only what is no Exception gets here (SystemExit in a callback); it ends this loop, not the program.
                _log.critical("loop thread %r ended by an exception", self.name, exc_info=e)
            self._error = e
        finally:
            self._loop = None
            self._ready.set()
            with self._lock:
                self._has_ended = True
                end_callback = self._end_callback
            if end_callback is not None:
                end_callback()

    def __repr__(self) -> str:
        state = "new" if self._thread is None else "running" if self._thread.is_alive() else "ended"
        return f"<EventLoopThread {self.name!r} {state}>"
