"""A set that can be drawn from by chance and walked while it changes.

Python's own set can do neither in a time that does not grow with it. This one keeps its members in a list, and each
one's place in the list beside it; who leaves is replaced by the last.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, KeysView, Sequence

from redis_replies import TOO_LONG, CommandError

_MAX_REPEATED = 1_000_000  # all others wait meanwhile


class Members:
    """Distinct strings, in an order that changes when one leaves."""

    __slots__ = ("_order", "_places")

    def __init__(self, members: Iterable[bytes] = ()) -> None:
        self._order = list(dict.fromkeys(members))
        self._places = {member: place for place, member in enumerate(self._order)}

    def __len__(self) -> int:
        return len(self._order)

    def __contains__(self, member: bytes) -> bool:
        return member in self._places

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._order)

    @property
    def view(self) -> KeysView[bytes]:
        """The members for ``&``, ``|`` and ``-``."""
        return self._places.keys()

    def add(self, member: bytes) -> bool:
        """Let one in; False if it is there already."""
        if member in self._places:
            return False
        self._places[member] = len(self._order)
        self._order.append(member)
        return True

    def discard(self, member: bytes) -> bool:
        """Let one go; False if it is not there."""
        place = self._places.pop(member, None)
        if place is None:
            return False
        last = self._order.pop()
        if last != member:
            self._order[place] = last
            self._places[last] = place
        return True

    def copy(self) -> Members:
        """Return another set with the same members."""
        return Members(self._order)

    def clear(self) -> None:
        """Let all go."""
        self._order.clear()
        self._places.clear()

    def draw(self) -> bytes:
        """Return one by chance, which stays; there must be one."""
        return random.choice(self._order)  # noqa: S311

    def draw_some(self, count: int) -> list[bytes]:
        """Return *count* of them by chance; see ``drawn``."""
        return drawn(self._order, count)

    def scan(self, cursor: int, count: int) -> tuple[int, list[bytes]]:
        """Return the next cursor, 0 at the end, and the members between; begin with 0.

        Who is there from the first call to the last is returned at least once: the walk goes down, so all places from
        the cursor on have been seen, and who moves to fill a hole moves down.
        """
        end = min(cursor, len(self._order)) if cursor > 0 else len(self._order)
        begin = max(end - count, 0)
        return begin, self._order[begin:end]


def drawn(names: Sequence[bytes], count: int) -> list[bytes]:
    """Return so many of *names*, which must not be empty, by chance: distinct ones, or any if *count* is negative.

    Raises:
        CommandError: these would be too many.
    """
    if count >= 0:
        return random.sample(names, min(count, len(names)))
    if -count > _MAX_REPEATED:
        raise CommandError(TOO_LONG)
    return random.choices(names, k=-count)  # noqa: S311
