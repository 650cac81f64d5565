"""What a connection has still to send: written many pieces at a time.

Touched by the connection's loop thread alone. Small byte strings are copied together into an area in front, because
sixteen answers of a line each are cheaper to copy than to keep. Large ones, and whatever comes after them or finds
the area full, wait in a list as they are: byte strings are immutable, so a broadcast shares one object between a
thousand queues. What leaves is dropped at once, so the queue holds no more than what is unsent.
"""

from __future__ import annotations

from pymuduo import _sys

_SMALL = 2048  # bytes up to which copying is cheaper than an entry in the list and an iovec
_AREA_BYTES = 1024  # doubles as needed …
_MAX_AREA_BYTES = 16384  # … up to here: of a peer that does not read, no more than this is copied
_COMPACT_AFTER = 64  # sent chunks at the front of the list before it is cut


class OutputQueue:
    """Unsent bytes in order.

    Attributes:
        size: how many bytes are unsent.

    muduo: a connection's ``outputBuffer``.
    """

    __slots__ = ("_area", "_begin", "_chunks", "_end", "_first", "_offset", "size")

    def __init__(self) -> None:
        self._area = bytearray(_AREA_BYTES)  # _area[_begin:_end] comes before all chunks
        self._begin = 0
        self._end = 0
        self._chunks: list[bytes] = []
        self._first = 0  # where in the list the unsent ones begin
        self._offset = 0  # bytes of the first that have been sent
        self.size = 0

    def append(self, chunk: bytes) -> None:
        """Add a non-empty byte string."""
        count = len(chunk)
        self.size += count
        if not self._chunks and count <= _SMALL and self._end + count <= _MAX_AREA_BYTES:
            if self._end + count > len(self._area):
                self._grow()
            _sys.store(self._area, self._end, chunk, count)
            self._end += count
        else:
            self._chunks.append(chunk)

    def write_to(self, fd: int) -> int:
        """Write as much as one system call takes: bytes written, or ``-errno``. The queue must not be empty."""
        if not self._chunks:
            count = _sys.write_part(fd, self._area, self._begin, self._end)
        else:
            count = _sys.write_parts(fd, self._area, self._begin, self._end, self._chunks, self._first, self._offset)
        if count > 0:
            self.drop(count)
        return count

    def drop(self, count: int) -> None:
        """Take *count* sent bytes off the front."""
        if count == self.size:
            self.clear()
            return
        self.size -= count
        copied = self._end - self._begin
        if count < copied:
            self._begin += count
            return
        self._begin = self._end = 0
        count += self._offset - copied
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

    def take_all(self) -> bytes:
        """Take everything out, in one piece."""
        chunks = self._chunks[self._first :]
        if chunks:
            chunks[0] = chunks[0][self._offset :]
        taken = bytes(self._area[self._begin : self._end]) + b"".join(chunks)
        self.clear()
        return taken

    def clear(self) -> None:
        """Drop everything."""
        self._begin = self._end = 0
        self.size = 0
        if self._chunks:
            self._chunks.clear()
            self._first = 0
            self._offset = 0

    def _grow(self) -> None:
        """Get a larger area: by at least one small chunk, unless that is more than it may ever be."""
        larger = bytearray(min(2 * len(self._area) + _SMALL, _MAX_AREA_BYTES))
        _sys.copy(larger, 0, self._area, 0, self._end)
        self._area = larger

    def __len__(self) -> int:
        return self.size

    def __repr__(self) -> str:
        return f"<OutputQueue {self.size} bytes>"
