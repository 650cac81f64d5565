"""Looks at a great many things again and again, at the same small cost for each: a timing wheel.

A heap of timers pays O(log n) for each of 100,000 connections whenever one of them is moved, and a time-out that every
message puts off would be moved by every message. Here nothing is moved when something happens. The wheel is a ring
of buckets with a hand that goes on by one bucket a tick. An entry lies in the bucket that the hand will reach when it
is to be looked at next; it is then taken out, looked at, and put in again so many buckets ahead, all of it O(1). A
look finds out what has happened meanwhile.

A revolution is the longest time between two looks at an entry. New entries are dealt out in turn over the whole
ring, so that 100,000 connections that came in one burst are not looked at in one tick, which would hold the loop up.

A wheel belongs to one loop and is touched by its thread alone.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from pymuduo.event_loop import EventLoop
    from pymuduo.timer_queue import Timer

_TICKS = 64  # of a revolution, unless that makes them shorter than …
_MIN_TICK_S = 0.01


class TimingWheel:
    """A ring of buckets of entries, and the timer that turns it while there are any.

    Args:
        look: ``(entry, now)``, called when it is time to look at an entry, with ``time.monotonic()``. Returns after
            how many seconds to look again, at the latest after a revolution, or -1 to drop the entry. It may add
            entries. It should not raise: the entry would only be looked at again a revolution later.
        empty_callback: called without arguments when no entry is left.

    Attributes:
        loop: the loop whose thread may use it. revolution_s: the longest time between two looks.
        tick_s: how much later than asked a look may come, if the loop is not busy.
    """

    __slots__ = (
        "_base",
        "_buckets",
        "_empty_callback",
        "_hand",
        "_look",
        "_next",
        "_timer",
        "loop",
        "revolution_s",
        "tick_s",
    )

    def __init__(
        self,
        loop: EventLoop,
        revolution_s: float,
        look: Callable[[Any, float], float],
        empty_callback: Callable[[], object] | None = None,
    ) -> None:
        ticks = max(1, min(_TICKS, round(revolution_s / _MIN_TICK_S)))
        self.loop = loop
        self.tick_s = max(_MIN_TICK_S, round(revolution_s / ticks, 6))  # a timer's resolution
        self.revolution_s = ticks * self.tick_s
        # One more than there are ticks: what is put in a whole revolution ahead is not in the bucket under the hand.
        self._buckets: list[list[Any]] = [[] for _ in range(ticks + 1)]
        self._hand = 0  # ticks since _base; its bucket has been looked at
        self._base = 0.0
        self._next = 0
        self._look = look
        self._empty_callback = empty_callback
        self._timer: Timer | None = None

    def add(self, entry: object) -> None:
        """Look at *entry* for the first time within a revolution. Not before that, and not twice, whatever it is."""
        if self._timer is None:
            self._base = time.monotonic()
            self._hand = 0
            self._timer = self.loop.run_every(self.tick_s, self._turn)
        self._next = self._next % (len(self._buckets) - 1) + 1
        self._buckets[(self._hand + self._next) % len(self._buckets)].append(entry)

    def close(self) -> None:
        """Drop every entry; without a call of the empty callback."""
        for bucket in self._buckets:
            bucket.clear()
        self._stop()

    def __len__(self) -> int:
        return sum(map(len, self._buckets))

    def _turn(self) -> None:
        """Let the hand go on to where the clock says it should be, and look at what it passes."""
        now = time.monotonic()
        size = len(self._buckets)
        due = int((now - self._base) / self.tick_s)
        # Taken out first: what is put in again must not be met again, however many buckets a late hand passes.
        passed = []
        for at in range(max(self._hand, due - size) + 1, due + 1):
            passed.append(self._buckets[at % size])
            self._buckets[at % size] = []
        self._hand = due
        try:
            for bucket in passed:
                self._walk(bucket, now)
        except BaseException:
            for bucket in passed:
                self._buckets[due % size] += bucket
            raise
        if not any(self._buckets):
            self._stop()
            if self._empty_callback is not None:
                self._empty_callback()

    def _walk(self, bucket: list[Any], now: float) -> None:
        buckets, hand = self._buckets, self._hand
        size = len(buckets)
        while bucket:
            entry = bucket[-1]
            wait_s = self._look(entry, now)
            bucket.pop()
            if wait_s >= self.revolution_s:
                buckets[(hand + size - 1) % size].append(entry)
            elif wait_s >= 0:
                buckets[(hand + max(1, math.ceil(wait_s / self.tick_s))) % size].append(entry)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def __repr__(self) -> str:
        return f"<TimingWheel {len(self)} entries, {self.revolution_s:g} s>"
