"""Ties acceptor, loops and connections together: muduo's ``TcpServer``.

The base loop accepts and keeps the table of connections; each connection lives on one of the pool's loops, dealt out
in turn, or on the base loop if there are no threads. A connection that ends hops twice: from its own loop to the
base loop, which takes it out of the table, and back, where ``connect_destroyed`` closes the descriptor.
"""

from __future__ import annotations

import logging
import math
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

from pymuduo import _sys, inet_address
from pymuduo.acceptor import Acceptor
from pymuduo.event_loop import EventLoop
from pymuduo.event_loop_thread_pool import EventLoopThreadPool
from pymuduo.inet_address import InetAddress
from pymuduo.tcp_connection import TcpConnection

if TYPE_CHECKING:
    from types import TracebackType

    from pymuduo.buffer import Buffer
    from pymuduo.callbacks import (
        CloseCallback,
        ConnectionCallback,
        HighWaterMarkCallback,
        MessageCallback,
        ThreadInitCallback,
        WriteCompleteCallback,
    )
    from pymuduo.timer_queue import Timer
    from pymuduo.timestamp import Timestamp

_log = logging.getLogger("pymuduo.tcp_server")

_HIGH_WATER_MARK = 64 * 1024 * 1024
_CLOSE_PATIENCE_S = 10.0  # how long a loop that is being closed waits for this server's threads


class TcpServer:
    """Listens on an address and serves its connections on ``thread_num`` loops.

    Set the callbacks, then ``start``. They are given to each new connection (see ``TcpConnection`` for what they
    get); one set later, in the base loop's thread, holds for later connections. A started server lives as long as its
    loop, referenced or not.

    Args:
        loop: the base loop, which accepts.
        address: where to listen; port 0 lets the kernel choose, and ``address`` then tells.
        name: for connection names and logs.
        reuse_port: several servers, in this process or others, share the port (``SO_REUSEPORT``).
        no_delay: small answers leave at once (``TCP_NODELAY``). On by default, unlike in muduo: output is
            coalesced here already, so the kernel's waiting for more would only add delay.

    Attributes:
        loop, name, address: as given, but with the real port. They never change.
        thread_pool: the I/O loops (``EventLoopThreadPool``).
        connection_callback, message_callback, write_complete_callback, high_water_mark_callback, close_callback: given
            to each new connection. Unset, connections are logged (level DEBUG) and input is dropped.
        thread_init_callback: called with each I/O loop, in its thread, before connections arrive.
        high_water_mark: bytes, for new connections.
        context: yours; the library does not touch it.

    Raises:
        OSError: the address can't be bound (in use, not allowed, not this machine's).

    muduo: ``TcpServer``.
    """

    __slots__ = (
        "__weakref__",
        "_acceptor",
        "_close_hook",
        "_connections",
        "_drain_deadline",
        "_drain_timer",
        "_name_prefix",
        "_next_number",
        "_start_requested",
        "_state_lock",
        "_stop_requested",
        "_stopped",
        "_stopping",
        "_threads_ending",
        "address",
        "close_callback",
        "connection_callback",
        "context",
        "high_water_mark",
        "high_water_mark_callback",
        "loop",
        "message_callback",
        "name",
        "thread_init_callback",
        "thread_pool",
        "write_complete_callback",
    )

    def __init__(
        self,
        loop: EventLoop,
        address: InetAddress,
        name: str,
        *,
        reuse_port: bool = False,
        no_delay: bool = True,
    ) -> None:
        if not isinstance(name, str):
            raise TypeError(f"TcpServer name must be a str, got {name!r}")
        if not isinstance(loop, EventLoop):
            raise TypeError(f"TcpServer loop must be an EventLoop, got {loop!r}")
        if not isinstance(address, InetAddress):
            raise TypeError(f"TcpServer address must be an InetAddress, got {address!r}")
        self.loop = loop
        self.name = name
        self.context: Any = None
        self.connection_callback: ConnectionCallback | None = log_connection
        self.message_callback: MessageCallback | None = discard_message
        self.write_complete_callback: WriteCompleteCallback | None = None
        self.high_water_mark_callback: HighWaterMarkCallback | None = None
        self.high_water_mark = _HIGH_WATER_MARK
        self.close_callback: CloseCallback | None = None
        self.thread_init_callback: ThreadInitCallback | None = None
        self._acceptor = Acceptor(loop, address, reuse_port=reuse_port, no_delay=no_delay)
        self._acceptor.new_connection_callback = self._new_connection
        self.address = self._acceptor.address
        self.thread_pool = EventLoopThreadPool(loop, name)
        self._connections: dict[int, TcpConnection] = {}
        self._name_prefix = f"{name}-{self.address.ip_port}"
        self._next_number = 1
        self._state_lock = threading.RLock()  # re-entrant: a signal handler may stop what this thread is starting
        self._start_requested = False
        self._stop_requested = False
        self._stopping = False  # the base loop's view: the acceptor is closed
        self._threads_ending = False
        self._stopped = threading.Event()
        self._drain_timer: Timer | None = None
        self._drain_deadline = math.inf
        # The loop ends the server when it is closed, but does not keep one that was never started.
        reference = weakref.ref(self)

        def close_with_loop() -> None:
            server = reference()
            if server is not None:
                server._close_with_loop()

        self._close_hook = close_with_loop
        loop.run_in_loop(loop.call_at_close, close_with_loop)

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

    def stop(self, drain_s: float = 5.0) -> None:
        """Stop accepting, end every connection, then end the threads; from any thread, returns at once.

        Every connection is shut down: what was sent to it leaves, then FIN, and the peer has *drain_s* seconds to
        finish and close; what is left by then is closed by force. Until then messages still arrive, but ``send``
        returns False. ``stop(0)`` closes by force at once. A second stop can only shorten the time. ``join`` waits
        for the end.

        Raises:
            ValueError: *drain_s* is negative or not a number.
        """
        if not drain_s >= 0:
            raise ValueError(f"stop: drain_s must be 0 or more seconds, got {drain_s}")
        with self._state_lock:
            self._stop_requested = True
        if self._stopped.is_set():
            return
        if not self.loop.post(self._stop_in_loop, (drain_s,)) and self.loop.is_closed:
            self._stopped.set()  # the loop has ended the server, or the server has never begun

    def join(self, timeout: float | None = None) -> bool:
        """Wait until a ``stop`` is complete; False if that takes more than *timeout* seconds.

        From any thread but those of this server's I/O loops. In the base loop's own thread, if the loop is not
        running, it is run for as long as needed: until somebody stops the server.

        Raises:
            RuntimeError: called inside a callback of one of the server's loops, which would wait for itself.
        """
        if any(loop.is_in_loop_thread() for loop in self.thread_pool.loops() if loop is not self.loop):
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
            self._acceptor.listen()
        except BaseException:
            self.stop(0)  # half a server is none
            raise
        _log.info("%s listens on %s, %d threads", self.name, self.address, self.thread_num)

    def _new_connection(self, fd: int, peer: InetAddress) -> None:
        io_loop = self.thread_pool.next_loop()
        local = self.address
        if local.is_any:
            of_this_one = _sys.local_address(fd)
            if of_this_one is not None:
                local = inet_address.from_kernel(of_this_one)
        connection = TcpConnection(io_loop, self._name_prefix, fd, local, peer, self._next_number)
        connection.connection_callback = self.connection_callback
        connection.message_callback = self.message_callback
        connection.write_complete_callback = self.write_complete_callback
        connection.high_water_mark_callback = self.high_water_mark_callback
        connection.high_water_mark = self.high_water_mark
        connection.close_callback = self.close_callback
        connection.set_owner(self)
        self._connections[self._next_number] = connection
        self._next_number += 1
        if io_loop is self.loop:
            connection.connect_established()
        elif not io_loop.post(connection.connect_established, ()):
            _log.error("%s: its loop %r has ended; closed", connection.name, io_loop)
            self._discard(connection)

    def _discard(self, connection: TcpConnection) -> None:
        """Drop a connection that never reached its loop, or whose loop has gone before it could end."""
        connection.discard()
        self._forget_connection(connection)

    def remove_connection(self, connection: TcpConnection) -> None:
        """Forget a connection that has ended; the connection calls this in its own loop."""
        if self.loop.is_in_loop_thread():
            self._remove_in_loop(connection)
        elif not self.loop.post(self._remove_in_loop, (connection,)):
            connection.connect_destroyed()  # the base loop is gone: nobody keeps a table any more

    def _remove_in_loop(self, connection: TcpConnection) -> None:
        self._forget_connection(connection)
        # Queued, because this may be inside one of the connection's own handlers.
        connection.loop.post(connection.connect_destroyed, ())

    def _forget_connection(self, connection: TcpConnection) -> None:
        self._connections.pop(connection.number, None)
        if self._stopping and not self._connections:
            self._end_threads()

    # --- stopping ---

    def _stop_in_loop(self, drain_s: float) -> None:
        if self._threads_ending:
            return
        self._stopping = True
        self._acceptor.close()
        now = time.monotonic()
        self._drain_deadline = min(self._drain_deadline, now + drain_s)
        drain_s = max(0.0, self._drain_deadline - now)
        for connection in self._connections.copy().values():
            if connection.loop.is_closed:
                self._discard(connection)  # it came when its loop had just ended
            elif drain_s > 0:
                connection.shutdown()
            else:
                connection.force_close()
        if self._drain_timer is not None:
            self._drain_timer.cancel()
            self._drain_timer = None
        if not self._connections:
            self._end_threads()
        elif drain_s > 0:
            self._drain_timer = self.loop.run_after(drain_s, self._stop_in_loop, 0.0)

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
        _log.info("%s on %s stopped", self.name, self.address)
        self._stopped.set()

    def _run_until_stopped(self, timeout: float | None) -> None:
        """Run the base loop, which is ours and idle, until the stop is complete."""
        expired = False

        def expire() -> None:
            nonlocal expired
            expired = True
            self.loop.quit()

        timer = None if timeout is None else self.loop.run_after(timeout, expire)
        watch = self.loop.run_every(0.001, self._quit_if_stopped)
        try:
            while not expired and not self._stopped.is_set():
                self.loop.run()
        finally:
            watch.cancel()
            if timer is not None:
                timer.cancel()

    def _quit_if_stopped(self) -> None:
        if self._stopped.is_set():
            self.loop.quit()

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
