"""Ties acceptor, loops and connections together: muduo's ``TcpServer``.

The base loop accepts and keeps the table of connections; each connection lives on one of the pool's loops, dealt out
in turn, or on the base loop if there are no threads. A connection that ends hops twice: from its own loop to the
base loop, which takes it out of the table, and back, where ``connect_destroyed`` closes the descriptor.
"""

from __future__ import annotations

import logging
import math
import operator
import ssl
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

from pymuduo import _sys, inet_address
from pymuduo.acceptor import Acceptor
from pymuduo.connection_source import ConnectionSource
from pymuduo.event_loop import EventLoop
from pymuduo.event_loop_thread_pool import EventLoopThreadPool
from pymuduo.inet_address import InetAddress
from pymuduo.proxy_protocol import ProxyLayer
from pymuduo.tcp_connection import ConnectionState, TcpConnection
from pymuduo.tls import HANDSHAKE_TIMEOUT_S, TlsLayer
from pymuduo.unix_address import UnixAddress

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from pymuduo.buffer import Buffer
    from pymuduo.callbacks import (
        Address,
        HandshakeFailedCallback,
        ThreadInitCallback,
    )
    from pymuduo.connection_limits import ConnectionLimits
    from pymuduo.layer import Layer
    from pymuduo.proxy_protocol import ProxyProtocol
    from pymuduo.socket import Socket
    from pymuduo.timer_queue import Timer
    from pymuduo.timestamp import Timestamp

_log = logging.getLogger("pymuduo.tcp_server")

_CONNECTING = ConnectionState.CONNECTING
_CLOSE_PATIENCE_S = 10.0  # how long a loop that is being closed waits for this server's threads
# As in ``connection_source``: what another thread may be setting is read behind its lock.
_entrance_of = operator.attrgetter("limits", "ssl_context", "proxy_protocol")
_welcome_of = operator.attrgetter("limits", "idle_timeouts")
_handshake_failed_callback_of = operator.attrgetter("handshake_failed_callback")


class ServerStats(NamedTuple):
    """What a server has done since it was made, and has at this moment (``TcpServer.stats``).

    Attributes:
        connections: of this moment, those that are coming up included.
        accepted: connections so far. refused: turned away by ``limits``. failed: ended before they were up, in a TLS
            handshake or PROXY header.
        bytes_received, bytes_sent, messages_received, messages_sent: of all connections so far, as they count them.
    """

    connections: int
    accepted: int
    refused: int
    failed: int
    bytes_received: int
    bytes_sent: int
    messages_received: int
    messages_sent: int


class TcpServer(ConnectionSource):
    """Listens on an address and serves its connections on ``thread_num`` loops.

    Set the callbacks, then ``start``. They are given to each new connection (see ``TcpConnection`` for what they
    get); one set later, in the base loop's thread, holds for later connections. A started server lives as long as its
    loop, referenced or not.

    Args:
        loop: the base loop, which accepts.
        address: where to listen, an InetAddress or UnixAddress; port 0 lets the kernel choose, and ``address`` then
            tells. None with *listening*.
        name: for connection names and logs.
        reuse_port: several servers, in this process or others, share the port (``SO_REUSEPORT``).
        no_delay: small answers leave at once (``TCP_NODELAY``). On by default, unlike in muduo: output is
            coalesced here already, so the kernel's waiting for more would only add delay.
        ssl_context: serve TLS with it; made with ``ssl.PROTOCOL_TLS_SERVER``, its certificate loaded.
        listening: a socket that is bound, and perhaps listens, already (from systemd, a parent or a predecessor: see
            ``inherited_sockets``); the server owns it from now on.
        acceptors: ``"one"``: the base loop accepts and deals out. ``"per-loop"``: each I/O loop accepts for itself, on
            a listening socket of its own; the kernel deals out (``SO_REUSEPORT``). For when the base loop is the
            bottleneck: very many short connections.
        unix_mode: the permissions of a Unix socket's file, such as ``0o660``; None: what the umask leaves.

    Attributes:
        loop, name, address: as given, but with the real port. They never change.
        thread_pool: the I/O loops (``EventLoopThreadPool``).
        connection_callback, message_callback, write_complete_callback, high_water_mark_callback, close_callback: given
            to each new connection. Unset, connections are logged (level DEBUG) and input is dropped.
        thread_init_callback: called with each I/O loop, in its thread, before connections arrive.
        low_water_mark_callback, peer_shutdown_callback, high_water_mark, low_water_mark, max_output_bytes: given to
            each new connection as well.
        ssl_context: as given. handshake_timeout_s: how long a TLS handshake may take (10 s).
        handshake_failed_callback: ``(connection, error)`` in the connection's loop when one ended before it was up:
            no TLS, a wrong certificate, a broken PROXY header, a time-out. Unset: it is logged (INFO).
        proxy_protocol: a ``ProxyProtocol``: peers begin with a header that says who the client is.
        limits: ``ConnectionLimits``: how many connections, how many from one address, how fast.
        idle_timeouts: ``IdleTimeouts``: what is idle for too long is closed.
        context: yours; the library does not touch it.

    Raises:
        OSError: the address can't be bound (in use, not allowed, not this machine's).
        ValueError: *acceptors* is neither; or ``"per-loop"`` with a Unix or inherited socket.

    muduo: ``TcpServer``.
    """

    __slots__ = (
        "__weakref__",
        "_accepted",
        "_acceptor",
        "_awaited",
        "_bytes_received",
        "_bytes_sent",
        "_close_hook",
        "_connections",
        "_drain_deadline",
        "_drain_timer",
        "_failed",
        "_grace_deadline",
        "_guests",
        "_is_inherited",
        "_loop_acceptors",
        "_messages_received",
        "_messages_sent",
        "_name_prefix",
        "_next_number",
        "_no_delay",
        "_number_lock",
        "_refused",
        "_socket_closings",
        "_start_requested",
        "_state_lock",
        "_stop_requested",
        "_stopped",
        "_stopping",
        "_threads_ending",
        "acceptors",
        "address",
        "context",
        "handshake_failed_callback",
        "handshake_timeout_s",
        "limits",
        "loop",
        "name",
        "proxy_protocol",
        "ssl_context",
        "thread_init_callback",
        "thread_pool",
    )

    def __init__(  # noqa: PLR0915  # one statement for each attribute
        self,
        loop: EventLoop,
        address: Address | None,
        name: str,
        *,
        reuse_port: bool = False,
        no_delay: bool = True,
        ssl_context: ssl.SSLContext | None = None,
        listening: Socket | None = None,
        acceptors: str = "one",
        unix_mode: int | None = None,
    ) -> None:
        if not isinstance(name, str):
            raise TypeError(f"TcpServer name must be a str, got {name!r}")
        if not isinstance(loop, EventLoop):
            raise TypeError(f"TcpServer loop must be an EventLoop, got {loop!r}")
        if listening is None and not isinstance(address, (InetAddress, UnixAddress)):
            raise TypeError(f"TcpServer address must be an InetAddress or UnixAddress, got {address!r}")
        if ssl_context is not None and ssl_context.protocol == ssl.PROTOCOL_TLS_CLIENT:
            raise ValueError("TcpServer ssl_context is a client's: make it with ssl.PROTOCOL_TLS_SERVER")
        if acceptors not in {"one", "per-loop"}:
            raise ValueError(f'TcpServer acceptors must be "one" or "per-loop", got {acceptors!r}')
        if acceptors == "per-loop" and (listening is not None or not isinstance(address, InetAddress)):
            raise ValueError(f"TcpServer: per-loop acceptors need sockets of their own, not {listening or address!r}")
        ConnectionSource.__init__(self)
        self.loop = loop
        self.name = name
        self.context: Any = None
        self.connection_callback = log_connection
        self.message_callback = discard_message
        self.ssl_context = ssl_context
        self.handshake_timeout_s = HANDSHAKE_TIMEOUT_S
        self.handshake_failed_callback: HandshakeFailedCallback | None = None
        self.proxy_protocol: ProxyProtocol | None = None
        self.limits: ConnectionLimits | None = None
        self.thread_init_callback: ThreadInitCallback | None = None
        self.acceptors = acceptors
        self._no_delay = no_delay
        self._is_inherited = listening is not None
        self._acceptor = Acceptor(
            loop,
            address,
            reuse_port=reuse_port or acceptors == "per-loop",
            no_delay=no_delay,
            listening=listening,
            unix_mode=unix_mode,
        )
        self._acceptor.new_connection_callback = self._new_connection
        self._loop_acceptors: list[Acceptor] = []
        self.address = self._acceptor.address
        self.thread_pool = EventLoopThreadPool(loop, name)
        self._connections: dict[int, TcpConnection] = {}
        # Whom the limits count, and which: they may be replaced. By their connection's number.
        self._guests: dict[int, tuple[ConnectionLimits, Address]] = {}
        self._name_prefix = f"{name}-{self.address}"
        self._next_number = 1
        self._number_lock = threading.RLock()  # re-entrant: a signal handler may ask for stats
        self._begin_counting()
        self._state_lock = threading.RLock()  # re-entrant: a signal handler may stop what this thread is starting
        self._start_requested = False
        self._stop_requested = False
        self._stopping = False  # the base loop's view: the acceptor is closed
        self._threads_ending = False
        self._stopped = threading.Event()
        self._awaited = False  # somebody runs the base loop until the stop is complete
        self._socket_closings = 0  # listening sockets of other loops that are still to be closed
        self._drain_timer: Timer | None = None
        self._grace_deadline = math.inf
        self._drain_deadline = math.inf
        # The loop ends the server when it is closed, but does not keep one that was never started.
        reference = weakref.ref(self)

        def close_with_loop() -> None:
            server = reference()
            if server is not None:
                server._close_with_loop()

        self._close_hook = close_with_loop
        loop.run_in_loop(loop.call_at_close, close_with_loop)

    def _begin_counting(self) -> None:
        self._accepted = 0
        self._refused = 0
        self._failed = 0
        # Of connections that have ended.
        self._bytes_received = 0
        self._bytes_sent = 0
        self._messages_received = 0
        self._messages_sent = 0

    # --- what it is ---

    @property
    def thread_num(self) -> int:
        """How many threads serve connections; 0, the default: the base loop does it all. Set it before ``start``.

        Raises:
            RuntimeError: set after ``start``. ValueError: negative.
        """
        return int(self.thread_pool.thread_num)

    @thread_num.setter
    def thread_num(self, thread_num: int) -> None:
        self.thread_pool.thread_num = thread_num

    @property
    def connections(self) -> tuple[TcpConnection, ...]:
        """The connections of this moment, oldest first; from any thread.

        Copying a dict is one atomic step, so this is safe without the base loop's help; but a connection may come
        or go while you look at the copy.
        """
        return tuple(self._connections.copy().values())

    @property
    def connection_count(self) -> int:
        """How many connections there are at this moment; from any thread."""
        return len(self._connections)

    @property
    def is_started(self) -> bool:
        """Whether ``start`` has been called; from any thread."""
        return self._start_requested

    def stats(self) -> ServerStats:
        """Return counters; from any thread. Looks at every connection, so ask now and then, not all the time.

        What connections on other loops have done in the last moments may be missing; nothing is counted twice.
        """
        with self._number_lock:  # a connection that ends takes what it has counted over, into the sums, at once
            connections = self.connections
            of_the_ended = (self._bytes_received, self._bytes_sent, self._messages_received, self._messages_sent)
        bytes_received, bytes_sent, messages_received, messages_sent = of_the_ended
        return ServerStats(
            connections=len(connections),
            accepted=self._accepted,
            refused=self._refused,
            failed=self._failed,
            bytes_received=bytes_received + sum([c.bytes_received for c in connections]),
            bytes_sent=bytes_sent + sum([c.bytes_sent for c in connections]),
            messages_received=messages_received + sum([c.messages_received for c in connections]),
            messages_sent=messages_sent + sum([c.messages_sent for c in connections]),
        )

    @property
    def is_stopping(self) -> bool:
        """Whether ``stop`` has been called; from any thread. A keep-alive protocol then ends after its next answer."""
        return self._stop_requested

    @property
    def is_stopped(self) -> bool:
        """Whether a ``stop`` is complete; from any thread."""
        return bool(self._stopped.is_set())

    # --- doors: from any thread ---

    def start(self) -> None:
        """Start the threads and begin to accept; once, however often it is called, from any thread.

        In another thread than the base loop's it returns before the server listens, and what goes wrong then is
        logged. A server that can't start is stopped.

        Raises:
            OSError: the socket can't listen.
            RuntimeError: the server was stopped.
        """
        with self._state_lock:
            if self._stop_requested:
                raise RuntimeError(f"{self!r} was stopped: make a new server")
            if self._start_requested:
                return
            self._start_requested = True
        self.loop.run_in_loop(self._start_in_loop)

    def stop(self, drain_s: float = 5.0, *, grace_s: float = 0.0) -> None:
        """Stop accepting, end every connection, then end the threads; from any thread, returns at once.

        For *grace_s* seconds the connections that are there go on as before, so that requests under way are answered
        and peers leave by themselves. Then every connection is shut down: what was sent to it leaves, then FIN, and
        the peer has *drain_s* seconds to finish and close; what is left by then is closed by force. While it drains,
        messages still arrive, but ``send`` returns False. ``stop(0)`` closes by force at once. A second stop can only
        shorten the times. The server has stopped as soon as no connection is left; ``join`` waits for that.

        Peers that the kernel has connected but the server has not accepted yet are accepted first, so that they too
        are served; those of an inherited socket are left to the others who listen on it.

        Raises:
            ValueError: *drain_s* or *grace_s* is negative or not a number.
        """
        if not drain_s >= 0:
            raise ValueError(f"stop: drain_s must be 0 or more seconds, got {drain_s}")
        if not grace_s >= 0:
            raise ValueError(f"stop: grace_s must be 0 or more seconds, got {grace_s}")
        with self._state_lock:
            self._stop_requested = True
        if self._stopped.is_set():
            return
        if not self.loop.post(self._stop_in_loop, (drain_s, grace_s)) and self.loop.is_closed:
            self._stopped.set()  # the loop has ended the server, or the server has never begun

    def join(self, timeout: float | None = None) -> bool:
        """Wait until a ``stop`` is complete; False if that takes more than *timeout* seconds.

        From any thread but those of this server's I/O loops. In the base loop's own thread, if the loop is not
        running, it is run for as long as needed: until somebody stops the server.

        Raises:
            RuntimeError: called inside a callback of one of the server's loops, which would wait for itself.
        """
        for loop in self.thread_pool.loops():
            if loop is not self.loop and loop.is_in_loop_thread():
                raise RuntimeError(f"join of {self!r} in one of its own I/O threads would never end")
        deadline = None if timeout is None else time.monotonic() + timeout
        if not self.loop.is_in_loop_thread():
            self._stopped.wait(timeout)
        elif not self._stopped.is_set():
            if self.loop.is_running:
                raise RuntimeError(f"join of {self!r} in a callback of its base loop would never end")
            self._run_until_stopped(timeout)
        if not self._stopped.is_set():
            return False
        return bool(self.thread_pool.join(None if deadline is None else max(0.0, deadline - time.monotonic())))

    # --- in the base loop ---

    def _start_in_loop(self) -> None:
        if self._stop_requested:
            return
        try:
            self.thread_pool.start(self.thread_init_callback)
            if self.acceptors == "per-loop" and self.thread_num > 0:
                self._start_acceptors()
            else:
                self._acceptor.listen()
        except BaseException:
            self.stop(0)  # half a server is none
            raise
        _log.info("%s listens on %s, %d threads", self.name, self.address, self.thread_num)

    def _start_acceptors(self) -> None:
        """Let every I/O loop listen for itself. The first socket, which does not listen, keeps the port."""
        for loop in self.thread_pool.loops():
            acceptor = Acceptor(loop, self.address, reuse_port=True, no_delay=self._no_delay)
            self._loop_acceptors.append(acceptor)
            acceptor.new_connection_callback = self._new_connection_on(loop, acceptor)
            acceptor.socket.listen()  # here: once start() has returned, nobody may be refused
            loop.run_in_loop(self._listen_on, acceptor)

    def _listen_on(self, acceptor: Acceptor) -> None:
        try:
            acceptor.listen()
        except OSError as e:
            _log.error("%s: %s", self.name, e)
            self.stop(0)

    # --- new connections: in the loop that accepts ---

    def _new_connection(self, fd: int, peer: Address) -> None:
        self._take_in(fd, peer, self.thread_pool.next_loop(), self._acceptor)

    def _new_connection_on(self, loop: EventLoop, acceptor: Acceptor) -> Callable[[int, Address], object]:
        def new_connection(fd: int, peer: Address) -> None:
            self._take_in(fd, peer, loop, acceptor)

        return new_connection

    def _take_in(self, fd: int, peer: Address, io_loop: EventLoop, acceptor: Acceptor) -> None:
        limits, ssl_context, proxy_protocol = _entrance_of(self)
        try:
            if limits is not None and not self._is_admitted(limits, proxy_protocol is not None, peer, acceptor):
                _sys.close(fd)
                return
            local = self._local_address_of(fd)
        except BaseException:
            _sys.close(fd)  # it is nobody's yet
            raise
        number = self._take_number()
        connection = TcpConnection(io_loop, self._name_prefix, fd, local, peer, number)
        self.equip(connection)
        connection.set_owner(self)
        self._connections[number] = connection
        if limits is not None and proxy_protocol is None:
            self._guests[number] = (limits, peer)
        if ssl_context is not None or proxy_protocol is not None:
            is_queued = io_loop.post(self._establish_in_layers, (connection, ssl_context, proxy_protocol))
        elif io_loop.is_in_loop_thread():
            connection.connect_established()
            is_queued = True
        else:
            is_queued = io_loop.post(connection.connect_established, ())
        if not is_queued:
            _log.error("%s: its loop %r has ended; closed", connection.name, io_loop)
            self._discard(connection)

    def _take_number(self) -> int:
        if self.acceptors == "one":
            self._accepted += 1
            self._next_number += 1
            return self._next_number - 1
        with self._number_lock:  # several loops accept
            self._accepted += 1
            self._next_number += 1
            return self._next_number - 1

    def _is_admitted(self, limits: ConnectionLimits, is_proxied: bool, peer: Address, acceptor: Acceptor) -> bool:
        pause_s = limits.delay_s()
        if pause_s > 0:
            acceptor.pause(pause_s)
        if is_proxied:
            return True  # the client behind the load balancer is counted once it is known
        reason = limits.admit(peer)
        if reason is None:
            return True
        self._note_refused(limits, peer, reason)
        return False

    def _local_address_of(self, fd: int) -> Address:
        if self.address.is_any:
            of_this_one = _sys.local_address(fd)
            if of_this_one is not None:
                return inet_address.from_kernel(of_this_one)  # type: ignore[arg-type]  # a Unix address is not any
        return self.address

    def _note_refused(self, limits: ConnectionLimits, peer: Address, reason: str) -> None:
        with self._number_lock:
            self._refused += 1
        limits.report(self.name, peer, reason)

    # --- new connections: in their own loop ---

    def _establish_in_layers(
        self, connection: TcpConnection, ssl_context: ssl.SSLContext | None, proxy_protocol: ProxyProtocol | None
    ) -> None:
        if connection.state != _CONNECTING:
            return  # closed on its way here
        layer: Layer | None = None
        try:
            if ssl_context is not None:
                layer = TlsLayer(ssl_context, server_side=True, timeout_s=self.handshake_timeout_s)
            if proxy_protocol is not None:
                layer = ProxyLayer(proxy_protocol, layer)
            connection.set_layer(layer)
        except Exception as e:
            connection.fail(e)
            return
        connection.connect_established()

    def welcome(self, connection: TcpConnection) -> bool:
        """See a connection come up; False if the limits refuse it now, as the client that a load balancer named."""
        limits, idle_timeouts = _welcome_of(self)
        if limits is not None and connection.number not in self._guests:
            reason = limits.admit(connection.peer_address)
            if reason is not None:
                self._note_refused(limits, connection.peer_address, reason)
                connection.fail(ConnectionRefusedError(f"refused: {reason}"))
                return False
            self._guests[connection.number] = (limits, connection.peer_address)
        if idle_timeouts is not None:
            idle_timeouts.watch(connection)
        return True

    def _report_failed(self, connection: TcpConnection) -> None:
        with self._number_lock:
            self._failed += 1
        callback = _handshake_failed_callback_of(self)
        if callback is not None:
            try:
                callback(connection, connection.error or ConnectionError("the connection ended before it was up"))
            except Exception as e:
                connection.loop.handle_exception(e, connection)

    # --- the end of a connection ---

    def _discard(self, connection: TcpConnection) -> None:
        """Drop a connection that never reached its loop, or whose loop has gone before it could end."""
        connection.discard()
        self._forget_connection(connection)

    def remove_connection(self, connection: TcpConnection) -> None:
        """Forget a connection that has ended; the connection calls this in its own loop."""
        if connection.error is not None and not connection.was_up:
            self._report_failed(connection)
        if self.loop.is_in_loop_thread():
            self._remove_in_loop(connection)
        elif not self.loop.post(self._remove_in_loop, (connection,)):
            connection.connect_destroyed()  # the base loop is gone: nobody keeps a table any more

    def _remove_in_loop(self, connection: TcpConnection) -> None:
        self._forget_connection(connection)
        # Queued, because this may be inside one of the connection's own handlers.
        connection.loop.post(connection.connect_destroyed, ())

    def _forget_connection(self, connection: TcpConnection) -> None:
        with self._number_lock:
            if self._connections.pop(connection.number, None) is not None:
                self._bytes_received += connection.bytes_received
                self._bytes_sent += connection.bytes_sent
                self._messages_received += connection.messages_received
                self._messages_sent += connection.messages_sent
        if self._guests:
            guest = self._guests.pop(connection.number, None)
            if guest is not None:
                limits, address = guest
                limits.release(address)
        if self._stopping and not self._connections and self._socket_closings == 0:
            self._end_threads()

    # --- stopping ---

    def _stop_in_loop(self, drain_s: float, grace_s: float) -> None:
        if self._threads_ending:
            return
        now = time.monotonic()
        self._grace_deadline = min(self._grace_deadline, now + grace_s)
        self._drain_deadline = min(self._drain_deadline, now + grace_s + drain_s)
        if self._drain_timer is not None:
            self._drain_timer.cancel()
            self._drain_timer = None
        if not self._stopping:
            self._close_acceptors(is_in_a_hurry=grace_s + drain_s == 0)
        if self._socket_closings == 0:
            self._stop_connections()

    def _close_acceptors(self, is_in_a_hurry: bool) -> None:
        """Stop listening, in every loop that does."""
        self._stopping = True
        self._close_acceptor(self._acceptor, is_in_a_hurry)
        for acceptor in self._loop_acceptors:
            self._socket_closings += 1
            if not acceptor.loop.post(self._close_acceptor_in_loop, (acceptor, is_in_a_hurry)):
                self._note_closed(acceptor)
        self._loop_acceptors = []

    def _close_acceptor(self, acceptor: Acceptor, is_in_a_hurry: bool) -> None:
        if not is_in_a_hurry and not self._is_inherited and acceptor.is_listening:
            acceptor.drain_queue()  # closing would reset who is in it
        acceptor.close()

    def _close_acceptor_in_loop(self, acceptor: Acceptor, is_in_a_hurry: bool) -> None:
        self._close_acceptor(acceptor, is_in_a_hurry)
        if not self.loop.post(self._note_closed, (acceptor,)):
            _log.debug("%s: its base loop has ended", self.name)

    def _note_closed(self, acceptor: Acceptor) -> None:
        acceptor.close()  # its loop may have ended before it could
        self._socket_closings -= 1
        if self._socket_closings == 0:
            self._stop_connections()

    def _stop_connections(self) -> None:
        """Do what it is time for: let them go on, shut them down, or close them by force."""
        if self._threads_ending:
            return
        now = time.monotonic()
        grace_s = self._grace_deadline - now
        drain_s = self._drain_deadline - now
        for connection in self._connections.copy().values():
            if connection.loop.is_closed:
                self._discard(connection)  # it came when its loop had just ended
            elif drain_s <= 0:
                connection.force_close()
            elif grace_s <= 0:
                connection.shutdown()
        if not self._connections:
            self._end_threads()
        elif drain_s > 0:
            self._drain_timer = self.loop.run_after(grace_s if grace_s > 0 else drain_s, self._stop_connections)

    def _end_threads(self) -> None:
        if not self._threads_ending:
            self._threads_ending = True
            if self._drain_timer is not None:
                self._drain_timer.cancel()
                self._drain_timer = None
            self.thread_pool.quit(self._note_stopped)

    def _note_stopped(self) -> None:
        if self.loop.is_in_loop_thread():
            self.loop.forget_at_close(self._close_hook)
        if self._start_requested:
            _log.info("%s on %s stopped", self.name, self.address)
        self._stopped.set()
        if self._awaited:
            self.loop.quit()

    def _run_until_stopped(self, timeout: float | None) -> None:
        """Run the base loop, which is ours and idle, until the stop is complete."""
        expired = False

        def expire() -> None:
            nonlocal expired
            expired = True
            self.loop.quit()

        timer = None if timeout is None else self.loop.run_after(timeout, expire)
        self._awaited = True
        try:
            while not expired and not self._stopped.is_set():
                self.loop.run()
        finally:
            self._awaited = False
            if timer is not None:
                timer.cancel()

    def _close_with_loop(self) -> None:
        """Stop because the base loop is being closed."""
        self.stop(0)
        if not self._stopped.is_set():
            self._run_until_stopped(_CLOSE_PATIENCE_S)
        if not self._stopped.is_set():
            _log.error("%r: threads still busy %g s after their loops were told to end", self, _CLOSE_PATIENCE_S)

    # --- the object itself ---

    def __enter__(self) -> TcpServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop(0)
        self.join()

    def __del__(self) -> None:
        # Never started, or it would have lived until it has stopped. (A constructor that raised has left no hook.)
        if getattr(self, "_close_hook", None) is not None and not self._stopped.is_set():
            self.loop.post(self.loop.forget_at_close, (self._close_hook,))

    def __repr__(self) -> str:
        if self._stopped.is_set():
            state = "stopped"
        elif self._stop_requested:
            state = "stopping"
        else:
            state = "started" if self._start_requested else "new"
        return f"<TcpServer {self.name!r} {self.address} {state}, {len(self._connections)} connections>"


def log_connection(connection: TcpConnection) -> None:
    """Log that a connection came up or went down; the connection callback unless you set one."""
    if _log.isEnabledFor(logging.DEBUG):  # the name is joined only when somebody asks for it
        _log.debug("%s -> %s is %s", connection.peer_address, connection.name, "UP" if connection.connected else "DOWN")


def discard_message(connection: TcpConnection, buffer: Buffer, receive_time: Timestamp) -> None:
    """Drop what was received; the message callback unless you set one."""
    buffer.retrieve_all()
