"""What every codec shares: a stream of bytes in, whole messages out, and the other way round.

TCP has no messages. What one end sends in one piece may arrive in three, or three in one; so a codec takes from the
input buffer what is complete, leaves the rest for the next time, and calls back with whole messages.

All complete messages of a read are taken from the buffer at once, in compiled code. Then they go to the program one
by one (``message_callback``), or all together as a list (``batch_callback``), which saves a call a message and
allows one answer for all of them. A codec remembers nothing of a connection, so one serves any number of them, on
any number of loops: messages that must wait because reading was stopped are left to the connection.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from pymuduo.buffer import Buffer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pymuduo.callbacks import AnyBatchCallback, AnyMessageCallback, BytesLike, ProtocolErrorCallback
    from pymuduo.layer import Layer
    from pymuduo.tcp_connection import TcpConnection
    from pymuduo.timestamp import Timestamp

    Payload = TypeVar("Payload", contravariant=True)  # noqa: PLC0105  # the reference shows its name

    # So that ``send`` takes what the ``encode`` of a derived class says that it takes: a base that is compiled can't
    # be Generic.
    class _Encodes(Protocol[Payload]):
        def encode(self, payload: Payload) -> bytes: ...
        def encode_all(self, payloads: Iterable[Payload]) -> bytes: ...


_log = logging.getLogger("pymuduo.codec")


class ProtocolError(ValueError):
    """The peer sent what the protocol does not allow; there is no way back into step with it."""


class Codec:
    """Turns a connection's bytes into messages: the base of all codecs, and of your own.

    Give ``on_message`` to a server or connection as its message callback. A peer that breaks the rules is logged and
    cut off, after the messages that came before have been delivered; the reason is in ``connection.error``.

    A callback may use ``stop_read`` in the middle of what a read has brought: what is behind its message is held back,
    and comes after ``start_read``, before anything that arrives later. After ``force_close`` nothing comes any more.

    To make one of your own, define ``decode`` and ``encode``. What a message is, you decide: bytes, a list of words, an
    object.

    Args:
        message_callback: ``(connection, message, receive_time)`` for each message.
        batch_callback: ``(connection, messages, receive_time)`` instead, with a list of all messages that a read has
            completed, one or more.
        max_bytes: the longest message allowed, in either direction.

    Attributes:
        message_callback, batch_callback: as above. Set them before the codec is in use.
        error_callback: ``(connection, error)`` with a ``ProtocolError``, before the connection is cut off; takes the
            place of the log line.

    Raises:
        ValueError: both callbacks are given, or *max_bytes* is not positive.

    Thread rule: any number of loops may use a codec at the same time. muduo: ``LengthHeaderCodec`` in its chat.
    """

    __slots__ = ("batch_callback", "error_callback", "max_bytes", "message_callback")

    def __init__(
        self,
        message_callback: AnyMessageCallback | None = None,
        *,
        batch_callback: AnyBatchCallback | None = None,
        max_bytes: int = 65536,
    ) -> None:
        if message_callback is not None and batch_callback is not None:
            raise ValueError(f"{type(self).__name__}: a message callback or a batch callback, not both")
        if max_bytes < 1:
            raise ValueError(f"{type(self).__name__}: max_bytes must be positive, got {max_bytes}")
        self.message_callback = message_callback
        self.batch_callback = batch_callback
        self.error_callback: ProtocolErrorCallback | None = None
        self.max_bytes = max_bytes

    # --- what a codec defines ---

    def decode(self, buffer: Buffer) -> list[Any]:
        """Take every complete message from the front of *buffer* and return them; none is an empty list.

        Raises:
            ProtocolError: what stands at the front can't become a message.
        """
        raise NotImplementedError

    def encode(self, payload: Any) -> bytes:
        """Return a message as it travels. For a broadcast do it once, and send the same bytes to everybody.

        Raises:
            ValueError: it is too long, or holds what the protocol can't carry.
        """
        raise NotImplementedError

    def encode_all(self: _Encodes[Payload], payloads: Iterable[Payload]) -> bytes:
        """Return many messages as they travel, in one piece. Raises ValueError as ``encode`` does."""
        return b"".join([self.encode(payload) for payload in payloads])

    def recover(self, connection: TcpConnection, buffer: Buffer, error: ProtocolError) -> bool:
        """Get back into step with a peer that broke the rules. False, as here: there is no way; it is cut off.

        A class whose protocol knows a way takes what is wrong from the front of *buffer*, a byte or more, and returns
        True; then decoding goes on. If it must skip more than is there, it sets ``connection.message_callback`` to what
        does that, and back to ``on_message`` afterwards.
        """
        return False

    # --- what it does for a connection ---

    def on_message(self, connection: TcpConnection, buffer: Buffer, receive_time: Timestamp) -> None:
        """Deliver what is complete: a connection's message callback.

        A callback that raises is reported as the loop does it; with an ``exception_handler`` on the loop the
        connection, and the messages after this one, live on.
        """
        while len(buffer) > 0:
            if not connection._reading:
                self._hold(connection, [], 0, connection.layer, receive_time)
                return
            try:
                messages = self.decode(buffer)
            except ProtocolError as e:
                if self.recover(connection, buffer, e):
                    continue
                buffer.retrieve_all()
                self._cut_off(connection, e)
                return
            if not messages:
                return
            layer = connection.layer
            if self.message_callback is not None:
                if not self._deliver(connection, messages, 0, layer, receive_time):
                    return
            elif self.batch_callback is not None:
                try:
                    self.batch_callback(connection, messages, receive_time)
                except Exception as e:
                    if not self._goes_on(connection, e):
                        return
            if connection.layer is not layer and connection.ssl_object is not None:
                return  # what is left in the buffer is TLS, and no message

    def send(self: _Encodes[Payload], connection: TcpConnection, payload: Payload) -> bool:
        """Send one message; from any thread. False if the connection is no longer open.

        Raises:
            ValueError: as ``encode`` does.
        """
        return connection.send(self.encode(payload))

    def send_all(self: _Encodes[Payload], connection: TcpConnection, payloads: Iterable[Payload]) -> bool:
        """Send many messages in one piece; from any thread. False if the connection is no longer open.

        Raises:
            ValueError: as ``encode`` does; then none is sent.
        """
        return connection.send(self.encode_all(payloads))

    # --- private ---

    def _deliver(
        self, connection: TcpConnection, messages: list[Any], at: int, layer: Layer | None, receive_time: Timestamp
    ) -> bool:
        """Call back for the messages from *at* on; False if not for all of them.

        *layer* is what the connection had when they were received.
        """
        callback = self.message_callback
        assert callback is not None
        interrupt: BaseException | None = None
        count = len(messages)
        while at < count:
            try:
                while at < count:  # entering a try costs as much as a small message
                    if connection.layer is not layer and connection.ssl_object is not None:
                        self._refuse_plain_text(connection, count - at)
                        break
                    if not connection._reading:
                        break
                    at += 1
                    callback(connection, messages[at - 1], receive_time)
            except BaseException as e:
                try:
                    if not self._goes_on(connection, e):
                        break
                except BaseException as other:
                    # It leaves the loop when the messages have been delivered: there is nowhere to keep them.
                    interrupt = interrupt or other
            else:
                break
        if at < count:
            self._hold(connection, messages, at, layer, receive_time)
        if interrupt is not None:
            raise interrupt
        return at == count

    def _hold(
        self, connection: TcpConnection, messages: list[Any], at: int, layer: Layer | None, receive_time: Timestamp
    ) -> None:
        connection.hold_input(partial(self._deliver_held, messages, at, layer, receive_time))

    def _deliver_held(
        self,
        messages: list[Any],
        at: int,
        layer: Layer | None,
        receive_time: Timestamp,
        connection: TcpConnection,
    ) -> bool:
        """Deliver what was held; False if something must still wait, or what is in the buffer is no message."""
        if messages and not self._deliver(connection, messages, at, layer, receive_time):
            return False
        if not connection._reading:
            self._hold(connection, [], 0, layer, receive_time)
            return False
        return connection.layer is layer or connection.ssl_object is None

    @staticmethod
    def _refuse_plain_text(connection: TcpConnection, count: int) -> None:
        """End a connection on which messages came unprotected behind the one for which ``start_tls`` was called."""
        connection.fail(ProtocolError(f"{count} messages in plain text behind the one that began TLS"))

    def _goes_on(self, connection: TcpConnection, exception: BaseException) -> bool:
        """Apply the loop's policy to what a callback raised; what is no ``Exception`` is raised again."""
        if not isinstance(exception, Exception):
            raise exception
        if connection.loop.handle_exception(exception, connection):
            connection.force_close()
            return False
        return True

    def _cut_off(self, connection: TcpConnection, error: ProtocolError) -> None:
        connection.note_error(error)
        try:
            if self.error_callback is not None:
                self.error_callback(connection, error)  # it may still send: why it ends, say
            else:
                _log.warning("%s: %s; %s is cut off", connection.name, error, connection.peer_address)
        finally:
            connection.force_close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} max_bytes={self.max_bytes}>"


def as_bytes(payload: BytesLike) -> bytes:
    """Return a payload as bytes: itself if that is what it is, else a copy."""
    return payload if type(payload) is bytes else memoryview(payload).tobytes()


def list_of_bytes(payloads: Iterable[BytesLike]) -> list[bytes]:
    """Return payloads as a list of bytes: itself if that is what it is."""
    if type(payloads) is list:
        for payload in payloads:
            if type(payload) is not bytes:
                break
        else:
            return payloads
    return [as_bytes(payload) for payload in payloads]
