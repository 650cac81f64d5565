"""A TCP or Unix stream socket's descriptor and what can be set on it: muduo's ``Socket`` and ``SocketsOps``.

A Socket owns its descriptor: closing it, or dropping the last reference, closes the descriptor. Every descriptor
is non-blocking and close-on-exec. It belongs to the thread of whatever loop uses it.
"""

from __future__ import annotations

import errno
import os
import socket as _socket
import struct
from typing import TYPE_CHECKING, NamedTuple

from pymuduo import _sys, inet_address, socket_file, unix_address
from pymuduo.unix_address import UnixAddress

if TYPE_CHECKING:
    from types import TracebackType

    from pymuduo.callbacks import Address
    from pymuduo.socket_file import SocketFile

_SOL_SOCKET = _socket.SOL_SOCKET
_TCP = _socket.IPPROTO_TCP
_SO_REUSEADDR = _socket.SO_REUSEADDR
_SO_REUSEPORT = _socket.SO_REUSEPORT
_SO_KEEPALIVE = _socket.SO_KEEPALIVE
_TCP_NODELAY = _socket.TCP_NODELAY

# The first part of struct tcp_info (linux/tcp.h), unchanged since Linux 2.6: eight bytes, then 24 32-bit counters.
_TCP_INFO = struct.Struct("8B24I")
_UCRED = struct.Struct("iII")
_NOBODY = 0xFFFFFFFF  # the uid of a socket that has no peer


class TcpInfo(NamedTuple):
    """What the kernel knows of a TCP connection (``TCP_INFO``); times in microseconds, sizes in bytes or segments.

    muduo: ``getTcpInfo``, ``getTcpInfoString``.
    """

    state: int
    ca_state: int
    unrecovered: int  # retransmits in progress
    rto: int
    ato: int
    snd_mss: int
    rcv_mss: int
    unacked: int
    lost: int
    retrans: int
    rtt: int
    rttvar: int
    snd_ssthresh: int
    snd_cwnd: int
    total_retrans: int


class PeerCredentials(NamedTuple):
    """Who is at the other end of a Unix socket (``SO_PEERCRED``).

    The kernel vouches for it: who connected, or made the listening socket, at the moment in which that was done. A
    process may hand its socket to another one afterwards. The pid is 0 if it belongs to a PID namespace that can't be
    seen from here, and may be another process's by the time you look.
    """

    pid: int
    uid: int
    gid: int


class Socket:
    """Owns a socket's descriptor: TCP or Unix.

    Args:
        fd: a non-blocking, close-on-exec socket, owned by this object from now on.

    muduo: ``Socket``.
    """

    __slots__ = ("__weakref__", "fd", "is_open")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.is_open = fd >= 0

    @staticmethod
    def create(family: int) -> Socket:
        """Return a new stream socket for ``AF_INET``, ``AF_INET6`` or ``AF_UNIX``; OSError if no descriptor is left."""
        kind = _socket.SOCK_STREAM | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC
        return Socket(_socket.socket(family, kind, 0).detach())

    def bind(self, address: Address, *, mode: int | None = None) -> SocketFile | None:
        """Take a local address.

        A Unix socket's file that a dead server has left behind is replaced; nothing else is ever removed, neither a
        living server's socket nor what is no socket. Two servers that find the same dead file don't disturb each other:
        one gets the address. If the file is another user's, or the directory can't be read, it stays.

        Args:
            mode: the permissions of a Unix socket's file, such as ``0o660``, whatever the umask says; None: what the
                umask leaves. (Writing is what a client must be allowed.)

        Returns:
            The file of a Unix socket, None for other addresses. Closing the socket leaves the file where it is;
            ``remove`` it before.
        Raises:
            OSError: the address is in use, not this machine's, or not allowed; the message names it.
            ValueError: *mode* for an address that is no file.
        """
        with _Borrowed(self.fd) as sock:
            try:
                if isinstance(address, UnixAddress):
                    return socket_file.bind(sock, address, mode)
                if mode is not None:
                    raise ValueError(f"only a Unix socket's file has permissions, {address} has none")
                if address.ip == "::":
                    sock.setsockopt(_socket.IPPROTO_IPV6, _socket.IPV6_V6ONLY, 0)
                sock.bind(address.sockaddr)
            except OSError as e:
                raise _named(e, "bind", address) from None
        return None

    def listen(self, backlog: int = _socket.SOMAXCONN) -> None:
        """Let peers connect; up to *backlog* of them wait to be accepted. Raises OSError."""
        with _Borrowed(self.fd) as sock:
            try:
                sock.listen(backlog)
            except OSError as e:
                raise _named(e, "listen on", self.local_address) from None

    def accept(self) -> tuple[int, Address | None]:
        """Accept one connection: its descriptor, which the caller owns, and the peer; or ``(-errno, None)``."""
        fd, peer = _sys.accept(self.fd)
        return fd, None if peer is None else _address(peer)

    @property
    def is_listening(self) -> bool:
        """Whether peers can connect to it (``SO_ACCEPTCONN``). Raises OSError if the socket is closed."""
        return bool(self.get_option(_SOL_SOCKET, _socket.SO_ACCEPTCONN))

    @property
    def local_address(self) -> Address:
        """The address of this end. Raises OSError if the socket is closed."""
        address = _sys.local_address(self.fd)
        if address is None:
            raise OSError(errno.EBADF, f"{self!r} has no local address")
        return _address(address)

    @property
    def peer_address(self) -> Address:
        """The address of the other end. Raises OSError if there is none."""
        address = _sys.peer_address(self.fd)
        if address is None:
            raise OSError(errno.ENOTCONN, f"{self!r} has no peer")
        return _address(address)

    def peer_credentials(self) -> PeerCredentials:
        """Return who the peer of a Unix socket is.

        Raises:
            OSError: this is no Unix socket, it has no peer, or it is closed.
        """
        with _Borrowed(self.fd) as sock:
            if sock.family != _socket.AF_UNIX:
                raise OSError(errno.EOPNOTSUPP, f"{self!r} is no Unix socket: its peer has no credentials")
            pid, uid, gid = _UCRED.unpack(sock.getsockopt(_SOL_SOCKET, _socket.SO_PEERCRED, _UCRED.size))
        if uid == _NOBODY:
            raise OSError(errno.ENOTCONN, f"{self!r} has no peer")
        return PeerCredentials(pid, uid, gid)

    def set_reuse_address(self, on: bool) -> None:
        """Bind although connections of an earlier server linger in TIME_WAIT (``SO_REUSEADDR``)."""
        self._set(_SOL_SOCKET, _SO_REUSEADDR, on)

    def set_reuse_port(self, on: bool) -> None:
        """Let several sockets bind the same port and share its connections (``SO_REUSEPORT``)."""
        self._set(_SOL_SOCKET, _SO_REUSEPORT, on)

    def set_keep_alive(self, on: bool) -> None:
        """Let the kernel find out that a silent peer is gone (``SO_KEEPALIVE``)."""
        self._set(_SOL_SOCKET, _SO_KEEPALIVE, on)

    def set_tcp_no_delay(self, on: bool) -> None:
        """Send small segments at once instead of waiting for an acknowledgement (Nagle's algorithm off)."""
        self._set(_TCP, _TCP_NODELAY, on)

    def get_option(self, level: int, option: int) -> int:
        """Return an integer socket option. Raises OSError."""
        with _Borrowed(self.fd) as sock:
            return sock.getsockopt(level, option)

    def take_error(self) -> int:
        """Return the pending error (``SO_ERROR``) as an errno, 0 if there is none; taking it clears it."""
        return _sys.take_error(self.fd)

    def tcp_info(self) -> TcpInfo:
        """Return what the kernel knows of the connection. Raises OSError."""
        with _Borrowed(self.fd) as sock:
            raw = sock.getsockopt(_TCP, _socket.TCP_INFO, 256)
        v = _TCP_INFO.unpack_from(raw)
        return TcpInfo(
            state=v[0],
            ca_state=v[1],
            unrecovered=v[2],
            rto=v[8],
            ato=v[9],
            snd_mss=v[10],
            rcv_mss=v[11],
            unacked=v[12],
            lost=v[14],
            retrans=v[15],
            rtt=v[23],
            rttvar=v[24],
            snd_ssthresh=v[25],
            snd_cwnd=v[26],
            total_retrans=v[31],
        )

    def shutdown_write(self) -> int:
        """Half-close: send FIN, go on receiving. 0 or ``-errno`` (a peer may be gone already)."""
        return _sys.shutdown_write(self.fd)

    def close(self) -> None:
        """Close the descriptor; twice is harmless."""
        if self.is_open:
            self.is_open = False
            fd, self.fd = self.fd, -1
            _sys.close(fd)

    def _set(self, level: int, option: int, on: bool) -> None:
        result = _sys.set_option(self.fd, level, option, 1 if on else 0)
        if result < 0:
            raise OSError(-result, f"setsockopt({level}, {option}) on {self!r}: {os.strerror(-result)}")

    def __del__(self) -> None:
        if getattr(self, "is_open", False):  # a constructor that raised has made nothing to close
            self.close()

    def __repr__(self) -> str:
        return f"<Socket fd={self.fd}>" if self.fd >= 0 else "<Socket closed>"


def owner_of(fd: int) -> Socket:
    """Return ``Socket(fd)``; without the cost of parsing arguments."""
    made = Socket.__new__(Socket)
    made.fd = fd
    made.is_open = fd >= 0
    return made


class _Borrowed:
    """A standard socket object over a descriptor that stays ours: for calls that are not on a hot path."""

    __slots__ = ("_sock",)

    def __init__(self, fd: int) -> None:
        if fd < 0:
            raise OSError(errno.EBADF, "the socket is closed")
        self._sock = _socket.socket(fileno=fd)

    def __enter__(self) -> _socket.socket:
        return self._sock

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._sock.detach()


def _address(address: tuple[str, int, int] | bytes) -> Address:
    """Return what the kernel said as an address."""
    return unix_address.from_kernel(address) if isinstance(address, bytes) else inet_address.from_kernel(address)


def _named(error: OSError, what: str, address: Address) -> OSError:
    """Return the same error with the address in its message."""
    number = error.errno or 0
    return OSError(number, f"cannot {what} {address}: {os.strerror(number)}")
