"""What the bridge wants of a server in the middle: tell everybody, and say what was told.

What it teaches: keeping a connection that may be silent for hours. It is asked for a sign of life now and then, and if
nothing at all comes for longer, the other end is taken for dead, and the connection is made anew: a machine that loses
its power sends no FIN.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from hub_codec import MAX_CONTENT_BYTES
from pymuduo import EventLoop, IdleTimeouts, TcpClient, TcpConnection
from pymuduo.codec import Codec

EngineCallback = Callable[[TcpConnection, list[tuple[bytes, bytes]]], object]
"""``(connection, messages)``: names and payloads of one read, one or more."""

MAX_MESSAGE_BYTES = MAX_CONTENT_BYTES + 65_536  # with all that stands around it
_MAX_UNSENT_BYTES = 16 << 20
_MAX_RETRY_DELAY_S = 5.0
_PING_S = 5.0
_SILENCE_S = 15.0


class Engine(ABC):
    """A server that passes messages on. Confined to its loop.

    Attributes:
        port: where such a server listens unless told otherwise.
        pattern: of the names that are listened to.
        callback: for what is told under them.
    """

    port: ClassVar[int]

    def __init__(self, loop: EventLoop, host: str, port: int, pattern: bytes, callback: EngineCallback) -> None:
        self.loop = loop
        self.pattern = pattern
        self.callback = callback
        self._target = host, port
        self._timeouts = IdleTimeouts(read_s=_SILENCE_S)
        self._clients: list[TcpClient] = []
        self._answered: set[TcpConnection] = set()

    def start(self) -> None:
        """Begin to connect."""
        for client in self._clients:
            client.connect()
        self.loop.run_every(_PING_S, self._ping_all)

    @abstractmethod
    def publish(self, name: bytes, payload: bytes) -> bool:
        """Tell all who listen; False if that can't be done at this moment."""

    # --- for the engines ---

    @abstractmethod
    def on_up(self, connection: TcpConnection) -> None:
        """Begin to speak, on a connection that is new."""

    @abstractmethod
    def ping(self, connection: TcpConnection) -> None:
        """Ask for a sign of life."""

    def new_client(self, name: str, codec: Codec) -> TcpClient:
        """Return a client for this server; one that is never given up."""
        client = TcpClient(self.loop, self._target, name, retry=True, max_retry_delay_s=_MAX_RETRY_DELAY_S, jitter=True)
        client.connection_callback = self._on_connection
        client.message_callback = codec.on_message
        self._clients.append(client)
        return client

    def note_answer(self, connection: TcpConnection) -> None:
        """Note that what was said first has been answered; when that holds for all clients, hubs hear one another."""
        if connection not in self._answered:
            self._answered.add(connection)
            if all(client.connection in self._answered for client in self._clients):
                host, port = self._target
                logging.info("bridge is up: %s at %s, port %d", self.pattern.decode(), host, port)

    def ready(self, client: TcpClient) -> TcpConnection | None:
        """Return a connection that may be spoken on; None without an answer yet, or if the server does not read."""
        connection = client.connection
        return connection if connection in self._answered and self._has_room(connection) else None

    # --- private ---

    @staticmethod
    def _has_room(connection: TcpConnection) -> bool:
        return connection.output_size < _MAX_UNSENT_BYTES

    def _on_connection(self, connection: TcpConnection) -> None:
        if connection.connected:
            self._timeouts.watch(connection)
            self.on_up(connection)
        else:
            self._answered.discard(connection)
            logging.info("bridge is down: %s", connection.name)

    def _ping_all(self) -> None:
        for client in self._clients:
            connection = self.ready(client)
            if connection is not None:
                self.ping(connection)
