"""System calls and raw bytes over the standard library: what ``_sys.pyx`` does, in plain Python.

A call in, a result or ``-errno`` out, and no policy. This body runs when the package was built with
``PYMUDUO_PURE=1``; it is also the readable statement of what the compiled one does.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import select
import socket
import struct
import sys
import termios
import threading
import time
from collections.abc import Callable
from typing import Any, Literal

thread_id = threading.get_ident

_MAX_IOVECS = 64
_STAR, _DOLLAR, _RETURN = b"*$\r"
_WORD = re.compile(rb"[^ ]+")

_CLOCK_MONOTONIC_COARSE = 6  # of Linux; the time module has no name for it
_IS_FREE_THREADED = "t" in sys.abiflags


def full_fence() -> None:
    """Let no later read of this thread's be seen before its earlier writes.

    With a GIL there is nothing to do. Without one, whether the interpreter orders them depends on the processor; taking
    a lock and giving it back does it on every one. A lock of its own, so that no thread ever waits here.
    """
    if _IS_FREE_THREADED:
        lock = threading.Lock()
        with lock:
            pass


def monotonic_us() -> int:
    """Microseconds of a clock that nobody sets."""
    return time.monotonic_ns() // 1000


def coarse_ms() -> int:
    """Milliseconds of the monotonic clock as of the kernel's last tick, some milliseconds ago: cheap to read."""
    return time.clock_gettime_ns(_CLOCK_MONOTONIC_COARSE) // 1_000_000


def realtime_us() -> int:
    """Microseconds since 1970, UTC."""
    return time.time_ns() // 1000


# --- calls that are made later ----------------------------------------------------------------------------------


def functor(callback: Callable[..., object], args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return one tuple that holds the function and its arguments."""
    return (callback, *args)


def call(functor: tuple[Any, ...]) -> object:
    """Make the call that ``functor`` has put down."""
    return functor[0](*functor[1:])


# --- bytes in a bytearray: the caller has checked the bounds --------------------------------------------------


class ReadableRegion:
    """``_data[_begin:_end]`` as a read-only buffer, and how far it has been looked through: the base of ``Buffer``.

    What is looked for by parts need not be looked for anew when a byte more is there: so many bytes from ``_begin`` on
    (``_looked``) have been gone through, and so much (``_awaited``) was still missing then. Each function that keeps
    these says what it means by them; ``Buffer`` forgets them when the front changes, or another one looks.

    Before Python 3.12 (PEP 688) a class written in Python can't export a buffer, so there ``memoryview(buf)``
    needs the compiled build; ``bytes(buf)`` and ``buf.peek()`` work everywhere.
    """

    __slots__ = ("_awaited", "_begin", "_data", "_end", "_looked")

    _data: bytearray
    _begin: int
    _end: int
    _looked: int
    _awaited: int

    def __buffer__(self, flags: int) -> memoryview:
        if flags & 0x1:  # PyBUF_WRITABLE
            raise BufferError("a Buffer exports its readable bytes read-only")
        return memoryview(self._data)[self._begin : self._end].toreadonly()


def is_exported(data: bytearray) -> bool:
    """Whether a memoryview of *data* is alive (it may not be resized, so try)."""
    if not data:
        return False  # nobody minds
    try:
        last = data.pop()  # in this order, because appending first may move all of it to where there is room
    except BufferError:
        return True
    data.append(last)
    return False


def store(data: bytearray, at: int, source: Any, count: int) -> None:
    """Copy the *count* bytes of *source* to ``data[at:]``."""
    data[at : at + count] = source


def load(data: bytearray, at: int, count: int) -> bytes:
    """Copy of *count* bytes."""
    return bytes(memoryview(data)[at : at + count])


def move(data: bytearray, to: int, at: int, count: int) -> None:
    """Move *count* bytes inside *data*; the places may overlap."""
    data[to : to + count] = data[at : at + count]


def copy(into: bytearray, to: int, data: bytearray, at: int, count: int) -> None:
    """Copy *count* bytes of *data* to ``into[to:]``."""
    into[to : to + count] = memoryview(data)[at : at + count]


def store_int(data: bytearray, at: int, width: int, value: int) -> None:
    """Store *value* in network byte order."""
    data[at : at + width] = value.to_bytes(width, "big", signed=True)


def load_int(data: bytearray, at: int, width: int) -> int:
    """Return the signed integer in network byte order at *at*."""
    return int.from_bytes(data[at : at + width], "big", signed=True)


def find(data: bytearray, begin: int, end: int, what: bytes) -> int:
    """Index in *data* of the first *what* inside ``[begin, end)``, or -1."""
    return data.find(what, begin, end)


# --- messages in a bytearray ------------------------------------------------------------------------------------


def take_delimited(
    data: bytearray, begin: int, start: int, end: int, delimiter: bytes, limit: int, taken: list[bytes]
) -> int:
    """Append to *taken* each message that ends in *delimiter*, up to one of more than *limit* bytes.

    The first delimiter is known not to begin before *start*.

    Returns:
        Where the rest begins.
    """
    if not delimiter:
        raise ValueError("an empty delimiter ends nothing")
    with memoryview(data) as view:
        while 0 <= (at := data.find(delimiter, start, end)) <= begin + limit:
            taken.append(bytes(view[begin:at]))
            begin = start = at + len(delimiter)
    return begin


def take_requests(region: ReadableRegion, limit: int, most: int, taken: list[list[bytes]]) -> int:
    """Append to *taken* each request of the Redis protocol (an array of bulk strings), as a list of its words.

    Stops at what is incomplete or does not begin with ``*``. Of a request that comes in pieces ``_looked`` bytes are
    known to be right, up to the word that is not all there; with it ``_awaited`` words are still to come.

    Returns:
        Where the rest begins.
    Raises:
        ValueError: the first one is malformed, or has more than *most* words or *limit* bytes in all.
    """
    data, begin, end, at, left = region._data, region._begin, region._end, region._looked, region._awaited
    at += begin
    while begin < end and data[begin] == _STAR:
        try:
            if at == begin:
                at, left = _number(data, begin + 1, end, "invalid multibulk length")
                if left > most or left > limit // 6:  # a word takes six bytes at least
                    raise ValueError("invalid multibulk length")
            while left > 0:
                at = _pass_word(data, begin, at, end, limit)
                left -= 1
        except IndexError:  # not all there
            _remember(region, begin, at - begin, left)
            break
        except ValueError:
            if taken:
                break
            raise
        words = _bulk_strings(data, begin, at)
        if words:
            taken.append(words)
        begin = at
    return begin


def _remember(region: ReadableRegion, begin: int, looked: int, awaited: int) -> None:
    """Note how far the message at *begin* has been looked through, if that is the first one."""
    if begin == region._begin:
        region._looked, region._awaited = looked, awaited


def _pass_word(data: bytearray, begin: int, at: int, end: int, limit: int) -> int:
    """Return where the bulk string at *at*, of the request at *begin*, ends; IndexError if it is not all there."""
    if at == end:
        raise IndexError
    if data[at] != _DOLLAR:
        raise ValueError(f"expected '$', got {chr(data[at])!r}")
    at, size = _number(data, at + 1, end, "invalid bulk length")
    if not 0 <= size <= limit - (at + 2 - begin):
        raise ValueError("invalid bulk length")
    at += size + 2
    if at > end:
        raise IndexError
    if data[at - 2 : at] != b"\r\n":
        raise ValueError("a bulk string longer than it said")
    return at


def _bulk_strings(data: bytearray, begin: int, end: int) -> list[bytes]:
    """Return the words of a request that is known to be right."""
    words = []
    at = data.index(b"\n", begin, end) + 1
    with memoryview(data) as view:
        while at < end:
            after = data.index(b"\n", at, end) + 1
            size = int(data[at + 1 : after])
            words.append(bytes(view[after : after + size]))
            at = after + size + 2
    return words


def _number(data: bytearray, begin: int, end: int, error: str) -> tuple[int, int]:
    """Return where the line after a number begins, and the number; IndexError if it is not all there."""
    at = data.find(b"\r\n", begin, min(end, begin + 21))
    text = data[begin : at if at >= 0 else min(end, begin + 21)]
    digits = text.removesuffix(b"\r") if at < 0 else text
    if digits[:1] == b"-":
        digits = digits[1:]
    if (digits and not digits.isdigit()) or len(digits) > 18 or (not digits and (at >= 0 or text[-1:] == b"\r")):
        raise ValueError(error)
    if at < 0:
        raise IndexError
    return at + 2, int(text)


def take_commands(
    region: ReadableRegion, blocks: dict[bytes, int], line_limit: int, most: int, limit: int, taken: list[list[bytes]]
) -> int:
    """Append to *taken* the words of each line, and the block of bytes behind those whose first word is in *blocks*.

    The value there is the index of the word that tells the block's size. In the first ``_looked`` bytes no line ends;
    the command that they begin is not all there before there are ``_awaited``.

    Returns:
        Where the rest begins.
    Raises:
        ValueError: the first line is longer than *line_limit* bytes or *most* words, or its block than *limit*.
    """
    data, begin, end, start = region._data, region._begin, region._end, region._begin + region._looked
    if start > begin and region._awaited > end - begin:
        return begin
    violation = ""
    while begin < end:
        found = data.find(b"\n", start, end)
        stop = end if found < 0 else found
        after = stop + 1
        if stop > begin and data[stop - 1] == _RETURN:
            stop -= 1
        if stop - begin > line_limit:
            violation = f"a line of more than {line_limit} bytes"
            break
        if found < 0:
            _remember(region, begin, end - begin, 0)
            break
        words = _words(data, begin, stop, most)
        if words is None:
            violation = f"a line of more than {most} words"
            break
        size = _block_size(blocks, words)
        if size > limit:
            violation = f"a block of {size} bytes, where {limit} are allowed"
            break
        if size >= 0:
            if size + 2 > end - after:
                _remember(region, begin, after - 1 - begin, after + size + 2 - begin)
                break
            if data[after + size : after + size + 2] == b"\r\n":
                words.append(load(data, after, size))
            after += size + 2
        taken.append(words)
        begin = start = after
    if violation and not taken:
        raise ValueError(violation)
    return begin


def _words(data: bytearray, begin: int, stop: int, most: int) -> list[bytes] | None:
    """Return the words of a line; None if there are more than *most*, of which none is made an object."""
    if data.count(b" ", begin, stop) >= most and sum(1 for _ in _WORD.finditer(data, begin, stop)) > most:
        return None
    return [word for word in load(data, begin, stop - begin).split(b" ") if word]


def _block_size(blocks: dict[bytes, int], words: list[bytes]) -> int:
    """Return the size of the block that follows a command; -1: none does, or its size is not told."""
    index = blocks.get(words[0]) if words else None
    if index is None or not 0 < (index if index >= 0 else index + len(words)) < len(words):
        return -1
    word = words[index]
    return int(word) if len(word) <= 18 and word.isdigit() else -1


def take_prefixed(
    data: bytearray, begin: int, end: int, width: int, is_big: bool, limit: int, taken: list[bytes]
) -> int:
    """Append to *taken* each message behind its length of *width* bytes, up to one of more than *limit* bytes.

    Returns:
        Where the rest begins.
    """
    if not 1 <= width <= 8:
        raise ValueError(f"a length of {width} bytes: 1 to 8 are possible")
    byte_order: Literal["big", "little"] = "big" if is_big else "little"
    with memoryview(data) as view:
        while end - begin >= width:
            length = int.from_bytes(view[begin : begin + width], byte_order)
            if length > limit or length > end - begin - width:
                break
            begin += width
            taken.append(bytes(view[begin : begin + length]))
            begin += length
    return begin


def prefixed(message: bytes, width: int, limit: int, is_big: bool) -> bytes:
    """Return the message behind its length of *width* bytes; ValueError if it is too long."""
    return _length(message, width, limit, is_big) + message


def join_prefixed(messages: list[bytes], width: int, limit: int, is_big: bool) -> bytes:
    """Return many messages in one piece, each behind its length; ValueError if one is too long."""
    parts: list[bytes] = []
    for message in messages:
        parts += (_length(message, width, limit, is_big), message)
    return b"".join(parts)


def delimited(message: bytes, delimiter: bytes, limit: int) -> bytes:
    """Return the message with *delimiter* behind it.

    ValueError if it is too long, or holds the delimiter and would arrive as two.
    """
    _check_delimited(message, delimiter, limit)
    return message + delimiter


def join_delimited(messages: list[bytes], delimiter: bytes, limit: int) -> bytes:
    """Return many messages in one piece, each with *delimiter* behind it; ValueError as for one."""
    parts: list[bytes] = []
    for message in messages:
        _check_delimited(message, delimiter, limit)
        parts += (message, delimiter)
    return b"".join(parts)


def _length(message: bytes, width: int, limit: int, is_big: bool) -> bytes:
    if not 1 <= width <= 8:
        raise ValueError(f"a length of {width} bytes: 1 to 8 are possible")
    if len(message) > limit:
        raise ValueError(f"a message has at most {limit} bytes, got {len(message)}")
    return len(message).to_bytes(width, "big" if is_big else "little")


def _check_delimited(message: bytes, delimiter: bytes, limit: int) -> None:
    if not delimiter:
        raise ValueError("an empty delimiter ends nothing")
    if len(message) > limit:
        raise ValueError(f"a message has at most {limit} bytes, got {len(message)}")
    # With what it ends in, too: a message may close with the first part of a delimiter, which the rest then completes.
    tail = message[max(len(message) - len(delimiter) + 1, 0) :]
    if delimiter in message or (tail + delimiter).find(delimiter) != len(tail):
        raise ValueError(f"a message must not hold its delimiter {delimiter!r}, got {message!r:.80}")


# --- reading and writing ---------------------------------------------------------------------------------------


def read_into(fd: int, into: bytearray, begin: int, end: int) -> int:
    """Read into ``into[begin:end]``; bytes read, 0 at the end of the stream, or ``-errno``."""
    try:
        return os.readv(fd, [memoryview(into)[begin:end]])
    except OSError as e:
        return -(e.errno or 0)


def read_into_two(fd: int, first: bytearray, begin: int, end: int, second: bytearray) -> int:
    """Read into ``first[begin:end]`` and go on in *second*, with one system call."""
    try:
        return os.readv(fd, [memoryview(first)[begin:end], second])
    except OSError as e:
        return -(e.errno or 0)


def write_bytes(fd: int, chunk: bytes, offset: int) -> int:
    """Write ``chunk[offset:]``; bytes written or ``-errno``."""
    try:
        return os.write(fd, memoryview(chunk)[offset:] if offset else chunk)
    except OSError as e:
        return -(e.errno or 0)


def write_part(fd: int, data: bytearray, begin: int, end: int) -> int:
    """Write ``data[begin:end]``; bytes written or ``-errno``."""
    try:
        return os.write(fd, memoryview(data)[begin:end])
    except OSError as e:
        return -(e.errno or 0)


def write_parts(fd: int, data: bytearray, begin: int, end: int, chunks: list[bytes], first: int, offset: int) -> int:
    """Write ``data[begin:end]`` and ``chunks[first:]`` without the first *offset* bytes, as one system call can."""
    parts: list[Any] = chunks[first : first + _MAX_IOVECS]
    if offset:
        parts[0] = memoryview(parts[0])[offset:]
    if end > begin:
        parts = [memoryview(data)[begin:end], *parts[: _MAX_IOVECS - 1]]
    try:
        return os.writev(fd, parts)
    except OSError as e:
        return -(e.errno or 0)


# --- sockets ---------------------------------------------------------------------------------------------------


def _with_socket(fd: int, use: Callable[[socket.socket], Any]) -> Any:
    """*use* of a socket object that borrows *fd* and leaves it open."""
    if fd < 0:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    sock = socket.socket(fileno=fd)
    try:
        return use(sock)
    finally:
        sock.detach()


def set_option(fd: int, level: int, option: int, value: int) -> int:
    """Set an integer socket option; 0 or ``-errno``."""
    try:
        _with_socket(fd, lambda s: s.setsockopt(level, option, value))
    except OSError as e:
        return -(e.errno or 0)
    return 0


def take_error(fd: int) -> int:
    """Return the pending error (``SO_ERROR``) as an errno, 0 if none; taking it clears it."""
    try:
        return int(_with_socket(fd, lambda s: s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)))
    except OSError as e:
        return e.errno or 0


def unread_bytes(fd: int) -> int:
    """Bytes that wait in the kernel to be read, or ``-errno``."""
    try:
        answer = fcntl.ioctl(fd, termios.FIONREAD, b"\0\0\0\0")
    except OSError as e:
        return -(e.errno or 0)
    except ValueError:  # a negative descriptor
        return -errno.EBADF
    return int(struct.unpack("i", answer)[0])


def shutdown_write(fd: int) -> int:
    """Send FIN; 0 or ``-errno``."""
    try:
        _with_socket(fd, lambda s: s.shutdown(socket.SHUT_WR))
    except OSError as e:
        return -(e.errno or 0)
    return 0


def close(fd: int) -> int:
    """Close *fd*; 0 or ``-errno``."""
    try:
        os.close(fd)
    except OSError as e:
        return -(e.errno or 0)
    return 0


def _address(sockaddr: Any) -> tuple[str, int, int] | bytes:
    """``(ip, port, scope id)`` of what the socket module returns; of a Unix socket what is in its ``sun_path``."""
    if isinstance(sockaddr, tuple) and len(sockaddr) >= 2:
        scope = sockaddr[3] if len(sockaddr) > 3 else 0
        return sockaddr[0].partition("%")[0], sockaddr[1], scope
    return os.fsencode(sockaddr or b"")


def accept(fd: int) -> tuple[int, tuple[str, int, int] | bytes | None]:
    """Accept one connection, non-blocking and close-on-exec: ``(fd, peer)`` or ``(-errno, None)``.

    The peer is ``(ip, port, scope id)``; of a Unix socket it is the name in bytes, most often none (``b""``).
    """
    try:
        # The undocumented half of socket.accept(): a bare descriptor, so that nothing here owns it.
        new_fd, peer = _with_socket(fd, lambda s: s._accept())  # type: ignore[attr-defined]
    except OSError as e:
        return -(e.errno or 0), None
    os.set_blocking(new_fd, False)
    return new_fd, _address(peer)


def local_address(fd: int) -> tuple[str, int, int] | bytes | None:
    """``(ip, port, scope id)`` of this end, or a Unix socket's name in bytes; None if there is none."""
    try:
        return _address(_with_socket(fd, lambda s: s.getsockname()))
    except OSError:
        return None


def peer_address(fd: int) -> tuple[str, int, int] | bytes | None:
    """``(ip, port, scope id)`` of the other end, or a Unix socket's name in bytes; None if there is none."""
    try:
        return _address(_with_socket(fd, lambda s: s.getpeername()))
    except OSError:
        return None


# --- what a loop waits with ------------------------------------------------------------------------------------


class Epoll:
    """An epoll descriptor and the list its events are returned in."""

    __slots__ = ("_epoll", "_events", "capacity")

    def __init__(self, capacity: int) -> None:
        self._epoll = select.epoll()
        self._events: list[tuple[int, int]] = []
        self.capacity = capacity

    def fileno(self) -> int:
        """Return the epoll descriptor, -1 once closed."""
        return -1 if self._epoll.closed else self._epoll.fileno()

    def close(self) -> None:
        """Close the epoll descriptor; twice is harmless."""
        self._epoll.close()

    def control(self, op: int, fd: int, events: int) -> int:
        """Add (1), delete (2) or modify (3) the interest in *fd*; 0 or ``-errno``."""
        try:
            if op == 1:
                self._epoll.register(fd, events)
            elif op == 3:
                self._epoll.modify(fd, events)
            else:
                self._epoll.unregister(fd)
        except OSError as e:
            return -(e.errno or 0)
        except ValueError:  # a negative descriptor, or closed
            return -errno.EBADF
        return 0

    def wait(self, timeout_ms: int) -> int:
        """Wait for events (-1: without limit); how many, or ``-errno``."""
        try:
            self._events = self._epoll.poll(timeout_ms / 1000 if timeout_ms > 0 else timeout_ms, self.capacity)
        except OSError as e:
            return -(e.errno or 0)
        except ValueError:  # closed
            return -errno.EBADF
        return len(self._events)

    def fd_at(self, i: int) -> int:
        """Return the descriptor of the *i*-th event."""
        return self._events[i][0]

    def events_at(self, i: int) -> int:
        """Return the event bits of the *i*-th event."""
        return self._events[i][1]

    def grow(self) -> None:
        """Make room for twice as many events a call."""
        self.capacity *= 2


def make_eventfd() -> int:
    """Return a new event counter, non-blocking and close-on-exec, or ``-errno``."""
    try:
        return os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    except OSError as e:
        return -(e.errno or 0)


def signal_eventfd(fd: int) -> int:
    """Add one to an event counter; 0 or ``-errno``."""
    try:
        os.eventfd_write(fd, 1)
    except OSError as e:
        return -(e.errno or 0)
    except ValueError:  # a negative descriptor
        return -errno.EBADF
    return 0


if sys.version_info >= (3, 13):

    def make_timerfd() -> int:
        """Return a new monotonic timer, non-blocking and close-on-exec, or ``-errno``."""
        try:
            return os.timerfd_create(time.CLOCK_MONOTONIC, flags=os.TFD_NONBLOCK | os.TFD_CLOEXEC)
        except OSError as e:
            return -(e.errno or 0)

    def arm_timerfd(fd: int, delay_us: int) -> int:
        """Let the timer expire once, *delay_us* from now (at least one); 0 or ``-errno``."""
        try:
            os.timerfd_settime_ns(fd, initial=max(delay_us, 1) * 1000)
        except OSError as e:
            return -(e.errno or 0)
        except ValueError:  # a negative descriptor
            return -errno.EBADF
        return 0

else:  # the os module has no timerfd yet
    _libc = ctypes.CDLL(None, use_errno=True)

    def make_timerfd() -> int:
        """Return a new monotonic timer, non-blocking and close-on-exec, or ``-errno``."""
        fd = int(_libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC))
        return fd if fd >= 0 else -ctypes.get_errno()

    def arm_timerfd(fd: int, delay_us: int) -> int:
        """Let the timer expire once, *delay_us* from now (at least one); 0 or ``-errno``."""
        seconds, us = divmod(max(delay_us, 1), 1_000_000)
        spec = struct.pack("llll", 0, 0, seconds, us * 1000)  # struct itimerspec: interval, value
        return 0 if _libc.timerfd_settime(fd, 0, spec, None) == 0 else -ctypes.get_errno()


def drain_counter(fd: int) -> int:
    """Read an event counter or timer back to zero; 0 or ``-errno``."""
    try:
        os.read(fd, 8)
    except OSError as e:
        return -(e.errno or 0)
    return 0
