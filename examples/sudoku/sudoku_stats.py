"""What a server has done: in all, in the last second, in the last minute. No sockets here.

What it teaches: a window of time in a fixed number of slots. Second *s* has the slot *s* mod 61; who comes with a newer
second takes it over, and who comes late, with one that is overwritten already, counts in the totals only. No timer
moves the window, nothing is sorted, and a busy minute takes as much memory as an idle one.

Any thread may count and ask: one lock is around everything, held for a few microseconds. Times are given by the caller,
in seconds of a clock that nobody sets.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TypeAlias

from sudoku_latency import Histogram

WINDOW_S = 60
_SLOTS = WINDOW_S + 1  # and the second that has begun
_NEVER = -(1 << 62)

Report: TypeAlias = dict[str, int]


@dataclass(slots=True)
class Slot:
    """What happened in one second, or in all."""

    second: int = _NEVER
    requests: int = 0
    solved: int = 0
    unsolved: int = 0
    dropped: int = 0
    bad: int = 0
    abandoned: int = 0
    latencies: Histogram = field(default_factory=Histogram)

    def add_up(self, other: Slot) -> None:
        """Add what *other* has counted."""
        self.requests += other.requests
        self.solved += other.solved
        self.unsolved += other.unsolved
        self.dropped += other.dropped
        self.bad += other.bad
        self.abandoned += other.abandoned
        self.latencies.merge(other.latencies)

    def report(self, prefix: str) -> Report:
        """Return everything by name."""
        latencies = self.latencies
        return {
            f"{prefix}_requests": self.requests,
            f"{prefix}_solved": self.solved,
            f"{prefix}_unsolved": self.unsolved,
            f"{prefix}_dropped": self.dropped,
            f"{prefix}_bad": self.bad,
            f"{prefix}_abandoned": self.abandoned,
            f"{prefix}_p50_us": latencies.percentile_us(50),
            f"{prefix}_p90_us": latencies.percentile_us(90),
            f"{prefix}_p99_us": latencies.percentile_us(99),
            f"{prefix}_max_us": latencies.percentile_us(100),
        }


class Statistics:
    """Counts requests and what became of them.

    Every request is sooner or later solved, unsolved (there is no solution, or none was found), dropped (the server
    was too busy) or abandoned (its client had left). What is bad is no request.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._total = Slot()
        self._slots = [Slot() for _ in range(_SLOTS)]

    def add_request(self, now: float) -> None:
        """Count a request that has been read."""
        with self._lock:
            for slot in self._now(now):
                slot.requests += 1

    def add_answer(self, now: float, latency_s: float, solved: bool) -> None:
        """Count an answer and how long it took."""
        with self._lock:
            for slot in self._now(now):
                slot.latencies.add(latency_s)
                if solved:
                    slot.solved += 1
                else:
                    slot.unsolved += 1

    def add_dropped(self, now: float) -> None:
        """Count a request that was turned away."""
        with self._lock:
            for slot in self._now(now):
                slot.dropped += 1

    def add_bad(self, now: float) -> None:
        """Count what was no request."""
        with self._lock:
            for slot in self._now(now):
                slot.bad += 1

    def add_abandoned(self, now: float) -> None:
        """Count a request whose client has left."""
        with self._lock:
            for slot in self._now(now):
                slot.abandoned += 1

    def reset(self) -> None:
        """Begin anew."""
        with self._lock:
            self._total = Slot()
            self._slots = [Slot() for _ in range(_SLOTS)]

    def report(self, now: float) -> Report:
        """Return the totals, those of the last full second and those of the last 60 full seconds."""
        this = int(now)
        minute, second = Slot(), Slot()
        with self._lock:
            for slot in self._slots:
                if this - WINDOW_S <= slot.second < this:
                    minute.add_up(slot)
                if slot.second == this - 1:
                    second.add_up(slot)
            total = self._total.report("total")
        return total | minute.report("minute") | second.report("second")

    def _now(self, now: float) -> tuple[Slot, ...]:
        """Return what counts at this moment: the totals and, unless it is overwritten, the second's slot."""
        second = int(now)
        at = second % _SLOTS
        if self._slots[at].second < second:
            self._slots[at] = Slot(second)
        if self._slots[at].second == second:
            return self._total, self._slots[at]
        return (self._total,)
