"""Sets."""

from __future__ import annotations

from collections.abc import Callable, Set

from redis_client import Client
from redis_members import Members
from redis_replies import ONE, ZERO, BadSyntaxError, array, bulk, count_of, integer


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


def sinter(client: Client, request: list[bytes]) -> bytes:
    """Get the members that all sets have."""
    return _combine(client, request, lambda one, other: one & other)


def sunion(client: Client, request: list[bytes]) -> bytes:
    """Get the members that any of the sets has."""
    return _combine(client, request, lambda one, other: one | other)


def sdiff(client: Client, request: list[bytes]) -> bytes:
    """Get the members of the first set that no other has."""
    return _combine(client, request, lambda one, other: one - other)


def _combine(client: Client, request: list[bytes], operation: Callable[[Set[bytes], Set[bytes]], Set[bytes]]) -> bytes:
    values = [client.store.find(key, Members) for key in request[1:]]  # each is looked at: one may be of another type
    result, *others = [set() if value is None else value.view for value in values]
    for other in others:
        result = operation(result, other)
    return client.dialect.members(list(result))


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
