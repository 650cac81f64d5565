r"""Patterns of keys and channels: ``*``, ``?``, ``[a-c]``, ``[^a]``, and ``\`` before what stands for itself."""

from __future__ import annotations

import functools
import re

from redis_replies import CommandError

_MAX_PATTERNS = 256
_MAX_PATTERN_BYTES = 1024


@functools.lru_cache(_MAX_PATTERNS)
def matcher(pattern: bytes) -> re.Pattern[bytes]:
    """Return what has a ``fullmatch`` for the names that *pattern* means.

    What follows a star is matched at the first place where it fits, and that is never taken back: a later place could
    not serve better. So no pattern takes longer than its length times the name's.

    Raises:
        CommandError: it is too long to be one.
    """
    if len(pattern) > _MAX_PATTERN_BYTES:
        raise CommandError("ERR the pattern is too long")
    chunks = _chunks(pattern)
    if len(chunks) == 1:
        return re.compile(chunks[0], re.DOTALL)
    middle = b"".join(b"(?>.*?%b)" % chunk for chunk in chunks[1:-1] if chunk)
    return re.compile(chunks[0] + middle + b".*" + chunks[-1], re.DOTALL)


def _chunks(pattern: bytes) -> list[bytes]:
    """Return what stands between the stars, as regular expressions."""
    chunks = [b""]
    at = 0
    while at < len(pattern):
        letter = pattern[at : at + 1]
        at += 1
        if letter == b"*":
            chunks.append(b"")
        elif letter == b"?":
            chunks[-1] += b"."
        elif letter == b"[":
            one, at = _class(pattern, at)
            chunks[-1] += one
        else:
            if letter == b"\\" and at < len(pattern):
                letter = pattern[at : at + 1]
                at += 1
            chunks[-1] += re.escape(letter)
    return chunks


def _class(pattern: bytes, at: int) -> tuple[bytes, int]:
    """Return the class of letters that begins at *at*, as a regular expression, and where it ends."""
    is_negated = pattern[at : at + 1] == b"^"
    at += is_negated
    inside = b""
    while at < len(pattern) and pattern[at] != ord("]"):
        low = high = pattern[at]
        if low == ord("\\") and at + 1 < len(pattern):
            low = high = pattern[at + 1]
            at += 2
        elif at + 2 < len(pattern) and pattern[at + 1] == ord("-"):
            low, high = sorted((low, pattern[at + 2]))
            at += 3
        else:
            at += 1
        inside += rb"\x%02x-\x%02x" % (low, high)
    if is_negated:
        return (b"[^%b]" % inside if inside else b"."), at + 1
    return (b"[%b]" % inside if inside else b"(?!)"), at + 1
