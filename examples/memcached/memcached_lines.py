"""Lines of memcached's protocol: what their words mean, and what is answered to those that make no sense."""

from __future__ import annotations

import re
from typing import TypeAlias

from memcached_store import MAX_ITEM_BYTES, MAX_KEY_BYTES, NEVER, Store

SIZE_AT = 4  # the word of a storage command that tells the size of the block behind it
MAX_SIZE = (1 << 31) - 3  # a size above it is no size
MAX_U32, MAX_U64 = (1 << 32) - 1, (1 << 64) - 1
MIN_EXPTIME, MAX_EXPTIME = -(1 << 31), (1 << 63) - 1

NOREPLY = b"noreply"
ERROR = b"ERROR\r\n"
BAD_LINE = b"CLIENT_ERROR bad command line format\r\n"
_BAD_BLOCK = b"CLIENT_ERROR bad data chunk\r\n"
_TOO_LARGE = b"SERVER_ERROR object too large for cache\r\n"

_INTEGER = re.compile(rb"[+-]?[0-9]{1,20}")
_ITEM_HEADER_BYTES = 59  # memcached's own, and the value's line end: so we refuse exactly what it refuses
_FLAGS_BYTES = 4
_SURELY_SMALL = MAX_ITEM_BYTES - MAX_KEY_BYTES - _ITEM_HEADER_BYTES - _FLAGS_BYTES

Words: TypeAlias = list[bytes]
Line: TypeAlias = tuple[bytes, bytes, bytes, float, bytes, bool]
"""Key, flags, size, when it expires, value, and whether no answer is wanted."""


class RefusedError(Exception):
    """A request that is not carried out, and the answer to it."""

    def __init__(self, answer: bytes, is_silent: bool = False) -> None:
        super().__init__(answer)
        self.answer = b"" if is_silent else answer


def storage_line(store: Store, words: Words, count: int) -> Line:
    """Return what a storage command's words say, the block that came with it being the last.

    Args:
        count: of the words that its line must have; one more may follow them.

    Raises:
        RefusedError: it makes no sense, or its value is too large.
    """
    value: bytes | None = words[-1]
    size = b"%d" % len(words[-1])
    more = len(words) - count  # the block, and often "noreply" before it
    if 0 < more < 3 and words[SIZE_AT] == size:
        is_silent = more == 2 and words[count] == NOREPLY
    else:
        value, is_silent = _look_closely(words, count)
    key, flags, exptime = words[1:4]
    if flags != b"0":
        number = number_of(flags, 0, MAX_U32)
        if number is None:
            raise RefusedError(BAD_LINE, is_silent)
        flags = b"%d" % number
    if exptime == b"0":
        expires = NEVER
    else:
        number = number_of(exptime, MIN_EXPTIME, MAX_EXPTIME)
        if number is None:
            raise RefusedError(BAD_LINE, is_silent)
        expires = store.expiry(number)
    if len(key) > MAX_KEY_BYTES:
        raise RefusedError(BAD_LINE, is_silent)
    if value is None or len(value) > _SURELY_SMALL:
        value = _checked(store, words, key, flags, value, is_silent)
    return key, flags, size, expires, value, is_silent


def _checked(store: Store, words: Words, key: bytes, flags: bytes, value: bytes | None, is_silent: bool) -> bytes:
    """Return a large block that is not too large; refuse one that is, or that has not come as it should."""
    size = number_of(words[SIZE_AT], 0, MAX_SIZE)
    if size is None or (words[0] == b"cas" and number_of(words[5], 0, MAX_U64) is None):
        raise RefusedError(BAD_LINE, is_silent)
    if is_too_large(key, flags, size):
        if words[0] == b"set" and store.get(key) is not None:
            store.remove(key)  # rather nothing than what was there before
        raise RefusedError(_TOO_LARGE, is_silent)
    if value is None:
        raise RefusedError(_BAD_BLOCK, is_silent)
    return value


def _look_closely(words: Words, count: int) -> tuple[bytes | None, bool]:
    """Return the block of an unusual storage command (None if there is none), and whether no answer is wanted."""
    size = number_of(words[SIZE_AT], 0, MAX_SIZE) if len(words) > 4 else None
    value = words[-1] if len(words) > 5 and size == len(words[-1]) else None
    line = words if value is None else words[:-1]
    if len(line) not in (count, count + 1):
        raise RefusedError(ERROR)
    return value, line[-1] == NOREPLY


def number_of(word: bytes, lowest: int, highest: int) -> int | None:
    """Return the number that a word is, or None: it is none, or out of bounds."""
    number = int(word) if _INTEGER.fullmatch(word) else None
    return number if number is not None and lowest <= number <= highest else None


def is_too_large(key: bytes, flags: bytes, size: int) -> bool:
    """Return whether memcached would not store a value of that size."""
    return len(key) + size + _ITEM_HEADER_BYTES + (0 if flags == b"0" else _FLAGS_BYTES) > MAX_ITEM_BYTES


def unless_silent(words: Words, answer: bytes) -> bytes:
    """Return the answer, or nothing if the client wants none."""
    return b"" if words[-1] == NOREPLY else answer
