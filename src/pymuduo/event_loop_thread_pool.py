"""N loops in N threads, dealt out in turn: muduo's ``EventLoopThreadPool``."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from pymuduo.event_loop_thread import EventLoopThread

if TYPE_CHECKING:
    from collections.abc import Callable

    from pymuduo.callbacks import ThreadInitCallback
    from pymuduo.event_loop import EventLoop


class EventLoopThreadPool:
    """The I/O loops of a server. With no threads, the base loop does all the work.

    Args:
        base_loop: the loop whose thread starts the pool and deals out its loops.
        name: the threads are called ``name0``, ``name1``, …
        thread_num: how many threads.

    Raises:
        ValueError: *thread_num* is negative.

    Thread rule: the base loop's thread. muduo: ``EventLoopThreadPool``.
    """

    def __init__(self, base_loop: EventLoop, name: str = "loop", thread_num: int = 0) -> None:
        self.base_loop = base_loop
        self.name = name
        self._thread_num = 0
        self._threads: list[EventLoopThread] = []
        self._loops: list[EventLoop] = []
        self._ending: list[EventLoopThread] = []
        self._next = 0
        self._started = False
        self.thread_num = thread_num

    @property
    def thread_num(self) -> int:
        """How many threads; can be set until the pool is started (RuntimeError after that)."""
        return self._thread_num

    @thread_num.setter
    def thread_num(self, thread_num: int) -> None:
        if not isinstance(thread_num, int) or isinstance(thread_num, bool):
            raise TypeError(f"thread_num must be an int, got {thread_num!r}")
        if thread_num < 0:
            raise ValueError(f"thread_num must be 0 or more, got {thread_num}")
        if self._started:
            raise RuntimeError(f"{self!r} is started: thread_num can't change any more")
        self._thread_num = thread_num

    @property
    def is_started(self) -> bool:
        """Whether ``start`` has been called."""
        return self._started

    def start(self, init_callback: ThreadInitCallback | None = None) -> None:
        """Start the threads; *init_callback* is called in each with its loop (with no threads: with the base loop).

        Raises:
            RuntimeError: wrong thread, or started already.
            BaseException: what a thread or the callback raised; the threads started so far are stopped.
        """
        self.base_loop.assert_in_loop_thread()
        if self._started:
            raise RuntimeError(f"{self!r} is started already")
        self._started = True
        if self._thread_num == 0:
            if init_callback is not None:
                init_callback(self.base_loop)
            return
        try:
            for i in range(self._thread_num):
                thread = EventLoopThread(init_callback, f"{self.name}{i}")
                self._loops.append(thread.start_loop())
                self._threads.append(thread)
        except BaseException:
            self.stop()
            raise

    def next_loop(self) -> EventLoop:
        """Return the loops in turn (round robin), leaving out any that has ended. muduo: ``getNextLoop``."""
        self.base_loop.assert_in_loop_thread()
        if not self._loops:
            return self.base_loop
        for _ in self._loops:
            loop = self._loops[self._next]
            self._next = (self._next + 1) % len(self._loops)
            if not loop.is_closed:
                break
        return loop

    def loop_for_hash(self, code: int) -> EventLoop:
        """Return the same loop for the same *code*. muduo: ``getLoopForHash``."""
        self.base_loop.assert_in_loop_thread()
        return self._loops[code % len(self._loops)] if self._loops else self.base_loop

    def loops(self) -> list[EventLoop]:
        """Return all the loops that do I/O: the base loop if there are no threads, or no more.

        muduo: ``getAllLoops``.
        """
        return list(self._loops) or [self.base_loop]

    def quit(self, all_ended: Callable[[], object]) -> None:
        """Let every thread end and return at once; *all_ended* is called in the base loop when they have.

        If the base loop is closed by then, it is called in the last thread.
        """
        self.base_loop.assert_in_loop_thread()
        threads = self._threads
        waiting = len(threads)
        lock = threading.Lock()

        def one_ended() -> None:
            nonlocal waiting
            with lock:
                waiting -= 1
                is_last = waiting == 0
            if is_last:
                end()

        def end() -> None:
            if not self.base_loop.post(all_ended, ()):
                all_ended()  # the base loop is closed: here is as good as anywhere

        self._ending = threads
        self._forget()
        if not threads:
            end()
        for thread in threads:
            thread.quit(one_ended)

    def join(self, timeout: float | None = None) -> bool:
        """Wait for threads that were told to ``quit``; False if that takes more than *timeout* seconds in all.

        From any thread but theirs.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        return all(
            thread.join(None if deadline is None else max(0.0, deadline - time.monotonic())) for thread in self._ending
        )

    def stop(self) -> None:
        """Let every thread end and wait for all of them."""
        for thread in self._threads:
            thread.quit()
        for thread in self._threads:
            thread.join()
        self._forget()

    def _forget(self) -> None:
        self._threads = []
        self._loops = []

    def __repr__(self) -> str:
        state = "started" if self._started else "new"
        return f"<EventLoopThreadPool {self.name!r} {self._thread_num} threads, {state}>"
