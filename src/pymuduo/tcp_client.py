"""One connection to a server, made anew when it is lost if you wish: muduo's ``TcpClient``.

All state belongs to the loop's thread; the doors hop there. While a client is connecting, waiting to try again or
connected, its loop keeps it, referenced or not; so nothing that is under way can meet a client that is gone. A client
that does nothing is kept by nobody, and may be dropped in any thread: there is nothing to clean up.

==============  =======================================  ========================================================
what there is   what leads on                            to
==============  =======================================  ========================================================
nothing         ``connect``                              a connector at work
connector       it connects                              a connection (with TLS: in its handshake, then up)
connector       it fails and does not retry              nothing; failed callback
connector       ``stop``, ``disconnect``                 nothing
connection      its handshake fails                      connector, if it retries, else nothing; failed callback
connection      it was up and has ended                  connector, if it retries or ``connect`` was called since
                                                         ``disconnect`` or since it went down; else nothing
any             ``close``                                nothing, for good
==============  =======================================  ========================================================
"""

from __future__ import annotations

import logging
import sys
import time
from typing import TYPE_CHECKING, Any

from pymuduo import _sys, connector, inet_address
from pymuduo.connection_source import ConnectionSource
from pymuduo.connector import Connector, ConnectorState
from pymuduo.event_loop import EventLoop
from pymuduo.inet_address import InetAddress
from pymuduo.tcp_connection import TcpConnection
from pymuduo.tls import HANDSHAKE_TIMEOUT_S, TlsLayer
from pymuduo.unix_address import UnixAddress

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable
    from types import TracebackType

    from pymuduo.callbacks import Address, ConnectFailedCallback, Target
    from pymuduo.resolver import Resolver

_log = logging.getLogger("pymuduo.tcp_client")

# Older CPythons lose six kilobytes whenever a TLS connection is asked for its session.
_SESSIONS_LEAK = sys.version_info < (3, 12, 8) or (3, 13) <= sys.version_info < (3, 13, 1)


class TcpClient(ConnectionSource):
    """Connects to a server and calls back as a server's connections do.

    Set the callbacks, then ``connect``. A client that is connecting or connected lives as long as its loop,
    referenced or not: end it with ``close``, or by leaving its ``with`` block. Closing the loop ends it too. It may be
    made in any thread. No callback runs inside ``connect``, ``disconnect``, ``stop`` or ``close``.

    Args:
        loop: where the connection lives.
        target: an InetAddress, a UnixAddress, or ``(host name, port)``. A name is looked up beside the loop, anew for
            each attempt, and its IPv6 and IPv4 addresses are tried side by side (see ``Connector``).
        name: for the connection's name and logs.
        retry: try again, with back-off, when connecting fails, and connect again when an established connection has
            gone down. Without it there is one attempt.
        connect_timeout_s: for one attempt, the look-up included.
        retry_delay_s, max_retry_delay_s, jitter: the back-off: the first, which doubles up to the second; and whether
            it is blurred, so that many clients do not come back at the same moment.
        no_delay: small segments leave at once (``TCP_NODELAY``).
        ssl_context: speak TLS with it. server_hostname: the name that the certificate must have, and that is sent as
            SNI; the target's host unless given. handshake_timeout_s: for the TLS handshake.
        resolver: looks names up; ``Resolver.default()`` unless given.

    Attributes:
        loop, name, target: as given; they never change. retry: may be changed in the loop's thread.
        connection_callback, message_callback, write_complete_callback, high_water_mark_callback,
        low_water_mark_callback, peer_shutdown_callback, close_callback, high_water_mark, low_water_mark,
        max_output_bytes: given to each new connection (see ``TcpConnection``).
        connect_failed_callback: ``(client, error)`` in the loop's thread whenever an attempt has failed: most often an
            OSError (refused, timed out, no such name, no descriptor left, ``ssl.SSLError``). Unset: it is logged
            (WARNING).
        idle_timeouts: ``IdleTimeouts``: a connection that is idle for too long is closed.
        context: yours; the library does not touch it.

    Raises:
        TypeError: *target* is none. ValueError: a number makes no sense; or TLS has no host name to check.

    muduo: ``TcpClient``.
    """

    def __init__(
        self,
        loop: EventLoop,
        target: Target,
        name: str,
        *,
        retry: bool = False,
        connect_timeout_s: float = connector.CONNECT_TIMEOUT_S,
        retry_delay_s: float = connector.RETRY_DELAY_S,
        max_retry_delay_s: float = connector.MAX_RETRY_DELAY_S,
        jitter: bool = False,
        no_delay: bool = True,
        ssl_context: ssl.SSLContext | None = None,
        server_hostname: str | None = None,
        handshake_timeout_s: float = HANDSHAKE_TIMEOUT_S,
        resolver: Resolver | None = None,
    ) -> None:
        if not isinstance(loop, EventLoop):
            raise TypeError(f"TcpClient loop must be an EventLoop, got {loop!r}")
        ConnectionSource.__init__(self)
        self.loop = loop
        self.name = name
        self.target = target
        self.context: Any = None
        self.connect_failed_callback: ConnectFailedCallback | None = None
        self.ssl_context = ssl_context
        self.handshake_timeout_s = handshake_timeout_s
        self.server_hostname = server_hostname
        self._connector = Connector(
            loop,
            target,
            connect_timeout_s=connect_timeout_s,
            retry=retry,
            retry_delay_s=retry_delay_s,
            max_retry_delay_s=max_retry_delay_s,
            jitter=jitter,
            no_delay=no_delay,
            resolver=resolver,
        )
        if ssl_context is not None and server_hostname is None:
            self.server_hostname = _host_of(target)
            if self.server_hostname is None and ssl_context.check_hostname:
                raise ValueError(f"TcpClient: TLS to {target} needs server_hostname, to check the certificate against")
        self._connector.new_connection_callback = self._take_connection
        self._connector.failed_callback = self._report_failure
        self._connection: TcpConnection | None = None  # coming up, up, or going down
        self._is_wanted = False  # connect was called, and nothing since that takes it back
        self._is_ending = False  # the connection that is there, by disconnect or stop
        self._is_wanted_again = False  # connect was called while the old connection is ending
        self._is_closed = False
        self._is_kept = False  # by the loop
        self._up_since = 0.0
        self._next_number = 1
        self._session: ssl.SSLSession | None = None

    # --- what it is ---

    @property
    def connection(self) -> TcpConnection | None:
        """The connection if it is up at this moment, else None; from any thread. muduo: ``connection``."""
        connection = self._connection
        return connection if connection is not None and connection.connected else None

    @property
    def retry(self) -> bool:
        """Whether it tries again when connecting fails or the connection is lost. muduo: ``retry``, ``enableRetry``."""
        return self._connector.retry

    @retry.setter
    def retry(self, retry: bool) -> None:
        self._connector.retry = retry

    # --- doors: from any thread ---

    def connect(self) -> None:
        """Begin to connect; returns at once. No effect while it is connecting or connected.

        While a connection is ending (after ``disconnect``, or in its connection callback for down) it connects again as
        soon as that is gone.

        Raises:
            RuntimeError: the loop, or the client, is closed.
        """
        if self._is_closed:
            raise RuntimeError(f"{self!r} is closed")
        self.loop.run_in_loop(self._connect_in_loop)

    def disconnect(self) -> None:
        """End the connection in good order: send all, then FIN (see ``TcpConnection.shutdown``); connect no more.

        An attempt that is under way is given up. Harmless at any time.
        """
        self._run(self._disconnect_in_loop)

    def stop(self) -> None:
        """Give up connecting, a TLS handshake included, and connect no more; a connection that is up stays.

        Harmless at any time.
        """
        self._run(self._stop_in_loop)

    def close(self) -> None:
        """End everything by force, for good. No callback begins after it but those of the connection's own end.

        Harmless at any time, and twice.
        """
        self._is_closed = True
        self._run(self._close_in_loop)

    def _run(self, what: Callable[[], object]) -> None:
        if self.loop.is_in_loop_thread():
            what()
        else:
            self.loop.post(what, ())  # a loop that is closed has ended this client

    # --- in the loop ---

    def _connect_in_loop(self) -> None:
        if self._is_closed or not self.loop.is_open:
            return
        connection = self._connection
        self._is_wanted = True
        if connection is None:
            self._keep()
            self._connector.start()
        elif self._is_ending or (connection.was_up and not connection.connected and not self._connector.retry):
            self._is_wanted_again = True

    def _disconnect_in_loop(self) -> None:
        self._stop_in_loop()
        if self._connection is not None:
            self._is_ending = True
            self._connection.shutdown()

    def _stop_in_loop(self) -> None:
        self._is_wanted = False
        self._is_wanted_again = False
        if self._connection is None:
            self._connector.stop()
            self._let_go()
        elif not self._connection.was_up:
            self._is_ending = True
            self._connection.force_close()  # in a handshake: there is nothing to be sent

    def _close_in_loop(self) -> None:
        self._is_closed = True
        self._stop_in_loop()
        if self._connection is not None:
            self._connection.force_close()

    def _take_connection(self, fd: int, address: Address) -> None:
        local = _local_address(fd, address)
        connection = TcpConnection(self.loop, f"{self.name}-{address}", fd, local, address, self._next_number)
        self._next_number += 1
        self.equip(connection)
        connection.set_owner(self)
        self._connection = connection
        self._is_ending = False
        if self.ssl_context is not None:
            try:
                connection.set_layer(
                    TlsLayer(
                        self.ssl_context,
                        server_side=False,
                        server_hostname=self.server_hostname,
                        session=self._session,
                        timeout_s=self.handshake_timeout_s,
                    )
                )
            except Exception as e:
                connection.fail(e)
                return
        connection.connect_established()

    def welcome(self, connection: TcpConnection) -> bool:
        """Note since when the connection is up; False if it is to end before that. It calls this in the loop."""
        self._up_since = time.monotonic()
        if self._is_ending or self._is_closed:
            return False
        if self.idle_timeouts is not None:
            self.idle_timeouts.watch(connection)
        return True

    def remove_connection(self, connection: TcpConnection) -> None:
        """Go on after the end of the connection; it calls this in the loop."""
        # Queued, because this may be inside one of the connection's own handlers.
        self.loop.post(connection.connect_destroyed, ())
        self._connection = None
        self._session = self._session_after(connection)
        if self._is_wanted_again:
            self._is_wanted_again = False
            self._connector.start()
        elif self._is_wanted and not connection.was_up:
            error = connection.error or ConnectionError(f"{connection.name} ended before it was up")
            self._connector.fail(error)  # type: ignore[arg-type]
        elif self._is_wanted and self._connector.retry:
            self._connector.restart(time.monotonic() - self._up_since)
        else:
            self._is_wanted = False
            self._connector.stop()
            self._let_go()

    def _session_after(self, connection: TcpConnection) -> ssl.SSLSession | None:
        """Return what the next connection may resume; what the server did not like is not offered again."""
        tls = connection.ssl_object
        if tls is None or not connection.was_up or self._is_closed:
            return None
        if _SESSIONS_LEAK and self._session is not None and tls.session_reused:
            return self._session  # as good as a new one, as long as the server takes it
        return tls.session

    def _report_failure(self, error: OSError) -> None:
        if self._connector.state is ConnectorState.IDLE:  # it does not try again
            self._is_wanted = False
            self._let_go()
        if self._is_closed:
            return  # in another thread, just now
        if self.connect_failed_callback is None:
            _log.warning("%s: %s", self.name, error)
            return
        try:
            self.connect_failed_callback(self, error)
        except Exception as e:
            self.loop.handle_exception(e, self)

    # --- who keeps it ---

    def _keep(self) -> None:
        """Be ended with the loop, and kept by it until then."""
        if not self._is_kept:
            self._is_kept = True
            self.loop.call_at_close(self.close)

    def _let_go(self) -> None:
        if self._is_kept:
            self._is_kept = False
            self.loop.forget_at_close(self.close)

    def __enter__(self) -> TcpClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        connection = self._connection
        state = self._connector.state.value if connection is None else connection.state.name.lower()
        return f"<TcpClient {self.name!r} to {self._connector} {'closed' if self._is_closed else state}>"


def _local_address(fd: int, peer: Address) -> Address:
    """Return this end's address; one that connects to a Unix socket has none."""
    if isinstance(peer, UnixAddress):
        return UnixAddress.unnamed()
    address = _sys.local_address(fd)
    return inet_address.from_kernel(address) if isinstance(address, tuple) else InetAddress.any(0)


def _host_of(target: Target) -> str | None:
    """Return the host of a target in words or in numbers; a Unix socket has none."""
    if isinstance(target, tuple):
        return target[0]
    return target.ip if isinstance(target, InetAddress) else None
