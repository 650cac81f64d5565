"""Looks host names up without holding up a loop.

The system's resolver blocks, for seconds if a name server is silent. So it is asked in a few threads, and the answer
comes back as a functor of the loop that asked. The threads are daemons, which those of the standard library's executor
are not: a program that ends does not wait for a name server.
"""

from __future__ import annotations

import collections
import os
import socket
import threading
from typing import TYPE_CHECKING

from pymuduo.inet_address import InetAddress

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from pymuduo.event_loop import EventLoop

    ResolveCallback: TypeAlias = Callable[[list[InetAddress], OSError | None], object]

_MAX_THREADS = 4  # more lookups than these wait for their turn
_IDLE_S = 10.0  # a thread that has nothing to do for so long ends
_THREAD_NAME = "pymuduo-resolver"


class Lookup:
    """A question that is under way; what ``Resolver.resolve`` returns."""

    __slots__ = ("_callback", "_loop", "family", "host", "port")

    def __init__(self, loop: EventLoop, host: str, port: int, family: int, callback: ResolveCallback) -> None:
        self.host = host
        self.port = port
        self.family = family
        self._loop = loop
        self._callback: ResolveCallback | None = callback

    def cancel(self) -> None:
        """Never call back; the loop's thread only. Twice, or after the answer, is harmless."""
        self._callback = None

    @property
    def is_over(self) -> bool:
        """Whether it was answered or cancelled; from any thread."""
        return self._callback is None

    def answer(self, addresses: list[InetAddress], error: OSError | None) -> None:
        """Call back in the loop, unless it was cancelled or the loop is closed; from any thread."""
        self._loop.post(self._answer_in_loop, (addresses, error))

    def _answer_in_loop(self, addresses: list[InetAddress], error: OSError | None) -> None:
        callback, self._callback = self._callback, None
        if callback is not None:
            callback(addresses, error)


class Resolver:
    """Looks names up in threads of its own; one serves any number of loops.

    ``Resolver.default()`` is what everybody uses who has none. Make one of your own to limit its threads, or, by
    overriding ``look_up``, to ask somebody else than the system. Threads are started when they are needed, and end
    when they have not been for a while.

    Args:
        max_threads: lookups at the same time; others wait.

    Raises:
        ValueError: *max_threads* is less than 1.

    Thread rule: any thread.
    """

    def __init__(self, max_threads: int = _MAX_THREADS) -> None:
        if max_threads < 1:
            raise ValueError(f"Resolver: max_threads must be 1 or more, got {max_threads}")
        self._max_threads = max_threads
        self._has_changed = threading.Condition()  # over everything below
        self._waiting: collections.deque[Lookup] = collections.deque()
        self._threads: list[threading.Thread] = []
        self._leaving: list[threading.Thread] = []  # not needed any more; they may not have ended yet
        self._idle = 0  # threads that wait for a question
        self._is_closed = False

    @staticmethod
    def default() -> Resolver:
        """Return the resolver of this process, made when it is first asked for; a forked child has one of its own."""
        resolver = _defaults.get(os.getpid())
        # Of two threads that come here first, one sees its resolver taken; it has no threads yet. A lock instead could
        # be held by another thread while this process is forked, and would then be held in the child for ever.
        return _defaults.setdefault(os.getpid(), Resolver()) if resolver is None else resolver

    def resolve(
        self, loop: EventLoop, host: str, port: int, callback: ResolveCallback, *, family: int = socket.AF_UNSPEC
    ) -> Lookup:
        """Look *host* up and call ``callback(addresses, error)`` in the loop's thread later, never now.

        One of the two is empty: no addresses and the reason, or addresses, the best first, and None. An address in
        numbers is answered without a thread.

        Args:
            family: ``socket.AF_INET`` or ``socket.AF_INET6`` to get one kind only.

        Raises:
            ValueError: *port* is out of range. RuntimeError: the resolver is closed, or no thread can be started.
        """
        lookup = Lookup(loop, host, port, family, callback)
        address = _in_numbers(host, port)
        if address is not None and family in (socket.AF_UNSPEC, address.family):
            lookup.answer([address], None)
        else:
            self._ask(lookup)
        return lookup

    def look_up(self, host: str, port: int, family: int) -> list[InetAddress]:
        """Return the addresses of a name, the best first; in a thread of the resolver, and may take long.

        Raises:
            OSError: there are none.
        """
        return InetAddress.resolve(host, port, family=family)

    def close(self) -> None:
        """Take no more questions, and wait for the threads, for as long as what they are looking up takes.

        What has not begun is answered with an OSError. Twice is harmless.
        """
        with self._has_changed:
            self._is_closed = True
            dropped, self._waiting = self._waiting, collections.deque()
            threads = self._threads + self._leaving
            self._has_changed.notify_all()
        for lookup in dropped:
            lookup.answer([], OSError(f"{lookup.host!r} was not looked up: the resolver is closed"))
        for thread in threads:
            thread.join()

    def _ask(self, lookup: Lookup) -> None:
        with self._has_changed:
            if self._is_closed:
                raise RuntimeError("the resolver is closed")
            if self._idle <= len(self._waiting) and len(self._threads) < self._max_threads:
                self._start_thread()
            self._waiting.append(lookup)
            self._has_changed.notify()

    def _start_thread(self) -> None:
        thread = threading.Thread(target=self._work, name=f"{_THREAD_NAME}-{len(self._threads)}", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            if not self._threads:
                raise
            return  # the process has too many threads already; the others will see to it
        self._threads.append(thread)

    # --- in a thread of the resolver ---

    def _work(self) -> None:
        while (lookup := self._next()) is not None:
            _answer(lookup, self.look_up)
            del lookup  # it holds a loop

    def _next(self) -> Lookup | None:
        """Wait for a question that somebody still wants to be answered; None: the thread is not needed any more."""
        with self._has_changed:
            while True:
                while self._waiting:
                    lookup = self._waiting.popleft()
                    if not lookup.is_over:
                        return lookup
                self._idle += 1
                is_needed = not self._is_closed and self._has_changed.wait(_IDLE_S)
                self._idle -= 1
                if not is_needed and not self._waiting:
                    self._leaving = [thread for thread in self._leaving if thread.is_alive()]
                    self._leaving.append(threading.current_thread())
                    self._threads.remove(threading.current_thread())
                    return None


def _answer(lookup: Lookup, look_up: Callable[[str, int, int], list[InetAddress]]) -> None:
    addresses: list[InetAddress] = []
    error: OSError | None = None
    try:
        addresses = look_up(lookup.host, lookup.port, lookup.family)
        if not addresses:
            error = OSError(f"{lookup.host!r} has no address")
    except socket.gaierror as e:
        error = socket.gaierror(e.errno, f"cannot look up {lookup.host!r}: {e.strerror}")
    except OSError as e:
        error = e
    except BaseException as e:  # whatever it is: somebody waits for an answer, and others for this thread
        error = OSError(f"cannot look up {lookup.host!r}: {e!r}")
    lookup.answer(addresses, error)


def _in_numbers(host: str, port: int) -> InetAddress | None:
    """Return the address if *host* is one in numbers. ValueError: *port* is out of range."""
    try:
        return InetAddress(host, port)
    except ValueError:
        InetAddress.any(port)  # it was the host, or this raises
        return None


_defaults: dict[int, Resolver] = {}  # by process
