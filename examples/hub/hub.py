"""Publish and subscribe: what is published on a topic, all its subscribers get; on this hub, or on many that are one.

What it teaches: a broadcast over several loops costs a hop a loop, not a hop a subscriber. Every loop has a table of
its own connections' subscriptions (``Audience``), which no other thread touches. The main loop (``Hub``) says what
comes after what: every command passes through it, and on to the loops that have an audience for it. So there is no
lock, and all subscribers of all topics hear messages in the same order on every build of Python. What one thread hands
to a loop is run in its order, and that is what makes it right: a new subscriber, with the topic's last message, goes
the same way as the messages before and after it, so it misses none and gets none twice.

Nobody can fill the hub's memory. A publisher is not read while too much of what it has sent is still on its way through
the loops; a subscriber who reads too slowly is cut off; topics, subscriptions and last messages are limited. A client
that wants more is cut off too, because the protocol has no word for no.

    python hub.py --threads 2        and elsewhere        python sub.py news        and        python pub.py news hello

Several hubs, on several machines, are made one by a NATS or Redis server between them (see ``hub_bridge.py``):

    python hub.py --bridge nats://10.0.0.1:4222        or        python hub.py --bridge redis://10.0.0.1:6379
"""

from __future__ import annotations

import argparse
import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable

from hub_bridge import Bridge, EngineAddress
from hub_codec import HubCodec, HubMessage
from pymuduo import EventLoop, InetAddress, TcpConnection, TcpServer, Timestamp

_MAX_TOPICS = 100_000  # that have subscribers
_MAX_SUBSCRIPTIONS = 1000  # of one client
_MAX_UNREAD_BYTES = 4 << 20
_MAX_KEPT_BYTES = 64 << 20  # of last messages; the oldest of them are forgotten first
_KEPT_OVERHEAD_BYTES = 256  # what keeping one costs beside its bytes
_MAX_READS_UNDER_WAY = 8  # of one connection; a read brings 64 KiB or so


class Audience:
    """Who of one loop's connections listens to what. Confined to that loop, whose context it is."""

    def __init__(self) -> None:
        self._listeners: dict[bytes, set[TcpConnection]] = {}

    def add(self, topic: bytes, connection: TcpConnection, last: bytes) -> None:
        """Let a connection hear the last message of a topic, and all that come."""
        self._listeners.setdefault(topic, set()).add(connection)
        connection.send(last)

    def remove(self, topics: Iterable[bytes], connection: TcpConnection) -> None:
        """Let a connection hear no more of these topics, to which it listens."""
        for topic in topics:
            listeners = self._listeners[topic]
            listeners.remove(connection)
            if not listeners:
                del self._listeners[topic]

    def hear(self, topic: bytes, data: bytes) -> None:
        """Send a message to all who listen."""
        for connection in self._listeners[topic]:
            connection.send(data)


class Hub:
    """Says what comes after what. Confined to the main loop, but for the callbacks of connections."""

    def __init__(self, server: TcpServer) -> None:
        self.bridge: Bridge | None = None
        self._server = server
        self._codec = HubCodec(batch_callback=self._on_messages)
        self._topics_of: dict[TcpConnection, set[bytes]] = {}
        self._loops_of: dict[bytes, Counter[EventLoop]] = {}  # how many listeners a topic has on which loops
        self._last: OrderedDict[bytes, bytes] = OrderedDict()  # as they travel; the oldest is the first
        self._kept_bytes = 0
        server.thread_init_callback = self._on_loop
        server.connection_callback = self._on_connection
        server.message_callback = self._codec.on_message
        server.max_output_bytes = _MAX_UNREAD_BYTES

    def take_from_afar(self, connection: TcpConnection, messages: list[tuple[bytes, bytes]]) -> None:
        """Publish what other hubs have published, each a topic and a message as it travels; the main loop's thread."""
        begin_read(connection)
        for topic, data in messages:
            self._publish(topic, data)
        self._go_round(connection, self._loops())

    # --- callbacks: in the threads of the connections ---

    @staticmethod
    def _on_loop(loop: EventLoop) -> None:
        loop.context = Audience()

    def _on_connection(self, connection: TcpConnection) -> None:
        logging.info("%s is %s", connection.peer_address, "up" if connection.connected else "down")
        call(self._server.loop, self._enter if connection.connected else self._leave, connection)

    def _on_messages(self, connection: TcpConnection, messages: list[HubMessage], receive_time: Timestamp) -> None:
        begin_read(connection)
        call(self._server.loop, self._take, connection, messages)

    def _go_round(self, connection: TcpConnection, loops: list[EventLoop]) -> None:
        """Go through the loops, behind all that was handed to them; then the read has been dealt with."""
        if loops:
            call(loops[0], self._go_round, connection, loops[1:])
        else:
            call(connection.loop, end_read, connection)

    # --- in the main loop ---

    def _loops(self) -> list[EventLoop]:
        return self._server.thread_pool.loops()

    def _enter(self, connection: TcpConnection) -> None:
        self._topics_of[connection] = set()

    def _leave(self, connection: TcpConnection) -> None:
        self._forget(connection, self._topics_of.pop(connection, set()))

    def _take(self, connection: TcpConnection, messages: list[HubMessage]) -> None:
        for message in messages:
            if connection not in self._topics_of:
                return  # it has been cut off
            if message.command == b"pub":
                self._publish(message.topic, self._codec.encode(message))
                if self.bridge is not None:
                    self.bridge.publish(message.topic, message.content)
            elif message.command == b"sub":
                self._subscribe(connection, message.topic)
            elif message.topic in self._topics_of[connection]:
                self._topics_of[connection].remove(message.topic)
                self._forget(connection, {message.topic})
        self._go_round(connection, self._loops())

    def _publish(self, topic: bytes, data: bytes) -> None:
        self._keep(topic, data)
        for loop in self._loops_of.get(topic, ()):
            call(loop, loop.context.hear, topic, data)

    def _subscribe(self, connection: TcpConnection, topic: bytes) -> None:
        topics = self._topics_of[connection]
        if topic not in topics:
            if len(topics) == _MAX_SUBSCRIPTIONS or (
                topic not in self._loops_of and len(self._loops_of) == _MAX_TOPICS
            ):
                logging.warning("%s wants too much: cut off with %d topics", connection.peer_address, len(topics))
                self._leave(connection)
                connection.force_close()
                return
            topics.add(topic)
            self._loops_of.setdefault(topic, Counter())[connection.loop] += 1
        call(connection.loop, connection.loop.context.add, topic, connection, self._last.get(topic, b""))

    def _forget(self, connection: TcpConnection, topics: set[bytes]) -> None:
        for topic in topics:
            loops = self._loops_of[topic]
            loops[connection.loop] -= 1
            if not loops[connection.loop]:
                del loops[connection.loop]
                if not loops:
                    del self._loops_of[topic]
        call(connection.loop, connection.loop.context.remove, topics, connection)

    def _keep(self, topic: bytes, data: bytes) -> None:
        self._kept_bytes -= kept_bytes(topic, self._last.pop(topic, None))
        self._last[topic] = data
        self._kept_bytes += kept_bytes(topic, data)
        while self._kept_bytes > _MAX_KEPT_BYTES:
            self._kept_bytes -= kept_bytes(*self._last.popitem(last=False))


def kept_bytes(topic: bytes, data: bytes | None) -> int:
    """Return what it costs to keep a topic's last message."""
    return 0 if data is None else len(topic) + len(data) + _KEPT_OVERHEAD_BYTES


def begin_read(connection: TcpConnection) -> None:
    """Count in ``context``, in the connection's thread alone, the reads under way; too many, and it is read no more."""
    connection.context = (connection.context or 0) + 1
    if connection.context == _MAX_READS_UNDER_WAY:
        connection.stop_read()


def end_read(connection: TcpConnection) -> None:
    """Take back ``begin_read``."""
    if connection.context == _MAX_READS_UNDER_WAY:
        connection.start_read()
    connection.context -= 1


def call(loop: EventLoop, callback: Callable[..., object], *args: object) -> None:
    """Call in a loop, now if this is its thread. A loop that has ended, as they do one by one, need not hear it."""
    if loop.is_in_loop_thread():
        callback(*args)
    else:
        loop.post(callback, args)


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="hub: what is published on a topic, all its subscribers get")
    parser.add_argument("--port", type=int, default=2022, help="0 lets the kernel choose; default %(default)s")
    parser.add_argument("--threads", type=int, default=0, help="I/O loops; 0, the default: the main loop does it all")
    parser.add_argument(
        "--bridge",
        metavar="URL",
        help="nats://HOST:PORT/NAME or redis://…: be one with all hubs that name the same; /hub unless given",
    )
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with EventLoop() as loop:
        loop.quit_on_signals()
        try:
            bridge = None if options.bridge is None else EngineAddress.parse(options.bridge)
            server = TcpServer(loop, InetAddress.any(options.port), "hub")
            server.thread_num = options.threads
        except (OSError, ValueError) as e:
            parser.error(str(e))
        hub = Hub(server)
        if bridge is not None:
            hub.bridge = Bridge(loop, bridge, hub.take_from_afar)
        server.start()
        loop.run()


if __name__ == "__main__":
    main()
