r"""The cache: keys and what to answer for them, those that nobody uses first to go when the memory is full.

An item is kept as the answer to a ``get``: ``VALUE key flags size\r\n``, the value, ``\r\nEND\r\n``. A hit then costs
a look into a dict and formats nothing; commands that are rare beside ``get`` and ``set`` take the answer apart again.

Who has been used is told by generations, so that a hit need not move anything. There are three tables. What is new or
used comes into the young one; what makes room is the old one, first in, first out; and when that is empty, the middle
one becomes the old, the young one the middle, and a new one begins. So what nobody uses leaves in the order in which it
came, and what has been used in a later generation outlives it; a generation is half of the cache, unless much of what
is there already is used. Which of one generation was used last is not known.

One store is shared by all loops, behind one lock that a loop takes once for all requests of a read. One, and not one
for each of many shards, because what is done under it is a few dict operations, far less than the system calls around
it; and because there is one order of use and one limit of memory, whatever the keys are. Every method but
``sweep`` expects that the caller holds ``lock`` and has called ``begin`` since it took it.
"""

from __future__ import annotations

import math
import re
import sys
import threading
import time
from collections import Counter, deque
from typing import TypeAlias

NEVER = math.inf
END = b"END\r\n"
MAX_KEY_BYTES = 250
MAX_ITEM_BYTES = 1 << 20

_RELATIVE_LIMIT_S = 60 * 60 * 24 * 30  # an expiry time above that is not from now on, but since 1970
_CONTROL = re.compile(rb"[\x00-\x20\x7f]")
# What an item takes besides the bytes of its key and its answer: both objects' headers, which the allocator rounds up
# (33 + 8 each), the tuple (64), the cas number (32), and its place in a table that may have just grown (about 70).
# Without the GIL an object's header is larger; that of a tuple is not.
_MORE_BYTES = sys.getsizeof(object()) - 16
_ITEM_BYTES = 250 + 3 * _MORE_BYTES
# The time (24), and the key's place in the set of those that expire in that second (up to 110).
_EXPIRY_BYTES = 150 + _MORE_BYTES
_SECOND_BYTES = 340 + _MORE_BYTES  # that set

Item: TypeAlias = tuple[bytes, float, int]
"""The answer to a ``get``, when it expires (monotonic seconds), and the number of the change that made it."""


class Store:
    """The items of all connections.

    Args:
        max_bytes: items may take so much memory, their share of the tables included.

    Attributes:
        lock: see above. now: monotonic seconds, as of ``begin``.
        bytes: what all items take. max_bytes: as given.
        changes: items stored so far: the last cas number given.
        hits: gets that found something. counts: all other events, by their names in ``stats``.
    """

    def __init__(self, max_bytes: int) -> None:
        self.lock = threading.Lock()
        self.max_bytes = max_bytes
        self.now = 0.0
        self.bytes = 0
        self.changes = 0
        self.hits = 0
        self.counts: Counter[str] = Counter()
        self._flush_at = NEVER
        self._young: dict[bytes, Item] = {}
        self._middle: dict[bytes, Item] = {}
        self._old: dict[bytes, Item] = {}
        self._mark = max_bytes // 2  # of bytes: beyond it the first generation ends; from then on it is the limit
        self._next_to_go: deque[bytes] = deque()  # the keys of the old table in order, and of items that have left it
        self._expiring: dict[int, set[bytes]] = {}  # by the first whole second at which the keys have expired
        self._swept_s = int(time.monotonic())

    def __len__(self) -> int:
        return len(self._young) + len(self._middle) + len(self._old)

    def begin(self) -> None:
        """Take the time, once for all that is done under the lock now."""
        self.now = time.monotonic()
        if self._flush_at <= self.now:
            self.flush(self.now)

    def expiry(self, exptime: int) -> float:
        """Return the moment that a client means: 0 is never; what is negative or over is now, which is too late."""
        if exptime == 0:
            return NEVER
        return self.now + max(exptime if exptime <= _RELATIVE_LIMIT_S else exptime - time.time(), 0)

    def get(self, key: bytes) -> Item | None:
        """Return an item that has not expired, and note that it has been used."""
        item = self._young.get(key)
        if item is None:
            item = self._take_aged(key)
            if item is None:
                return None
            self._young[key] = item
        if item[1] <= self.now:
            self.remove(key)
            return None
        return item

    def put(self, key: bytes, flags: bytes, size: bytes, value: bytes, expires: float) -> bool:
        """Store a value of so many bytes; False if there can be no such key."""
        before = self._young.get(key)
        # Joined, which costs half of what formatting would: a set is little more than this line.
        answer = b"".join((b"VALUE ", key, b" ", flags, b" ", size, b"\r\n", value, b"\r\nEND\r\n"))
        count = len(answer)
        if before is not None and before[1] == expires == NEVER:  # most often nothing but the value is new
            self.bytes += count - len(before[0])
        elif not self._take_over(key, before, count, expires):
            return False
        self.changes = changes = self.changes + 1
        self._young[key] = (answer, expires, changes)
        if self.bytes > self._mark:
            self._make_room()
        return True

    def touch(self, key: bytes, expires: float) -> Item | None:
        """Give an item another expiry time, and return it as it was; None if there is none."""
        item = self.get(key)
        if item is not None:
            if item[1] != NEVER:
                self._forget_expiry(key, item[1])
            self._young[key] = (item[0], expires, item[2])
            if expires != NEVER:
                self._note_expiry(key, expires)
                if self.bytes > self._mark:
                    self._make_room()
        return item

    def remove(self, key: bytes) -> None:
        """Remove an item, if it is there."""
        item = self._young.pop(key, None)
        if item is None:
            item = self._take_aged(key)
        if item is not None:
            self._release(key, item)

    def flush(self, when: float) -> None:
        """Forget everything that is there at that moment; one set before that has not come yet is cancelled."""
        if when > self.now:
            self._flush_at = when
            return
        self._flush_at = NEVER
        for table in (self._young, self._middle, self._old, self._next_to_go):
            table.clear()
        self._mark = self.max_bytes // 2
        self._expiring.clear()
        self.bytes = 0

    def sweep(self, at_most: int) -> bool:
        """Remove items that have expired and that nobody asks for; from any thread, without the lock.

        Returns:
            Whether there are more than *at_most* of them.
        """
        with self.lock:
            self.begin()
            while self._swept_s <= self.now:
                keys = self._expiring.get(self._swept_s)
                while keys:
                    if at_most == 0:
                        return True
                    at_most -= 1
                    self.counts["reclaimed"] += 1
                    self.remove(keys.pop())
                self._swept_s += 1
        return False

    # --- private ---

    def _take_over(self, key: bytes, before: Item | None, count: int, expires: float) -> bool:
        """Open the accounts of a new answer of so many bytes instead of those of an item that was there."""
        if before is None:
            before = self._take_aged(key)
        if before is not None:
            self._release(key, before)
        elif len(key) > MAX_KEY_BYTES or _CONTROL.search(key):
            return False
        self.bytes += count + len(key) + _ITEM_BYTES
        if expires != NEVER:
            self._note_expiry(key, expires)
        return True

    def _take_aged(self, key: bytes) -> Item | None:
        item = self._middle.pop(key, None)
        if item is None:
            item = self._old.pop(key, None)
            if item is not None and len(self._next_to_go) > 2 * len(self._old):
                self._next_to_go = deque(self._old)  # or the keys of items that have left would fill the memory
        return item

    def _make_room(self) -> None:
        if self._mark < self.max_bytes:
            self._mark = self.max_bytes
            self._age()
        while self.bytes > self.max_bytes:
            while not self._next_to_go:
                self._age()
            key = self._next_to_go.popleft()
            item = self._old.pop(key, None)
            if item is not None:
                self._release(key, item)
                self.counts["evictions"] += 1

    def _age(self) -> None:
        """Begin a new generation; the old table is empty."""
        self._old, self._middle, self._young = self._middle, self._young, {}
        self._next_to_go.extend(self._old)

    def _release(self, key: bytes, item: Item) -> None:
        """Take an item that is no longer there out of the accounts."""
        self.bytes -= len(key) + len(item[0]) + _ITEM_BYTES
        if item[1] != NEVER:
            self._forget_expiry(key, item[1])

    def _note_expiry(self, key: bytes, expires: float) -> None:
        keys = self._expiring.get(int(expires) + 1)
        if keys is None:
            keys = self._expiring[int(expires) + 1] = set()
            self.bytes += _SECOND_BYTES
        keys.add(key)
        self.bytes += _EXPIRY_BYTES

    def _forget_expiry(self, key: bytes, expires: float) -> None:
        self.bytes -= _EXPIRY_BYTES
        second = int(expires) + 1
        keys = self._expiring[second]
        keys.discard(key)
        if not keys:
            del self._expiring[second]
            self.bytes -= _SECOND_BYTES


def take_apart(answer: bytes) -> tuple[bytes, bytes]:
    """Return the flags and the value that an answer holds."""
    begin = answer.index(b"\r\n")  # no key holds a line end
    return answer[:begin].split(b" ")[2], answer[begin + 2 : -2 - len(END)]


def with_cas(item: Item) -> bytes:
    """Return the answer to a ``gets``."""
    answer, _, cas = item
    begin = answer.index(b"\r\n")
    return b"%b %d%b" % (answer[:begin], cas, answer[begin:])
