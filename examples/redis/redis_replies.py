"""Replies as they travel, in both versions of the protocol, and numbers as Redis reads them.

A handler returns its reply encoded: the server sends bytes, and nothing is decoded and encoded on the way. Where the
two versions differ (nothing, maps, sets, pushes) the client's ``dialect`` has the encoder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

OK = b"+OK\r\n"
PONG = b"+PONG\r\n"
QUEUED = b"+QUEUED\r\n"
ZERO = b":0\r\n"
ONE = b":1\r\n"
EMPTY_ARRAY = b"*0\r\n"
NOTHING = b""
"""What a handler returns whose reply comes later, or has been handed to the client already."""

MAX_REPLY_BYTES = 256 << 20
"""The longest reply to a request that can name one thing many times; others are not longer than what is stored."""
TOO_LONG = "ERR the reply is too long"
MIN_INTEGER, MAX_INTEGER = -(1 << 63), (1 << 63) - 1
MAX_DIGITS = 20
"""No number that fits has more, its sign among them."""


class CommandError(Exception):
    """What a command is answered with instead of a result; the message begins with Redis's code (``ERR``, …)."""

    @property
    def reply(self) -> bytes:
        """The error as it travels: one line, whatever a client wrote into it."""
        text = str(self).encode("utf-8", "surrogateescape")
        return b"-%b\r\n" % text.replace(b"\r", b" ").replace(b"\n", b" ")


class WrongTypeError(CommandError):
    """The key holds another type than the command works on."""

    def __init__(self) -> None:
        super().__init__("WRONGTYPE Operation against a key holding the wrong kind of value")


class BadSyntaxError(CommandError):
    """The words behind a command are not what it takes."""

    def __init__(self) -> None:
        super().__init__("ERR syntax error")


class Dialect:
    """What the version of the protocol that a client has chosen decides."""

    def __init__(self, version: int) -> None:
        self.version = version
        is_new = version >= 3
        self.null = b"_\r\n" if is_new else b"$-1\r\n"
        self.null_array = b"_\r\n" if is_new else b"*-1\r\n"
        self._push_mark = b">" if is_new else b"*"
        self._map_header = b"%%%d\r\n" if is_new else b"*%d\r\n"
        self._heads_a_pair = 1 if is_new else 2
        self._set_header = b"~%d\r\n" if is_new else b"*%d\r\n"

    def mapping(self, pairs: Mapping[bytes, bytes]) -> bytes:
        """Return a map; its values are encoded already."""
        body = b"".join([bulk(key) + value for key, value in pairs.items()])
        return self._map_header % (len(pairs) * self._heads_a_pair) + body

    def members(self, values: Sequence[bytes]) -> bytes:
        """Return a set of strings."""
        return self._set_header % len(values) + b"".join(map(bulk, values))

    def verbatim(self, text: bytes) -> bytes:
        """Return a text that is for people."""
        return b"=%d\r\ntxt:%b\r\n" % (len(text) + 4, text) if self.version >= 3 else bulk(text)

    def push(self, kind: bytes, *parts: bytes) -> bytes:
        """Return what a client gets without having asked; the parts are encoded already."""
        return self._push_mark + b"%d\r\n" % (1 + len(parts)) + bulk(kind) + b"".join(parts)


RESP2, RESP3 = Dialect(2), Dialect(3)
HEADERS_AT_HAND = 1024
BULK_HEADERS = [b"$%d\r\n" % size for size in range(HEADERS_AT_HAND)]  # to join is twice as fast as to format


def bulk(value: bytes) -> bytes:
    """Return a string."""
    size = len(value)
    if size < HEADERS_AT_HAND:
        return b"".join((BULK_HEADERS[size], value, b"\r\n"))
    return b"$%d\r\n%b\r\n" % (size, value)


def integer(value: int) -> bytes:
    """Return an integer."""
    return b":%d\r\n" % value


def array(replies: Sequence[bytes]) -> bytes:
    """Return an array of what is encoded already."""
    return b"*%d\r\n%b" % (len(replies), b"".join(replies))


def array_of_any(replies: Iterable[bytes]) -> bytes:
    """Return an array of what is encoded already, and may be the same large thing many times.

    Raises:
        CommandError: it would be longer than ``MAX_REPLY_BYTES``.
    """
    taken = []
    size = 0
    for reply in replies:
        taken.append(reply)
        size += len(reply)
        if size > MAX_REPLY_BYTES:
            raise CommandError(TOO_LONG)
    return array(taken)


def bulks(values: Iterable[bytes]) -> bytes:
    """Return an array of strings."""
    return array(list(map(bulk, values)))


def words(texts: Iterable[str]) -> bytes:
    """Return an array of simple strings."""
    return array([b"+%b\r\n" % text.encode() for text in texts])


def text_of(word: bytes) -> str:
    """Return a word as text for an error message, out of which ``CommandError`` makes the same bytes again.

    It ends at the first zero byte, as it does in Redis, which is written in C.
    """
    return word.partition(b"\0")[0].decode(errors="surrogateescape")


# --- numbers ---


def integer_of(text: bytes, complaint: str = "ERR value is not an integer or out of range") -> int:
    """Return the number that *text* says, as Redis reads one: 64 bits, and written in the one canonical way.

    Raises:
        CommandError: it is none, with *complaint* as the message.
    """
    if len(text) <= MAX_DIGITS:
        try:
            number = int(text)
        except ValueError:
            pass
        else:
            # int() allows blanks, a plus, underscores and leading zeros.
            if b"%d" % number == text and MIN_INTEGER <= number <= MAX_INTEGER:
                return number
    raise CommandError(complaint)


def count_of(text: bytes, complaint: str = "ERR value is out of range, must be positive", *, least: int = 0) -> int:
    """Return how many *text* asks for.

    Raises:
        CommandError: it is no number, or less than *least*, with *complaint* as the message.
    """
    count = integer_of(text, complaint)
    if count < least:
        raise CommandError(complaint)
    return count


def signed_count_of(text: bytes) -> int:
    """Return how many *text* asks for, where a minus has a meaning of its own.

    Raises:
        CommandError: it is no number, or the one that has no opposite.
    """
    count = integer_of(text)
    if count == MIN_INTEGER:
        raise CommandError(f"ERR value is out of range, value must between {-MAX_INTEGER} and {MAX_INTEGER}")
    return count


def sum_of(one: int, other: int) -> int:
    """Return the sum of two integers.

    Raises:
        CommandError: it has more than 64 bits.
    """
    total = one + other
    if not MIN_INTEGER <= total <= MAX_INTEGER:
        raise CommandError("ERR increment or decrement would overflow")
    return total
