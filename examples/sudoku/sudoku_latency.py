"""Latencies in numbers that mean something: percentiles and histograms. No sockets here.

An average hides what matters: one answer in a hundred that takes a hundred times as long. ``Summary`` is exact and
needs every latency; a ``Histogram`` has a few hundred counts, whatever it has seen, and each of its percentiles is too
high by an eighth at most. Both have one owner at a time.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import NamedTuple

_STEPS = 8  # buckets for each power of two of microseconds
_LONGEST_US = (1 << 32) - 1  # 71 minutes; what is longer counts as that
_BAR = 50


class Summary(NamedTuple):
    """What there is to say of some latencies, in milliseconds."""

    lowest: float
    mean: float
    p50: float
    p90: float
    p99: float
    highest: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Summary:
        """Return the summary of latencies in seconds, in any order; all 0 if there are none."""
        if not seconds:
            return cls(0, 0, 0, 0, 0, 0)
        ms = sorted(1e3 * second for second in seconds)
        cuts = statistics.quantiles(ms * 2 if len(ms) == 1 else ms, n=100, method="inclusive")
        return cls(ms[0], statistics.fmean(ms), cuts[49], cuts[89], cuts[98], ms[-1])

    def __str__(self) -> str:
        return (
            f"min {self.lowest:.3f} avg {self.mean:.3f} p50 {self.p50:.3f} p90 {self.p90:.3f} "
            f"p99 {self.p99:.3f} max {self.highest:.3f} ms"
        )


class Histogram:
    """Counts latencies in buckets that are an eighth of their power of two wide."""

    __slots__ = ("_counts", "count")

    def __init__(self) -> None:
        self._counts = [0] * (_bucket(_LONGEST_US) + 1)
        self.count = 0

    def add(self, seconds: float) -> None:
        """Count one latency."""
        self._counts[_bucket(min(max(int(seconds * 1e6), 0), _LONGEST_US))] += 1
        self.count += 1

    def merge(self, other: Histogram) -> None:
        """Count all that *other* has counted."""
        self._counts = [one + another for one, another in zip(self._counts, other._counts, strict=True)]
        self.count += other.count

    def percentile_us(self, percent: float) -> int:
        """Return the microseconds that *percent* of the latencies did not exceed (nearest rank); 0 if there are none.

        What it returns is the upper end of a bucket.
        """
        missing = max(self.count * percent / 100, 1)
        for bucket, count in enumerate(self._counts):
            missing -= count
            if count and missing <= 0:
                return _last_us(bucket)
        return 0

    def lines(self) -> Iterator[str]:
        """Yield a picture of it: a line for each power of two that there is, and for those between."""
        counts = [sum(self._counts[at : at + _STEPS]) for at in range(0, len(self._counts), _STEPS)]
        used = [at for at, count in enumerate(counts) if count]
        if not used:
            return
        most = max(counts)
        for at in range(used[0], used[-1] + 1):
            below_ms = (_last_us(at * _STEPS + _STEPS - 1) + 1) / 1e3
            bar = "#" * -(-counts[at] * _BAR // most)
            yield f"< {below_ms:10.3f} ms {counts[at]:8d} {bar}".rstrip()


def _bucket(us: int) -> int:
    if us < _STEPS:
        return us
    shift = us.bit_length() - _STEPS.bit_length()
    return shift * _STEPS + (us >> shift)


def _last_us(bucket: int) -> int:
    """Return the longest latency that this bucket counts."""
    if bucket < 2 * _STEPS:
        return bucket
    shift = bucket // _STEPS - 1
    return ((bucket % _STEPS + _STEPS + 1) << shift) - 1
