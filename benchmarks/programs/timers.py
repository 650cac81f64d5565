"""Timers: set and cancelled, waiting by the million, and expiring.

add_cancel  set a timer and cancel it, a thousand pairs an iteration, as servers do with a timeout a request
add         set one while up to a million others wait; timer_bytes: memory of one of them, its handle included
cancel      cancel one of a million that wait, in another order than that of their times
expire      run the callback of one that is due; all of them are when the time begins
"""

from __future__ import annotations

import argparse
import gc
import random
import time
from collections.abc import Callable

from programs import command, loops

_PAIRS_AT_ONCE = 1000
_FAR_S = 1000.0  # and up to twice that: none of these expires while the program runs
_NEAR_S = 0.05  # at most: the time it takes until a timer of the last kind is due


class Timers:
    """Measures one peer; each step runs in the loop and then calls *done*."""

    def __init__(self, loop: loops.Loop, pairs: int, timers: int) -> None:
        self._loop = loop
        self._pairs = pairs
        self._timers = timers
        self._expired = 0
        chance = random.Random(1)  # the same delays for every peer  # noqa: S311
        self._delays = [_FAR_S * (1 + chance.random()) for _ in range(timers)]
        self._order = list(range(timers))
        chance.shuffle(self._order)
        self._waiting: list[loops.Timer | None] = [None] * timers
        self.figures: dict[str, float] = {}

    def run(self, *, only_add: bool) -> None:
        """Take the steps in turn, or the first alone."""
        self._take(self._add)
        if only_add:
            return
        for step in (self._cancel, self._add_cancel, self._expire):
            self._take(step)
        command.check(self._expired == self._timers, f"{self._expired} of {self._timers} timers have expired")

    def _take(self, step: Callable[[Callable[[], object]], None]) -> None:
        self._loop.call_soon(step, self._loop.stop)
        self._loop.run()

    def _count(self) -> None:
        self._expired += 1

    def _add(self, done: Callable[[], object]) -> None:
        add, waiting, callback = self._loop.call_later, self._waiting, self._count
        gc.collect()
        before = command.resident_bytes()
        stopwatch = command.Stopwatch()
        for number, delay in enumerate(self._delays):
            waiting[number] = add(delay, callback)
        self.figures |= command.rates("add", self._timers, stopwatch.stop())
        self.figures["timer_bytes"] = (command.resident_bytes() - before) / self._timers
        done()

    def _cancel(self, done: Callable[[], object]) -> None:
        waiting = self._waiting
        stopwatch = command.Stopwatch()
        for number in self._order:
            waiting[number].cancel()  # type: ignore[union-attr]
            waiting[number] = None
        # What a loop has put off until its next iteration belongs to the price.
        self._loop.call_soon(self._end_cancel, stopwatch, done)

    def _end_cancel(self, stopwatch: command.Stopwatch, done: Callable[[], object]) -> None:
        self._loop.call_soon(self._note_cancelled, stopwatch, done)

    def _note_cancelled(self, stopwatch: command.Stopwatch, done: Callable[[], object]) -> None:
        self.figures |= command.rates("cancel", self._timers, stopwatch.stop())
        done()

    def _add_cancel(self, done: Callable[[], object]) -> None:
        add, callback, again = self._loop.call_later, self._count, self._loop.call_soon
        left = self._pairs
        stopwatch = command.Stopwatch()

        def add_and_cancel() -> None:
            nonlocal left
            if left <= 0:
                self.figures.update(command.rates("add_cancel", self._pairs, stopwatch.stop()))
                done()
                return
            for _ in range(min(_PAIRS_AT_ONCE, left)):
                add(_FAR_S, callback).cancel()
            left -= _PAIRS_AT_ONCE
            again(add_and_cancel)

        add_and_cancel()

    def _expire(self, done: Callable[[], object]) -> None:
        add, callback = self._loop.call_later, self._count
        near = _NEAR_S / _FAR_S
        for delay in self._delays:
            add((delay - _FAR_S) * near, callback)
        all_due = time.monotonic() + _NEAR_S
        add(_NEAR_S, self._end_expire, done)
        while time.monotonic() <= all_due + _NEAR_S:
            pass  # the loop must not run before all are due
        self._stopwatch = command.Stopwatch()

    def _end_expire(self, done: Callable[[], object]) -> None:
        # The last to be due; others of the same millisecond may come after it.
        if self._expired < self._timers:
            self._loop.call_soon(self._end_expire, done)
            return
        self.figures |= command.rates("expire", self._timers, self._stopwatch.stop())
        done()


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Take the steps on the peer's loop."""
    loop = loops.make(options.peer)
    try:
        timers = Timers(loop, options.pairs, options.timers)
        timers.run(only_add=options.only_add)
    finally:
        loop.close()
    return timers.figures


if __name__ == "__main__":
    parser = command.parser(__doc__)
    parser.add_argument("--pairs", type=command.count, default=200_000, metavar="N", help="add_cancel (%(default)s)")
    parser.add_argument("--timers", type=command.count, default=1_000_000, metavar="N", help="others (%(default)s)")
    parser.add_argument("--only-add", action="store_true", help="the first step alone")
    command.main(parser.parse_args(), measure)
