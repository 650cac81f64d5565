r"""Commands in lines of text, some with a block of bytes behind them: memcached's protocol, NATS's, and others.

``set key 0 60 5\r\nhello\r\n`` is a line of words, one of which says how many bytes come after it. The block may hold
anything, line ends as well, so a codec that knows only lines can't take it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pymuduo.codec.base import Codec, ProtocolError, as_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pymuduo.buffer import Buffer
    from pymuduo.callbacks import BytesLike, WordsBatchCallback, WordsCallback


class CommandCodec(Codec):
    r"""Lines of words apart by blanks, each delivered as the list of its words, with the block that follows some.

    A line ends in ``\n`` or ``\r\n``. One whose first word is in *blocks* is followed by as many bytes as it says, and
    ``\r\n``; they are the last item of the list. If the size is no number, or the word is not there, or the block does
    not end where it should, the list is without the block: the program knows by its length, and what to answer. An
    empty line is an empty list.

    Args:
        blocks: for each command that is followed by a block, the index of the word that tells the block's size;
            a negative one counts from the end of the line. Case counts: name a command in each case that is allowed.
        max_line_bytes: the longest line allowed, without its end.
        max_words: the most words allowed in a line.
        max_bytes: the longest block allowed; one that announces more is refused at once, so no peer can make a
            buffer grow past the two together.
        callbacks: see ``Codec``; a message is a ``list[bytes]``.

    Raises:
        ValueError: an index is 0, which is the command itself, or *max_line_bytes* or *max_words* is not positive; or
            see ``Codec``.
    """

    __slots__ = ("_blocks", "max_line_bytes", "max_words")

    def __init__(
        self,
        message_callback: WordsCallback | None = None,
        *,
        batch_callback: WordsBatchCallback | None = None,
        blocks: Mapping[bytes, int],
        max_line_bytes: int = 65536,
        max_words: int = 65536,
        max_bytes: int = 1024 * 1024,
    ) -> None:
        Codec.__init__(self, message_callback, batch_callback=batch_callback, max_bytes=max_bytes)
        if max_line_bytes < 1:
            raise ValueError(f"CommandCodec: max_line_bytes must be positive, got {max_line_bytes}")
        if max_words < 1:
            raise ValueError(f"CommandCodec: max_words must be positive, got {max_words}")
        for command, index in blocks.items():
            if index == 0:
                raise ValueError(f"CommandCodec: the size of {command!r}'s block can't be its own name")
        self._blocks = dict(blocks)  # a copy: read by many loops, and never changed
        self.max_line_bytes = max_line_bytes
        self.max_words = max_words

    def decode(self, buffer: Buffer) -> list[list[bytes]]:
        """Take every complete command; ProtocolError if the first one's line or block is too long."""
        try:
            return buffer.take_commands(self._blocks, self.max_line_bytes, self.max_words, self.max_bytes)
        except ValueError as e:
            raise ProtocolError(str(e)) from None

    def encode(self, payload: Sequence[BytesLike]) -> bytes:
        r"""Return the words as a line, and behind it the last item if the command is one with a block.

        Raises:
            ValueError: it is too long, there is no word, one is empty or holds a blank or a line end, or the block has
                not the size that the line tells.
        """
        return b"".join(self._parts(payload))

    def encode_all(self, payloads: Iterable[Sequence[BytesLike]]) -> bytes:
        """Return many commands in one piece. Raises ValueError as ``encode`` does."""
        return b"".join([part for payload in payloads for part in self._parts(payload)])

    def _parts(self, payload: Sequence[BytesLike]) -> list[bytes]:
        words = [as_bytes(word) for word in payload]
        behind: list[bytes] = []
        index = self._blocks.get(words[0]) if words else None
        if index is not None:
            block = words.pop()
            told = words[index] if -len(words) < index < len(words) else b"nothing"
            if told != b"%d" % len(block):
                raise ValueError(f"CommandCodec: a block of {len(block)} bytes behind a line that tells {told!r}")
            if len(block) > self.max_bytes:
                raise ValueError(f"a block has at most {self.max_bytes} bytes, got {len(block)}")
            behind = [block, b"\r\n"]
        line = b" ".join(words)
        if len(line) > self.max_line_bytes:
            raise ValueError(f"a line has at most {self.max_line_bytes} bytes, got {len(line)}")
        if len(words) > self.max_words:
            raise ValueError(f"a line has at most {self.max_words} words, got {len(words)}")
        if not words or b"\n" in line or line.endswith(b"\r") or line.split(b" ") != words or b"" in words:
            raise ValueError(f"CommandCodec: these words would not arrive as they are: {words!r}")
        return [line, b"\r\n", *behind]
