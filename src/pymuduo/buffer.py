"""Bytes between the socket and the user: muduo's ``Buffer``.

::

    | prependable | readable (content) | writable |
    0   <=    _begin     <=         _end   <=   len(_data)

A buffer belongs to one thread at a time: a connection's to its loop's, one that you make to whoever holds it.

Three decisions are not obvious. An empty input buffer owns no memory: a read goes into the loop's scratch area, which
the buffer borrows for the length of the message callback (``read_fd`` and ``give_back``), and only what the
callback leaves is copied into memory of the buffer's own. A ``memoryview`` of a buffer is a snapshot: its bytes never
change under it, because memory that a view shows is left to the view and not written again. And a buffer remembers how
far it has been looked through in vain, and for what: a peer who sends a long line, or a request of many words, byte by
byte must not have all of it looked through at every byte.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pymuduo import _sys
from pymuduo._sys import ReadableRegion

if TYPE_CHECKING:
    from pymuduo.callbacks import BytesLike

_CHEAP_PREPEND = 8  # room in front of the content, so that a length header costs no copy
_INITIAL_SIZE = 1024
_SCRATCH_BYTES = 65536
_REQUESTS = object()  # what ``take_requests`` looks for
_NOTHING = bytearray()  # the storage of every buffer that owns none; it has no room, so nobody writes to it


class Buffer(ReadableRegion):
    """A queue of bytes with room at both ends.

    ``len(buf)`` is the number of readable bytes, ``bytes(buf)`` a copy of them, ``memoryview(buf)`` a read-only
    view, so ``struct.unpack_from`` and ``socket.send`` take a Buffer as it is. Integers are signed and in network
    byte order. Reading or retrieving more than there is raises ``ValueError`` and changes nothing.

    Args:
        initial: bytes to begin with, or the writable size in bytes to begin with (1024 as in muduo).

    Thread rule: one thread at a time. muduo: ``Buffer``.
    """

    __slots__ = ("__weakref__", "_borrowed", "_sought")

    def __init__(self, initial: BytesLike | int = _INITIAL_SIZE) -> None:
        self._borrowed: bytearray | None = None  # the scratch area to be given back, even if the content has moved on
        self._sought: object = None  # what the content was looked through for, if _looked is not 0
        self._looked = self._awaited = 0
        self._begin = self._end = _CHEAP_PREPEND
        if isinstance(initial, bool):
            raise TypeError(f"Buffer: a size or bytes are required, got {initial}")
        if isinstance(initial, int):
            if initial < 0:
                raise ValueError(f"Buffer size must not be negative, got {initial}")
            self._data = bytearray(_CHEAP_PREPEND + initial)
        else:
            self._data = _NOTHING
            self._begin = self._end = 0
            self.append(initial)

    # --- writing ---

    def append(self, data: BytesLike | Buffer) -> None:
        """Add *data* (bytes-like, copied; a Buffer is left as it is) at the end.

        Raises:
            TypeError: *data* is not bytes-like.
        """
        if type(data) is not bytes:
            data = _as_bytes(data)
        count = len(data)
        if len(self._data) - self._end < count or self._data is _NOTHING:
            self._make_room(count)
        _sys.store(self._data, self._end, data, count)
        self._end += count

    def prepend(self, data: BytesLike) -> None:
        """Put *data* before the content; up to ``prependable_bytes`` this moves nothing.

        Raises:
            TypeError: *data* is not bytes-like.
        """
        raw = _as_bytes(data)
        count = len(raw)
        if count > self._begin or self._data is _NOTHING or _sys.is_exported(self._data):
            room = bytearray(_CHEAP_PREPEND + count + len(self._data) - self._begin)
            readable = self._end - self._begin
            _sys.copy(room, _CHEAP_PREPEND + count, self._data, self._begin, readable)
            self._data = room
            self._begin = _CHEAP_PREPEND + count
            self._end = self._begin + readable
        self._begin -= count
        self._looked = 0
        _sys.store(self._data, self._begin, raw, count)

    def append_int8(self, value: int) -> None:
        """Append one byte; ValueError outside -128..127."""
        self._append_int(value, 1)

    def append_int16(self, value: int) -> None:
        """Append two bytes in network order; ValueError if *value* does not fit."""
        self._append_int(value, 2)

    def append_int32(self, value: int) -> None:
        """Append four bytes in network order; ValueError if *value* does not fit."""
        self._append_int(value, 4)

    def append_int64(self, value: int) -> None:
        """Append eight bytes in network order; ValueError if *value* does not fit."""
        self._append_int(value, 8)

    def prepend_int8(self, value: int) -> None:
        """Prepend one byte; ValueError outside -128..127."""
        self._prepend_int(value, 1)

    def prepend_int16(self, value: int) -> None:
        """Prepend two bytes in network order; ValueError if *value* does not fit."""
        self._prepend_int(value, 2)

    def prepend_int32(self, value: int) -> None:
        """Prepend four bytes in network order; ValueError if *value* does not fit."""
        self._prepend_int(value, 4)

    def prepend_int64(self, value: int) -> None:
        """Prepend eight bytes in network order; ValueError if *value* does not fit."""
        self._prepend_int(value, 8)

    # --- looking ---

    @property
    def readable_bytes(self) -> int:
        """Bytes of content; the same as ``len(buf)``."""
        return self._end - self._begin

    @property
    def writable_bytes(self) -> int:
        """Bytes that can be appended before memory has to be moved or got."""
        return len(self._data) - self._end

    @property
    def prependable_bytes(self) -> int:
        """Bytes that can be prepended before memory has to be moved."""
        return self._begin

    @property
    def capacity(self) -> int:
        """Bytes of memory that this buffer holds; 0 while it owns none. muduo: ``internalCapacity``."""
        return 0 if self._data is self._borrowed else len(self._data)

    def peek(self, count: int = -1) -> memoryview:
        """Return a read-only view of the first *count* bytes (all, if negative), without a copy.

        The view is a snapshot: it keeps showing these bytes whatever happens to the buffer. It also keeps their
        memory, so let go of it soon.

        Raises:
            ValueError: fewer than *count* bytes are readable.
        """
        if count < 0:
            count = self._end - self._begin
        self._need(count, "peek")
        return memoryview(self._data)[self._begin : self._begin + count].toreadonly()

    def find(self, what: bytes, start: int = 0) -> int:
        """Return the offset of the first *what* at or after offset *start*, or -1.

        Asked again when more has come, it looks at what has come, if *what* is the same object.

        Raises:
            TypeError: *what* is not bytes.
            ValueError: *start* is negative or beyond the content.
        """
        if start < 0 or start > self._end - self._begin:
            raise ValueError(f"find: start must be 0..{self._end - self._begin}, got {start}")
        if not isinstance(what, bytes):
            raise TypeError(f"find: what must be bytes, got {what!r}")
        looked = self._looked if what is self._sought else 0
        at = _sys.find(self._data, self._begin + max(start, looked), self._end, what)
        if at >= 0:
            return at - self._begin
        if start <= looked:
            self._note_search(what)
        return -1

    def find_crlf(self, start: int = 0) -> int:
        r"""Return the offset of the first ``\r\n`` at or after *start*, or -1."""
        return self.find(b"\r\n", start)

    def find_eol(self, start: int = 0) -> int:
        r"""Return the offset of the first ``\n`` at or after *start*, or -1."""
        return self.find(b"\n", start)

    def peek_int8(self) -> int:
        """Return the signed byte at the front; ValueError if there is none."""
        return self._peek_int(1)

    def peek_int16(self) -> int:
        """Return the signed 16-bit integer at the front; ValueError if there are fewer bytes."""
        return self._peek_int(2)

    def peek_int32(self) -> int:
        """Return the signed 32-bit integer at the front; ValueError if there are fewer bytes."""
        return self._peek_int(4)

    def peek_int64(self) -> int:
        """Return the signed 64-bit integer at the front; ValueError if there are fewer bytes."""
        return self._peek_int(8)

    # --- taking ---

    def retrieve(self, count: int) -> None:
        """Drop *count* bytes from the front; ValueError if there are fewer."""
        self._need(count, "retrieve")
        self._advance(count)

    def retrieve_all(self) -> None:
        """Drop everything that is readable."""
        self._reset()

    def retrieve_as_bytes(self, count: int) -> bytes:
        """Take *count* bytes from the front; ValueError if there are fewer."""
        self._need(count, "retrieve_as_bytes")
        taken = _sys.load(self._data, self._begin, count)
        self._advance(count)
        return taken

    def retrieve_all_as_bytes(self) -> bytes:
        """Take everything that is readable. muduo: ``retrieveAllAsString``."""
        taken = _sys.load(self._data, self._begin, self._end - self._begin)
        self._reset()
        return taken

    def take_delimited(self, delimiter: bytes, max_bytes: int) -> list[bytes]:
        r"""Take every message that ends in *delimiter* (a line, say), without the delimiter.

        Stops at a message of more than *max_bytes*; what is incomplete stays as well.

        Raises:
            ValueError: the delimiter is empty.
        """
        taken: list[bytes] = []
        start = self._begin + (self._looked if delimiter is self._sought else 0)
        begin = _sys.take_delimited(self._data, self._begin, start, self._end, delimiter, max_bytes, taken)
        if begin > self._begin:
            self._advance(begin - self._begin)
        if 0 < self._end - self._begin <= max_bytes:  # more may be a long message, with its end
            self._note_search(delimiter)
        return taken

    def take_prefixed(self, width: int, max_bytes: int, is_big: bool = True) -> list[bytes]:
        """Take every complete message that stands behind its length, an unsigned integer of *width* bytes.

        Stops at a message of more than *max_bytes*; what is incomplete stays as well.

        Args:
            width: 1 to 8. is_big: network byte order; else little-endian.
        Raises:
            ValueError: *width* is out of range.
        """
        taken: list[bytes] = []
        begin = _sys.take_prefixed(self._data, self._begin, self._end, width, is_big, max_bytes, taken)
        if begin > self._begin:
            self._advance(begin - self._begin)
        return taken

    def take_requests(self, max_bytes: int, max_words: int) -> list[list[bytes]]:
        """Take every complete request of the Redis protocol, each as the list of its words.

        Stops at what is incomplete, and at what does not begin with ``*`` (an inline command).

        Raises:
            ValueError: what stands at the front is malformed, or has more than *max_words* or *max_bytes*.
        """
        taken: list[list[bytes]] = []
        self._look_for(_REQUESTS)
        begin = _sys.take_requests(self, max_bytes, max_words, taken)
        if begin > self._begin:
            self._advance(begin - self._begin)
        return taken

    def take_commands(
        self, blocks: dict[bytes, int], max_line_bytes: int, max_words: int, max_bytes: int
    ) -> list[list[bytes]]:
        """Take every complete line as the list of its words, with the block of bytes that some are followed by.

        See ``CommandCodec``, which this is for.

        Raises:
            ValueError: the line at the front is longer than *max_line_bytes* or *max_words*, or its block than
                *max_bytes*.
        """
        taken: list[list[bytes]] = []
        self._look_for(blocks)
        begin = _sys.take_commands(self, blocks, max_line_bytes, max_words, max_bytes, taken)
        if begin > self._begin:
            self._advance(begin - self._begin)
        return taken

    def read_int8(self) -> int:
        """Take the signed byte at the front; ValueError if there is none."""
        return self._read_int(1)

    def read_int16(self) -> int:
        """Take the signed 16-bit integer at the front; ValueError if there are fewer bytes."""
        return self._read_int(2)

    def read_int32(self) -> int:
        """Take the signed 32-bit integer at the front; ValueError if there are fewer bytes."""
        return self._read_int(4)

    def read_int64(self) -> int:
        """Take the signed 64-bit integer at the front; ValueError if there are fewer bytes."""
        return self._read_int(8)

    # --- memory ---

    def ensure_writable_bytes(self, count: int) -> None:
        """Make room for *count* more bytes, so that the next appends up to that size get no memory."""
        if count < 0:
            raise ValueError(f"ensure_writable_bytes: count must not be negative, got {count}")
        if len(self._data) - self._end < count:
            self._make_room(count)

    def shrink(self, reserve: int = 0) -> None:
        """Give memory back: keep the content and *reserve* writable bytes."""
        if reserve < 0:
            raise ValueError(f"shrink: reserve must not be negative, got {reserve}")
        self._own(reserve)

    def swap(self, other: Buffer) -> None:
        """Exchange content with *other*, copying nothing that is owned."""
        if self._data is self._borrowed:
            self._own(0)
        if other._data is other._borrowed:
            other._own(0)
        self._data, other._data = other._data, self._data
        self._begin, other._begin = other._begin, self._begin
        self._end, other._end = other._end, self._end
        self._looked = other._looked = 0

    # --- filling from a descriptor ---

    def read_fd(self, fd: int, scratch: bytearray | None = None) -> int:
        """Read once from *fd* and append: bytes read, 0 at the end of the stream, or ``-errno``.

        As many bytes more as *scratch* has (64 KiB without it) arrive with one ``readv``, however small the buffer is.

        Args:
            scratch: memory to read into; an empty buffer borrows it and must ``give_back`` before anybody else
                uses it. Without it the buffer gets memory of its own.
        """
        if scratch is None:
            scratch = bytearray(_SCRATCH_BYTES)
        elif len(scratch) <= _CHEAP_PREPEND:
            raise ValueError(f"read_fd: the scratch area must be larger than {_CHEAP_PREPEND} bytes")
        elif _sys.is_exported(scratch):
            scratch = bytearray(_SCRATCH_BYTES)  # a view shows it
        elif self._begin == self._end:
            count = _sys.read_into(fd, scratch, _CHEAP_PREPEND, len(scratch))
            if count > 0:
                self._data = scratch
                self._begin = _CHEAP_PREPEND
                self._end = _CHEAP_PREPEND + count
                self._borrowed = scratch
            return count
        if self._data is scratch:
            self._own(0)
        writable = len(self._data) - self._end
        if writable == 0:
            self._make_room(1)
            writable = len(self._data) - self._end
        count = _sys.read_into_two(fd, self._data, self._end, len(self._data), scratch)
        if count <= writable:
            if count > 0:
                self._end += count
            return count
        self._end += writable
        self._make_room(count - writable)
        _sys.copy(self._data, self._end, scratch, 0, count - writable)
        self._end += count - writable
        return count

    def take_from(self, scratch: bytearray, count: int) -> None:
        """Append the first *count* bytes of *scratch*, one or more; an empty buffer borrows them, as in ``read_fd``."""
        if self._begin == self._end:
            self._data = scratch
            self._begin = 0
            self._end = count
            self._borrowed = scratch
            return
        if len(self._data) - self._end < count:
            self._make_room(count)
        _sys.copy(self._data, self._end, scratch, 0, count)
        self._end += count

    def write_fd(self, fd: int) -> int:
        """Write once to *fd*, from where the bytes lie, and drop what was taken: bytes written, or ``-errno``."""
        count = _sys.write_part(fd, self._data, self._begin, self._end)
        if count > 0:
            self._advance(count)
        return count

    def give_back(self) -> bool:
        """Let go of borrowed or unneeded memory; True if the scratch area may be used again.

        What is still unread moves into memory of the buffer's own. False means that a memoryview still shows the
        scratch area, so its owner must take a new one.
        """
        scratch = self._borrowed
        self._borrowed = None
        if self._begin == self._end:
            self._data = _NOTHING
            self._begin = self._end = 0
        elif self._data is scratch:
            self._own(0)
        return scratch is None or not _sys.is_exported(scratch)

    # --- the object itself ---

    def __len__(self) -> int:
        return self._end - self._begin

    def __bytes__(self) -> bytes:
        return _sys.load(self._data, self._begin, self._end - self._begin)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Buffer):
            return bytes(self) == bytes(other)
        return bytes(self) == other

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __repr__(self) -> str:
        readable = self._end - self._begin
        start = _sys.load(self._data, self._begin, min(readable, 32))
        more = "…" if readable > 32 else ""
        return f"<Buffer {readable} bytes: {start!r}{more}>"

    # --- private ---

    def _need(self, count: int, what: str) -> None:
        """Refuse to look at or take *count* bytes if there are fewer."""
        if count < 0 or count > self._end - self._begin:
            raise ValueError(f"{what}: {count} bytes asked for, {self._end - self._begin} readable")

    def _look_for(self, what: object) -> None:
        if self._sought is not what:
            self._sought = what
            self._looked = 0

    def _note_search(self, what: bytes) -> None:
        """Remember that the content was looked through for *what*, which may have begun in its last bytes."""
        self._sought = what
        self._looked = max(self._end - self._begin - len(what) + 1, 0)

    def _advance(self, count: int) -> None:
        if count == self._end - self._begin:
            self._reset()
        else:
            self._begin += count
            self._looked = 0

    def _reset(self) -> None:
        """Become empty; memory that a memoryview shows is left to it."""
        self._looked = 0
        if self._data is self._borrowed or self._data is _NOTHING:
            # Appending again must not write to the scratch area's front while the caller still reads its tail.
            self._begin = self._end
        elif _sys.is_exported(self._data):
            self._data = _NOTHING
            self._begin = self._end = 0
        else:
            self._begin = self._end = _CHEAP_PREPEND

    def _make_room(self, count: int) -> None:
        """Make *count* bytes writable: by moving the content to the front, or else with new memory."""
        readable = self._end - self._begin
        size = len(self._data)
        room = size - self._end + self._begin - _CHEAP_PREPEND
        is_own = self._data is not _NOTHING and self._data is not self._borrowed
        if room >= count and is_own and not _sys.is_exported(self._data):
            _sys.move(self._data, _CHEAP_PREPEND, self._begin, readable)
        else:
            # Doubling keeps the cost of appending n bytes at O(n).
            larger = bytearray(_CHEAP_PREPEND + max(readable + count, 2 * readable))
            _sys.copy(larger, _CHEAP_PREPEND, self._data, self._begin, readable)
            self._data = larger
        self._begin = _CHEAP_PREPEND
        self._end = _CHEAP_PREPEND + readable

    def _own(self, reserve: int) -> None:
        """Move the content into memory of this buffer's own with *reserve* writable bytes."""
        readable = self._end - self._begin
        own = bytearray(_CHEAP_PREPEND + readable + reserve)
        _sys.copy(own, _CHEAP_PREPEND, self._data, self._begin, readable)
        self._data = own
        self._begin = _CHEAP_PREPEND
        self._end = _CHEAP_PREPEND + readable

    def _append_int(self, value: int, width: int) -> None:
        _check_int(value, width)
        if len(self._data) - self._end < width or self._data is _NOTHING:
            self._make_room(width)
        _sys.store_int(self._data, self._end, width, value)
        self._end += width

    def _prepend_int(self, value: int, width: int) -> None:
        _check_int(value, width)
        self.prepend(value.to_bytes(width, "big", signed=True))

    def _peek_int(self, width: int) -> int:
        if self._end - self._begin < width:
            self._need(width, f"int{8 * width}")
        return _sys.load_int(self._data, self._begin, width)

    def _read_int(self, width: int) -> int:
        value = self._peek_int(width)
        self._advance(width)
        return value


def new_empty() -> Buffer:
    """Return a buffer that owns no memory, as ``Buffer(b"")``; without the cost of parsing arguments."""
    made = Buffer.__new__(Buffer)
    made._borrowed = made._sought = None
    made._looked = made._awaited = 0
    made._data = _NOTHING
    made._begin = made._end = 0
    return made


def _as_bytes(data: object) -> bytes:
    """Return a copy of a bytes-like object, or the object itself if it is bytes."""
    if type(data) is bytes:
        return data
    if isinstance(data, (Buffer, bytes, bytearray, memoryview)):
        return bytes(data)
    raise TypeError(f"a bytes-like object or Buffer is required, got {type(data).__name__}: {data!r:.80}")


def _check_int(value: int, width: int) -> None:
    """Refuse what does not fit into a signed integer of *width* bytes."""
    if not isinstance(value, int):
        raise TypeError(f"int{8 * width}: an int is required, got {value!r}")
    limit = 1 << (8 * width - 1)
    if not -limit <= value < limit:
        raise ValueError(f"int{8 * width} must be {-limit}..{limit - 1}, got {value}")
