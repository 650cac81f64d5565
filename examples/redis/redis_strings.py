"""Strings and counters.

What is called a thousand times more often than the rest, GET and SET and INCR, is written out: it asks the store's
dictionaries itself instead of calling ``find`` and ``put``.
"""

from __future__ import annotations

from redis_client import Client
from redis_floats import fraction_of, text_of_sum
from redis_replies import (
    BULK_HEADERS,
    HEADERS_AT_HAND,
    MAX_INTEGER,
    OK,
    ONE,
    ZERO,
    BadSyntaxError,
    CommandError,
    WrongTypeError,
    array_of_any,
    bulk,
    integer,
    integer_of,
    sum_of,
    text_of,
)
from redis_store import now_ms

MAX_STRING_BYTES = 16 << 20
_UNITS_MS = {b"EX": 1000, b"PX": 1, b"EXAT": 1000, b"PXAT": 1}


def get(client: Client, request: list[bytes]) -> bytes:
    """Get the string value of a key."""
    key = request[1]
    store = client.store
    if key in store.expiries:
        store.drop_if_due(key)
    value = store.values.get(key)
    if type(value) is bytes:
        size = len(value)
        return b"".join((BULK_HEADERS[size], value, b"\r\n")) if size < HEADERS_AT_HAND else bulk(value)
    if value is None:
        return client.null
    raise WrongTypeError


def set_(client: Client, request: list[bytes]) -> bytes:
    """Set the string value of a key."""
    if len(request) != 3:
        return _set_with_options(client, request)
    _, key, value = request
    store = client.store
    if key in store.expiries:
        store.delete(key)
    if key in store.values and key not in store.watched:
        store.values[key] = value
    else:
        store.put(key, value)
    return OK


def _set_with_options(client: Client, request: list[bytes]) -> bytes:
    name, key, value, *words = request
    store = client.store
    options = _options(words, {b"NX", b"XX", b"GET", b"KEEPTTL"})
    if {b"NX", b"XX"} <= options.keys() or len(options.keys() & {b"KEEPTTL", *_UNITS_MS}) > 1:
        raise BadSyntaxError
    expiry = _expiry(options, name)
    old = store.find(key, bytes) if b"GET" in options else None
    reply = OK if b"GET" not in options else client.null if old is None else bulk(old)
    if (b"NX" in options and store.has(key)) or (b"XX" in options and not store.has(key)):
        return reply if b"GET" in options else client.null
    _replace(client, key, value, keeps_expiry=b"KEEPTTL" in options)
    if expiry is not None:
        store.expire_at(key, expiry)
    return reply


def _replace(client: Client, key: bytes, value: bytes, *, keeps_expiry: bool = False) -> None:
    """Put a value whatever was there, and forget when that was to expire."""
    store = client.store
    if key in store.expiries:
        store.drop_if_due(key)
        if not keeps_expiry:
            store.expiries.pop(key, None)
    store.put(key, value)


def _options(words: list[bytes], flags: set[bytes]) -> dict[bytes, bytes]:
    """Return the options that *words* set: flags, and moments with their numbers."""
    options: dict[bytes, bytes] = {}
    rest = iter(words)
    for word in rest:
        option = word.upper()
        if option in flags:
            options[option] = b""
        elif option in _UNITS_MS and (number := next(rest, None)) is not None:
            options[option] = number
        else:
            raise BadSyntaxError
    return options


def _expiry(options: dict[bytes, bytes], name: bytes) -> int | None:
    """Return the moment that the options name, in milliseconds of the time of day."""
    for option, unit in _UNITS_MS.items():
        if option in options:
            return moment_of(options[option], unit, name, is_relative=not option.endswith(b"AT"))
    return None


def moment_of(text: bytes, unit_ms: int, name: bytes, *, is_relative: bool) -> int:
    """Return a moment in the future, or of the calendar, in milliseconds.

    Raises:
        CommandError: it is no number, not positive, or too large.
    """
    number = integer_of(text) * unit_ms
    moment = number + now_ms() if is_relative else number
    if number <= 0 or moment > MAX_INTEGER:
        raise CommandError(f"ERR invalid expire time in '{text_of(name.lower())}' command")
    return moment


def setnx(client: Client, request: list[bytes]) -> bytes:
    """Set the value of a key that does not exist."""
    _, key, value = request
    if client.store.has(key):
        return ZERO
    client.store.put(key, value)
    return ONE


def setex(client: Client, request: list[bytes]) -> bytes:
    """Set the value of a key and when it expires: SETEX in seconds, PSETEX in milliseconds."""
    name, key, time, value = request
    moment = moment_of(time, 1 if name[:1] in b"pP" else 1000, name, is_relative=True)
    _replace(client, key, value)
    client.store.expire_at(key, moment)
    return OK


def getset(client: Client, request: list[bytes]) -> bytes:
    """Set the value of a key and return the old one."""
    _, key, value = request
    old = client.store.find(key, bytes)
    _replace(client, key, value)
    return client.null if old is None else bulk(old)


def getdel(client: Client, request: list[bytes]) -> bytes:
    """Get the value of a key and delete it."""
    value = client.store.find(request[1], bytes)
    if value is None:
        return client.null
    client.store.delete(request[1])
    return bulk(value)


def getex(client: Client, request: list[bytes]) -> bytes:
    """Get the value of a key and set when it expires."""
    name, key, *words = request
    store = client.store
    options = _options(words, {b"PERSIST"})
    if len(options) > 1:
        raise BadSyntaxError
    value = store.find(key, bytes)
    if value is None:
        return client.null
    expiry = _expiry(options, name)
    if expiry is not None:
        store.expire_at(key, expiry)
        store.drop_if_due(key)
        store.touch(key)
    elif b"PERSIST" in options and store.expiries.pop(key, None) is not None:
        store.touch(key)
    return bulk(value)


def mget(client: Client, request: list[bytes]) -> bytes:
    """Get the values of all the keys; what is no string is nothing."""
    store = client.store
    values = (store.values[key] if store.has(key) else None for key in request[1:])
    return array_of_any(bulk(value) if type(value) is bytes else client.null for value in values)


def mset(client: Client, request: list[bytes]) -> bytes:
    """Set keys to values."""
    for key, value in _pairs(request):
        _replace(client, key, value)
    return OK


def msetnx(client: Client, request: list[bytes]) -> bytes:
    """Set keys to values if none of the keys exists."""
    pairs = _pairs(request)
    if any(client.store.has(key) for key, _ in pairs):
        return ZERO
    for key, value in pairs:
        client.store.put(key, value)
    return ONE


def _pairs(request: list[bytes]) -> list[tuple[bytes, bytes]]:
    if len(request) % 2 == 0:
        raise CommandError(f"ERR wrong number of arguments for '{text_of(request[0].lower())}' command")
    return list(zip(request[1::2], request[2::2], strict=True))


def append(client: Client, request: list[bytes]) -> bytes:
    """Append to the value of a key."""
    _, key, more = request
    value = client.store.find(key, bytes) or b""
    _check_length(len(value) + len(more))
    client.store.put(key, value + more)
    return integer(len(value) + len(more))


def strlen(client: Client, request: list[bytes]) -> bytes:
    """Get the length of the value of a key."""
    return integer(len(client.store.find(request[1], bytes) or b""))


def getrange(client: Client, request: list[bytes]) -> bytes:
    """Get a part of the value of a key."""
    first, last = integer_of(request[2]), integer_of(request[3])
    value = client.store.find(request[1], bytes) or b""
    if first < 0 and last < 0 and first > last:
        return bulk(b"")
    first = max(first + len(value), 0) if first < 0 else first
    last = max(last + len(value), 0) if last < 0 else last
    return bulk(value[first : last + 1])


def setrange(client: Client, request: list[bytes]) -> bytes:
    """Overwrite a part of the value of a key."""
    _, key, number, part = request
    offset = integer_of(number)
    if offset < 0:
        raise CommandError("ERR offset is out of range")
    value = client.store.find(key, bytes) or b""
    if not part:
        return integer(len(value))
    _check_length(offset + len(part))
    value = value[:offset].ljust(offset, b"\0") + part + value[offset + len(part) :]
    client.store.put(key, value)
    return integer(len(value))


def _check_length(length: int) -> None:
    if length > MAX_STRING_BYTES:
        raise CommandError("ERR string exceeds maximum allowed size (proto-max-bulk-len)")


# --- counters ---


def incr(client: Client, request: list[bytes]) -> bytes:
    """Add one to the number that a key holds."""
    return _add(client, request[1], 1)


def decr(client: Client, request: list[bytes]) -> bytes:
    """Subtract one from the number that a key holds."""
    return _add(client, request[1], -1)


def incrby(client: Client, request: list[bytes]) -> bytes:
    """Add to the number that a key holds."""
    return _add(client, request[1], integer_of(request[2]))


def decrby(client: Client, request: list[bytes]) -> bytes:
    """Subtract from the number that a key holds."""
    number = integer_of(request[2])
    if number == -MAX_INTEGER - 1:
        raise CommandError("ERR decrement would overflow")
    return _add(client, request[1], -number)


def _add(client: Client, key: bytes, number: int) -> bytes:
    store = client.store
    value = store.find(key, bytes)
    total = number if value is None else sum_of(integer_of(value), number)
    text = b"%d" % total
    store.put(key, text)
    return b":%b\r\n" % text


def incrbyfloat(client: Client, request: list[bytes]) -> bytes:
    """Add a fraction to the number that a key holds."""
    _, key, number = request
    value = client.store.find(key, bytes)
    total = text_of_sum(fraction_of(b"0" if value is None else value), fraction_of(number))
    client.store.put(key, total)
    return bulk(total)
