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

    Most queues never hold more than one chunk, so the first has a place of its own: an echo touches no list.

    Attributes:
        size: how many bytes are unsent.

    muduo: a connection's ``outputBuffer``.
    """

    __slots__ = ("_head", "_next", "_offset", "_tail", "size")

    def __init__(self) -> None:
        self._head: bytes | None = None  # the first unsent chunk
        self._offset = 0  # bytes of it that have been sent
        self._tail: list[bytes] = []  # the chunks after it
        self._next = 0  # where in the list they begin
        self.size = 0

    def append(self, chunk: bytes) -> None:
        """Add a non-empty byte string."""
        if self._head is None:
            self._head = chunk
        else:
            self._tail.append(chunk)
        self.size += len(chunk)

    def write_to(self, fd: int) -> int:
        """Write as much as one system call takes: bytes written, or ``-errno``. The queue must not be empty."""
        head = self._head
        assert head is not None
        if self._next == len(self._tail):
            count = _sys.write_bytes(fd, head, self._offset)
        else:
            count = _sys.write_chunks(fd, head, self._offset, self._tail, self._next)
        if count == self.size:
            self.clear()
        elif count > 0:
            self._drop(count)
        return count

    def clear(self) -> None:
        """Drop everything."""
        self._head = None
        self._offset = 0
        self.size = 0
        if self._tail:
            self._tail = []
            self._next = 0

    def _drop(self, count: int) -> None:
        """Take *count* sent bytes, not all there are, off the front."""
        self.size -= count
        count += self._offset
        tail = self._tail
        head = self._head
        assert head is not None
        while count >= len(head):
            count -= len(head)
            head = tail[self._next]
            tail[self._next] = b""
            self._next += 1
        self._head = head
        self._offset = count
        if self._next >= _COMPACT_AFTER and self._next * 2 >= len(tail):
            del tail[: self._next]
            self._next = 0

    def __len__(self) -> int:
        return self.size

    def __repr__(self) -> str:
        chunks = 0 if self._head is None else 1 + len(self._tail) - self._next
        return f"<OutputQueue {self.size} bytes in {chunks} chunks>"
