"""What SCAN, HSCAN and SSCAN have in common: a walk over many names, some at a time, while others change them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from redis_glob import matcher
from redis_replies import MAX_DIGITS, BadSyntaxError, CommandError, array, bulk, bulks, integer_of, text_of

_COUNT = b"10"


class Walk(NamedTuple):
    """What a client wants to be shown: so many at a time, of those that fit, of a type if it names one."""

    size: int
    fits: Callable[[bytes], object]
    type_name: str | None


def cursor_of(text: bytes) -> int:
    """Return where a walk stands.

    Raises:
        CommandError: it can stand at no such place.
    """
    if not text.isdigit() or len(text) > MAX_DIGITS:
        raise CommandError("ERR invalid cursor")
    return int(text)


def walk_of(words: list[bytes], *, has_types: bool = False) -> Walk:
    """Return the walk that *words*, behind the cursor, describe.

    Raises:
        CommandError: they describe none.
    """
    known = {b"MATCH", b"COUNT", b"TYPE"} if has_types else {b"MATCH", b"COUNT"}
    options: dict[bytes, bytes] = {}
    for at in range(0, len(words), 2):
        option = words[at].upper()
        if option not in known or at + 1 == len(words):
            raise BadSyntaxError
        options[option] = words[at + 1]
        if option == b"COUNT" and integer_of(options[option]) < 1:
            raise BadSyntaxError
    name = options.get(b"TYPE")
    return Walk(
        integer_of(options.get(b"COUNT", _COUNT)),
        matcher(options.get(b"MATCH", b"*")).fullmatch,
        None if name is None else text_of(name).lower(),
    )


def stage(cursor: int, parts: Iterable[bytes]) -> bytes:
    """Return the reply of one call: where to go on, 0 at the end, and what has been found."""
    return array([bulk(b"%d" % cursor), bulks(parts)])
