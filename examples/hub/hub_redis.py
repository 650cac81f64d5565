r"""Redis in the middle of hubs: ``PUBLISH`` on one connection, ``PSUBSCRIBE`` on another.

What it teaches: one codec for what goes out, another one for what comes in. Requests are arrays of bulk strings, which
the library's codec writes; replies may be of any kind, and a codec of one's own for those is a page.

A connection that listens may not publish (in the version of the protocol that all servers speak), so there are two.
"""

from __future__ import annotations

import logging
from typing import Any, ClassVar

from hub_engine import MAX_MESSAGE_BYTES, Engine, EngineCallback
from pymuduo import Buffer, EventLoop, TcpConnection, Timestamp
from pymuduo.codec import Codec, ProtocolError, RespCodec

_MAX_ITEMS = 16  # of an array; what a listener is told has four
_END = b"\r\n"


class ErrorReply(str):
    """What Redis says when it does not like a request."""

    __slots__ = ()


class ReplyCodec(Codec):
    """Cuts the stream into replies: bytes, ints, ``ErrorReply``s, None, and lists of those."""

    __slots__ = ()

    def decode(self, buffer: Buffer) -> list[Any]:
        """Take every complete reply; ProtocolError if the first one is malformed or too long."""
        replies: list[Any] = []
        try:
            while len(buffer) > 0 and (found := self._read(buffer, 0)) is not None:
                reply, end = found
                buffer.retrieve(end)
                replies.append(reply)
            if len(buffer) > self.max_bytes:
                raise ValueError(f"a reply of more than {self.max_bytes} bytes")
        except ValueError as e:
            if not replies:
                raise ProtocolError(str(e)) from None
        return replies

    def _read(self, buffer: Buffer, at: int, depth: int = 0) -> tuple[Any, int] | None:
        """Return the reply that begins at an offset, and where it ends; None if it is not all there."""
        end = buffer.find(_END, at)
        if end < 0:
            return None
        kind, text = chr(buffer.peek(at + 1)[at]), bytes(buffer.peek(end)[at + 1 :])
        end += len(_END)
        reply: Any = text
        match kind:
            case "+":
                pass
            case "-":
                reply = ErrorReply(text.decode("utf-8", "replace"))
            case ":":
                reply = int(text)
            case "$":
                return self._read_block(buffer, end, int(text))
            case "*" if depth == 0 and int(text) <= _MAX_ITEMS:
                return self._read_items(buffer, end, int(text))
            case _:
                raise ValueError(f"no reply that is expected here: {kind}{text[:40]!r}")
        return reply, end

    def _read_items(self, buffer: Buffer, at: int, count: int) -> tuple[list[Any], int] | None:
        items = []
        for _ in range(count):
            found = self._read(buffer, at, depth=1)
            if found is None:
                return None
            item, at = found
            items.append(item)
        return items, at

    def _read_block(self, buffer: Buffer, at: int, size: int) -> tuple[bytes | None, int] | None:
        if size < 0:
            return None, at
        if size > self.max_bytes:
            raise ValueError(f"a reply of {size} bytes, more than {self.max_bytes}")
        end = at + size
        return (bytes(buffer.peek(end)[at:]), end + len(_END)) if len(buffer) >= end + len(_END) else None


class RedisEngine(Engine):
    """Says it on one connection and hears it on the other."""

    port: ClassVar[int] = 6379

    def __init__(self, loop: EventLoop, host: str, port: int, pattern: bytes, callback: EngineCallback) -> None:
        super().__init__(loop, host, port, pattern, callback)
        self._requests = RespCodec(max_bytes=MAX_MESSAGE_BYTES)
        replies = ReplyCodec(batch_callback=self._on_replies, max_bytes=MAX_MESSAGE_BYTES)
        self._listener = self.new_client("redis-listener", replies)
        self._speaker = self.new_client("redis-speaker", replies)

    def publish(self, name: bytes, payload: bytes) -> bool:
        """Tell all who listen; False if that can't be done at this moment."""
        connection = self.ready(self._speaker)
        return connection is not None and self._requests.send(connection, [b"PUBLISH", name, payload])

    def on_up(self, connection: TcpConnection) -> None:
        """Subscribe, on the connection that listens; ask for an answer on the other one, which says that it serves."""
        if connection is self._listener.connection:
            self._requests.send(connection, [b"PSUBSCRIBE", self.pattern])
        else:
            self.ping(connection)

    def ping(self, connection: TcpConnection) -> None:
        """Ask for a sign of life."""
        self._requests.send(connection, [b"PING"])

    def _on_replies(self, connection: TcpConnection, replies: list[Any], receive_time: Timestamp) -> None:
        messages = []
        for reply in replies:
            match reply:
                case [b"pmessage", _, bytes(name), bytes(payload)]:
                    messages.append((name, payload))
                case [b"psubscribe", *_] | b"PONG":
                    self.note_answer(connection)
                case ErrorReply():
                    logging.warning("redis: %s", reply)
                    connection.force_close()  # and try again: it may be loading its data, say
        if messages:
            self.callback(connection, messages)
