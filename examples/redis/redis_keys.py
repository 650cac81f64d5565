"""Keys of any type: whether they are there, what they are called, and when they expire."""

from __future__ import annotations

from redis_client import Client
from redis_glob import matcher
from redis_replies import (
    MAX_INTEGER,
    MIN_INTEGER,
    OK,
    ONE,
    ZERO,
    BadSyntaxError,
    CommandError,
    bulk,
    bulks,
    integer,
    integer_of,
    text_of,
)
from redis_scan import cursor_of, stage, walk_of
from redis_store import now_ms

_CONDITIONS = {b"NX", b"XX", b"GT", b"LT"}


def del_(client: Client, request: list[bytes]) -> bytes:
    """Delete keys."""
    return integer(sum(map(client.store.delete, request[1:])))


def exists(client: Client, request: list[bytes]) -> bytes:
    """Count those of the keys that exist."""
    return integer(sum(map(client.store.has, request[1:])))


def type_(client: Client, request: list[bytes]) -> bytes:
    """Get the type of a key."""
    return b"+%b\r\n" % client.store.type_name(request[1]).encode()


def keys(client: Client, request: list[bytes]) -> bytes:
    """Find all keys that match a pattern."""
    fits = matcher(request[1]).fullmatch
    return bulks([key for key in client.store.names() if fits(key)])


def scan(client: Client, request: list[bytes]) -> bytes:
    """Walk over the keys, some at a time."""
    _, place, *words = request
    store = client.store
    cursor = cursor_of(place)
    walk = walk_of(words, has_types=True)
    cursor, found = store.scan(cursor, walk.size)
    found = [key for key in found if walk.fits(key)]
    if walk.type_name is not None:
        found = [key for key in found if store.type_name(key) == walk.type_name]
    return stage(cursor, found)


def rename(client: Client, request: list[bytes]) -> bytes:
    """Rename a key, over another one if need be."""
    _, key, new_key = request
    if not client.store.has(key):
        raise CommandError("ERR no such key")
    if key != new_key:
        client.store.rename(key, new_key)
    return OK


def renamenx(client: Client, request: list[bytes]) -> bytes:
    """Rename a key if the new name is free."""
    if client.store.has(request[1]) and client.store.has(request[2]):
        return ZERO
    rename(client, request)
    return ONE


def copy(client: Client, request: list[bytes]) -> bytes:
    """Copy a key; over another one, if that may be replaced."""
    _, key, new_key, *words = request
    may_replace = False
    rest = iter(words)
    for word in rest:
        if word.upper() == b"REPLACE":
            may_replace = True
        elif word.upper() == b"DB" and (number := next(rest, None)) is not None:
            check_database(number)
        else:
            raise BadSyntaxError
    if key == new_key:
        raise CommandError("ERR source and destination objects are the same")
    if not client.store.has(key) or (client.store.has(new_key) and not may_replace):
        return ZERO
    client.store.copy(key, new_key)
    return ONE


def check_database(number: bytes) -> None:
    """Refuse every database but the one that there is."""
    if integer_of(number) != 0:
        raise CommandError("ERR DB index is out of range")


def dbsize(client: Client, request: list[bytes]) -> bytes:
    """Get the number of keys."""
    return integer(len(client.store))


def flush(client: Client, request: list[bytes]) -> bytes:
    """Delete all keys."""
    if len(request) > 2 or (len(request) == 2 and request[1].upper() not in {b"SYNC", b"ASYNC"}):
        raise BadSyntaxError
    client.store.clear()
    return OK


def randomkey(client: Client, request: list[bytes]) -> bytes:
    """Get a key by chance."""
    key = client.store.random_key()
    return client.null if key is None else bulk(key)


# --- expiry ---


def expire(client: Client, request: list[bytes]) -> bytes:
    """Let a key expire after so many seconds."""
    return _expire(client, request, 1000, is_relative=True)


def pexpire(client: Client, request: list[bytes]) -> bytes:
    """Let a key expire after so many milliseconds."""
    return _expire(client, request, 1, is_relative=True)


def expireat(client: Client, request: list[bytes]) -> bytes:
    """Let a key expire at a moment: seconds since 1970."""
    return _expire(client, request, 1000, is_relative=False)


def pexpireat(client: Client, request: list[bytes]) -> bytes:
    """Let a key expire at a moment: milliseconds since 1970."""
    return _expire(client, request, 1, is_relative=False)


def _expire(client: Client, request: list[bytes], unit_ms: int, *, is_relative: bool) -> bytes:
    name, key, number, *words = request
    conditions = _conditions(words)
    moment = integer_of(number) * unit_ms
    if not MIN_INTEGER <= moment <= MAX_INTEGER - (now_ms() if is_relative else 0):
        raise CommandError(f"ERR invalid expire time in '{text_of(name.lower())}' command")
    if is_relative:
        moment += now_ms()
    store = client.store
    if not store.has(key):
        return ZERO
    current = store.expiries.get(key)
    if (
        (b"NX" in conditions and current is not None)
        or (b"XX" in conditions and current is None)
        or (b"GT" in conditions and (current is None or moment <= current))
        or (b"LT" in conditions and current is not None and moment >= current)
    ):
        return ZERO
    if moment <= now_ms():
        store.delete(key)
    else:
        store.expire_at(key, moment)
        store.touch(key)
    return ONE


def _conditions(words: list[bytes]) -> set[bytes]:
    conditions = set()
    for word in words:
        if word.upper() not in _CONDITIONS:
            raise CommandError(f"ERR Unsupported option {text_of(word)}")
        conditions.add(word.upper())
    if b"NX" in conditions and len(conditions) > 1:
        raise CommandError("ERR NX and XX, GT or LT options at the same time are not compatible")
    if {b"GT", b"LT"} <= conditions:
        raise CommandError("ERR GT and LT options at the same time are not compatible")
    return conditions


def ttl(client: Client, request: list[bytes]) -> bytes:
    """Get how many seconds a key has left: -1 if it stays, -2 if there is none."""
    left = _left_ms(client, request[1])
    return integer((left + 500) // 1000 if left >= 0 else left)


def pttl(client: Client, request: list[bytes]) -> bytes:
    """Get how many milliseconds a key has left: -1 if it stays, -2 if there is none."""
    return integer(_left_ms(client, request[1]))


def _left_ms(client: Client, key: bytes) -> int:
    if not client.store.has(key):
        return -2
    moment = client.store.expiries.get(key)
    return -1 if moment is None else max(moment - now_ms(), 0)


def expiretime(client: Client, request: list[bytes]) -> bytes:
    """Get the moment at which a key expires, in seconds since 1970."""
    moment = _moment(client, request[1])
    return integer((moment + 500) // 1000 if moment >= 0 else moment)


def pexpiretime(client: Client, request: list[bytes]) -> bytes:
    """Get the moment at which a key expires, in milliseconds since 1970."""
    return integer(_moment(client, request[1]))


def _moment(client: Client, key: bytes) -> int:
    return client.store.expiries.get(key, -1) if client.store.has(key) else -2


def persist(client: Client, request: list[bytes]) -> bytes:
    """Let a key stay."""
    if not client.store.has(request[1]) or client.store.expiries.pop(request[1], None) is None:
        return ZERO
    client.store.touch(request[1])
    return ONE
