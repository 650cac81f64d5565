"""Takes the requests of all connections, and answers them in batches.

All requests that a read has brought are served with the lock held once, and their replies leave in one piece. That is
what makes the server fast, on one loop or several: a lock, a call into the library and a system call are shared by as
many requests as a client pipelines. It also makes a transaction atomic.

A client may have to wait before its next request is served: for a list (BLPOP), or until it has read what it was sent.
Then what it has asked besides is its backlog, and when it goes on asking, it is not read from any more.
"""

from __future__ import annotations

import itertools
import threading
import time
from typing import TYPE_CHECKING

from redis_blocking import Wait, WaitingRoom
from redis_client import Client
from redis_commands import Tables, lookup, refuse_arity
from redis_pubsub import Hub
from redis_replies import NOTHING, CommandError
from redis_store import Store
from redis_transactions import Watches

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pymuduo import EventLoop, TcpConnection, Timestamp
    from pymuduo.codec import ProtocolError

_LARGE_REPLY_BYTES = 4096  # is sent at once: a read may bring thousands of requests for a large value
_MAX_UNREAD_BYTES = 1 << 20
_PATIENCE_S = 10.0


class Service:
    """The server without its sockets: one keyspace for all loops, behind one lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self.tables = Tables()
        self.store = Store()
        self.hub = Hub()
        self.watches = Watches(self.store)
        self.waiting_room = WaitingRoom(self.store, self._give_up, self._go_on)
        self.began = time.monotonic()
        self.client_count = self.connection_count = self.command_count = 0

    # --- callbacks: in the threads of the connections ---

    def on_connection(self, connection: TcpConnection) -> None:
        """Note who comes, and forget who leaves."""
        if connection.connected:
            with self._lock:
                self.client_count += 1
                self.connection_count += 1
                connection.context = Client(connection, next(self._numbers), self)
            return
        client: Client = connection.context
        with self._lock:
            self.client_count -= 1
            self.waiting_room.leave(client)
            self.watches.leave(client)
            self.hub.leave(client)

    def on_requests(self, connection: TcpConnection, requests: list[list[bytes]], receive_time: Timestamp) -> None:
        """Serve what a read has brought."""
        client: Client = connection.context
        if client.backlog is None:
            self._serve(client, requests)
            return
        client.backlog += requests
        connection.stop_read()

    def on_protocol_error(self, connection: TcpConnection, error: ProtocolError) -> None:
        """Say why the connection ends."""
        connection.send(b"-ERR Protocol error: %b\r\n" % str(error).encode())

    def sweep(self, loop: EventLoop) -> None:
        """Drop keys that have expired: some now, the rest in the iterations to come. Call it now and then."""
        with self._lock:
            is_done = self.store.sweep()
        if not is_done:
            loop.queue_in_loop(self.sweep, loop)

    # --- private ---

    def _serve(self, client: Client, requests: list[list[bytes]]) -> None:
        replies: list[bytes] = []
        append = replies.append
        rest = iter(requests)
        ready = self.waiting_room.ready
        with self._lock:
            client.replies = replies
            for request in rest:
                try:
                    handler, least, is_open = client.commands[request[0]]
                except KeyError:
                    handler, least, is_open = lookup(client.commands, request[0])
                if len(request) == least or (is_open and len(request) > least):
                    try:
                        reply = handler(client, request)
                    except CommandError as e:
                        reply = e.reply
                else:
                    reply = refuse_arity(client, request)
                append(reply)
                if ready:
                    self.waiting_room.serve()
                if (reply is NOTHING or len(reply) > _LARGE_REPLY_BYTES) and self._is_held_up(client, rest):
                    break
            client.replies = None
            self.command_count += len(requests) - len(client.backlog or ())
        connection = client.connection
        connection.send(b"".join(replies))
        if client.is_leaving:
            connection.shutdown(within_s=_PATIENCE_S)
        elif connection.output_size > _MAX_UNREAD_BYTES and client.backlog is None:
            self._wait_for_reader(client, [])

    def _is_held_up(self, client: Client, rest: Iterator[list[bytes]]) -> bool:
        """Look what to do after a reply that is none, or large: whether the other requests have to wait."""
        if client.is_leaving or client.wait is not None:
            client.backlog = list(rest)
            return True
        assert client.replies is not None
        client.connection.send(b"".join(client.replies))
        client.replies.clear()
        if client.connection.output_size > _MAX_UNREAD_BYTES:
            self._wait_for_reader(client, list(rest))
            return True
        return False

    def _wait_for_reader(self, client: Client, backlog: list[list[bytes]]) -> None:
        """Serve no more until the client has read what it was sent."""
        client.backlog = backlog
        client.connection.write_complete_callback = self._on_write_complete

    def _on_write_complete(self, connection: TcpConnection) -> None:
        connection.write_complete_callback = None
        self._go_on(connection.context)

    def _give_up(self, client: Client, wait: Wait) -> None:
        """Tell a client that its time to wait is over, unless it has just got something."""
        with self._lock:
            if client.wait is not wait:
                return
            self.waiting_room.leave(client)
            client.deliver(client.dialect.null_array)
        self._go_on(client)

    def _go_on(self, client: Client) -> None:
        """Serve what a client has asked for while it had to wait; in its loop."""
        if not client.connection.connected:
            return
        backlog, client.backlog = client.backlog, None
        client.connection.start_read()
        if backlog:
            self._serve(client, backlog)
