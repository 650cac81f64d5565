r"""NATS in the middle of hubs: ``PUB``, ``SUB`` and ``MSG`` over a connection of ours.

What it teaches: a foreign protocol takes little when a codec knows its shape. NATS speaks in lines of words, and two of
them are followed by a block whose size is the last word: ``MSG hub.news 1 5\r\nhello\r\n``.
"""

from __future__ import annotations

import json
import logging
from typing import ClassVar

from hub_engine import MAX_MESSAGE_BYTES, Engine, EngineCallback
from pymuduo import EventLoop, TcpConnection, Timestamp
from pymuduo.codec import CommandCodec

_HELLO = {"verbose": False, "pedantic": False, "lang": "python", "version": "1", "name": "hub", "echo": False}


class NatsEngine(Engine):
    """Says and hears it on one connection, which is up when the server has answered what was said first."""

    port: ClassVar[int] = 4222

    def __init__(self, loop: EventLoop, host: str, port: int, pattern: bytes, callback: EngineCallback) -> None:
        super().__init__(loop, host, port, pattern, callback)
        self._codec = CommandCodec(
            batch_callback=self._on_commands, blocks={b"MSG": -1, b"PUB": -1}, max_bytes=MAX_MESSAGE_BYTES
        )
        self._client = self.new_client("nats", self._codec)

    def publish(self, name: bytes, payload: bytes) -> bool:
        """Tell all who listen; False if that can't be done at this moment."""
        connection = self.ready(self._client)
        size = b"%d" % len(payload)
        return connection is not None and self._codec.send(connection, [b"PUB", name, size, payload])

    def on_up(self, connection: TcpConnection) -> None:
        """Introduce ourselves and subscribe; the answer to the ping says that it has been done."""
        connection.send(b"CONNECT %b\r\n" % json.dumps(_HELLO).encode())
        self._codec.send_all(connection, [[b"SUB", self.pattern, b"1"], [b"PING"]])

    def ping(self, connection: TcpConnection) -> None:
        """Ask for a sign of life."""
        self._codec.send(connection, [b"PING"])

    def _on_commands(self, connection: TcpConnection, commands: list[list[bytes]], receive_time: Timestamp) -> None:
        messages = []
        for words in commands:
            match words:
                case [b"MSG", name, _, _, payload] | [b"MSG", name, _, _, _, payload]:
                    messages.append((name, payload))
                case [b"PING"]:
                    self._codec.send(connection, [b"PONG"])
                case [b"PONG"]:
                    self.note_answer(connection)
                case [b"-ERR", *reason]:
                    logging.warning("nats: %s", b" ".join(reason).decode("utf-8", "replace"))
        if messages:
            self.callback(connection, messages)
