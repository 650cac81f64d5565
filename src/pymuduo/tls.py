"""TLS between a connection and its socket, and the switch to it in the middle of a conversation (STARTTLS).

OpenSSL, through ``ssl.SSLContext``, works on two queues in memory: what has arrived is put into one, what is to leave
comes out of the other. So it never sees the socket, and all that a connection does (sends that leave together,
back-pressure, any number of loops) is the same with TLS and without.

What is sent waits as plain text and is encrypted when it is written: answers that wait together become one record, and
no more is encrypted than the next system call takes. What has arrived is decrypted at once, into the loop's read area,
which the input buffer borrows as it does without TLS.
"""

from __future__ import annotations

import contextlib
import errno
import ssl
from collections import deque
from typing import TYPE_CHECKING, Any

from pymuduo import _sys
from pymuduo.layer import Layer

if TYPE_CHECKING:
    from collections.abc import Callable

    from pymuduo.buffer import Buffer
    from pymuduo.send_file import FileRegion
    from pymuduo.tcp_connection import TcpConnection
    from pymuduo.timer_queue import Timer

HANDSHAKE_TIMEOUT_S = 10.0
_RECORD_BYTES = 16384  # of plain text, at most: RFC 8446
_SEALED_AT_ONCE = 65536  # plain text in one go: four full records
_AREA_BYTES = 65536
# A peer may change its keys every 27 bytes, and each change costs some 50 microseconds. So what is read in one go says
# how long it can hold up the others; it is little until payload comes out of it.
_READ_BYTES = 65536
_WARY_READ_BYTES = 16384
_MAX_BARREN_BYTES = 65536  # records in a row without payload: a library changes its keys once in gigabytes
_EAGAIN = errno.EAGAIN
_NO_RENEGOTIATION = ssl.OP_NO_RENEGOTIATION
# CPython before 3.11.3 sets it with OpenSSL 3: a stream that somebody cuts would look like one that ends. Where it is
# not set, such a CPython tells a cut by an SSLError without a class of its own: see _as_cut.
_IGNORE_CUT = getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)


class TlsLayer(Layer):
    """TLS on one connection, for either side.

    A server's ``ssl_context``, a client's, and ``start_tls`` make it; it is in the loop's thread alone. A handshake
    that fails, or takes too long, ends the connection with the reason in ``TcpConnection.error``: an ``ssl.SSLError``
    or a TimeoutError. A stream that ends without the peer's close-notify may have been cut short by somebody else: the
    connection goes down as after FIN, with ``ssl.SSLEOFError`` in ``error``. A peer that sends 64 KiB in a row without
    payload, as by changing its keys all the time, is cut off with an ``ssl.SSLError``.

    Args:
        context: certificates, verification, protocols. Renegotiation, and OpenSSL's option to take a cut for an end,
            are switched off in it, for good.
        server_side: which side this is.
        server_hostname: a client's: the name to check, and to send (SNI).
        session: a client's: of an earlier connection with the same context, to be resumed.
        timeout_s: for the handshake, in seconds.

    Raises:
        ssl.SSLError, ValueError: the context, or the name, does not fit the side.

    muduo has none.
    """

    __slots__ = (
        "_barren_bytes",
        "_files",
        "_has_ended",
        "_has_eof",
        "_has_failed",
        "_incoming",
        "_is_done",
        "_is_upgrade",
        "_outgoing",
        "_plain",
        "_plain_size",
        "_read_bytes",
        "_ready_callback",
        "_sealed",
        "_timeout_s",
        "_timer",
        "_written",
    )

    def __init__(
        self,
        context: ssl.SSLContext,
        *,
        server_side: bool,
        server_hostname: str | None = None,
        session: ssl.SSLSession | None = None,
        timeout_s: float = HANDSHAKE_TIMEOUT_S,
    ) -> None:
        Layer.__init__(self)
        options = context.options
        if options & (_NO_RENEGOTIATION | _IGNORE_CUT) != _NO_RENEGOTIATION:
            context.options = options & ~_IGNORE_CUT | _NO_RENEGOTIATION
        self.holds_up = True
        self._timeout_s = timeout_s
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.ssl_object = context.wrap_bio(self._incoming, self._outgoing, server_side, server_hostname, session)
        # What is to leave, in this order: _sealed[_written:], _outgoing, _plain.
        self._sealed: bytes | None = None
        self._written = 0
        self._plain: deque[Any] = deque()  # bytes, memoryviews, FileRegions
        self._plain_size = 0
        self._files: list[FileRegion] = []  # encrypted to the end, but not yet written
        self._is_done = False  # the handshake
        self._is_upgrade = False  # what the input buffer holds is not plain text
        self._has_eof = False  # the socket's end
        self._has_ended = False  # the peer's output
        self._has_failed = False
        self._read_bytes = _WARY_READ_BYTES
        self._barren_bytes = 0  # records since the last payload
        self._timer: Timer | None = None
        self._ready_callback: Callable[[TcpConnection], object] | None = None

    # --- beginning ---

    def start(self) -> None:
        """Begin the handshake; a client speaks first."""
        assert self.connection is not None
        self._timer = self.connection.loop.run_after(self._timeout_s, self._time_out)
        if self._is_upgrade:
            self.holds_input = True
            self.connection.read_again()
        self._shake()

    def upgrade(self, ready_callback: Callable[[TcpConnection], object] | None) -> None:
        """Prepare for a connection that is up already; ``start_tls`` does this."""
        self.holds_up = False
        self._is_upgrade = True
        self._ready_callback = ready_callback

    def _shake(self) -> None:
        """Go on with the handshake as far as it can go."""
        connection = self.connection
        assert connection is not None
        try:
            self.ssl_object.do_handshake()
        except ssl.SSLWantReadError:
            self._count_unsent()
            return
        except OSError as e:
            self._fail(_as_cut(e))
            return
        self._is_done = True
        self._count_unsent()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.holds_up:
            connection.layer_is_ready()
        elif self._ready_callback is not None:
            callback, self._ready_callback = self._ready_callback, None
            connection.loop.post(_call_if_up, (callback, connection))

    def _time_out(self) -> None:
        self._timer = None
        if self.connection is not None:
            self._fail(TimeoutError(f"no TLS handshake within {self._timeout_s:g} s"))

    # --- input ---

    def read(self, into: Buffer) -> int:
        """Read the socket once, and decrypt all that is complete."""
        connection = self.connection
        if connection is None or self._has_failed:
            return -_EAGAIN
        if self._is_upgrade:
            self._take_back(into)
        area = connection.loop.read_area
        if _sys.is_exported(area):
            area = bytearray(_AREA_BYTES)  # a view shows it
        count = _sys.read_into(connection.fd, area, 0, self._read_bytes)
        if count > 0:
            self._incoming.write(memoryview(area)[:count])
        elif count == 0:
            self._has_eof = True
            self._incoming.write_eof()
        else:
            return count
        return self._go_on(into, area)

    def read_held(self, into: Buffer) -> int:
        """Decrypt what was not decrypted while reading was stopped, or found no room."""
        connection = self.connection
        if connection is None or self._has_failed or not self.holds_input:
            return -_EAGAIN
        if self._is_upgrade:
            self._take_back(into)
        self.holds_input = False
        area = connection.loop.read_area
        return self._go_on(into, bytearray(_AREA_BYTES) if _sys.is_exported(area) else area)

    def _take_back(self, into: Buffer) -> None:
        """Take what came behind the last plain text: never must it be taken for something that TLS has protected."""
        self._is_upgrade = False
        if len(into) > 0:
            self._incoming.write(into.retrieve_all_as_bytes())

    def _go_on(self, into: Buffer, area: bytearray) -> int:
        connection = self.connection
        assert connection is not None
        if not self._is_done:
            self._shake()
            # Its owner may have refused it, though the handshake is done: then nothing is delivered.
            if not self._is_done or self.connection is None or not connection.was_up:
                return -_EAGAIN
        if not connection.is_reading:
            self.holds_input = True
            return -_EAGAIN
        return self._open(into, area)

    def _open(self, into: Buffer, area: bytearray) -> int:
        """Decrypt into *area*, and let *into* borrow it."""
        if self._has_ended:
            return 0
        incoming, total = self._incoming, 0
        waiting = incoming.pending
        try:
            while incoming.pending or self._has_eof:
                if len(area) - total < _RECORD_BYTES:
                    self._read_again()
                    break
                # A whole record each time, so that nothing is left in OpenSSL, where nobody would look for it.
                count = self.ssl_object.read(_RECORD_BYTES, memoryview(area)[total:] if total else area)
                if count == 0:
                    self._has_ended = True
                    break
                total += count
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self._has_ended = True  # as 0 above, if the goodbye was ours first
        except OSError as e:
            error = _as_cut(e)
            if isinstance(error, ssl.SSLEOFError):
                self._has_ended = True
                self._note(error)
            else:
                self._fail(error)
        self._weigh(waiting - incoming.pending, total)
        if self._outgoing.pending:
            self._count_unsent()  # session tickets, an answer to a new key, an alert
        if total > 0:
            into.take_from(area, total)
            if self._has_ended:
                self._read_again()
            return total
        return 0 if self._has_ended else -_EAGAIN

    def _weigh(self, used: int, total: int) -> None:
        """Take note of how much payload came out of what was used up."""
        self._read_bytes = _READ_BYTES if 2 * total > used else _WARY_READ_BYTES
        if total > 0:
            self._barren_bytes = 0
            return
        self._barren_bytes += used
        if self._barren_bytes > _MAX_BARREN_BYTES and not self._has_failed:
            self._fail(ssl.SSLError(f"{self._barren_bytes} bytes of TLS records without payload"))

    def _read_again(self) -> None:
        assert self.connection is not None
        self.holds_input = True
        self.connection.read_again()

    # --- output ---

    def append(self, data: bytes) -> None:
        """Take plain text."""
        self._plain.append(data)
        self._plain_size += len(data)
        self.unsent += len(data)

    def append_file(self, region: FileRegion) -> None:
        """Take a part of a file, which is read and encrypted piece by piece."""
        if region.remaining == 0:
            region.finish(None)
        else:
            self._plain.append(region)
            self._plain_size += region.remaining
            self.unsent += region.remaining

    def append_wire(self, data: bytes) -> None:
        """Take what leaves as it is, before the handshake."""
        self._sealed = data
        self._written = 0
        self._count_unsent()

    def write(self) -> int:
        """Write once to the socket; encrypt what waits, if everything before has left."""
        connection = self.connection
        if connection is None:
            return 0
        sealed = self._sealed
        if sealed is None:
            if self._plain_size > 0 and self._is_done and not self._has_failed:
                self._seal()
            if not self._outgoing.pending:
                self._count_unsent()
                return 0
            sealed = self._outgoing.read()
            self._sealed = sealed
            self._written = 0
        count = _sys.write_bytes(connection.fd, sealed, self._written)
        if count > 0:
            self._written += count
            if self._written == len(sealed):
                self._sealed = None
                if self._files:
                    self._finish_files(None)
        self._count_unsent()
        return count

    def _seal(self) -> None:
        """Encrypt as much as one system call is to take."""
        plain = self._plain
        data = plain.popleft()
        if type(data) is not bytes or plain or len(data) > _SEALED_AT_ONCE:
            plain.appendleft(data)
            try:
                data = self._gather()
            except OSError as e:  # of a file
                self._fail(e)
                return
        try:
            count = self.ssl_object.write(data)
        except OSError as e:
            self._fail(e)
            return
        if count < len(data):
            plain.appendleft(memoryview(data)[count:])
        self._plain_size -= count
        self.payload_sent += count

    def _gather(self) -> bytes | memoryview:
        """Take the next plain text: small pieces together, a part of a large one."""
        plain = self._plain
        pieces: list[Any] = []
        room = _SEALED_AT_ONCE
        while plain and room > 0:
            first = plain[0]
            if not isinstance(first, (bytes, memoryview)):  # a FileRegion
                try:
                    data = first.read(room)
                except OSError as e:
                    plain.popleft()
                    first.finish(e)
                    raise
                if first.remaining == 0:
                    self._files.append(plain.popleft())
            elif len(first) <= room:
                data = plain.popleft()
            else:
                view = memoryview(first)
                data = view[:room]
                plain[0] = view[room:]
            pieces.append(data)
            room -= len(data)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def end_output(self) -> None:
        """Say close-notify."""
        if self._has_failed or not self._is_done:
            return
        # OpenSSL looks for the peer's close-notify at once, and takes a record of any other kind for an error: what
        # waits to be decrypted stays out of its sight.
        held = self._incoming.read() if self._incoming.pending else b""
        with contextlib.suppress(OSError):  # the peer has not said it yet
            self.ssl_object.unwrap()
        if held:
            self._incoming.write(held)
        self._count_unsent()

    def drop_output(self) -> None:
        """Forget what is unsent."""
        self.unsent = self._plain_size = 0
        self._sealed = None
        self._outgoing.read()
        left = [item for item in self._plain if not isinstance(item, (bytes, memoryview))]
        self._plain.clear()
        self._files += left
        self._finish_files(ConnectionError("the connection ended before the file was sent"))

    def detach(self) -> None:
        """Let go of the connection."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._ready_callback = None
        self.connection = None

    # --- private ---

    def _count_unsent(self) -> None:
        unsent = self._plain_size + int(self._outgoing.pending)
        if self._sealed is not None:
            unsent += len(self._sealed) - self._written
        self.unsent = unsent

    def _finish_files(self, error: OSError | None) -> None:
        files, self._files = self._files, []
        for region in files:
            region.finish(error)

    def _note(self, error: Exception) -> None:
        # Its traceback would keep a view of the loop's read area for as long as the connection is kept.
        error.__traceback__ = None
        assert self.connection is not None
        self.connection.note_error(error)

    def _fail(self, error: Exception) -> None:
        error.__traceback__ = None
        self._has_failed = True
        self._count_unsent()
        assert self.connection is not None
        self.connection.fail(error)


def start_tls(
    connection: TcpConnection,
    context: ssl.SSLContext,
    *,
    server_side: bool,
    server_hostname: str | None = None,
    session: ssl.SSLSession | None = None,
    timeout_s: float = HANDSHAKE_TIMEOUT_S,
    ready_callback: Callable[[TcpConnection], object] | None = None,
) -> None:
    """Go on in TLS on a connection that is up (STARTTLS): both sides do it at the same point of the conversation.

    In the loop's thread, as a rule in the message callback that has taken the peer's word for it out of the buffer.
    What was sent before leaves as plain text; what is sent from now on waits for the handshake, and is encrypted.
    Bytes behind that word are the peer's first bytes of TLS, and nothing else: commands that somebody has put there
    end the connection. The connection stays up meanwhile, and its callbacks stay as they are.

    Args:
        connection: up, without TLS.
        context, server_side, server_hostname, session, timeout_s: see ``TlsLayer``.
        ready_callback: ``(connection)``, queued in the loop when the handshake is done. If that fails, the
            connection ends: its connection callback finds the reason in ``connection.error``.

    Raises:
        RuntimeError: wrong thread; the connection is not up, speaks TLS already, or is sending a file.
        ssl.SSLError, ValueError: see ``TlsLayer``.
    """
    connection.loop.assert_in_loop_thread()
    if not connection.connected:
        raise RuntimeError(f"start_tls: {connection!r} is not up")
    if connection.ssl_object is not None:
        raise RuntimeError(f"start_tls: {connection!r} speaks TLS already")
    layer = TlsLayer(
        context, server_side=server_side, server_hostname=server_hostname, session=session, timeout_s=timeout_s
    )
    layer.upgrade(ready_callback)
    connection.set_layer(layer)


def _as_cut(error: OSError) -> OSError:
    """Return an ``ssl.SSLEOFError`` for a stream that was cut, whatever the interpreter makes of that."""
    if getattr(error, "reason", "") == "UNEXPECTED_EOF_WHILE_READING" and not isinstance(error, ssl.SSLEOFError):
        return ssl.SSLEOFError(*error.args)
    return error


def _call_if_up(callback: Callable[[TcpConnection], object], connection: TcpConnection) -> None:
    if not connection.disconnected:
        callback(connection)
