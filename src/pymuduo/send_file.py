"""Sends parts of files: ``sendfile(2)`` where the bytes may go as they are, chunks where TLS encrypts them.

A file waits in its connection's output like everything else that was sent, in order. What orders bytes and files on a
connection that has no layer is a layer made for the purpose, which goes away when all is written.

The kernel reads the file while the loop waits: from the page cache in no time, from a disk in milliseconds. A file on
something slower (a network, a sleeping disk) is better read in a thread of your own, and sent from there.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections import deque
from typing import TYPE_CHECKING, BinaryIO

from pymuduo.layer import Layer
from pymuduo.output_queue import OutputQueue

if TYPE_CHECKING:
    from collections.abc import Callable

    from pymuduo.buffer import Buffer
    from pymuduo.tcp_connection import TcpConnection

_log = logging.getLogger("pymuduo.send_file")

_ONE_WRITE = 256 * 1024  # so that one fast reader of a big file does not hold up everybody else on the loop


def send_file(
    connection: TcpConnection,
    file: str | os.PathLike[str] | BinaryIO | int,
    offset: int = 0,
    count: int | None = None,
    callback: Callable[[TcpConnection, OSError | None], object] | None = None,
) -> bool:
    """Queue *count* bytes of a file for the peer, behind what was sent before; from any thread, never all in memory.

    The file's own position is not used and not moved. A file object or descriptor is duplicated: close yours whenever
    you like. A file that turns out shorter than promised, or can't be read, ends the connection, because the peer
    waits for bytes that will not come: ``connection.error`` and *callback* tell.

    Args:
        file: a path, a file opened for reading bytes, or a descriptor; an ordinary file.
        offset: where in the file to begin, in bytes.
        count: how many bytes; None: to the end, as it is now.
        callback: ``(connection, error)`` in the loop's thread, once: when the last byte has gone to the kernel, with
            None; or with the OSError that prevented it (a ConnectionError if the connection ended before).

    Returns:
        False if the connection is no longer open; the callback is not called then.
    Raises:
        OSError: the file can't be opened.
        ValueError: it is no ordinary file, or *offset* or *count* is negative or beyond its end.
    """
    region = FileRegion(connection, file, offset, count, callback)
    if not connection.send_region(region):
        region.release()
        return False
    return True


class FileRegion:
    """A part of a file on its way out. It owns a descriptor until it is finished.

    Attributes:
        fd: the descriptor. offset: of the next byte to be sent. remaining: bytes to be sent.
    """

    __slots__ = ("_callback", "_connection", "fd", "offset", "remaining")

    def __init__(
        self,
        connection: TcpConnection,
        file: str | os.PathLike[str] | BinaryIO | int,
        offset: int,
        count: int | None,
        callback: Callable[[TcpConnection, OSError | None], object] | None,
    ) -> None:
        self.fd = -1
        if offset < 0 or (count is not None and count < 0):
            raise ValueError(f"send_file: offset and count must not be negative, got {offset} and {count}")
        if isinstance(file, (str, os.PathLike)):
            self.fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        else:
            self.fd = os.dup(file if isinstance(file, int) else file.fileno())
        status = os.fstat(self.fd)
        if not stat.S_ISREG(status.st_mode):
            self.release()
            raise ValueError(f"send_file: {file!r} is no ordinary file")
        if count is None:
            count = max(0, status.st_size - offset)
        if offset + count > status.st_size:
            self.release()
            raise ValueError(f"send_file: {offset} + {count} is beyond the end of {file!r}, {status.st_size} bytes")
        self.offset = offset
        self.remaining = count
        self._connection = connection
        self._callback = callback

    @staticmethod
    def make_layer() -> Layer:
        """Return the layer that a connection without one needs to send files."""
        return PlainLayer()

    def read(self, max_bytes: int) -> bytes:
        """Return the next bytes, one or more, and move on.

        Raises:
            OSError: the file can't be read, or has become shorter.
        """
        data = os.pread(self.fd, min(max_bytes, self.remaining), self.offset)
        if not data:
            raise self._too_short()
        self._advance(len(data))
        return data

    def send_to(self, socket_fd: int) -> int:
        """Let the kernel copy bytes to a socket: how many, or ``-errno`` of the socket.

        Raises:
            OSError: the file can't be read, or has become shorter.
        """
        try:
            sent = os.sendfile(socket_fd, self.fd, self.offset, min(self.remaining, _ONE_WRITE))
        except OSError as e:
            if e.errno in (errno.EIO, errno.EINVAL, errno.EOVERFLOW, errno.ESPIPE, errno.EISDIR):
                raise  # the file's fault
            return -(e.errno or errno.EIO)
        if sent == 0:
            raise self._too_short()
        self._advance(sent)
        return sent

    def finish(self, error: OSError | None) -> None:
        """Let go of the file, and tell; the loop's thread. Twice is harmless."""
        if self.fd < 0:
            return
        self.release()
        callback, self._callback = self._callback, None
        if callback is not None:
            # Queued: nothing of the user's runs in the middle of a write.
            self._connection.loop.post(callback, (self._connection, error))

    def release(self) -> None:
        """Close the file, and tell nobody."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)

    def _advance(self, count: int) -> None:
        self.offset += count
        self.remaining -= count

    def _too_short(self) -> OSError:
        return OSError(errno.EIO, f"the file ends at {self.offset} bytes, {self.remaining} more were promised")

    def __del__(self) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"<FileRegion fd={self.fd} offset={self.offset} remaining={self.remaining}>"


class PlainLayer(Layer):
    """Bytes and files in order, as they are."""

    def __init__(self) -> None:
        Layer.__init__(self)
        self._queue: deque[OutputQueue | FileRegion] = deque()

    def read(self, into: Buffer) -> int:
        """Read the socket once."""
        assert self.connection is not None
        return into.read_fd(self.connection.fd, self.connection.loop.read_area)

    def append(self, data: bytes) -> None:
        """Take bytes to be sent."""
        last = self._queue[-1] if self._queue else None
        if not isinstance(last, OutputQueue):
            last = OutputQueue()
            self._queue.append(last)
        last.append(data)
        self.unsent += len(data)

    def append_wire(self, data: bytes) -> None:
        """Take what the connection had not sent yet; it is payload like all the rest."""
        self.append(data)

    def append_file(self, region: FileRegion) -> None:
        """Take a part of a file."""
        if region.remaining == 0:
            region.finish(None)
        else:
            self._queue.append(region)
            self.unsent += region.remaining

    def write(self) -> int:
        """Write once."""
        if not self._queue:
            return 0
        assert self.connection is not None
        fd = self.connection.fd
        first = self._queue[0]
        if isinstance(first, OutputQueue):
            count = first.write_to(fd)
            is_done = first.size == 0
        else:
            try:
                count = first.send_to(fd)
            except OSError as e:
                first.finish(e)
                self.connection.fail(e)
                return 0
            is_done = first.remaining == 0
            if is_done:
                first.finish(None)
        if count > 0:
            self.unsent -= count
            self.payload_sent += count
            if is_done:
                self._queue.popleft()
        return count

    def output_drained(self) -> None:
        """Go away: without files a connection needs no layer."""
        if self.connection is not None:
            self.connection.set_layer(None)

    def drop_output(self) -> None:
        """Forget everything; files' callbacks hear of it."""
        self.unsent = 0
        for item in self._queue:
            if isinstance(item, FileRegion):
                item.finish(ConnectionError("the connection ended before the file was sent"))
        self._queue.clear()
