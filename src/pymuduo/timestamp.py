"""A moment: microseconds since 1970, UTC, in one integer.

Immutable, so any thread may hold it. Wall-clock time is for people and logs; timers use a clock that nobody sets.
"""

from __future__ import annotations

import datetime

from pymuduo import _sys

_US_PER_SECOND = 1_000_000


class Timestamp:
    """A point in time with microsecond resolution, UTC.

    ``a - b`` is the seconds between two timestamps (a float); ``t + seconds`` is another moment.
    Timestamps compare, hash and sort by time; the invalid one, ``Timestamp()``, is 0 and false.

    Args:
        us: microseconds since 1970-01-01 00:00 UTC.

    muduo: ``Timestamp``.
    """

    __slots__ = ("us",)

    def __init__(self, us: int = 0) -> None:
        self.us = us

    @staticmethod
    def now() -> Timestamp:
        """Return the present moment."""
        return from_us(_sys.realtime_us())

    @staticmethod
    def from_seconds(seconds: float) -> Timestamp:
        """Return the moment *seconds* after 1970, as ``time.time()`` gives them."""
        return Timestamp(round(seconds * _US_PER_SECOND))

    @staticmethod
    def from_datetime(moment: datetime.datetime) -> Timestamp:
        """Return the moment of a datetime; a naive one is taken as local time, as ``datetime.timestamp`` does."""
        whole = moment.replace(microsecond=0).timestamp()
        return Timestamp(int(whole) * _US_PER_SECOND + moment.microsecond)

    @property
    def seconds(self) -> float:
        """Seconds since 1970, as ``time.time()`` gives them."""
        return float(self.us) / _US_PER_SECOND

    @property
    def is_valid(self) -> bool:
        """False for ``Timestamp()``, the moment that was never set."""
        return self.us != 0

    def to_datetime(self) -> datetime.datetime:
        """Return the moment as an aware UTC datetime, exact to the microsecond."""
        epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
        return epoch + datetime.timedelta(microseconds=self.us)

    def __add__(self, seconds: float) -> Timestamp:
        if not isinstance(seconds, (int, float)):
            return NotImplemented
        return Timestamp(self.us + round(seconds * _US_PER_SECOND))

    def __sub__(self, other: Timestamp) -> float:
        if not isinstance(other, Timestamp):
            return NotImplemented
        return float(self.us - other.us) / _US_PER_SECOND

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Timestamp) and self.us == other.us

    def __ne__(self, other: object) -> bool:
        return not (isinstance(other, Timestamp) and self.us == other.us)

    def __lt__(self, other: Timestamp) -> bool:
        if not isinstance(other, Timestamp):
            return NotImplemented
        return self.us < other.us

    def __le__(self, other: Timestamp) -> bool:
        if not isinstance(other, Timestamp):
            return NotImplemented
        return self.us <= other.us

    def __gt__(self, other: Timestamp) -> bool:
        if not isinstance(other, Timestamp):
            return NotImplemented
        return self.us > other.us

    def __ge__(self, other: Timestamp) -> bool:
        if not isinstance(other, Timestamp):
            return NotImplemented
        return self.us >= other.us

    def __hash__(self) -> int:
        return hash(self.us)

    def __bool__(self) -> bool:
        return self.us != 0

    def __str__(self) -> str:
        return self.to_datetime().strftime("%Y-%m-%d %H:%M:%S.%f")

    def __repr__(self) -> str:
        return f"Timestamp({self.us})"


def from_us(us: int) -> Timestamp:
    """Return a Timestamp without the cost of parsing arguments: the loop makes one an iteration."""
    moment = Timestamp.__new__(Timestamp)
    moment.us = us
    return moment
