"""Lets a signal wake the main thread's loop, and be handled in it.

A signal handler written in Python runs in the main thread, but only once that thread is back in the interpreter. A
signal that arrives just before the loop goes to sleep in the kernel would be handled whenever something else
happens to wake it. So the interpreter is asked to write a byte into a pipe at every signal, which the loop watches.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING, Any

from pymuduo.channel import Channel

if TYPE_CHECKING:
    from collections.abc import Callable

    from pymuduo.event_loop import EventLoop


# The process and the descriptor of the last pipe put in force: a forked child inherits it, and it is of no use there.
_in_force: tuple[int, int] | None = None


class SignalWakeup:
    """The pipe between signals and a loop; used by ``EventLoop.run`` in the main thread.

    If the program has a wake-up descriptor of its own (``signal.set_wakeup_fd``), that one stays in force.
    """

    def __init__(self, loop: EventLoop) -> None:
        self._read_fd, self._write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._channel = Channel(loop, self._read_fd)
        self._channel.read_callback = self._drain
        self._is_installed = False

    @staticmethod
    def is_possible() -> bool:
        """Whether the calling thread is the one that runs signal handlers."""
        return threading.current_thread() is threading.main_thread()

    def start(self) -> None:
        """Begin to listen; the loop is about to run."""
        global _in_force  # noqa: PLW0603  # set_wakeup_fd is global to the process too
        self._channel.enable_reading()
        try:
            others = signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        except ValueError:  # the main thread of a subinterpreter: signals are none of its business
            return
        is_parents = _in_force is not None and _in_force[0] != os.getpid() and _in_force[1] == others
        if others == -1 or is_parents:
            self._is_installed = True
            _in_force = (os.getpid(), self._write_fd)
        else:
            signal.set_wakeup_fd(others)

    def stop(self) -> None:
        """Stop listening; the loop has run."""
        if self._is_installed:
            self._is_installed = False
            signal.set_wakeup_fd(-1)
        self._channel.disable_all()
        self._channel.remove()

    def close(self) -> None:
        """Close the pipe."""
        self._channel.read_callback = None
        os.close(self._read_fd)
        os.close(self._write_fd)

    def _drain(self, receive_time: object) -> None:
        try:
            while len(os.read(self._read_fd, 512)) == 512:
                pass
        except BlockingIOError:
            pass


class SignalHandlers:
    """Callbacks of a loop for signals; ``EventLoop.add_signal_handler`` makes it.

    The handler that the interpreter knows does no more than queue the callback, which it may do at any point.
    """

    def __init__(self, loop: EventLoop) -> None:
        self._loop = loop
        self._previous: dict[int, Any] = {}

    def add(self, number: int, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        """Queue ``callback(*args)`` at each signal *number* from now on."""

        def handle(_number: int, _frame: object) -> None:
            self._loop.post(callback, args)

        previous = signal.signal(number, handle)
        # A system call of another library's that is under way goes on, as Python's own do.
        signal.siginterrupt(number, False)
        self._previous.setdefault(number, previous)

    def remove(self, number: int) -> bool:
        """Put the handler back that was there before; False if there was no callback."""
        if number not in self._previous:
            return False
        previous = self._previous.pop(number)
        # None: a handler that was not installed from Python, and that Python can't put back.
        signal.signal(number, signal.SIG_DFL if previous is None else previous)
        return True

    def remove_all(self) -> None:
        """Put every handler back. In a thread that is not the main one (a loop dropped there) nothing can be."""
        if SignalWakeup.is_possible():
            for number in tuple(self._previous):
                self.remove(number)
        self._previous.clear()
