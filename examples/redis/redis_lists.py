"""Lists: short ways to both ends, long ones to the middle."""

from __future__ import annotations

from collections import deque
from itertools import islice

from redis_client import Client
from redis_replies import EMPTY_ARRAY, OK, ZERO, CommandError, bulk, bulks, count_of, integer, integer_of, text_of


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
    _, key, *elements = request
    store = client.store
    value = store.find_or_make(key, deque)
    if is_left:
        value.extendleft(elements)
    else:
        value.extend(elements)
    store.touch(key)
    if key in store.awaited:
        store.pushed_callback(key)
    return integer(len(value))


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
    take = value.popleft if is_left else value.pop
    taken = [take() for _ in range(min(count, len(value)))]
    client.store.shrink(request[1], value)
    return bulks(taken) if has_count else bulk(taken[0])


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
