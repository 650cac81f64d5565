"""What a connection has still to send: a queue of byte strings, written many at a time.

Touched by the connection's loop thread alone. Byte strings are immutable and shared, never copied: a broadcast puts
the same object into a thousand queues. What leaves is dropped at once, so the queue holds no more than what is
unsent.
"""

from __future__ import annotations

from pymuduo import _sys

_COMPACT_AFTER = 64  # sent chunks at the front of the list before it is cut


class OutputQueue:
    """Unsent bytes in order.

    Attributes:
        size: how many bytes are unsent.

    muduo: a connection's ``outputBuffer``.
    """

    __slots__ = ("_chunks", "_first", "_offset", "size")

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._first = 0  # where in the list the unsent ones begin
        self._offset = 0  # bytes of the first that have been sent
        self.size = 0

    def append(self, chunk: bytes) -> None:
        """Add a non-empty byte string."""
        self._chunks.append(chunk)
        self.size += len(chunk)

    def write_to(self, fd: int) -> int:
        """Write as much as one system call takes: bytes written, or ``-errno``. The queue must not be empty."""
        count = _sys.write_chunks(fd, self._chunks, self._first, self._offset)
        if count > 0:
            self.drop(count)
        return count

    def drop(self, count: int) -> None:
        """Take *count* sent bytes off the front."""
        if count == self.size:
            self.clear()
            return
        self.size -= count
        count += self._offset
        chunks = self._chunks
        chunk = chunks[self._first]
        while count >= len(chunk):
            count -= len(chunk)
            chunks[self._first] = b""
            self._first += 1
            chunk = chunks[self._first]
        self._offset = count
        if self._first >= _COMPACT_AFTER and self._first * 2 >= len(chunks):
            del chunks[: self._first]
            self._first = 0

    def clear(self) -> None:
        """Drop everything."""
        self._chunks.clear()
        self._first = 0
        self._offset = 0
        self.size = 0

    def __len__(self) -> int:
        return self.size

    def __repr__(self) -> str:
        return f"<OutputQueue {self.size} bytes in {len(self._chunks) - self._first} chunks>"
