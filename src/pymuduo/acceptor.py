"""Listens on an address and accepts: muduo's ``Acceptor``. The loop's thread only.

One event accepts until the queue is empty, but at most ``_MAX_ACCEPTS`` times, so that a flood of newcomers can't
shut out the connections that are there.

A full descriptor table must not spin the loop: the newcomer would stay in the queue and the listening socket
readable. So one descriptor is held in reserve; it is given up to accept the newcomer and close it at once (a clean
refusal instead of a hang), and accepting pauses for a moment, in which the descriptors of others may come free.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from typing import TYPE_CHECKING

from pymuduo import _sys, inet_address
from pymuduo.channel import Channel
from pymuduo.inet_address import InetAddress
from pymuduo.socket import Socket

if TYPE_CHECKING:
    from collections.abc import Callable

    from pymuduo.event_loop import EventLoop
    from pymuduo.timer_queue import Timer

_log = logging.getLogger("pymuduo.acceptor")

_MAX_ACCEPTS = 64
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
    port that the kernel chose), and a port in use is reported where the server is made.

    Attributes:
        has_reserve: a descriptor is held back for the day when there is no other.
        new_connection_callback: called with the descriptor, which the callee owns from then on, and the peer's
            InetAddress. Without it newcomers are closed.

    Raises:
        OSError: the address can't be bound; the message names it.

    muduo: ``Acceptor``.
    """

    __slots__ = (
        "__weakref__",
        "_channel",
        "_next_report",
        "_reserve_fd",
        "_resume_timer",
        "_turned_away",
        "address",
        "has_reserve",
        "loop",
        "new_connection_callback",
        "socket",
    )

    def __init__(
        self, loop: EventLoop, address: InetAddress, *, reuse_port: bool = False, no_delay: bool = False
    ) -> None:
        self.loop = loop
        self.new_connection_callback: Callable[[int, InetAddress], object] | None = None
        self.has_reserve = False
        self._reserve_fd = -1
        self._resume_timer: Timer | None = None
        self._next_report = 0.0
        self._turned_away = 0
        self.socket = Socket.create(address.family)
        try:
            self.socket.set_reuse_address(True)
            if reuse_port:
                self.socket.set_reuse_port(True)
            # Accepted sockets inherit these two.
            self.socket.set_keep_alive(True)  # a silent peer that is gone is found out
            if no_delay:
                self.socket.set_tcp_no_delay(True)
            self.socket.bind(address)
            self.address = self.socket.local_address
        except BaseException:
            self.socket.close()
            raise
        self._channel = Channel(loop, self.socket.fd)
        self._channel.read_callback = self._handle_read
        self._take_reserve()

    @property
    def is_listening(self) -> bool:
        """Whether newcomers are being accepted, or will be when a pause is over."""
        return self._channel.is_reading or self._resume_timer is not None

    def listen(self) -> None:
        """Begin to accept. Raises OSError (with ``reuse_port`` off, if somebody listens on the port by now)."""
        self.loop.assert_in_loop_thread()
        self.socket.listen()
        self._channel.enable_reading()

    def close(self) -> None:
        """Stop accepting and close the listening socket; those still queued are reset. Twice is harmless."""
        if self.socket.fd < 0:
            return
        if self._resume_timer is not None:
            self.loop.cancel(self._resume_timer)
            self._resume_timer = None
        self._channel.disable_all()
        self._channel.remove()
        self._channel.read_callback = None
        self.socket.close()
        self._release_reserve()

    def _handle_read(self, receive_time: object) -> None:
        for _ in range(_MAX_ACCEPTS):
            fd, peer = _sys.accept(self.socket.fd)
            if peer is not None:
                self._hand_on(fd, inet_address.from_kernel(peer))
                if self.socket.fd < 0:
                    return  # the callback closed this acceptor
                if not self.has_reserve:
                    self._take_reserve()
            elif -fd == _WOULD_BLOCK:
                return
            elif -fd not in _GONE:
                if -fd in _TABLE_FULL:
                    self._turn_away()
                self._pause(-fd)
                return

    def _hand_on(self, fd: int, peer: InetAddress) -> None:
        if self.new_connection_callback is None:
            _sys.close(fd)
            return
        self.new_connection_callback(fd, peer)

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

    def _pause(self, error: int) -> None:
        self._channel.disable_all()
        self._resume_timer = self.loop.run_after(_PAUSE_S, self._resume)
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

    def _resume(self) -> None:
        self._resume_timer = None
        if not self.has_reserve:
            self._take_reserve()
        try:
            self._channel.enable_reading()
        except OSError as e:
            self._pause(e.errno or 0)  # the kernel is short of memory: later

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

    def __del__(self) -> None:
        if getattr(self, "has_reserve", False):  # a constructor that raised has made nothing to close
            self._release_reserve()

    def __repr__(self) -> str:
        state = "closed" if self.socket.fd < 0 else "listening" if self.is_listening else "idle"
        return f"<Acceptor {self.address} {state}>"
