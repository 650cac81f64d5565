"""Connects, and goes on trying: muduo's ``Connector``.

A round looks the name up (if the target has one) and tries its addresses as RFC 8305 ("happy eyeballs") says: IPv6 and
IPv4 by turns, the next one a quarter of a second after the last, or at once when one fails; the first that answers
wins, and the others are closed. So a host whose IPv6 is broken costs a quarter of a second and not a time-out. A round
that fails is told, and after a while tried again.

No callback runs inside ``start``, ``restart`` or ``stop``: a round begins later in the loop, even one that fails at
once, so a failed callback may well ``start`` again.

============  ==========================================  =======================================================
state         what leads on                               to
============  ==========================================  =======================================================
IDLE          ``start``                                   CONNECTING
CONNECTING    an address answers                          CONNECTED: the descriptor is handed over
CONNECTING    all fail, or time is up                     WAITING if it retries, else IDLE; failed callback
WAITING       the back-off is over                        CONNECTING
CONNECTED     ``restart``                                 CONNECTING, or WAITING if the connection was short-lived
CONNECTED     ``fail``                                    WAITING if it retries, else IDLE; failed callback
any           ``stop``                                    IDLE
============  ==========================================  =======================================================
"""

from __future__ import annotations

import enum
import errno
import logging
import os
import random
import socket
from typing import TYPE_CHECKING

from pymuduo import _sys
from pymuduo.channel import Channel
from pymuduo.inet_address import InetAddress
from pymuduo.resolver import Resolver
from pymuduo.unix_address import UnixAddress

if TYPE_CHECKING:
    from collections.abc import Callable

    from pymuduo.callbacks import Address, Target
    from pymuduo.event_loop import EventLoop
    from pymuduo.resolver import Lookup
    from pymuduo.timer_queue import Timer

_log = logging.getLogger("pymuduo.connector")


CONNECT_TIMEOUT_S = 10.0
RETRY_DELAY_S = 0.5  # muduo's
MAX_RETRY_DELAY_S = 30.0
_NEXT_ADDRESS_S = 0.25  # RFC 8305, section 5: the connection attempt delay
_UNDER_WAY = frozenset({0, errno.EINPROGRESS, errno.EINTR})  # 0: a Unix socket connects at once


class ConnectorState(enum.Enum):
    """What a connector is doing. muduo: ``kDisconnected``, ``kConnecting``, ``kConnected``."""

    IDLE = "idle"
    CONNECTING = "connecting"
    WAITING = "waiting"
    CONNECTED = "connected"


class Connector:
    """Connects to a target and hands the descriptor on; on failure it says so and, if it retries, tries again.

    ``TcpClient`` is made of one. Whoever uses it without a client stops it before its loop is closed.

    Args:
        target: an InetAddress, a UnixAddress, or ``(host name, port)``, which is looked up anew for each round.
        connect_timeout_s: for a round: looking up and all addresses.
        retry: whether to try again when a round has failed; for ever, with back-off.
        retry_delay_s, max_retry_delay_s: the first back-off, which doubles each time, up to the second.
        jitter: wait a random time between half the back-off and the whole, so that the clients of a server that comes
            back do not all come in the same moment.
        no_delay: small segments leave at once (``TCP_NODELAY``).
        resolver: for names; ``Resolver.default()`` unless given.

    Attributes:
        target, retry: as given; may be changed, for the next round and the next failure.
        state: a ``ConnectorState``. retry_delay_s: the next back-off, before it is blurred.
        new_connection_callback: ``(fd, address)``: the callee owns the descriptor (non-blocking, close-on-exec).
        failed_callback: ``(error)`` with an OSError when a round has failed.

    Raises:
        TypeError: *target* is none. ValueError: a number makes no sense, or nobody can be at *target*.

    Thread rule: the loop's thread. muduo: ``Connector``.
    """

    def __init__(
        self,
        loop: EventLoop,
        target: Target,
        *,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        retry: bool = True,
        retry_delay_s: float = RETRY_DELAY_S,
        max_retry_delay_s: float = MAX_RETRY_DELAY_S,
        jitter: bool = False,
        no_delay: bool = True,
        resolver: Resolver | None = None,
    ) -> None:
        if not connect_timeout_s > 0:
            raise ValueError(f"Connector: connect_timeout_s must be positive, got {connect_timeout_s}")
        if not 0 < retry_delay_s <= max_retry_delay_s:
            raise ValueError(
                f"Connector: retry_delay_s must be positive and at most max_retry_delay_s, "
                f"got {retry_delay_s} and {max_retry_delay_s}"
            )
        self.loop = loop
        self.target = _checked(target)
        self.connect_timeout_s = connect_timeout_s
        self.retry = retry
        self.retry_delay_s = retry_delay_s
        self.state = ConnectorState.IDLE
        self.new_connection_callback: Callable[[int, Address], object] | None = None
        self.failed_callback: Callable[[OSError], object] | None = None
        self._first_retry_delay_s = retry_delay_s
        self._max_retry_delay_s = max_retry_delay_s
        self._jitter = jitter
        self._no_delay = no_delay
        self._resolver = resolver
        self._begin_timer: Timer | None = None  # until a round begins
        # Of this round:
        self._lookup: Lookup | None = None
        self._addresses: list[Address] = []  # not tried yet
        self._attempts: list[_Attempt] = []
        self._error: OSError | None = None  # the first one: later ones say less
        self._round_timer: Timer | None = None
        self._next_timer: Timer | None = None

    # --- what to do ---

    def start(self) -> None:
        """Begin to connect, with the first back-off; no effect while it does already."""
        self.loop.assert_in_loop_thread()
        if self.state in (ConnectorState.IDLE, ConnectorState.CONNECTED):
            self.retry_delay_s = self._first_retry_delay_s
            self.state = ConnectorState.CONNECTING
            self._begin_timer = self.loop.run_after(0.0, self._begin_round)

    def restart(self, lived_s: float) -> None:
        """Connect again after a connection that lived for so long.

        At once if it outlived the back-off that would be due; else after that back-off, which doubles: a server that
        accepts and closes is not besieged. muduo: ``restart``.
        """
        self.loop.assert_in_loop_thread()
        self._end_round()
        if lived_s >= self.retry_delay_s:
            self.state = ConnectorState.IDLE
            self.start()
        else:
            self._retry_later()

    def stop(self) -> None:
        """Give up whatever is under way, at once and without a callback. ``start`` begins anew."""
        self.loop.assert_in_loop_thread()
        self._end_round()
        self.state = ConnectorState.IDLE

    def fail(self, error: OSError) -> None:
        """Count a connection that came to nothing (its TLS handshake failed) as a round that failed."""
        self.loop.assert_in_loop_thread()
        self._end_round()
        self.state = ConnectorState.IDLE
        if self.retry:
            self._retry_later()
        if self.failed_callback is not None:
            self.failed_callback(error)

    # --- a round ---

    def _begin_round(self) -> None:
        self._begin_timer = None
        self.state = ConnectorState.CONNECTING
        self._error = None
        self._round_timer = self.loop.run_after(self.connect_timeout_s, self._time_out)
        if isinstance(self.target, tuple):
            resolver = self._resolver or Resolver.default()
            try:
                self._lookup = resolver.resolve(self.loop, *self.target, self._take_addresses)
            except RuntimeError as e:  # somebody has closed it, or there is no thread to be had
                self.fail(OSError(f"cannot look up {self.target[0]!r}: {e}"))
        else:
            self._addresses = [self.target]
            self._try_next()

    def _take_addresses(self, addresses: list[InetAddress], error: OSError | None) -> None:
        self._lookup = None
        if error is not None:
            self.fail(error)
        else:
            self._addresses = interleaved(addresses)
            self._try_next()

    def _try_next(self) -> None:
        """Try the next address, and those after it as long as they fail at once."""
        if self._next_timer is not None:
            self._next_timer.cancel()
            self._next_timer = None
        while self._addresses:
            attempt = _Attempt(self, self._addresses.pop(0))
            error = attempt.begin(self._no_delay)
            if error is None:
                self._attempts.append(attempt)
                if self._addresses:
                    self._next_timer = self.loop.run_after(_NEXT_ADDRESS_S, self._try_next)
                return
            self._note_error(attempt.address, error)
        if not self._attempts:
            self.fail(self._error or OSError(errno.ENOENT, f"{self} has no address"))

    def handle_failed(self, attempt: _Attempt, error: OSError) -> None:
        """Go on without an attempt."""
        self._attempts.remove(attempt)
        self._note_error(attempt.address, error)
        self._try_next()

    def handle_connected(self, attempt: _Attempt, fd: int) -> None:
        """Hand the descriptor on, and let go of the other attempts."""
        self._attempts.remove(attempt)
        self._end_round()
        self.state = ConnectorState.CONNECTED
        if self.new_connection_callback is not None:
            self.new_connection_callback(fd, attempt.address)
        else:
            os.close(fd)

    def _note_error(self, address: Address, error: OSError) -> None:
        _log.debug("cannot connect to %s: %s", address, error.strerror)
        if self._error is None:
            self._error = OSError(error.errno, f"cannot connect to {address}: {error.strerror}")

    def _time_out(self) -> None:
        self._round_timer = None
        what = "looking up" if self._lookup is not None else "connecting to"
        self.fail(TimeoutError(errno.ETIMEDOUT, f"{what} {self} took more than {self.connect_timeout_s:g} s"))

    def _end_round(self) -> None:
        """Let go of everything that a round has begun, and of the next one."""
        if self._lookup is not None:
            self._lookup.cancel()
            self._lookup = None
        for timer in (self._begin_timer, self._round_timer, self._next_timer):
            if timer is not None:
                timer.cancel()
        self._begin_timer = self._round_timer = self._next_timer = None
        self._addresses = []
        attempts, self._attempts = self._attempts, []
        for attempt in attempts:
            attempt.give_up()

    # --- back-off ---

    def _retry_later(self) -> None:
        delay_s = self.retry_delay_s
        self.retry_delay_s = min(2 * delay_s, self._max_retry_delay_s)
        if self._jitter:
            delay_s *= random.uniform(0.5, 1.0)  # noqa: S311  # nobody gains by guessing it
        _log.debug("connecting to %s again in %.3f s", self, delay_s)
        self.state = ConnectorState.WAITING
        self._begin_timer = self.loop.run_after(delay_s, self._begin_round)

    def __str__(self) -> str:
        return f"{self.target[0]}:{self.target[1]}" if isinstance(self.target, tuple) else str(self.target)

    def __repr__(self) -> str:
        return f"<Connector to {self} {self.state.value}>"


class _Attempt:
    """One address being connected to."""

    __slots__ = ("_channel", "_connector", "_socket", "address")

    def __init__(self, connector: Connector, address: Address) -> None:
        self._connector = connector
        self.address = address
        self._socket: socket.socket | None = None
        self._channel: Channel | None = None

    def begin(self, no_delay: bool) -> OSError | None:
        """Start to connect; the error if that fails at once, else the connector hears of the end later."""
        try:
            kind = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
            self._socket = socket.socket(self.address.family, kind)
            if self.address.family != socket.AF_UNIX:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                if no_delay:
                    self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            error = self._socket.connect_ex(self.address.sockaddr)
            if error not in _UNDER_WAY:
                raise OSError(error, os.strerror(error))
            channel = Channel(self._connector.loop, self._socket.fileno())
            # An attempt that fails is reported as an error, as a hang-up, or as both: each leads to the same question.
            channel.write_callback = channel.error_callback = channel.close_callback = self._handle_end
            channel.enable_writing()
            self._channel = channel
        except OSError as e:
            self.give_up()
            return e
        return None

    def give_up(self) -> None:
        """Close what there is; nobody is told."""
        self._unwatch()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _unwatch(self) -> None:
        if self._channel is not None:
            self._channel.disable_all()
            self._channel.remove()
            self._channel = None

    def _handle_end(self) -> None:
        sock = self._socket
        if sock is None:
            return  # the same event has been handled already
        error = _sys.take_error(sock.fileno())
        if error == 0 and not self._is_to_itself(sock):
            self._unwatch()
            self._socket = None
            self._connector.handle_connected(self, sock.detach())
        else:
            self.give_up()
            text = os.strerror(error) if error else "nobody listens, and it had connected to itself"
            self._connector.handle_failed(self, OSError(error or errno.ECONNREFUSED, text))

    def _is_to_itself(self, sock: socket.socket) -> bool:
        """Whether there is nobody else: the kernel may give an attempt the very port that it wants to connect to."""
        if self.address.family == socket.AF_UNIX:
            return False
        try:
            return bool(sock.getsockname() == sock.getpeername())
        except OSError:  # the peer has gone already: the connection will find out
            return False


def interleaved(addresses: list[InetAddress]) -> list[Address]:
    """Return addresses with the two families by turns, beginning with that of the first; else in their order."""
    first = [address for address in addresses if address.family == addresses[0].family]
    second = [address for address in addresses if address.family != addresses[0].family]
    mixed: list[Address] = []
    for at in range(max(len(first), len(second))):
        mixed += first[at : at + 1] + second[at : at + 1]
    return mixed


def _checked(target: Target) -> Target:
    """Refuse what is no target."""
    if isinstance(target, UnixAddress) and target.is_unnamed:
        raise ValueError("Connector: nobody can be at a Unix address without a name")
    if isinstance(target, (InetAddress, UnixAddress)):
        return target
    if isinstance(target, tuple) and len(target) == 2 and isinstance(target[0], str):
        InetAddress.any(target[1])  # raises if the port is none
        return target
    raise TypeError(f"an InetAddress, a UnixAddress or (host, port) is required, got {target!r}")
