"""memcached's requests as they come: ``CommandCodec``, and what becomes of a block that is too large.

memcached says so, throws the block away as it comes, and the connection lives on. So here such a line is no error but a
request without its block, which will be answered in its turn. A codec remembers nothing of a connection; how much of
the block is still to come stands in the request, and whoever gets it lets a ``Skip`` take that from the connection.
"""

from __future__ import annotations

from memcached_lines import MAX_SIZE, SIZE_AT, Words
from pymuduo import Buffer, TcpConnection, Timestamp
from pymuduo.callbacks import MessageCallback
from pymuduo.codec import CommandCodec, ProtocolError


class TooLarge(list[bytes]):
    """The words of a storage command whose block is too large.

    Attributes:
        missing_bytes: of the block, and still to come; what was there has been thrown away.
    """

    def __init__(self, words: Words, missing_bytes: int) -> None:
        super().__init__(words)
        self.missing_bytes = missing_bytes


class RequestCodec(CommandCodec):
    """Requests as lists of words, those with a block too large among them."""

    def decode(self, buffer: Buffer) -> list[Words]:
        """Take every complete request, or one ``TooLarge``; ProtocolError if its line is too long."""
        try:
            return super().decode(buffer)
        except ProtocolError:
            end = buffer.find(b"\n")
            line = buffer.retrieve_as_bytes(end + 1).removesuffix(b"\n").removesuffix(b"\r")
            if end < 0 or len(line) > self.max_line_bytes:
                raise
        words = [word for word in line.split(b" ") if word]
        size = int(words[SIZE_AT])
        block_bytes = size + 2 if size <= MAX_SIZE else 0
        here = min(block_bytes, len(buffer))
        buffer.retrieve(here)
        return [TooLarge(words, block_bytes - here)]


class Skip:
    """A message callback that throws so many bytes away, and then gives its place to another."""

    def __init__(self, count: int, then: MessageCallback) -> None:
        self._count = count
        self._then = then

    def __call__(self, connection: TcpConnection, buffer: Buffer, receive_time: Timestamp) -> None:
        """Take what has come."""
        here = min(self._count, len(buffer))
        buffer.retrieve(here)
        self._count -= here
        if self._count == 0:
            connection.message_callback = self._then
            self._then(connection, buffer, receive_time)
