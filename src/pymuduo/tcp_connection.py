"""The life of one TCP connection: muduo's ``TcpConnection``.

Owned by its loop's thread. The doors from other threads are ``send``, ``shutdown``, ``force_close``,
``force_close_with_delay``, ``start_read`` and ``stop_read``: each hops into the loop as a functor, behind what the
same thread has queued before, so that bytes sent before a shutdown leave before the FIN.

=============  ================================  ==============================================================
state          what leads on                     to
=============  ================================  ==============================================================
CONNECTING     ``connect_established``           CONNECTED, connection callback (up); with a layer that holds it up
                                                 (a TLS handshake), when ``layer_is_ready`` is called
CONNECTED      ``shutdown``                      DISCONNECTING; FIN once all output is sent
CONNECTED      peer's FIN                        DISCONNECTING until all output is sent, then DISCONNECTED; with a
                                                 peer-shutdown callback it stays CONNECTED
CONNECTED      ``force_close_with_delay``        DISCONNECTING, DISCONNECTED when the time is up
DISCONNECTING  peer's FIN, all output sent       DISCONNECTED
any            reset, error, ``force_close``     DISCONNECTED
DISCONNECTED   (entered once)                    connection callback (down), close callback, then the owner's
                                                 removal and ``connect_destroyed``, which closes the descriptor
=============  ================================  ==============================================================

Sends coalesce: what a connection's own message callback sends leaves with one system call when that callback
returns, what is sent from elsewhere at the end of the iteration, and 64 KiB at once. No callback ever runs inside
``send``: what follows from it is queued.

What is not TCP itself is a piece of its own: TLS, PROXY headers and files are layers (see ``layer``); time-outs,
limits and coupling use the doors and callbacks that everybody has.
"""

from __future__ import annotations

import enum
import errno
import logging
import os
from typing import TYPE_CHECKING, Any, Protocol

from pymuduo import _sys, buffer, socket
from pymuduo.buffer import Buffer
from pymuduo.channel import ERROR_EVENT, PEER_SHUTDOWN_EVENT, READ_EVENT, WRITE_EVENT, BaseChannel, callback_name
from pymuduo.event_loop import Flushable
from pymuduo.output_queue import OutputQueue

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from pymuduo.callbacks import (
        Address,
        BytesLike,
        CloseCallback,
        ConnectionCallback,
        HighWaterMarkCallback,
        LowWaterMarkCallback,
        MessageCallback,
        PeerShutdownCallback,
        WriteCompleteCallback,
    )
    from pymuduo.event_loop import EventLoop
    from pymuduo.layer import Layer
    from pymuduo.send_file import FileRegion
    from pymuduo.socket import PeerCredentials, TcpInfo
    from pymuduo.timer_queue import Timer

_log = logging.getLogger("pymuduo.tcp_connection")

HIGH_WATER_MARK = 64 * 1024 * 1024
LOW_WATER_MARK = HIGH_WATER_MARK // 4
_WRITE_AT_ONCE = 65536  # this much waiting is worth a system call before the callback returns
_WRITE_IN_PLACE = 4096  # a Buffer of this size is not copied to be sent together with others
_MAX_WRITES = 16  # system calls in one flush, so that a fast reader can't shut out the others
# Set once, and read by any thread: by these names, as attributes, which a lock is around without the GIL.
_ERROR_NAME, _PROXY_HEADER_NAME = "error", "proxy_header"
_MAX_LAST_READS = 32  # reads of what a broken connection had received: 8 MiB, more than the kernel keeps


class ConnectionState(enum.IntEnum):
    """Where a connection is in its life. muduo: ``kConnecting`` … ``kDisconnected``."""

    DISCONNECTED = 0
    CONNECTING = 1
    CONNECTED = 2
    DISCONNECTING = 3


_DISCONNECTED, _CONNECTING, _CONNECTED, _DISCONNECTING = 0, 1, 2, 3
_READ, _WRITE, _ERROR, _PEER_SHUTDOWN = READ_EVENT, WRITE_EVENT, ERROR_EVENT, PEER_SHUTDOWN_EVENT
_PEER_LEFT = (errno.ECONNRESET, errno.EPIPE)
_EAGAIN, _EINTR, _ENOMEM, _ENOBUFS = errno.EAGAIN, errno.EINTR, errno.ENOMEM, errno.ENOBUFS
_ENOTCONN = errno.ENOTCONN


class ConnectionOwner(Protocol):
    """Who made a connection, and forgets it when it has ended: a server, or a client."""

    def welcome(self, connection: TcpConnection) -> bool:
        """Hear that the connection is about to come up, in its loop; False if it must not (``fail`` was called)."""
        return True

    def remove_connection(self, connection: TcpConnection) -> None:
        """Forget the connection and see to its ``connect_destroyed``; called once, in the connection's loop."""


class ConnectionChannel(BaseChannel):
    """A channel that calls its connection directly.

    It holds the connection for as long as the loop may call it, so no event can meet an owner that is gone; this
    takes the place of ``tie``. ``connect_destroyed`` lets go; so each handler holds the connection in a local, as a
    callback may destroy it.
    """

    __slots__ = ("_connection",)

    _connection: TcpConnection

    def handle_event(self) -> None:
        """React to what ``revents`` says; the loop does this."""
        connection = self._connection
        if self.revents == _READ and connection._reading and self.events & _READ:
            connection._handle_read()  # the usual case needs none of what follows
        else:
            BaseChannel.handle_event(self)

    def _handle_read(self) -> None:
        connection = self._connection
        if connection._reading and self.events & _READ:
            connection._handle_read()
        else:
            connection._handle_unread_fin()

    def _handle_write(self) -> None:
        connection = self._connection
        connection._handle_write()

    def _handle_close(self) -> None:
        connection = self._connection
        connection._handle_hang_up()

    def _handle_error(self) -> None:
        connection = self._connection
        connection._handle_error()

    def callback_name(self) -> str:
        """Return the message callback's name and the connection's."""
        connection = self._connection
        if connection is None:
            return repr(self)
        return f"{callback_name(connection.message_callback)} for {connection.name}"

    def release(self) -> None:
        """Let go of the connection: the loop will not call again."""
        self._connection = None  # type: ignore[assignment]

    def abandon(self) -> None:
        """Close the connection because its loop is being closed."""
        connection = self._connection
        if connection is not None:
            connection.connect_destroyed()

    def handle_failure(self, exception: BaseException) -> None:
        """Report what came out of the handling of an event, and close the connection."""
        connection = self._connection
        if connection is None:
            super().handle_failure(exception)
        else:
            connection._handle_failure(exception)


class TcpConnection(Flushable):
    """One TCP connection, server's or client's side: bytes in by callback, bytes out by ``send``.

    Servers and clients make connections; user code gets them in its callbacks and may keep them. All callbacks run
    in the loop's thread. Set them before the connection is up, or in that thread.

    Attributes:
        loop: the loop that owns it; never changes.
        connection_callback: ``(connection)``, once when it is up and once when it is down (see ``connected``).
        message_callback: ``(connection, buffer, receive_time)`` when bytes have arrived. Take from the buffer what
            is complete; the rest stays for the next time. Unset: input is dropped.
        write_complete_callback: ``(connection)``, queued whenever all output has gone to the kernel.
        high_water_mark_callback: ``(connection, unsent_bytes)``, queued when the bytes that the kernel would not
            take reach ``high_water_mark`` (bytes, 64 MiB at first); again only after they have fallen below it.
        low_water_mark_callback: ``(connection)``, queued when unsent bytes that had reached the high-water mark have
            fallen to ``low_water_mark`` (bytes, 16 MiB at first) or below.
        max_output_bytes: a limit on unsent bytes; a peer who lets them become more is cut off, with a warning in the
            log. 0, as at first: no limit.
        peer_shutdown_callback: ``(connection)``, queued when the peer has said that it sends no more (FIN, or TLS
            close-notify). Set it to be able to answer afterwards: the connection then stays up until you end it.
            Unset: it ends by itself, once what was sent has left.
        close_callback: ``(connection)``, once, after the connection callback for down.
        context: yours; the library does not touch it.
        error: why the connection ended, or never came up, if that was nobody's wish here: the OSError of a reset, an
            ``ssl.SSLError``, a TimeoutError, a codec's ProtocolError. Else None.
        layer: what stands between it and its socket: a ``TlsLayer``, or None. The loop's thread only.
        proxy_header: what a load balancer said of the client (``ProxyHeader``), or None.
        bytes_received, bytes_sent: of payload, from and to the socket. messages_received: calls of the message
            callback; messages_sent: accepted sends. Exact in the loop's thread.

    muduo: ``TcpConnection``.
    """

    __slots__ = (
        "__weakref__",
        "_above_mark",
        "_channel",
        "_close_timer",
        "_closing",
        "_completion_due",
        "_destroyed",
        "_fin_sent",
        "_half_close_wanted",
        "_held",
        "_in_handler",
        "_input",
        "_is_over",
        "_local_address",
        "_low_due",
        "_name",
        "_only_chunk",
        "_output",
        "_output_ended",
        "_owner",
        "_peer_address",
        "_peer_closed",
        "_reading",
        "_socket",
        "_state",
        "_stop_wanted",
        "_unsent",
        "_was_up",
        "_write_failed",
        "bytes_received",
        "bytes_sent",
        "close_callback",
        "connection_callback",
        "context",
        "error",
        "high_water_mark",
        "high_water_mark_callback",
        "layer",
        "loop",
        "low_water_mark",
        "low_water_mark_callback",
        "max_output_bytes",
        "message_callback",
        "messages_received",
        "messages_sent",
        "number",
        "peer_shutdown_callback",
        "proxy_header",
        "write_complete_callback",
    )

    def __init__(
        self,
        loop: EventLoop,
        name: str,
        fd: int,
        local_address: Address,
        peer_address: Address,
        number: int = -1,
    ) -> None:
        """Take over a connected socket; ``connect_established`` brings it to life.

        Args:
            fd: non-blocking and close-on-exec; owned by the connection from now on.
            number: if not negative, ``#number`` ends the name. (The two are joined only when somebody asks.)
        """
        self._flush_queued = False
        self.loop = loop
        self._name = name
        self.number = number
        self._local_address = local_address
        self._peer_address = peer_address
        self.context: Any = None
        self.connection_callback: ConnectionCallback | None = None
        self.message_callback: MessageCallback | None = None
        self.write_complete_callback: WriteCompleteCallback | None = None
        self.high_water_mark_callback: HighWaterMarkCallback | None = None
        self.high_water_mark = HIGH_WATER_MARK
        self.low_water_mark_callback: LowWaterMarkCallback | None = None
        self.low_water_mark = LOW_WATER_MARK
        self.max_output_bytes = 0
        self.peer_shutdown_callback: PeerShutdownCallback | None = None
        self.close_callback: CloseCallback | None = None
        self.error: Exception | None = None
        self.layer: Layer | None = None
        self.proxy_header: Any = None
        self.bytes_received = 0
        self.bytes_sent = 0
        self.messages_received = 0
        self.messages_sent = 0
        self._owner: ConnectionOwner | None = None
        self._close_timer: Timer | None = None
        self._socket = socket.owner_of(fd)
        self._channel = _channel_of(self, fd)
        self._input: Buffer | None = None
        self._held: Callable[[TcpConnection], bool] | None = None  # waits for start_read: see hold_input
        # Unsent bytes. Most often it is one chunk, which then has a place of its own; a queue holds more than one.
        self._only_chunk: bytes | None = None
        self._output: OutputQueue | None = None
        # With a layer neither is used: the layer has what is unsent, and this is a copy of its count.
        self._unsent = 0
        self._state = _CONNECTING
        self._closing = 0  # set by any thread that ends the connection: sends are refused from then on
        self._reading = 0
        self._stop_wanted = False  # reading is to stop when the connection is up
        self._in_handler = False
        self._is_over = False  # the loop's thread has ended it by force
        self._above_mark = False
        self._completion_due = False  # something of the user's is in the layer, which may have things of its own
        self._low_due = False  # the high-water mark was reached, the low one not yet
        self._half_close_wanted = False
        self._output_ended = False  # the layer's goodbye is under way, or FIN
        self._fin_sent = False
        self._peer_closed = False
        self._was_up = False
        self._write_failed = False
        self._destroyed = False

    # --- what it is ---

    @property
    def name(self) -> str:
        """``server-ip:port#id``; never changes."""
        return self._name if self.number < 0 else f"{self._name}#{self.number}"

    @property
    def local_address(self) -> Address:
        """Our end, or what a load balancer says of it; from any thread. Never changes once the connection is up."""
        # Chosen here, so that no field is set twice that another thread may be reading.
        header = self.proxy_header
        return self._local_address if header is None else header.destination or self._local_address

    @property
    def peer_address(self) -> Address:
        """The peer's end, or the client's whom a load balancer has named; as ``local_address``."""
        header = self.proxy_header
        return self._peer_address if header is None else header.source or self._peer_address

    @property
    def state(self) -> ConnectionState:
        """Where the connection is in its life; from any thread (it may have moved on by the time you look)."""
        return ConnectionState(self._state)

    @property
    def connected(self) -> bool:
        """Whether the connection is up; False in the connection callback means that it went down."""
        return self._state == _CONNECTED

    @property
    def disconnected(self) -> bool:
        """Whether the connection is down for good."""
        return self._state == _DISCONNECTED

    @property
    def was_up(self) -> bool:
        """Whether the connection has ever been up; one whose handshake failed was not. The loop's thread only."""
        return bool(self._was_up)

    @property
    def peer_has_shut_down(self) -> bool:
        """Whether the peer has said that it sends no more, and all that it sent has come. The loop's thread only.

        With a ``peer_shutdown_callback``, which is called for it, the connection is still up.
        """
        return bool(self._peer_closed)

    @property
    def is_reading(self) -> bool:
        """Whether incoming bytes are being read: see ``stop_read``."""
        return bool(self._reading)

    @property
    def input_buffer(self) -> Buffer:
        """Bytes received and not yet taken. The loop's thread only; the message callback gets the same object."""
        self.loop.assert_in_loop_thread()
        if self._input is None:
            self._input = buffer.new_empty()
        return self._input

    @property
    def output_size(self) -> int:
        """Bytes sent with ``send`` that the kernel has not taken yet. The loop's thread only."""
        self.loop.assert_in_loop_thread()
        return self._unsent

    @property
    def input_size(self) -> int:
        """Bytes received and not yet taken out of the input buffer. The loop's thread only."""
        self.loop.assert_in_loop_thread()
        return 0 if self._input is None else len(self._input)

    @property
    def fd(self) -> int:
        """The socket's descriptor, for layers; -1 once it is closed. The loop's thread only."""
        return int(self._socket.fd)

    @property
    def ssl_object(self) -> ssl.SSLObject | None:
        """What TLS has agreed on, or None without TLS. The loop's thread only.

        Ask it for ``version``, ``cipher``, ``getpeercert``, ``selected_alpn_protocol``, ``session_reused``; reading,
        writing and ending it is the connection's business.
        """
        return None if self.layer is None else self.layer.ssl_object

    def tcp_info(self) -> TcpInfo:
        """Return what the kernel knows: round-trip time, retransmissions, windows. The loop's thread only.

        Raises:
            OSError: the descriptor is closed.
        """
        self.loop.assert_in_loop_thread()
        return self._socket.tcp_info()

    def set_tcp_no_delay(self, on: bool) -> None:
        """Send small segments at once (``TCP_NODELAY``). The loop's thread only.

        Raises:
            OSError: the descriptor is closed.
        """
        self.loop.assert_in_loop_thread()
        self._socket.set_tcp_no_delay(on)

    def peer_credentials(self) -> PeerCredentials:
        """Return who the peer of a Unix socket is: pid, uid and gid when it connected. The loop's thread only.

        Raises:
            OSError: the descriptor is closed, or this is no Unix socket.
        """
        self.loop.assert_in_loop_thread()
        return self._socket.peer_credentials()

    # --- doors: from any thread ---

    def send(self, data: BytesLike | Buffer) -> bool:
        """Queue *data* for the peer; from any thread, in order, never blocking.

        A ``Buffer`` is drained; other objects are left as they are, and copied if they are mutable. What the
        connection's own message callback sends leaves when that callback returns, everything else at the end of the
        loop's iteration, with at most one system call for all of it; 64 KiB leave at once, and so does a ``Buffer``
        of 4 KiB or more, which is not even copied unless the kernel can't take it.

        In order means what one thread sends. What another thread sends reaches the loop as a call that waits for its
        turn: a later ``send`` in the loop's own thread may overtake it, and a ``shutdown`` or a close that the loop
        sees first drops it, although this has returned True.

        Returns:
            False if the connection is no longer open: a peer may leave at any moment, so that is no error.
        Raises:
            TypeError: *data* is not bytes-like. (``str`` is not: encode it.)

        muduo: ``TcpConnection::send``.
        """
        if type(data) is not bytes and type(data) is not Buffer:
            _check_sendable(data)
        if self._closing or self._state != _CONNECTED:
            if _log.isEnabledFor(logging.DEBUG):  # a broadcast may meet many that have just left
                _log.debug("%s: send after close, %d bytes dropped", self.name, len(data))
            return False
        if type(data) is not bytes:
            if isinstance(data, Buffer):
                source = data
                size = source._end - source._begin  # len(), without a call
                if (
                    size >= _WRITE_IN_PLACE
                    and self.loop.thread_id == _sys.thread_id()
                    and self._unsent == 0
                    and self.layer is None
                ):
                    return self._send_buffer(source)
                data = source.retrieve_all_as_bytes()
            else:
                data = bytes(data)
        if self.loop.thread_id == _sys.thread_id():
            return self._queue_output(data)
        return self.loop.post(self._send_in_loop, (data,))

    def send_region(self, region: FileRegion) -> bool:
        """Queue a part of a file; what ``send_file`` uses. False if the connection is no longer open."""
        if self._closing or self._state != _CONNECTED:
            return False
        if self.loop.is_in_loop_thread():
            self._send_region_in_loop(region)
            return True
        return self.loop.post(self._send_region_in_loop, (region,))

    def shutdown(self, *, within_s: float | None = None) -> None:
        """Send everything queued so far, then FIN: the peer reads to the end, and may still send.

        From any thread; later sends are refused. Twice is harmless.

        Args:
            within_s: seconds that the peer has to take it all and to end as well; then ``force_close_with_delay`` has
                its way. Without it, a peer that does neither keeps the connection for as long as it likes.

        Raises:
            ValueError: *within_s* is negative or not a number.

        muduo: ``TcpConnection::shutdown``.
        """
        if within_s is not None and not within_s >= 0:
            raise ValueError(f"shutdown: within_s must be 0 or more, got {within_s}")
        self._closing = 1
        if self._state == _CONNECTED and self.loop.is_in_loop_thread():
            self._state = _DISCONNECTING
        # Queued in any case: what other threads have sent until now is in the queue, and comes first.
        self.loop.post(self._shutdown_in_loop, ())
        if within_s is not None:
            self.force_close_with_delay(within_s)

    def force_close(self) -> None:
        """Close now, dropping what is unsent; from any thread. Callbacks run later in the loop, not inside this.

        In the loop's thread, no message comes any more, not even one that the same read has brought.
        """
        self._closing = 1
        if self.loop.is_in_loop_thread():
            self._stop_for_good()
        self.loop.post(self._handle_close, ())

    def force_close_with_delay(self, seconds: float) -> None:
        """Refuse sends from now on, and close in *seconds* unless the peer does so before; from any thread.

        For a peer that should close first, after ``shutdown``, but may not. What was queued goes on being sent.

        Raises:
            ValueError: *seconds* is negative or not a number.
        """
        if not seconds >= 0:
            raise ValueError(f"force_close_with_delay: seconds must be 0 or more, got {seconds}")
        self._closing = 1
        if self.loop.is_in_loop_thread():
            self._force_close_with_delay_in_loop(seconds)
        else:
            self.loop.post(self._force_close_with_delay_in_loop, (seconds,))

    def start_read(self) -> None:
        """Read again after ``stop_read``; from any thread."""
        if self.loop.is_in_loop_thread():
            self._start_read_in_loop()
        else:
            self.loop.post(self._start_read_in_loop, ())

    def stop_read(self) -> None:
        """Stop reading, so that the peer has to wait once the kernel's buffers are full; from any thread.

        A reset is still noticed and closes the connection. So is the peer's FIN, once nothing that it sent is left
        unread: bytes that came before it wait for ``start_read``, and so do messages that a codec has taken from such.
        On a connection that is still coming up it holds from the moment at which that is up.
        """
        if self.loop.is_in_loop_thread():
            self._stop_read_in_loop()
        else:
            self.loop.post(self._stop_read_in_loop, ())

    # --- for the owner: a server or a client ---

    def set_owner(self, owner: ConnectionOwner | None) -> None:
        """Let the owner know of the end, after all of the user's callbacks; the owner then destroys it.

        A connection without an owner, as a program may make one by hand, destroys itself.
        """
        self._owner = owner

    def connect_established(self) -> None:
        """Begin to serve; the loop's thread, once. With a layer that holds it up, it is up when that is ready."""
        self.loop.assert_in_loop_thread()
        if self._state != _CONNECTING or self._reading:
            return
        self._reading = 1
        try:
            self._channel.enable_reading()
        except Exception as e:
            _log.error("%s: can't be watched, closed: %s", self.name, e)
            self.note_error(e)
            self._handle_close()
            return
        if self.layer is None:
            self._come_up()
        else:
            self._start_layer()

    def _come_up(self) -> None:
        if self._owner is not None and not self._owner.welcome(self):
            return
        self._state = _CONNECTED
        self._was_up = True
        # Doors that were used before the connection was up. This one comes first, as the callback may start again.
        if self._stop_wanted:
            self._stop_read_in_loop()
        self._call_user(self.connection_callback)
        if self._state == _CONNECTED:
            if self._half_close_wanted:
                self._state = _DISCONNECTING
                self._half_close()
            if self._close_timer is not None:
                self._state = _DISCONNECTING

    def connect_destroyed(self) -> None:
        """Leave the loop and close the descriptor; the loop's thread, after the end. Twice is harmless."""
        self.loop.assert_in_loop_thread()
        if self._destroyed:
            return
        self._destroyed = True
        try:
            self._handle_close()
        finally:
            self._channel.remove()
            self._channel.release()
            self._socket.close()

    def discard(self) -> None:
        """Close a connection whose loop has ended before it could be established; from any thread."""
        self._state = _DISCONNECTED
        self._closing = 1
        self._destroyed = True
        self._owner = None
        if self.layer is not None:
            self.layer.detach()
        self._channel.release()
        self._socket.close()

    # --- for layers and codecs; the loop's thread only ---

    def set_layer(self, layer: Layer | None) -> None:
        """Put a layer between the connection and its socket, or take the one that is there away.

        Before ``connect_established`` (whoever made it may do that), or while it is up or coming up. What was sent
        before leaves as it is, before anything that the new layer writes.

        Raises:
            RuntimeError: wrong thread; the connection has ended; or another layer still has bytes to write.
        """
        if self._reading or self._state != _CONNECTING:
            self.loop.assert_in_loop_thread()
        if self._state == _DISCONNECTED:
            raise RuntimeError(f"{self!r} has ended: it takes no layer")
        old = self.layer
        wire = b""
        if old is not None:
            if old.unsent:
                raise RuntimeError(f"{self!r} has {old.unsent} bytes in another layer")
            old.detach()
        elif layer is not None and self._unsent:
            self.flush()
            if self._unsent:
                wire = self._queue().take_all()
                self._unsent = 0
                self._output = None
        self.layer = layer
        if layer is not None:
            layer.attach(self)
            if wire:
                layer.append_wire(wire)
                self._unsent = layer.unsent
                self._completion_due = True
            if self._reading or self._state != _CONNECTING:
                self._start_layer()

    def layer_is_ready(self) -> None:
        """Bring the connection up: its layer has done what had to come first."""
        if self._state == _CONNECTING:
            self._come_up()

    def hold_input(self, deliver: Callable[[TcpConnection], bool]) -> None:
        """Call *deliver* with the connection when reading starts again, before anything is read; while it is stopped.

        For codecs: it has what was received and is still to be dealt with, so until then the peer's FIN has to wait. If
        it returns True, the message callback gets what is left in the input buffer. The first one counts.
        """
        if self._held is None:
            self._held = deliver

    def read_again(self) -> None:
        """Ask the layer later in this iteration for what it holds: the socket will not tell of it."""
        self.loop.post(self._read_held, ())

    def note_error(self, error: Exception) -> None:
        """Keep *error* as the reason of the end, unless there is one already."""
        if self.error is None:
            setattr(self, _ERROR_NAME, error)

    def fail(self, error: Exception) -> None:
        """End the connection because of *error*; a layer's last words (a TLS alert) still leave.

        Callbacks run later in the loop, not inside this.
        """
        if self._state == _DISCONNECTED:
            return
        if self.error is None:
            _log.info("%s: %s", self.name, error)
        self.note_error(error)
        self._closing = 1
        self._stop_for_good()
        self.loop.post(self._close_failed, ())

    def take_proxy_header(self, header: Any) -> None:
        """Take both ends' addresses from what a load balancer said of the client. Before the connection is up, once."""
        setattr(self, _PROXY_HEADER_NAME, header)

    def _start_layer(self) -> None:
        layer = self.layer
        assert layer is not None
        try:
            layer.start()
        except Exception as e:
            self.fail(e)
            return
        self._take_layer_output()
        if self.layer is layer and not layer.holds_up and self._state == _CONNECTING:
            self._come_up()

    def _take_layer_output(self) -> None:
        """Write what the layer has to say, which may be its own (a handshake) or ours."""
        if self.layer is not None and self._state != _DISCONNECTED:
            self._unsent = self.layer.unsent
            if self._unsent == 0:
                return
            if self._channel.events & _WRITE:
                self._check_high_water()  # the kernel is full, and the layer may have answered the peer
            else:
                self._write_output()

    def _read_held(self) -> None:
        """Deliver what the layer has held back while reading was stopped: the socket will not tell of it."""
        if self.layer is None or not self._reading or self._peer_closed or self._state == _DISCONNECTED:
            return
        if self._held is not None:
            return  # that comes first, and asks again
        if self._input is None:
            self._input = buffer.new_empty()
        try:
            count = self.layer.read_held(self._input)
            self._take_layer_output()
            if count > 0:
                self.bytes_received += count
                self._take_message(self._input)
            elif count == 0:
                self._handle_peer_shutdown()
        except BaseException as e:
            self._handle_failure(e)

    def _stop_for_good(self) -> None:
        """Take no message any more: the end is queued."""
        self._reading = 0
        self._is_over = True

    def _close_failed(self) -> None:
        if self._state != _DISCONNECTED and self.layer is not None and not self._write_failed:
            self.layer.write()
        self._handle_close()

    # --- in the loop ---

    def _send_region_in_loop(self, region: FileRegion) -> None:
        if self._output_ended or self._write_failed or self._state not in (_CONNECTED, _DISCONNECTING):
            region.finish(ConnectionError(f"{self.name} closed before the file was sent"))
            return
        if self.layer is None:
            self.set_layer(region.make_layer())
        assert self.layer is not None
        self.layer.append_file(region)
        self._unsent = self.layer.unsent
        self._completion_due = True
        self.messages_sent += 1
        if self._unsent == 0:
            self.layer.output_drained()  # an empty part of a file
        self.loop.flush_later(self)

    def _send_in_loop(self, data: bytes) -> bool:
        # Not only while CONNECTED: what was accepted before a shutdown is sent before the FIN.
        if self._output_ended or self._write_failed or self._state not in (_CONNECTED, _DISCONNECTING):
            _log.debug("%s: closed meanwhile, %d bytes dropped", self.name, len(data))
            return False
        return self._queue_output(data)

    def _queue_output(self, data: bytes) -> bool:
        if not data:
            return True
        if self.layer is not None:
            self.layer.append(data)
            self._unsent = self.layer.unsent
            self._completion_due = True
        else:
            if self._unsent == 0:
                self._only_chunk = data
            else:
                self._queue().append(data)
            self._unsent += len(data)
        self.messages_sent += 1
        if self._channel.events & _WRITE:
            self._check_high_water()
        elif self._unsent >= _WRITE_AT_ONCE:
            self._write_output()
        elif not self._in_handler:
            self.loop.flush_later(self)
        return True

    def _send_buffer(self, source: Buffer) -> bool:
        """Send a large buffer from where it lies: making bytes of it would cost more than a system call."""
        size = len(source)
        count = source.write_fd(self._channel.fd)
        if count < 0:
            return self._queue_output(source.retrieve_all_as_bytes())  # tried again later, errors and all
        self.bytes_sent += count
        self.messages_sent += 1
        if count == size:
            self._output_drained()
        else:
            self._only_chunk = source.retrieve_all_as_bytes()
            self._unsent = size - count
            self._output_blocked()
        return True

    def _shutdown_in_loop(self) -> None:
        if self._half_close_wanted:
            return
        self._half_close_wanted = True
        if self._state in (_CONNECTED, _DISCONNECTING):
            self._state = _DISCONNECTING
            self._half_close()

    def _half_close(self) -> None:
        """Send FIN if all output is sent; otherwise that happens when it is. A layer says goodbye first."""
        if self._unsent or self._fin_sent:
            return
        if not self._output_ended:
            self._output_ended = True
            if self.layer is not None:
                self.layer.end_output()
                self._unsent = self.layer.unsent
                if self._unsent:
                    self._write_output()  # and comes back here when it is sent
                    return
        self._fin_sent = True
        error = -self._socket.shutdown_write()
        if error > 0 and error != _ENOTCONN:  # after a reset, which is reported by itself
            self._fail_output(error)  # without a FIN the peer would wait for ever: closing says it too
        elif self._peer_closed:
            self.loop.post(self._handle_close, ())

    def _force_close_with_delay_in_loop(self, seconds: float) -> None:
        if self._state == _CONNECTED:
            self._state = _DISCONNECTING
        if self._state != _DISCONNECTED:
            if self._close_timer is not None:
                self._close_timer.cancel()
            self._close_timer = self.loop.run_after(seconds, self._handle_close)

    def _start_read_in_loop(self) -> None:
        self._stop_wanted = False
        if self._reading or self._peer_closed or self._is_over or self._state not in (_CONNECTED, _DISCONNECTING):
            return
        self._reading = 1
        if self._held is not None:
            self.loop.post(self._deliver_held, ())
        else:
            self._read_on()

    def _read_on(self) -> None:
        self._set_interest(self._channel.events & _WRITE | _READ)
        if self.layer is not None:
            self.read_again()

    def _deliver_held(self) -> None:
        """Go on with what was received before reading was stopped; then read on, unless it is stopped again."""
        deliver = self._held
        if deliver is None or not self._reading:
            return
        assert self._input is not None
        self._held = None
        self._in_handler = True
        try:
            if deliver(self) and self._reading and len(self._input) > 0:
                self._take_message(self._input)
            else:
                self._leave_handler(self._input)
                self.flush()
        except BaseException as e:
            self._handle_failure(e)
        finally:
            if self._reading and self._held is None:
                self._read_on()

    def _stop_read_in_loop(self) -> None:
        if self._state == _CONNECTING:
            self._stop_wanted = True  # what has to come first, a handshake, is read all the same
        elif self._reading and self._state in (_CONNECTED, _DISCONNECTING):
            self._reading = 0
            if not self._peer_closed:
                self._set_interest(self._channel.events & _WRITE | _PEER_SHUTDOWN | _ERROR)

    def _set_interest(self, events: int) -> None:
        """Change the channel's interest; a kernel that refuses leaves nothing to do but to close."""
        try:
            self._channel.set_interest(events)
        except OSError as e:
            _log.error("%s: can't be watched, closed: %s", self.name, e)
            self.force_close()

    # --- events ---

    def _handle_read(self) -> None:
        if self._input is None:
            self._input = buffer.new_empty()
        if self.layer is None:
            count = self._input.read_fd(self._channel.fd, self.loop.read_area)
        else:
            count = self.layer.read(self._input)
            self._take_layer_output()
        if count > 0:
            self.bytes_received += count
            self._take_message(self._input)
        elif count == 0:
            self._handle_peer_shutdown()
        elif -count != _EAGAIN and -count != _EINTR:
            self._note_os_error("read", -count)
            self._handle_close()

    def _take_message(self, received: Buffer) -> None:
        """Call the message callback and send, with one system call, what it sent.

        An exception goes through here to the loop, which calls ``_handle_failure``: what happens rarely costs
        nothing where it does not.
        """
        self.messages_received += 1
        self._in_handler = True
        if self.message_callback is not None:
            self.message_callback(self, received, self.loop.poll_return_time)
        else:
            received.retrieve_all()
        self._leave_handler(received)
        if self._unsent and not self._channel.events & _WRITE:
            self._write_output()

    def _leave_handler(self, received: Buffer) -> None:
        if not received.give_back():
            self.loop.renew_read_area()
        self._in_handler = False

    def _handle_failure(self, exception: BaseException) -> None:
        """React to an exception out of the message callback, or out of the handling of an event."""
        if self._in_handler:
            assert self._input is not None
            try:
                self._leave_handler(self._input)
            except Exception:
                # No memory for what is undigested: it must not stay in an area that others read into.
                self._in_handler = False
                self._input = None
                self.force_close()
                self.loop.renew_read_area()
        if not isinstance(exception, Exception):
            if self._unsent:
                self.loop.flush_later(self)  # run() flushes before it lets the exception out
            raise exception
        self.flush()
        if self.loop.handle_exception(exception, self):
            self.force_close()

    def _handle_write(self) -> None:
        if self._unsent:
            self._write_output()

    def _handle_peer_shutdown(self) -> None:
        """React to the peer's FIN: what was sent until now is still delivered, then the connection ends.

        Unless there is a callback for it: then only the peer's direction ends.
        """
        if self._peer_closed:
            return
        self._peer_closed = True
        if self.peer_shutdown_callback is not None and self._state in (_CONNECTED, _DISCONNECTING):
            self._reading = 0
            self._set_interest(self._channel.events & _WRITE | _ERROR)
            self.loop.post(self._run_peer_shutdown, ())
            return
        self._closing = 1
        # Queued, so that sends which other threads have made before this moment come first.
        self.loop.post(self._finish_after_peer, ())

    def _finish_after_peer(self) -> None:
        if self._state == _DISCONNECTED:
            return
        self.flush()
        if self._state == _CONNECTING or (self._unsent == 0 and (self.layer is None or self._fin_sent)):
            self._close_behind_callbacks()
            return
        self._state = _DISCONNECTING
        self._reading = 0
        # Not reading, which would report the end of the stream for ever.
        self._set_interest(self._channel.events & _WRITE | _ERROR)
        if self.layer is not None:
            if self._unsent and not self._channel.events & _WRITE:
                self._handle_close()  # the layer waits for a peer that has left
                return
            self._half_close_wanted = True
            self._half_close()

    def _close_behind_callbacks(self) -> None:
        """Close, but if all has been sent, behind what is queued of it: the last bytes may just have left."""
        self._closing = 1
        if self._unsent or (self.write_complete_callback is None and self.low_water_mark_callback is None):
            self._handle_close()
        else:
            self.loop.post(self._handle_close, ())

    def _handle_unread_fin(self) -> None:
        """React to a FIN noticed while reading is stopped: it stands behind whatever is still unread."""
        if self._has_unread():
            self._set_interest(self._channel.events & _WRITE | _ERROR)
        else:
            self._handle_peer_shutdown()

    def _handle_hang_up(self) -> None:
        """React to the end of both directions without anything that is being read."""
        if self._channel.revents & _ERROR:
            error = _sys.take_error(self._channel.fd)
            if error:
                self._note_os_error("socket", error)
        if (
            (self._reading and self._held is None)
            or self._peer_closed
            or self._write_failed
            or self._channel.revents & _ERROR
        ):
            self._close_behind_callbacks()
        elif self._has_unread():
            # Both ends have said FIN and something is left: nothing more can happen until start_read.
            self._set_interest(0)
        elif self.layer is None and self.peer_shutdown_callback is not None:
            self._handle_peer_shutdown()  # who waits to be told of the FIN is told; the hang-up is reported once more
        else:
            self._close_behind_callbacks()

    def _has_unread(self) -> bool:
        """Whether something that the peer has sent waits for ``start_read``: in the kernel, in the layer, or here."""
        # A kernel that does not say how many counts as one that has some: nothing must be passed over.
        return (
            _sys.unread_bytes(self._channel.fd) != 0
            or self._held is not None
            or (self.layer is not None and self.layer.holds_input)
        )

    def _handle_error(self) -> None:
        error = _sys.take_error(self._channel.fd)
        if error:
            self._note_os_error("socket", error)
            if not self._reading:
                self._handle_close()
            else:
                self._write_failed = True  # what was received is still read; then read() reports the end
                self._closing = 1

    def _handle_close(self) -> None:
        """Enter DISCONNECTED: once, with every callback once."""
        if self._state == _DISCONNECTED:
            return
        was_up = self._was_up
        self._state = _DISCONNECTED
        self._closing = 1
        self._reading = 0
        self._held = None
        self._channel.disable_all()
        if self._close_timer is not None:
            self._close_timer.cancel()
            self._close_timer = None
        if self._unsent:
            _log.debug("%s: closed with %d bytes unsent", self.name, self._unsent)
            self._drop_output()
        if self.layer is not None:
            self.layer.detach()
        # Nested, because a callback may raise SystemExit: the owner must hear of the end all the same.
        try:
            if was_up:
                self._call_user(self.connection_callback)
        finally:
            try:
                if was_up:
                    self._call_user(self.close_callback)
            finally:
                owner, self._owner = self._owner, None
                if owner is not None:
                    owner.remove_connection(self)
                elif not self._destroyed:
                    # Queued, because this may be inside one of the channel's own handlers.
                    self.loop.post(self.connect_destroyed, ())

    # --- output ---

    def flush(self) -> None:
        """Send what was sent outside this connection's own handler; the loop calls this before it polls."""
        if self._unsent and not self._channel.events & _WRITE:
            self._write_output()

    def _queue(self) -> OutputQueue:
        """Return the queue, which from now on holds everything unsent."""
        queue = self._output
        if queue is None:
            queue = self.loop.spare_output
            if queue is None:
                queue = OutputQueue()
            else:
                self.loop.spare_output = None
            self._output = queue
        if self._only_chunk is not None:
            queue.append(self._only_chunk)
            self._only_chunk = None
        return queue

    def _write_output(self) -> None:
        if self.layer is not None:
            self._write_layer()
            return
        for _ in range(_MAX_WRITES):
            if self._only_chunk is not None:
                count = _sys.write_bytes(self._channel.fd, self._only_chunk, 0)
                if 0 <= count < self._unsent:
                    self._queue().drop(count)
            else:
                assert self._output is not None
                count = self._output.write_to(self._channel.fd)
            if count >= 0:
                self.bytes_sent += count
                self._unsent -= count
                if self._unsent == 0:
                    self._output_drained()
                    return
            elif -count == _EAGAIN or -count == _ENOBUFS or -count == _ENOMEM:
                break
            elif -count != _EINTR:
                self._fail_output(-count)
                return
        self._output_blocked()

    def _write_layer(self) -> None:
        """Write what the layer has."""
        layer = self.layer
        assert layer is not None
        for _ in range(_MAX_WRITES):
            count = layer.write()
            self._unsent = layer.unsent
            self.bytes_sent += layer.payload_sent
            layer.payload_sent = 0
            if count > 0:
                if self._unsent == 0:
                    self._output_drained()
                    return
            elif count == 0:
                # Nothing can be written until the peer has said something: a handshake is under way.
                if self._channel.events & _WRITE:
                    self._set_interest(self._channel.events & ~_WRITE)
                self._check_high_water()
                return
            elif -count == _EAGAIN or -count == _ENOBUFS or -count == _ENOMEM:
                break
            elif -count != _EINTR:
                self._fail_output(-count)
                return
        self._output_blocked()

    def _output_drained(self) -> None:
        self._release_queue()
        self._above_mark = False
        if self._low_due:
            self._reach_low_water()
        if self._channel.events & _WRITE:
            self._set_interest(self._channel.events & ~_WRITE)
        if self.write_complete_callback is not None and (self.layer is None or self._completion_due):
            self.loop.post(self._run_write_complete, ())
        if self.layer is not None:
            self._completion_due = False
            self.layer.output_drained()
        if self._half_close_wanted:
            self._half_close()
        elif self._peer_closed and self._state == _DISCONNECTING:
            self.loop.post(self._handle_close, ())

    def _drop_output(self) -> None:
        if self.layer is not None:
            self.layer.drop_output()
        self._release_queue()

    def _release_queue(self) -> None:
        """Be without output; the queue is for the next connection that needs one."""
        self._only_chunk = None
        self._unsent = 0
        if self._output is not None:
            self._output.clear()
            self.loop.spare_output = self._output
            self._output = None

    def _output_blocked(self) -> None:
        """Go on when the kernel has room."""
        if not self._channel.events & _WRITE:
            self._set_interest(self._channel.events | _WRITE)
        self._check_high_water()

    def _check_high_water(self) -> None:
        if self._unsent < self.high_water_mark:
            self._above_mark = False
            if self._low_due and self._unsent <= self.low_water_mark:
                self._reach_low_water()
        elif not self._above_mark:
            self._above_mark = True
            self._low_due = True
            if self.high_water_mark_callback is not None:
                self.loop.post(self._run_high_water_mark, (self._unsent,))

        if self._unsent > self.max_output_bytes > 0:
            self._overflow()

    def _reach_low_water(self) -> None:
        self._low_due = False
        if self.low_water_mark_callback is not None:
            self.loop.post(self._run_low_water_mark, ())

    def _overflow(self) -> None:
        """Cut off a peer who does not read."""
        unsent = self._unsent
        _log.warning(
            "%s: %d bytes unsent, max_output_bytes is %d; %s is cut off",
            self.name,
            unsent,
            self.max_output_bytes,
            self.peer_address,
        )
        self.note_error(OSError(_ENOBUFS, f"{unsent} bytes unsent, max_output_bytes is {self.max_output_bytes}"))
        self._drop_output()
        self._write_failed = True
        self.force_close()

    def _fail_output(self, error: int) -> None:
        """Give up output that can't be sent any more; what the peer sent before is still taken."""
        self._note_os_error("write", error)
        self._drop_output()
        self._write_failed = True
        self._closing = 1
        self.loop.post(self._finish_broken, ())

    def _finish_broken(self) -> None:
        """Read what had arrived before the connection broke, and close."""
        self._deliver_held()
        for _ in range(_MAX_LAST_READS):
            if not self._reading or self._peer_closed:
                break
            received = self.bytes_received
            try:
                self._handle_read()
            except BaseException as e:
                self._handle_failure(e)
            if self.bytes_received == received:
                break
        self._handle_close()

    def _note_os_error(self, what: str, error: int) -> None:
        """Note why the connection ends: a peer may leave at any moment, anything else is worth a look."""
        self.note_error(OSError(error, os.strerror(error)))
        level = logging.DEBUG if error in _PEER_LEFT else logging.INFO
        _log.log(level, "%s: %s: %s", self.name, what, os.strerror(error))

    # --- calls into user code that were queued, or that must not stop what follows ---

    def _run_write_complete(self) -> None:
        if self._state != _DISCONNECTED:
            self._call_user(self.write_complete_callback)

    def _run_low_water_mark(self) -> None:
        if self._state != _DISCONNECTED:
            self._call_user(self.low_water_mark_callback)

    def _run_peer_shutdown(self) -> None:
        if self._state != _DISCONNECTED:
            self._call_user(self.peer_shutdown_callback)

    def _run_high_water_mark(self, size: int) -> None:
        callback = self.high_water_mark_callback
        if self._state != _DISCONNECTED and callback is not None:
            try:
                callback(self, size)
            except Exception as e:
                if self.loop.handle_exception(e, self):
                    self.force_close()

    def _call_user(self, callback: ConnectionCallback | None) -> None:
        if callback is not None:
            try:
                callback(self)
            except Exception as e:
                if self.loop.handle_exception(e, self):
                    self.force_close()

    def __repr__(self) -> str:
        return f"<TcpConnection {self.name} {ConnectionState(self._state).name} peer={self.peer_address}>"


def _channel_of(connection: TcpConnection, fd: int) -> ConnectionChannel:
    channel = ConnectionChannel.__new__(ConnectionChannel)
    channel._set_up(connection.loop, fd)
    channel._connection = connection
    return channel


def _check_sendable(data: object) -> None:
    """Refuse what is neither bytes-like nor a Buffer."""
    if not isinstance(data, (Buffer, bytes, bytearray, memoryview)):
        hint = " (encode it first)" if isinstance(data, str) else ""
        raise TypeError(f"send: a bytes-like object or Buffer is required, got {type(data).__name__}{hint}")
