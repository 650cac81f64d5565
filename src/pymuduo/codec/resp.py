r"""Requests of the Redis protocol, for servers that speak it.

A request is an array of bulk strings (``*2\r\n$3\r\nGET\r\n$1\r\nk\r\n``), or a line of words for people at a terminal,
which the protocol calls an inline command.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pymuduo.codec.base import Codec, ProtocolError, as_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pymuduo.buffer import Buffer
    from pymuduo.callbacks import BytesLike, WordsBatchCallback, WordsCallback

_STAR = ord("*")
_MAX_INLINE_BYTES = 65536
_BLANKS = re.compile(rb"\s*")
# What is bare, and perhaps a quoted part behind it, which ends the word. Possessive: a quote that is not closed fails.
_WORD = re.compile(rb"""([^\s"']*)(?:"((?:\\.|[^"\\])*+)"|'((?:\\'|[^'])*+)')?(?!\S)""", re.DOTALL)
_ESCAPE = re.compile(rb"\\(?:x([0-9a-fA-F]{2})|(.))", re.DOTALL)
_CONTROLS = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"b": b"\b", b"a": b"\a"}


class RespCodec(Codec):
    """Requests of the Redis protocol, each delivered as the list of its words.

    Args:
        max_bytes: the longest request allowed, with all that belongs to it; one that announces more is refused at
            once, so no peer can make a buffer grow past this. A line of words may have 64 KiB.
        max_words: the most words allowed in a request: each is an object, and may have no byte of its own.
        callbacks: see ``Codec``; a message is a ``list[bytes]``, never an empty one.

    What breaks the rules is a ``ProtocolError`` in Redis's own words, without the ``Protocol error:`` that a server
    sends in front of them.

    Raises:
        ValueError: *max_words* is not positive; or see ``Codec``.
    """

    __slots__ = ("max_words",)

    def __init__(
        self,
        message_callback: WordsCallback | None = None,
        *,
        batch_callback: WordsBatchCallback | None = None,
        max_bytes: int = 1024 * 1024,
        max_words: int = 65536,
    ) -> None:
        Codec.__init__(self, message_callback, batch_callback=batch_callback, max_bytes=max_bytes)
        if max_words < 1:
            raise ValueError(f"RespCodec: max_words must be positive, got {max_words}")
        self.max_words = max_words

    def decode(self, buffer: Buffer) -> list[list[bytes]]:
        """Take every complete request; ProtocolError if the first one is malformed or too long."""
        requests: list[list[bytes]] = []
        try:
            while len(buffer) > 0:
                if buffer._data[buffer._begin] == _STAR:
                    requests += buffer.take_requests(self.max_bytes, self.max_words)
                    if len(buffer) == 0 or buffer._data[buffer._begin] == _STAR:
                        break
                line = self._take_line(buffer)
                if line is None:
                    break
                if line:
                    requests.append(line)
        except ValueError as e:
            if not requests:
                raise ProtocolError(str(e)) from None
        return requests

    def encode(self, payload: Sequence[BytesLike]) -> bytes:
        """Return the words of a request as an array of bulk strings.

        Raises:
            ValueError: there is no word, more than ``max_words``, or more than ``max_bytes`` in all.
        """
        return b"".join(self._parts(payload))

    def encode_all(self, payloads: Iterable[Sequence[BytesLike]]) -> bytes:
        """Return many requests in one piece. Raises ValueError as ``encode`` does."""
        return b"".join([part for payload in payloads for part in self._parts(payload)])

    def _parts(self, payload: Sequence[BytesLike]) -> list[bytes]:
        if not 0 < len(payload) <= self.max_words:
            raise ValueError(f"RespCodec: a request has one word or more, {self.max_words} at most, got {len(payload)}")
        parts = [b"*%d\r\n" % len(payload)]
        for item in payload:
            word = as_bytes(item)
            parts += (b"$%d\r\n" % len(word), word, b"\r\n")
        size = sum(map(len, parts))
        if size > self.max_bytes:
            raise ValueError(f"a message has at most {self.max_bytes} bytes, got {size}")
        return parts

    def _take_line(self, buffer: Buffer) -> list[bytes] | None:
        """Take an inline command; None if it is not all there. What is wrong with it stays in the buffer."""
        end = buffer.find(b"\n")
        if (len(buffer) if end < 0 else end) > min(_MAX_INLINE_BYTES, self.max_bytes):
            raise ValueError("too big inline request")
        if end < 0:
            return None
        words = words_of(bytes(buffer.peek(end)))
        buffer.retrieve(end + 1)
        return words


def words_of(line: bytes) -> list[bytes]:
    r"""Return the words of a line: apart by blanks, or in quotes, where double ones know escapes (``\n``, ``\x00``).

    Raises:
        ValueError: a quote is not closed, or has no blank behind it.
    """
    words = []
    at = _BLANKS.match(line).end()  # type: ignore[union-attr]
    while at < len(line):
        found = _WORD.match(line, at)
        if found is None:
            raise ValueError("unbalanced quotes in request")
        bare, double, single = found.groups(b"")
        words.append(bare + _ESCAPE.sub(_unescape, double) + single.replace(b"\\'", b"'"))
        at = _BLANKS.match(line, found.end()).end()  # type: ignore[union-attr]
    return words


def _unescape(found: re.Match[bytes]) -> bytes:
    number, letter = found.groups()
    return bytes([int(number, 16)]) if number else _CONTROLS.get(letter, letter)
