"""Sets."""

from __future__ import annotations

from collections.abc import Callable, Set
from operator import and_, or_, sub

from redis_client import Client
from redis_members import Members
from redis_replies import (
    EMPTY_ARRAY,
    ONE,
    ZERO,
    BadSyntaxError,
    CommandError,
    array,
    array_of_any,
    bulk,
    count_of,
    integer,
    signed_count_of,
)
from redis_scan import cursor_of, stage, walk_of

Operation = Callable[[Set[bytes], Set[bytes]], Set[bytes]]


def sadd(client: Client, request: list[bytes]) -> bytes:
    """Add members to a set."""
    value = client.store.find_or_make(request[1], Members)
    count = sum(map(value.add, request[2:]))
    if count:
        client.store.touch(request[1])
    return integer(count)


def srem(client: Client, request: list[bytes]) -> bytes:
    """Remove members from a set."""
    _, key, *members = request
    value = client.store.find(key, Members)
    if value is None:
        return ZERO
    count = sum(map(value.discard, members))
    if count:
        client.store.shrink(key, value)
    return integer(count)


def smembers(client: Client, request: list[bytes]) -> bytes:
    """Get all members."""
    return client.dialect.members(list(client.store.find(request[1], Members) or ()))


def sismember(client: Client, request: list[bytes]) -> bytes:
    """Tell whether a set has a member."""
    return ONE if request[2] in (client.store.find(request[1], Members) or ()) else ZERO


def smismember(client: Client, request: list[bytes]) -> bytes:
    """Tell of each member whether a set has it."""
    value = client.store.find(request[1], Members) or ()
    return array([ONE if member in value else ZERO for member in request[2:]])


def scard(client: Client, request: list[bytes]) -> bytes:
    """Get the number of members."""
    return integer(len(client.store.find(request[1], Members) or ()))


def smove(client: Client, request: list[bytes]) -> bytes:
    """Move a member from one set to another."""
    _, key, target, member = request
    store = client.store
    value = store.find(key, Members)
    if value is None:
        return ZERO
    store.find(target, Members)  # it may be of another type; then nothing moves
    if member not in value:
        return ZERO
    if key != target:
        value.discard(member)
        store.shrink(key, value)
        store.find_or_make(target, Members).add(member)
        store.touch(target)
    return ONE


# --- several sets ---


def sinter(client: Client, request: list[bytes]) -> bytes:
    """Get the members that all sets have."""
    return client.dialect.members(list(_combined(client, request[1:], and_)))


def sunion(client: Client, request: list[bytes]) -> bytes:
    """Get the members that any of the sets has."""
    return client.dialect.members(list(_combined(client, request[1:], or_)))


def sdiff(client: Client, request: list[bytes]) -> bytes:
    """Get the members of the first set that no other has."""
    return client.dialect.members(list(_combined(client, request[1:], sub)))


def sinterstore(client: Client, request: list[bytes]) -> bytes:
    """Store the members that all sets have."""
    return _store(client, request, and_)


def sunionstore(client: Client, request: list[bytes]) -> bytes:
    """Store the members that any of the sets has."""
    return _store(client, request, or_)


def sdiffstore(client: Client, request: list[bytes]) -> bytes:
    """Store the members of the first set that no other has."""
    return _store(client, request, sub)


def sintercard(client: Client, request: list[bytes]) -> bytes:
    """Count the members that all sets have, up to a limit."""
    count = count_of(request[1], "ERR numkeys should be greater than 0", least=1)
    keys, words = request[2 : 2 + count], request[2 + count :]
    if count > len(keys):
        raise CommandError("ERR Number of keys can't be greater than number of args")
    limit = 0
    for at in range(0, len(words), 2):
        if words[at].upper() != b"LIMIT" or at + 1 == len(words):
            raise BadSyntaxError
        limit = count_of(words[at + 1], "ERR LIMIT can't be negative")
    size = len(_combined(client, keys, and_))
    return integer(min(size, limit) if limit else size)


def _combined(client: Client, keys: list[bytes], operation: Operation) -> Set[bytes]:
    values = [client.store.find(key, Members) for key in keys]  # each is looked at: one may be of another type
    result, *others = [set() if value is None else value.view for value in values]
    for other in others:
        result = operation(result, other)
    return result


def _store(client: Client, request: list[bytes], operation: Operation) -> bytes:
    _, target, *keys = request
    result = Members(_combined(client, keys, operation))
    client.store.delete(target)
    if result:
        client.store.put(target, result)
    return integer(len(result))


# --- by chance, or some at a time ---


def spop(client: Client, request: list[bytes]) -> bytes:
    """Take members by chance."""
    if len(request) > 3:
        raise BadSyntaxError
    has_count = len(request) == 3
    count = count_of(request[2]) if has_count else 1
    value = client.store.find(request[1], Members)
    if value is None:
        return client.dialect.members([]) if has_count else client.null
    taken: list[bytes] = []
    while value and len(taken) < count:
        taken.append(value.draw())
        value.discard(taken[-1])
    if taken:
        client.store.shrink(request[1], value)
    return client.dialect.members(taken) if has_count else bulk(taken[0])


def srandmember(client: Client, request: list[bytes]) -> bytes:
    """Get members by chance: so many, distinct ones unless the number is negative."""
    if len(request) > 3:
        raise BadSyntaxError
    has_count = len(request) == 3
    count = signed_count_of(request[2]) if has_count else 1
    value = client.store.find(request[1], Members)
    if value is None:
        return EMPTY_ARRAY if has_count else client.null
    return array_of_any(map(bulk, value.draw_some(count))) if has_count else bulk(value.draw())


def sscan(client: Client, request: list[bytes]) -> bytes:
    """Walk over the members of a set, some at a time."""
    _, key, place, *words = request
    cursor = cursor_of(place)
    value = client.store.find(key, Members)
    if value is None:
        return stage(0, ())
    walk = walk_of(words)
    cursor, found = value.scan(cursor, walk.size)
    return stage(cursor, filter(walk.fits, found))
