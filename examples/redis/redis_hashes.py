"""Hashes: fields and their values below one key."""

from __future__ import annotations

from redis_client import Client
from redis_floats import fraction_of, text_of_sum
from redis_members import drawn
from redis_replies import (
    EMPTY_ARRAY,
    MAX_INTEGER,
    OK,
    ONE,
    RESP2,
    ZERO,
    BadSyntaxError,
    CommandError,
    array,
    array_of_any,
    bulk,
    bulks,
    integer,
    integer_of,
    signed_count_of,
    sum_of,
    text_of,
)
from redis_scan import cursor_of, stage, walk_of


def hset(client: Client, request: list[bytes]) -> bytes:
    """Set fields of a hash."""
    return integer(_set(client, request))


def hmset(client: Client, request: list[bytes]) -> bytes:
    """Set fields of a hash, and do not tell how many are new."""
    _set(client, request)
    return OK


def _set(client: Client, request: list[bytes]) -> int:
    if len(request) % 2:
        raise CommandError(f"ERR wrong number of arguments for '{text_of(request[0].lower())}' command")
    fields = client.store.find_or_make(request[1], dict)
    before = len(fields)
    fields.update(zip(request[2::2], request[3::2], strict=True))
    client.store.touch(request[1])
    return len(fields) - before


def hsetnx(client: Client, request: list[bytes]) -> bytes:
    """Set a field that does not exist."""
    _, key, field, value = request
    fields = client.store.find_or_make(key, dict)
    if field in fields:
        return ZERO
    fields[field] = value
    client.store.touch(key)
    return ONE


def hget(client: Client, request: list[bytes]) -> bytes:
    """Get the value of a field."""
    fields = client.store.find(request[1], dict)
    value = fields.get(request[2]) if fields else None
    return client.null if value is None else bulk(value)


def hmget(client: Client, request: list[bytes]) -> bytes:
    """Get the values of fields."""
    fields = client.store.find(request[1], dict) or {}
    values = map(fields.get, request[2:])
    return array_of_any(client.null if value is None else bulk(value) for value in values)


def hgetall(client: Client, request: list[bytes]) -> bytes:
    """Get all fields and their values."""
    fields = client.store.find(request[1], dict) or {}
    return client.dialect.mapping({field: bulk(value) for field, value in fields.items()})


def hdel(client: Client, request: list[bytes]) -> bytes:
    """Delete fields."""
    _, key, *names = request
    fields = client.store.find(key, dict)
    if fields is None:
        return ZERO
    count = sum(fields.pop(name, None) is not None for name in names)
    if count:
        client.store.shrink(key, fields)
    return integer(count)


def hexists(client: Client, request: list[bytes]) -> bytes:
    """Tell whether there is such a field."""
    return ONE if request[2] in (client.store.find(request[1], dict) or ()) else ZERO


def hlen(client: Client, request: list[bytes]) -> bytes:
    """Get the number of fields."""
    return integer(len(client.store.find(request[1], dict) or ()))


def hstrlen(client: Client, request: list[bytes]) -> bytes:
    """Get the length of the value of a field."""
    fields = client.store.find(request[1], dict) or {}
    return integer(len(fields.get(request[2], b"")))


def hkeys(client: Client, request: list[bytes]) -> bytes:
    """Get the names of all fields."""
    return bulks(client.store.find(request[1], dict) or ())


def hvals(client: Client, request: list[bytes]) -> bytes:
    """Get the values of all fields."""
    fields = client.store.find(request[1], dict) or {}
    return bulks(fields.values())


def hscan(client: Client, request: list[bytes]) -> bytes:
    """Get the fields that match a pattern, and their values.

    All at once, as Redis does with a small hash: a dict can't be entered in the middle.
    """
    _, key, place, *words = request
    cursor_of(place)
    fields = client.store.find(key, dict)
    if fields is None:
        return stage(0, ())
    fits = walk_of(words).fits
    return stage(0, [part for field, value in fields.items() if fits(field) for part in (field, value)])


def hrandfield(client: Client, request: list[bytes]) -> bytes:
    """Get fields by chance: so many, distinct ones unless the number is negative; with their values, if need be."""
    has_count, has_values = len(request) > 2, len(request) > 3
    count = signed_count_of(request[2]) if has_count else 1
    if len(request) > 4 or (has_values and request[3].upper() != b"WITHVALUES"):
        raise BadSyntaxError
    if has_values and abs(count) > MAX_INTEGER // 2:
        raise CommandError("ERR value is out of range")
    fields = client.store.find(request[1], dict)
    if fields is None:
        return EMPTY_ARRAY if has_count else client.null
    names = drawn(list(fields), count)
    if not has_count:
        return bulk(names[0])
    if not has_values:
        return array_of_any(map(bulk, names))
    pairs = ((bulk(name), bulk(fields[name])) for name in names)
    if client.dialect is RESP2:
        return array_of_any(part for pair in pairs for part in pair)
    return array_of_any(map(array, pairs))


def hincrby(client: Client, request: list[bytes]) -> bytes:
    """Add to the number that a field holds."""
    _, key, field, number = request
    more = integer_of(number)
    value = (client.store.find(key, dict) or {}).get(field)
    total = more if value is None else sum_of(integer_of(value, "ERR hash value is not an integer"), more)
    client.store.find_or_make(key, dict)[field] = b"%d" % total
    client.store.touch(key)
    return integer(total)


def hincrbyfloat(client: Client, request: list[bytes]) -> bytes:
    """Add a fraction to the number that a field holds."""
    _, key, field, number = request
    more = fraction_of(number)
    if more is None:
        raise CommandError("ERR value is NaN or Infinity")
    value = (client.store.find(key, dict) or {}).get(field, b"0")
    total = text_of_sum(fraction_of(value, "ERR hash value is not a float"), more)
    client.store.find_or_make(key, dict)[field] = total
    client.store.touch(key)
    return bulk(total)
