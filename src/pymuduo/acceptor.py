"""Listens on an address and accepts: muduo's ``Acceptor``. The loop's thread only.

One event accepts until the queue is empty, but at most ``_MAX_ACCEPTS`` times, so that a flood of newcomers can't
shut out the connections that are there.

A full descriptor table must not spin the loop: the newcomer would stay in the queue and the listening socket
readable. So one descriptor is held in reserve; it is given up to accept the newcomer and close it at once (a clean
refusal instead of a hang), and accepting pauses for a moment, in which the descriptors of others may come free.

A Unix socket's file goes with the acceptor that made it. A socket that was inherited, from systemd or a parent, is
served like any other, but whatever belongs to the others who hold it stays as it is: its options, its file, its queue.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import time
from typing import TYPE_CHECKING

from pymuduo import _sys, inet_address, unix_address
from pymuduo.channel import Channel
from pymuduo.inet_address import InetAddress
from pymuduo.socket import Socket
from pymuduo.unix_address import UnixAddress

if TYPE_CHECKING:
    from collections.abc import Callable

    from pymuduo.callbacks import Address
    from pymuduo.event_loop import EventLoop
    from pymuduo.socket_file import SocketFile
    from pymuduo.timer_queue import Timer

_log = logging.getLogger("pymuduo.acceptor")

_MAX_ACCEPTS = 64
_MAX_DRAINED = socket.SOMAXCONN  # the longest queue there can be
_PAUSE_S = 0.1
_REPORT_INTERVAL_S = 1.0
# The newcomer left, or its network failed, before it was accepted (accept(2)): try the next one.
_GONE = frozenset(
    {
        errno.ECONNABORTED,
        errno.EINTR,
        errno.EPROTO,
        errno.EPERM,
        errno.ENETDOWN,
        errno.ENOPROTOOPT,
        errno.EHOSTDOWN,
        errno.ENONET,
        errno.EHOSTUNREACH,
        errno.EOPNOTSUPP,
        errno.ENETUNREACH,
    }
)
_TABLE_FULL = frozenset({errno.EMFILE, errno.ENFILE})
_WOULD_BLOCK = errno.EAGAIN


class Acceptor:
    """Accepts connections on one address and hands each descriptor on.

    The socket is bound by the constructor, so ``address`` is the real one from the start (port 0 has become the
    port that the kernel chose), and an address in use is reported where the server is made. How the file of a Unix
    socket is made, and when one is replaced: see ``Socket.bind``.

    Args:
        address: InetAddress or UnixAddress; None with *listening*.
        reuse_port: several sockets share the port (``SO_REUSEPORT``); not for Unix sockets, which have none.
        no_delay: what is accepted sends small segments at once (``TCP_NODELAY``); Unix sockets always do.
        listening: a stream socket that is bound, and perhaps listens, already; owned by the acceptor from now on. It is
            made non-blocking and close-on-exec.
        unix_mode: the permissions of a Unix socket's file, such as ``0o660``; None: what the umask leaves.

    Attributes:
        has_reserve: a descriptor is held back for the day when there is no other.
        new_connection_callback: called with the descriptor, which the callee owns from then on, even if it raises, and
            the peer's address: an InetAddress, or a UnixAddress that most often is unnamed. Without it newcomers are
            closed. It may call ``pause`` and ``close``: no other newcomer is accepted then.

    Raises:
        OSError: the address can't be bound; the message names it.
        ValueError: what is given does not go together, or *listening* is no bound stream socket. It stays yours then.

    muduo: ``Acceptor``.
    """

    __slots__ = (
        "__weakref__",
        "_channel",
        "_file",
        "_next_report",
        "_reserve_fd",
        "_resume_at",
        "_resume_timer",
        "_turned_away",
        "address",
        "has_reserve",
        "loop",
        "new_connection_callback",
        "socket",
    )

    def __init__(
        self,
        loop: EventLoop,
        address: Address | None,
        *,
        reuse_port: bool = False,
        no_delay: bool = False,
        listening: Socket | None = None,
        unix_mode: int | None = None,
    ) -> None:
        self.loop = loop
        self.new_connection_callback: Callable[[int, Address], object] | None = None
        self.has_reserve = False
        self._reserve_fd = -1
        self._resume_timer: Timer | None = None
        self._resume_at = 0.0
        self._next_report = 0.0
        self._turned_away = 0
        self._file: SocketFile | None = None
        if listening is not None:
            if address is not None or reuse_port or unix_mode is not None:
                raise ValueError("Acceptor: a socket that is bound already takes no address, reuse_port or unix_mode")
            self._take_over(listening, no_delay)
        elif isinstance(address, (InetAddress, UnixAddress)):
            self._bind(address, reuse_port, no_delay, unix_mode)
        else:
            raise TypeError(f"Acceptor address must be an InetAddress or UnixAddress, got {address!r}")
        self._channel = Channel(loop, self.socket.fd)
        self._channel.read_callback = self._handle_read
        self._take_reserve()

    def _bind(self, address: Address, reuse_port: bool, no_delay: bool, unix_mode: int | None) -> None:
        if reuse_port and isinstance(address, UnixAddress):
            raise ValueError(f"Acceptor: reuse_port is for ports, {address} has none")
        self.socket = Socket.create(address.family)
        try:
            if not isinstance(address, UnixAddress):
                self.socket.set_reuse_address(True)
                if reuse_port:
                    self.socket.set_reuse_port(True)
                self._set_inherited_options(no_delay)
            self._file = self.socket.bind(address, mode=unix_mode)
            self.address = self.socket.local_address
        except BaseException:
            self._remove_file()
            self.socket.close()
            raise

    def _take_over(self, listening: Socket, no_delay: bool) -> None:
        if listening.get_option(socket.SOL_SOCKET, socket.SO_TYPE) != socket.SOCK_STREAM:
            raise ValueError(f"Acceptor: {listening!r} is no stream socket")
        address = listening.local_address
        is_bound = not address.is_unnamed if isinstance(address, UnixAddress) else address.port > 0
        if not is_bound:
            raise ValueError(f"Acceptor: {listening!r} is not bound to an address")
        os.set_blocking(listening.fd, False)
        os.set_inheritable(listening.fd, False)
        self.socket = listening
        self.address = address
        if isinstance(address, InetAddress):
            self._set_inherited_options(no_delay)

    def _set_inherited_options(self, no_delay: bool) -> None:
        """Set what accepted sockets inherit from the one that listens."""
        self.socket.set_keep_alive(True)  # a silent peer that is gone is found out
        if no_delay:
            self.socket.set_tcp_no_delay(True)

    @property
    def is_listening(self) -> bool:
        """Whether newcomers are being accepted, or will be when a pause is over."""
        return self._channel.is_reading or self._resume_timer is not None

    def listen(self) -> None:
        """Begin to accept. Raises OSError (with ``reuse_port`` off, if somebody listens on the port by now)."""
        self.loop.assert_in_loop_thread()
        if not self.socket.is_listening:  # who made an inherited socket has chosen how long its queue is
            self.socket.listen()
        if self._resume_timer is None:
            self._channel.enable_reading()

    def pause(self, seconds: float) -> None:
        """Accept nobody for so long; newcomers wait in the kernel's queue. The loop's thread only.

        A longer pause that is under way stays. Nothing happens if nobody is being accepted anyway.

        Raises:
            ValueError: *seconds* is negative or not a number.
        """
        self.loop.assert_in_loop_thread()
        if not seconds >= 0:
            raise ValueError(f"pause: seconds must be 0 or more, got {seconds}")
        if seconds > 0 and self.is_listening:
            self._pause_for(seconds)

    def drain_queue(self) -> int:
        """Accept everybody who is in the queue by now, and return how many; also during a pause. The loop's thread.

        For the moment before ``close``, which would reset them. It takes no more than the longest queue there can be,
        and stops where the descriptor table is full.
        """
        self.loop.assert_in_loop_thread()
        count = 0
        while count < _MAX_DRAINED and self.socket.fd >= 0:
            fd, peer = _sys.accept(self.socket.fd)
            if peer is not None:
                count += 1
                try:
                    self._hand_on(fd, peer)
                except Exception as e:
                    self.loop.handle_exception(e, self)
            elif -fd not in _GONE:
                break
        return count

    def close(self, *, keep_file: bool = False) -> None:
        """Stop accepting and close the listening socket; those still queued are reset. Twice is harmless.

        The file of a Unix socket is removed if this acceptor has made it, in this process, and nobody has put another
        one in its place.

        Args:
            keep_file: leave the file: others who hold the socket, such as a child process, go on serving.
        """
        if self.socket.fd < 0:
            return
        if self._resume_timer is not None:
            self.loop.cancel(self._resume_timer)
            self._resume_timer = None
        self._channel.disable_all()
        self._channel.remove()
        self._channel.read_callback = None
        if keep_file:
            self._file = None
        self._remove_file()
        self.socket.close()
        self._release_reserve()

    def _handle_read(self, receive_time: object) -> None:
        for _ in range(_MAX_ACCEPTS):
            fd, peer = _sys.accept(self.socket.fd)
            if peer is not None:
                self._hand_on(fd, peer)
                if self.socket.fd < 0 or self._resume_timer is not None:
                    return  # the callback closed this acceptor, or wants a pause
                if not self.has_reserve:
                    self._take_reserve()
            elif -fd == _WOULD_BLOCK:
                return
            elif -fd not in _GONE:
                if -fd in _TABLE_FULL:
                    self._turn_away()
                self._pause_after(-fd)
                return

    def _hand_on(self, fd: int, peer: tuple[str, int, int] | bytes) -> None:
        if self.new_connection_callback is None:
            _sys.close(fd)
            return
        try:
            address = inet_address.from_kernel(peer) if isinstance(peer, tuple) else unix_address.from_kernel(peer)
        except BaseException:
            _sys.close(fd)  # it is nobody's yet
            raise
        self.new_connection_callback(fd, address)

    def _pause_for(self, seconds: float) -> None:
        resume_at = time.monotonic() + seconds
        if self._resume_timer is not None:
            if resume_at <= self._resume_at:
                return
            self._resume_timer.cancel()
        self._channel.disable_all()
        self._resume_at = resume_at
        self._resume_timer = self.loop.run_after(seconds, self._resume)

    def _resume(self) -> None:
        self._resume_timer = None
        if not self.has_reserve:
            self._take_reserve()
        try:
            self._channel.enable_reading()
        except OSError as e:
            self._pause_after(e.errno or 0)  # the kernel is short of memory: later

    # --- the descriptor table is full ---

    def _turn_away(self) -> None:
        """Give the reserve up to accept the first in the queue and close it."""
        if self.has_reserve:
            self._release_reserve()
            fd, _ = _sys.accept(self.socket.fd)
            if fd >= 0:
                _sys.close(fd)
                self._turned_away += 1
        # Another thread may have been faster and taken the number: then the next pause tries again.
        self._take_reserve()

    def _pause_after(self, error: int) -> None:
        self._pause_for(_PAUSE_S)
        now = time.monotonic()
        if now >= self._next_report:
            self._next_report = now + _REPORT_INTERVAL_S
            _log.error(
                "accept on %s: %s; accepting pauses for %g s (%d newcomers turned away so far)",
                self.address,
                os.strerror(error),
                _PAUSE_S,
                self._turned_away,
            )

    def _take_reserve(self) -> None:
        try:
            self._reserve_fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return
        self.has_reserve = True

    def _release_reserve(self) -> None:
        if self.has_reserve:
            self.has_reserve = False
            _sys.close(self._reserve_fd)

    # --- the object itself ---

    def _remove_file(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.remove()

    def __del__(self) -> None:
        if getattr(self, "has_reserve", False):  # a constructor that raised has made nothing to close
            self._release_reserve()
        if getattr(self, "_file", None) is not None and self.socket.fd >= 0:
            self._remove_file()

    def __repr__(self) -> str:
        state = "closed" if self.socket.fd < 0 else "listening" if self.is_listening else "idle"
        return f"<Acceptor {self.address} {state}>"
