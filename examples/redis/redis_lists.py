"""Lists: short ways to both ends, long ones to the middle."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

from redis_client import Client
from redis_replies import (
    EMPTY_ARRAY,
    OK,
    ZERO,
    BadSyntaxError,
    CommandError,
    array,
    bulk,
    bulks,
    count_of,
    integer,
    integer_of,
    signed_count_of,
    text_of,
)
from redis_store import Store

_RANKS = "use 1 to start from the first match, 2 from the second ... or use negative to start from the end of the list"
_ENDS = {b"LEFT": True, b"RIGHT": False}


class End(NamedTuple):
    """One end of a list, to which an element goes."""

    key: bytes
    is_left: bool


def end_of(key: bytes, word: bytes) -> End:
    """Return the end that a client names LEFT or RIGHT.

    Raises:
        CommandError: there is no such end.
    """
    is_left = _ENDS.get(word.upper())
    if is_left is None:
        raise BadSyntaxError
    return End(key, is_left)


def push(store: Store, key: bytes, elements: Sequence[bytes], *, is_left: bool) -> int:
    """Put elements at one end of a list, which is made if there is none, and return its length.

    Raises:
        WrongTypeError: the key holds something else.
    """
    value = store.find_or_make(key, deque)
    if is_left:
        value.extendleft(elements)
    else:
        value.extend(elements)
    store.touch(key)
    store.tell_pushed(key)
    return len(value)


def take(store: Store, key: bytes, value: deque[bytes], *, is_left: bool, target: End | None = None) -> bytes:
    """Take an element from one end of the list *value*, which is under *key*, to the target, and return it.

    Raises:
        WrongTypeError: the target holds something else; then nothing is taken.
    """
    element = value[0 if is_left else -1]
    if target is not None:
        # First, because it may be the same list: if that became empty, its expiry would be gone too.
        push(store, target.key, [element], is_left=target.is_left)
    if is_left:
        value.popleft()
    else:
        value.pop()
    store.shrink(key, value)
    return element


def lpush(client: Client, request: list[bytes]) -> bytes:
    """Put elements before the first one of a list."""
    return _push(client, request, is_left=True)


def rpush(client: Client, request: list[bytes]) -> bytes:
    """Put elements behind the last one of a list."""
    return _push(client, request, is_left=False)


def lpushx(client: Client, request: list[bytes]) -> bytes:
    """Put elements before the first one of a list that exists."""
    return _push(client, request, is_left=True) if client.store.find(request[1], deque) else ZERO


def rpushx(client: Client, request: list[bytes]) -> bytes:
    """Put elements behind the last one of a list that exists."""
    return _push(client, request, is_left=False) if client.store.find(request[1], deque) else ZERO


def _push(client: Client, request: list[bytes], *, is_left: bool) -> bytes:
    return integer(push(client.store, request[1], request[2:], is_left=is_left))


def lpop(client: Client, request: list[bytes]) -> bytes:
    """Take elements from the front of a list."""
    return _pop(client, request, is_left=True)


def rpop(client: Client, request: list[bytes]) -> bytes:
    """Take elements from the end of a list."""
    return _pop(client, request, is_left=False)


def _pop(client: Client, request: list[bytes], *, is_left: bool) -> bytes:
    if len(request) > 3:
        raise CommandError(f"ERR wrong number of arguments for '{text_of(request[0].lower())}' command")
    has_count = len(request) == 3
    count = count_of(request[2]) if has_count else 1
    value = client.store.find(request[1], deque)
    if value is None:
        return client.dialect.null_array if has_count else client.null
    if count == 0:
        return EMPTY_ARRAY
    take_one = value.popleft if is_left else value.pop
    taken = [take_one() for _ in range(min(count, len(value)))]
    client.store.shrink(request[1], value)
    return bulks(taken) if has_count else bulk(taken[0])


def lmove(client: Client, request: list[bytes]) -> bytes:
    """Take an element from one end of a list to one end of another, or of the same."""
    _, key, target, one, other = request
    return _move(client, end_of(key, one), end_of(target, other))


def rpoplpush(client: Client, request: list[bytes]) -> bytes:
    """Take the last element of a list to the front of another, or of the same."""
    _, key, target = request
    return _move(client, End(key, False), End(target, True))


def _move(client: Client, source: End, target: End) -> bytes:
    value = client.store.find(source.key, deque)
    if value is None:
        return client.null
    return bulk(take(client.store, source.key, value, is_left=source.is_left, target=target))


def llen(client: Client, request: list[bytes]) -> bytes:
    """Get the length of a list."""
    return integer(len(client.store.find(request[1], deque) or ()))


def lrange(client: Client, request: list[bytes]) -> bytes:
    """Get the elements between two places."""
    first, last = integer_of(request[2]), integer_of(request[3])
    value = client.store.find(request[1], deque) or ()
    begin, end = _bounds(first, last, len(value))
    return bulks(islice(value, begin, end))


def _bounds(first: int, last: int, length: int) -> tuple[int, int]:
    """Return where the part from *first* to *last* begins and ends; either may count from the end, as -1."""
    begin = max(first + length, 0) if first < 0 else min(first, length)
    end = last + length if last < 0 else min(last, length - 1)
    return begin, max(end + 1, begin)


def lindex(client: Client, request: list[bytes]) -> bytes:
    """Get the element at a place."""
    value = client.store.find(request[1], deque)
    if value is None:
        return client.null
    place = integer_of(request[2])
    return bulk(value[place]) if -len(value) <= place < len(value) else client.null


def lpos(client: Client, request: list[bytes]) -> bytes:
    """Find the places of an element: from which match on, how many, and after how many elements to give up."""
    _, key, element, *words = request
    options: dict[bytes, int] = {}
    for at in range(0, len(words), 2):
        option = words[at].upper()
        if at + 1 == len(words):
            raise BadSyntaxError
        if option == b"RANK":
            options[option] = signed_count_of(words[at + 1])
            if options[option] == 0:
                raise CommandError(f"ERR RANK can't be zero: {_RANKS}")
        elif option in {b"COUNT", b"MAXLEN"}:
            options[option] = count_of(words[at + 1], f"ERR {text_of(option)} can't be negative")
        else:
            raise BadSyntaxError
    value = client.store.find(key, deque)
    count = options.get(b"COUNT")
    if value is None:
        return client.null if count is None else EMPTY_ARRAY
    rank = options.get(b"RANK", 1)
    looked_at = islice(reversed(value) if rank < 0 else value, options.get(b"MAXLEN") or None)
    matches = (place for place, one in enumerate(looked_at) if one == element)
    begin = min(abs(rank) - 1, len(value))  # no number may be too large for islice
    most = 1 if count is None else min(count, len(value)) or len(value)
    places = list(islice(matches, begin, begin + most))
    if rank < 0:
        places = [len(value) - 1 - place for place in places]
    if count is None:
        return integer(places[0]) if places else client.null
    return array(list(map(integer, places)))


def linsert(client: Client, request: list[bytes]) -> bytes:
    """Put an element before or behind another one."""
    _, key, word, pivot, element = request
    if word.upper() not in {b"BEFORE", b"AFTER"}:
        raise BadSyntaxError
    value = client.store.find(key, deque)
    if value is None:
        return ZERO
    if pivot not in value:
        return integer(-1)
    value.insert(value.index(pivot) + (word.upper() == b"AFTER"), element)
    client.store.touch(key)
    return integer(len(value))


def lset(client: Client, request: list[bytes]) -> bytes:
    """Replace the element at a place."""
    _, key, number, element = request
    value = client.store.find(key, deque)
    if value is None:
        raise CommandError("ERR no such key")
    place = integer_of(number)
    if not -len(value) <= place < len(value):
        raise CommandError("ERR index out of range")
    value[place] = element
    client.store.touch(key)
    return OK


def ltrim(client: Client, request: list[bytes]) -> bytes:
    """Keep the elements between two places only."""
    key = request[1]
    first, last = integer_of(request[2]), integer_of(request[3])
    value = client.store.find(key, deque)
    if value is None:
        return OK
    begin, end = _bounds(first, last, len(value))
    for _ in range(len(value) - end):
        value.pop()
    for _ in range(min(begin, len(value))):
        value.popleft()
    client.store.shrink(key, value)
    return OK


def lrem(client: Client, request: list[bytes]) -> bytes:
    """Remove elements that are equal to one: so many from the front, or from the end if negative; 0: all."""
    _, key, number, element = request
    count = integer_of(number)
    value = client.store.find(key, deque)
    if value is None:
        return ZERO
    left = min(abs(count), len(value)) if count else len(value)
    kept: list[bytes] = []
    for one in reversed(value) if count < 0 else value:
        if left and one == element:
            left -= 1
        else:
            kept.append(one)
    removed = len(value) - len(kept)
    if removed:
        value.clear()
        value.extend(reversed(kept) if count < 0 else kept)
        client.store.shrink(key, value)
    return integer(removed)
