"""A client of the hub for programs: subscribe, unsubscribe, publish; it comes back by itself.

What it teaches: what must be done again when a connection is made anew. ``TcpClient`` connects again, with back-off,
but the hub has forgotten who we are. So the client remembers its subscriptions, and repeats them whenever it is up.

A message that is published while there is no connection is not kept, and one that was under way when the connection
broke may be lost: nothing arrives twice, except that the hub tells the last message of a topic at each subscription.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

from hub_codec import HubCodec, HubMessage
from pymuduo import EventLoop, InetAddress, TcpClient, TcpConnection, Timestamp

SubscribeCallback: TypeAlias = Callable[[bytes, bytes], object]
"""``(topic, content)``, in the loop's thread."""

_MAX_RETRY_DELAY_S = 5.0


class HubClient:
    """One connection to a hub, made anew when it is lost. All methods may be called from any thread.

    The table of subscriptions is confined to the loop: the methods hop there.

    Args:
        hub: where it is, as an address, or a host name and a port.
        retry: connect again when connecting fails and when the connection is lost.

    Attributes:
        tcp: the client underneath; its callbacks for failures and for output are yours to set.
        connection_callback: ``(client)`` in the loop when the connection is up or down; see ``connected``.
    """

    def __init__(self, loop: EventLoop, hub: InetAddress | tuple[str, int], name: str, *, retry: bool = True) -> None:
        self.connection_callback: Callable[[HubClient], object] | None = None
        self._loop = loop
        self._callbacks: dict[bytes, SubscribeCallback] = {}
        self._codec = HubCodec(self._on_message)
        self.tcp = TcpClient(loop, hub, name, retry=retry, max_retry_delay_s=_MAX_RETRY_DELAY_S, jitter=True)
        self.tcp.connection_callback = self._on_connection
        self.tcp.message_callback = self._codec.on_message

    @property
    def connected(self) -> bool:
        """Whether the connection is up at this moment."""
        return self.tcp.connection is not None

    def start(self) -> None:
        """Begin to connect."""
        self.tcp.connect()

    def stop(self) -> None:
        """Send what was published, and leave."""
        self.tcp.disconnect()

    def subscribe(self, topic: bytes, callback: SubscribeCallback) -> None:
        """Call back with each message on *topic*, the last one to begin with; now and after each new connection.

        Raises:
            ValueError: this can't be a topic.
        """
        self._loop.run_in_loop(self._subscribe, topic, callback, self._codec.encode(HubMessage(b"sub", topic)))

    def unsubscribe(self, topic: bytes) -> None:
        """Call back no more with messages on *topic*; ValueError if it can't be one."""
        self._loop.run_in_loop(self._unsubscribe, topic, self._codec.encode(HubMessage(b"unsub", topic)))

    def publish(self, topic: bytes, content: bytes) -> bool:
        """Send a message to all subscribers of *topic*; False if there is no connection.

        Raises:
            ValueError: this can't be a topic, or the content is too long or holds a line end.
        """
        return self.publish_all(topic, [content])

    def publish_all(self, topic: bytes, contents: Iterable[bytes]) -> bool:
        """Send many messages in one piece; otherwise as ``publish``."""
        data = self._codec.encode_all(HubMessage(b"pub", topic, content) for content in contents)
        connection = self.tcp.connection
        return connection is not None and connection.send(data)

    # --- in the loop's thread ---

    def _subscribe(self, topic: bytes, callback: SubscribeCallback, request: bytes) -> None:
        self._callbacks[topic] = callback
        self._request(request)

    def _unsubscribe(self, topic: bytes, request: bytes) -> None:
        if self._callbacks.pop(topic, None) is not None:
            self._request(request)

    def _request(self, request: bytes) -> None:
        if self.tcp.connection is not None:  # else it is among what is said when there is one
            self.tcp.connection.send(request)

    def _on_connection(self, connection: TcpConnection) -> None:
        if connection.connected:
            self._codec.send_all(connection, [HubMessage(b"sub", topic) for topic in self._callbacks])
        if self.connection_callback is not None:
            self.connection_callback(self)

    def _on_message(self, connection: TcpConnection, message: HubMessage, receive_time: Timestamp) -> None:
        callback = self._callbacks.get(message.topic)
        if callback is not None and message.command == b"pub":
            callback(message.topic, message.content)
