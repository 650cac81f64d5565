"""Datagrams in a loop: UDP over IPv4 and IPv6, and Unix datagrams. muduo has none (its examples call the kernel).

Owned by its loop's thread. The doors from other threads are ``start``, ``connect``, ``send``, ``send_to`` and
``close``: each hops into the loop, so that one thread's datagrams leave in the order in which it sent them.

A datagram may be lost anywhere on its way, also here: one that the kernel would not take now waits in a queue with an
end; what does not fit in is dropped and counted. Whoever needs more than that needs a protocol, or TCP.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import struct
import weakref
from collections import deque
from typing import TYPE_CHECKING

from pymuduo import _sys, inet_address, socket_file, unix_address
from pymuduo.channel import Channel
from pymuduo.inet_address import InetAddress
from pymuduo.unix_address import UnixAddress

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeAlias

    from pymuduo.callbacks import Address, BytesLike
    from pymuduo.event_loop import EventLoop
    from pymuduo.socket import Socket
    from pymuduo.socket_file import SocketFile
    from pymuduo.timestamp import Timestamp

    DatagramCallback: TypeAlias = Callable[["UdpSocket", bytes, Any, Timestamp], object]
    DatagramErrorCallback: TypeAlias = Callable[["UdpSocket", OSError], object]

_log = logging.getLogger("pymuduo.udp_socket")

_MAX_READS = 32  # datagrams taken in one event, so that a flood can't shut out the other descriptors
_MAX_WRITES = 32
_MAX_BYTES = 262144  # of one datagram: the loop's read area. UDP can carry a quarter of it, Unix sockets nearly all
_MAX_QUEUED_BYTES = 1024 * 1024
_QUEUED_OVERHEAD = 64  # an empty datagram takes room as well


class UdpSocket:
    """Sends and receives datagrams in a loop.

    Set the callbacks, then ``start``. A started socket lives as long as its loop, referenced or not, until ``close``.
    Several datagrams are taken in one event, each with a call of its own; a callback that raises costs its datagram and
    is logged (``EventLoop.exception_handler``).

    Args:
        loop: the loop that owns it.
        address: where to receive; port 0, and None for *family*, let the kernel choose a free port. A UnixAddress makes
            a Unix datagram socket, whose file is treated as ``Socket.bind`` says.
        family: without an address: ``socket.AF_INET`` or ``AF_INET6``, or ``AF_UNIX``, which then can only send.
        reuse_port: several sockets share the port (``SO_REUSEPORT``): of datagrams for one host each goes to one of
            them, multicast to all.
        broadcast: broadcast addresses may be sent to (``SO_BROADCAST``).
        inherited: a datagram socket that is bound already (see ``inherited_sockets``), in place of *address*; owned by
            this object from now on.
        max_datagram_bytes: longer ones are dropped and counted in ``truncated``; 262,144, the most there can be, unless
            given.
        max_queued_bytes: what may wait for the kernel to take it, with 64 bytes a datagram on top; 1 MiB unless given.

    Attributes:
        loop: as given. address: the real one. They never change.
        peer_address: whom ``connect`` has chosen, or who had *inherited*; None without.
        message_callback: ``(socket, data, sender, receive_time)`` in the loop's thread for each datagram: bytes, and
            the address it came from. Unset: input is dropped.
        error_callback: ``(socket, error)`` in the loop's thread: an OSError that came back for an earlier datagram (on
            a connected socket: ECONNREFUSED if nobody is there), or that sending met. The socket goes on. Unset: logged
            (level DEBUG).
        context: yours; the library does not touch it.
        datagrams_received, bytes_received: given to the message callback. datagrams_sent, bytes_sent: taken by the
            kernel. dropped: not sent, because kernel and queue were full, or the socket was closed meanwhile.
            truncated: received and dropped, because they were too long. errors: as reported to the error callback.
            Exact in the loop's thread.

    Raises:
        OSError: the address can't be bound; the message names it.
        ValueError: what is given does not go together, or is out of range.
    """

    __slots__ = (
        "__weakref__",
        "_channel",
        "_close_hook",
        "_closing",
        "_file",
        "_is_started",
        "_max_datagram_bytes",
        "_max_queued_bytes",
        "_queue",
        "_queued_bytes",
        "_sock",
        "address",
        "bytes_received",
        "bytes_sent",
        "context",
        "datagrams_received",
        "datagrams_sent",
        "dropped",
        "error_callback",
        "errors",
        "family",
        "loop",
        "message_callback",
        "peer_address",
        "truncated",
    )

    def __init__(
        self,
        loop: EventLoop,
        address: Address | None = None,
        *,
        family: int = socket.AF_INET,
        reuse_port: bool = False,
        broadcast: bool = False,
        inherited: Socket | None = None,
        max_datagram_bytes: int = _MAX_BYTES,
        max_queued_bytes: int = _MAX_QUEUED_BYTES,
    ) -> None:
        if not 1 <= max_datagram_bytes <= _MAX_BYTES:
            raise ValueError(f"UdpSocket max_datagram_bytes must be 1..{_MAX_BYTES}, got {max_datagram_bytes}")
        if max_queued_bytes < 0:
            raise ValueError(f"UdpSocket max_queued_bytes must be 0 or more, got {max_queued_bytes}")
        if address is not None and not isinstance(address, (InetAddress, UnixAddress)):
            raise TypeError(f"UdpSocket address must be an InetAddress or UnixAddress, got {address!r}")
        self.loop = loop
        self.context: Any = None
        self.message_callback: DatagramCallback | None = None
        self.error_callback: DatagramErrorCallback | None = None
        self.peer_address: Address | None = None
        self._begin_counting()
        self._max_datagram_bytes = max_datagram_bytes
        self._max_queued_bytes = max_queued_bytes
        # Datagrams that the kernel would not take, with their addresses; None: the peer.
        self._queue: deque[tuple[bytes, Address | None]] = deque()
        self._queued_bytes = 0
        self._is_started = False
        self._closing = False  # set by any thread; sends are refused from then on
        self._file: SocketFile | None = None
        if inherited is not None:
            if address is not None or reuse_port:
                raise ValueError("UdpSocket: a socket that is bound already takes no address and no reuse_port")
            self._sock = _taken_over(inherited)
        else:
            self._sock = _made(family if address is None else address.family)
        self.family = int(self._sock.family)
        try:
            if broadcast:
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            if inherited is None:
                self._bind(address, reuse_port)
            self.address = _address_of(self._sock.getsockname())
            self._channel = Channel(loop, self._sock.fileno())
            # The loop ends the socket when it is closed, but does not keep one that was never started.
            reference = weakref.ref(self)

            def close_with_loop() -> None:
                made = reference()
                if made is not None:
                    made.close()

            self._close_hook = close_with_loop
            loop.run_in_loop(loop.call_at_close, close_with_loop)
            if inherited is not None:
                self.peer_address = self._kernel_peer()
                inherited.close()  # a duplicate is ours
        except BaseException:
            self._close_socket()
            raise

    def _begin_counting(self) -> None:
        self.datagrams_received = 0
        self.bytes_received = 0
        self.datagrams_sent = 0
        self.bytes_sent = 0
        self.dropped = 0
        self.truncated = 0
        self.errors = 0

    def _bind(self, address: Address | None, reuse_port: bool) -> None:
        if address is None:
            # An Internet socket gets its port here rather than with its first datagram: so its address never changes.
            if self.family == socket.AF_UNIX:
                return
            address = InetAddress.any(0, ipv6=self.family == socket.AF_INET6)
        try:
            if isinstance(address, UnixAddress):
                if reuse_port:
                    raise ValueError(f"UdpSocket: reuse_port is for ports, {address} has none")
                self._file = socket_file.bind(self._sock, address, None)
                return
            if reuse_port:
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if address.ip == "::":
                self._sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            self._sock.bind(address.sockaddr)
        except OSError as e:
            number = e.errno or 0
            raise OSError(number, f"cannot bind {address}: {os.strerror(number)}") from None

    # --- what it is ---

    @property
    def is_closed(self) -> bool:
        """Whether ``close`` has been called, or the loop was closed; from any thread."""
        return self._closing

    @property
    def queued_bytes(self) -> int:
        """Bytes that wait for the kernel to take them, with 64 a datagram on top. The loop's thread only."""
        return self._queued_bytes

    def fileno(self) -> int:
        """Return the descriptor, -1 once closed. The loop's thread only."""
        return self._sock.fileno()

    def set_option(self, level: int, option: int, value: int | bytes) -> None:
        """Set an option, such as ``SO_RCVBUF`` or ``IP_MULTICAST_TTL``; before ``start``, or in the loop's thread.

        Raises:
            OSError: there is no such option, the value is not allowed, or the socket is closed.
        """
        self._assert_free_to_change()
        self._sock.setsockopt(level, option, value)

    def join_group(self, group: str, interface: str = "") -> None:
        """Receive what is sent to a multicast group; before ``start``, or in the loop's thread.

        Args:
            group: an address in numbers, of this socket's family.
            interface: the name of a network interface; empty: the kernel chooses one.

        Raises:
            OSError: *group* is no multicast address, there is no such interface, or it is joined already.
            ValueError: *group* is no address of this socket's family.
        """
        self._change_membership(group, interface, socket.IP_ADD_MEMBERSHIP, socket.IPV6_JOIN_GROUP)

    def leave_group(self, group: str, interface: str = "") -> None:
        """Take ``join_group`` back, with the same arguments."""
        self._change_membership(group, interface, socket.IP_DROP_MEMBERSHIP, socket.IPV6_LEAVE_GROUP)

    def _change_membership(self, group: str, interface: str, of_ipv4: int, of_ipv6: int) -> None:
        self._assert_free_to_change()
        index = socket.if_nametoindex(interface) if interface else 0
        try:
            number = socket.inet_pton(self.family, group)
        except (OSError, ValueError):
            raise ValueError(f"{group!r} is no group's address for {self!r}") from None
        if self.family == socket.AF_INET6:
            self._sock.setsockopt(socket.IPPROTO_IPV6, of_ipv6, number + struct.pack("@I", index))
        else:
            self._sock.setsockopt(socket.IPPROTO_IP, of_ipv4, number + struct.pack("@4si", bytes(4), index))

    def _assert_free_to_change(self) -> None:
        if self._is_started:
            self.loop.assert_in_loop_thread()

    # --- doors: from any thread ---

    def start(self) -> None:
        """Begin to receive; from any thread, once, however often it is called.

        Raises:
            RuntimeError: it was closed.
        """
        if self._closing:
            raise RuntimeError(f"{self!r} was closed")
        self.loop.run_in_loop(self._start_in_loop)

    def connect(self, address: Address) -> None:
        """Choose the peer: ``send`` goes there, only its datagrams are received, and its errors are heard of.

        From any thread. UDP sends nothing to connect, so it succeeds whoever is there. What still waits to be sent to a
        former peer is dropped. If it fails, a former peer stays.

        Raises:
            OSError: there is no way to *address*, or no Unix socket there. In another thread than the loop's the error
                callback hears of it instead.
            ValueError: *address* is of another family.
        """
        self._check_address(address)
        if self._closing:
            raise OSError(errno.EBADF, f"{self!r} was closed")
        self.peer_address = address
        if self.loop.is_in_loop_thread():
            self._connect(address)
        else:
            self.loop.post(self._connect_in_loop, (address,))

    def send(self, data: BytesLike) -> bool:
        """Send a datagram to the peer; like ``send_to``.

        Raises:
            OSError: there is no peer: ``connect`` first.
        """
        if self.peer_address is None:
            raise OSError(errno.EDESTADDRREQ, f"{self!r} is not connected: connect() or send_to()")
        return self._send(data, None)

    def send_to(self, data: BytesLike, address: Address) -> bool:
        """Send a datagram; from any thread, never blocking.

        Mutable data is copied if it has to wait.

        Returns:
            False if it was dropped: the socket is closed, there was no room, or the kernel refused it (the error
            callback tells). True says nothing of its arrival; from another thread, only that the loop will try.
        Raises:
            TypeError: *data* is not bytes-like, or *address* no address. (``str`` is not bytes: encode it.)
            ValueError: *address* is of another family.
        """
        self._check_address(address)
        return self._send(data, address)

    def close(self) -> None:
        """Stop receiving and close the socket, dropping what is queued; from any thread, at any moment.

        In the loop's thread no callback comes after it; it may be called in one. Twice is harmless.
        """
        self._closing = True
        if self.loop.is_in_loop_thread():
            self._close_in_loop()
        else:
            self.loop.post(self._close_in_loop, ())  # a loop that is closed has closed this

    # --- in the loop: receiving ---

    def _start_in_loop(self) -> None:
        if not self._closing and not self._is_started:
            self._is_started = True
            self._watch()
            self._channel.enable_reading()

    def _watch(self) -> None:
        """Let the channel call this object; not before the loop keeps both, so that one dropped earlier is no cycle."""
        self._channel.read_callback = self._handle_read
        self._channel.write_callback = self._handle_write
        self._channel.error_callback = self._handle_error

    def _handle_read(self, receive_time: Timestamp) -> None:
        for _ in range(_MAX_READS):
            area = self.loop.read_area
            try:
                # MSG_TRUNC: the length it had, also if that is more than fits in.
                count, where = self._sock.recvfrom_into(area, self._max_datagram_bytes, socket.MSG_TRUNC)
            except BlockingIOError:
                return
            except InterruptedError:
                continue
            except OSError as e:
                self._report(e)
            else:
                self._take(area, count, where, receive_time)
            if self._closing:
                return

    def _take(self, area: bytearray, count: int, where: Any, receive_time: Timestamp) -> None:
        if count > self._max_datagram_bytes:
            self.truncated += 1
            _log.debug("%r: a datagram of %d bytes from %s is too long, dropped", self, count, where)
            return
        self.datagrams_received += 1
        self.bytes_received += count
        callback = self.message_callback
        if callback is not None:
            data = _sys.load(area, 0, count)
            try:
                callback(self, data, _address_of(where), receive_time)
            except Exception as e:
                self.loop.handle_exception(e, self)

    def _handle_error(self) -> None:
        """Take the error that came back for an earlier datagram."""
        number = _sys.take_error(self._sock.fileno())
        if self.family != socket.AF_UNIX:  # there it would take a datagram
            # The details, if somebody has set IP_RECVERR: left unread, they would keep the event up for ever.
            with contextlib.suppress(OSError):
                self._sock.recvmsg(0, 0, socket.MSG_ERRQUEUE)
        if number:
            self._report(OSError(number, os.strerror(number)))

    def _report(self, error: OSError) -> None:
        self.errors += 1
        callback = self.error_callback
        if callback is None:
            _log.debug("%r: %s", self, error)
            return
        try:
            callback(self, error)
        except Exception as e:
            self.loop.handle_exception(e, self)

    def _report_later(self, error: OSError) -> None:
        """Report, but not inside a send."""
        self.loop.post(self._report_unless_closed, (error,))

    def _report_unless_closed(self, error: OSError) -> None:
        if not self._closing:
            self._report(error)

    # --- in the loop: sending ---

    def _check_address(self, address: Address) -> None:
        if not isinstance(address, (InetAddress, UnixAddress)):
            raise TypeError(f"an InetAddress or UnixAddress is required, got {address!r}")
        if address.family != self.family:
            raise ValueError(f"{address} is of another family than {self!r}")

    def _send(self, data: BytesLike, address: Address | None) -> bool:
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"a datagram must be bytes-like, got {type(data).__name__}")
        if self._closing:
            return False
        if self.loop.is_in_loop_thread():
            return self._send_now(data, address)
        return self.loop.post(self._send_in_loop, (bytes(data), address))

    def _send_in_loop(self, data: bytes, address: Address | None) -> None:
        if self._closing:
            self.dropped += 1
        else:
            self._send_now(data, address)

    def _send_now(self, data: BytesLike, address: Address | None) -> bool:
        if self._queue:
            return self._enqueue(data, address)  # others have waited longer
        number = self._write(data, address)
        if number == errno.EAGAIN:
            return self._enqueue(data, address)
        return number == 0

    def _write(self, data: BytesLike, address: Address | None) -> int:
        """Give one datagram to the kernel; 0, or the errno, which is reported if it is not EAGAIN."""
        for is_last_try in (False, True):
            try:
                if address is None:
                    self._sock.send(data)
                else:
                    self._sock.sendto(data, address.sockaddr)
            except BlockingIOError:
                return errno.EAGAIN
            except OSError as e:
                self._report_later(e)
                # The error of an earlier datagram, which has come back now: this one has not been tried.
                if is_last_try or e.errno != errno.ECONNREFUSED or self.family == socket.AF_UNIX:
                    return e.errno or errno.EIO
            else:
                self.datagrams_sent += 1
                self.bytes_sent += memoryview(data).nbytes
                return 0
        return errno.EIO

    def _enqueue(self, data: BytesLike, address: Address | None) -> bool:
        size = memoryview(data).nbytes + _QUEUED_OVERHEAD
        # Nothing tells when another Unix socket that is full has room again, unless it is the peer.
        can_wait = address is None or self.family != socket.AF_UNIX
        if not can_wait or self._queued_bytes + size > self._max_queued_bytes:
            self.dropped += 1
            return False
        self._watch()
        self._channel.enable_writing()
        self._queue.append((bytes(data), address))
        self._queued_bytes += size
        return True

    def _handle_write(self) -> None:
        for _ in range(_MAX_WRITES):
            if not self._queue:
                break
            data, address = self._queue[0]
            if self._write(data, address) == errno.EAGAIN:
                return
            self._queue.popleft()
            self._queued_bytes -= len(data) + _QUEUED_OVERHEAD
        if not self._queue:
            self._channel.disable_writing()
            if not self._is_started:
                self._channel.remove()  # until then the loop has kept it for what waited

    # --- in the loop: connecting, closing ---

    def _connect(self, address: Address) -> None:
        try:
            self._sock.connect(address.sockaddr)
        except OSError as e:
            self.peer_address = self._kernel_peer()
            number = e.errno or 0
            raise OSError(number, f"cannot connect to {address}: {os.strerror(number)}") from None
        self.peer_address = address  # anew: of threads that choose at once, the last one heard has its way
        if self._queue:
            kept = [(data, to) for data, to in self._queue if to is not None]  # the rest was for the former peer
            self.dropped += len(self._queue) - len(kept)
            self._queue = deque(kept)
            self._queued_bytes = sum([len(data) + _QUEUED_OVERHEAD for data, _ in kept])

    def _kernel_peer(self) -> Address | None:
        try:
            return _address_of(self._sock.getpeername())
        except OSError:
            return None  # not connected

    def _connect_in_loop(self, address: Address) -> None:
        if self._closing:
            return
        try:
            self._connect(address)
        except OSError as e:
            self._report(e)

    def _close_in_loop(self) -> None:
        if self._sock.fileno() < 0:
            return
        self._channel.disable_all()
        self._channel.remove()
        self.dropped += len(self._queue)
        self._queue.clear()
        self._queued_bytes = 0
        self.loop.forget_at_close(self._close_hook)
        self._close_socket()

    def _close_socket(self) -> None:
        if self._file is not None:
            self._file.remove()
            self._file = None
        self._sock.close()

    # --- the object itself ---

    def __del__(self) -> None:
        if getattr(self, "_sock", None) is not None and self._sock.fileno() >= 0:  # never started
            self._close_socket()
            self.loop.post(self.loop.forget_at_close, (self._close_hook,))

    def __repr__(self) -> str:
        state = "closed" if self._closing else "started" if self._is_started else "new"
        return f"<UdpSocket {self.address} {state}>"


def _made(family: int) -> socket.socket:
    return socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)


def _taken_over(inherited: Socket) -> socket.socket:
    """Return a socket object that owns a duplicate, having checked that it is what it has to be."""
    sock = socket.socket(fileno=os.dup(inherited.fd))
    try:
        sock.setblocking(False)
        if sock.type != socket.SOCK_DGRAM or sock.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
            raise ValueError(f"UdpSocket: {inherited!r} is no datagram socket")
    except BaseException:
        sock.close()
        raise
    return sock


def _address_of(where: Any) -> Address:
    """Return what the socket module says as an address."""
    if isinstance(where, tuple):
        return inet_address.from_kernel((where[0].partition("%")[0], where[1], where[3] if len(where) > 3 else 0))
    return unix_address.from_kernel(os.fsencode(where or b""))
