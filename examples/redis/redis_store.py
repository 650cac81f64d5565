"""The keyspace: what is stored under which key, until when, and who wants to know of changes.

A string is ``bytes``, a hash a ``dict``, a list a ``deque``, a set ``Members``. A list, hash or set that has become
empty is gone: each handler that takes from one calls ``shrink``.

A key that has expired is dropped when somebody asks for it (``find`` and ``has`` see to that), and a timer drops those
for which nobody asks. The heap has the moments in order; moments that no longer hold stay in it until they come up, or
until they are the most of it.

Nothing here locks: whoever calls holds the server's lock.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable, Collection, Sized
from typing import TypeVar

from redis_members import Members
from redis_replies import WrongTypeError

Value = bytes | dict[bytes, bytes] | deque[bytes] | Members
V = TypeVar("V", bytes, dict[bytes, bytes], deque[bytes], Members)

_TYPE_NAMES = {bytes: "string", dict: "hash", deque: "list", Members: "set"}
_FEWEST_MOMENTS = 1000  # below this it is not worth while to tidy the heap
MAX_SWEPT = 1000
"""How many keys one call of ``sweep`` drops at most, so that it holds nobody up."""


def now_ms() -> int:
    """Return the time of day in milliseconds: a moment of expiry is one of the calendar."""
    return time.time_ns() // 1_000_000


class Store:
    """All keys.

    Attributes:
        values: what is under a key; an expired key may still be there. Change it with ``put`` and ``delete``.
        expiries: the moments, in milliseconds of the time of day, of the keys that have one.
        changed_callback: ``(key)`` after each change of a key that somebody ``watched``.
        pushed_callback: ``(key)`` when a key that is ``awaited`` holds a list now.
        watched, awaited: those keys; the owners of the two callbacks keep them.
    """

    __slots__ = (
        "_moments",
        "_names",
        "awaited",
        "changed_callback",
        "expired_count",
        "expiries",
        "pushed_callback",
        "values",
        "watched",
    )

    def __init__(self) -> None:
        self.values: dict[bytes, Value] = {}
        self.expiries: dict[bytes, int] = {}
        self.expired_count = 0
        self.watched: Collection[bytes] = ()
        self.awaited: Collection[bytes] = ()
        self.changed_callback: Callable[[bytes], object] = lambda key: None
        self.pushed_callback: Callable[[bytes], object] = lambda key: None
        self._names = Members()  # the keys once more, in an order in which they can be walked and drawn from
        self._moments: list[tuple[int, bytes]] = []

    def __len__(self) -> int:
        return len(self.values)

    # --- looking ---

    def has(self, key: bytes) -> bool:
        """Whether there is such a key."""
        if key in self.expiries:
            self.drop_if_due(key)
        return key in self.values

    def find(self, key: bytes, kind: type[V]) -> V | None:
        """Return what is under *key*, None if nothing is.

        Raises:
            WrongTypeError: it is not of this kind.
        """
        if key in self.expiries:
            self.drop_if_due(key)
        value = self.values.get(key)
        if value is None or type(value) is kind:
            return value
        raise WrongTypeError

    def type_name(self, key: bytes) -> str:
        """Return Redis's name for what is under *key*; ``none`` if nothing is."""
        return _TYPE_NAMES[type(self.values[key])] if self.has(key) else "none"

    def random_key(self) -> bytes | None:
        """Return a key by chance, None if there is none."""
        while self._names:
            key = self._names.draw()
            if self.has(key):
                return key
        return None

    def names(self) -> list[bytes]:
        """Return all keys."""
        return [key for key in list(self.values) if self.has(key)]

    def scan(self, cursor: int, count: int) -> tuple[int, list[bytes]]:
        """Return the next cursor and some keys; see ``Members.scan``."""
        cursor, names = self._names.scan(cursor, count)
        return cursor, [name for name in names if self.has(name)]

    # --- changing ---

    def find_or_make(self, key: bytes, kind: type[V]) -> V:
        """Return what is under *key*, which is made if nothing is. Put something into it, then call ``touch``.

        Raises:
            WrongTypeError: it is not of this kind.
        """
        value = self.find(key, kind)
        if value is None:
            value = self.values[key] = kind()
            self._names.add(key)
        return value

    def put(self, key: bytes, value: Value) -> None:
        """Let *key* hold *value*; when it expires, if ever, stays as it is."""
        if key not in self.values:
            self._names.add(key)
        self.values[key] = value
        if key in self.watched:
            self.changed_callback(key)

    def touch(self, key: bytes) -> None:
        """Tell who wants to know that what is under *key* has changed."""
        if key in self.watched:
            self.changed_callback(key)

    def shrink(self, key: bytes, value: Sized) -> None:
        """Tell that something was taken out of *value*, which is under *key*; what is empty now is dropped."""
        if value:
            self.touch(key)
        else:
            self.delete(key)

    def delete(self, key: bytes) -> bool:
        """Drop a key; False if there is none."""
        if key in self.expiries:
            self.drop_if_due(key)
        if self.values.pop(key, None) is None:
            return False
        self._names.discard(key)
        self.expiries.pop(key, None)
        if key in self.watched:
            self.changed_callback(key)
        return True

    def rename(self, key: bytes, new_key: bytes) -> None:
        """Move what is under *key*, which must be there, and its expiry."""
        value, expiry = self.values[key], self.expiries.get(key)
        self.delete(key)
        self._replace(new_key, value, expiry)

    def copy(self, key: bytes, new_key: bytes) -> None:
        """Put a copy of what is under *key*, which must be there, and its expiry under *new_key*."""
        value = self.values[key]
        self._replace(new_key, value if isinstance(value, bytes) else value.copy(), self.expiries.get(key))

    def _replace(self, key: bytes, value: Value, expiry: int | None) -> None:
        self.delete(key)
        self.put(key, value)
        if expiry is not None:
            self.expire_at(key, expiry)
        if type(value) is deque:
            self.tell_pushed(key)

    def tell_pushed(self, key: bytes) -> None:
        """Tell who waits for the list under *key* that it has something now."""
        if key in self.awaited:
            self.pushed_callback(key)

    def clear(self) -> None:
        """Drop all keys."""
        changed = [key for key in self.watched if self.has(key)]
        self.values.clear()
        self.expiries.clear()
        self._names.clear()
        self._moments.clear()
        for key in changed:
            self.changed_callback(key)

    # --- expiry ---

    def expire_at(self, key: bytes, when_ms: int) -> None:
        """Let a key that is there expire at this moment, and not at another."""
        self.expiries[key] = when_ms
        heapq.heappush(self._moments, (when_ms, key))
        if len(self._moments) > _FEWEST_MOMENTS + 2 * len(self.expiries):
            self._moments[:] = [(moment, key) for key, moment in self.expiries.items()]
            heapq.heapify(self._moments)

    def drop_if_due(self, key: bytes) -> None:
        """Drop a key that has an expiry if that has come."""
        if self.expiries[key] <= now_ms():
            del self.expiries[key]
            self.delete(key)
            self.expired_count += 1

    def sweep(self) -> bool:
        """Drop keys that have expired; False if there may be more of them."""
        now = now_ms()
        for _ in range(MAX_SWEPT):
            if not self._moments or self._moments[0][0] > now:
                return True
            moment, key = heapq.heappop(self._moments)
            if self.expiries.get(key) == moment:
                self.drop_if_due(key)
        return False
