"""Takes the requests of all connections, and answers them in batches.

All requests that a read has brought are served with the lock held once, and their replies leave in one piece. That is
what makes the server fast, on one loop or several: a lock, a call into the library and a system call are shared by as
many requests as a client pipelines. It also makes a transaction atomic.

A client may have to wait before its next request is served: for a list (BLPOP), or until it has read what it was sent.
What it asks meanwhile stays in its input buffer. Reading goes on, because who is read from is heard to leave, and then
no element of a list goes to a client that is gone. Only who asks for a mebibyte ahead is not read from until it is its
turn again; should it leave in that state, an element may still go to it, and be lost.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from pymuduo.codec import RespCodec
from redis_blocking import Wait, WaitingRoom
from redis_client import Client
from redis_commands import Tables, lookup, refuse_arity
from redis_pubsub import Hub
from redis_replies import NOTHING, CommandError
from redis_store import Store
from redis_strings import MAX_STRING_BYTES
from redis_transactions import Watches

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pymuduo import Buffer, EventLoop, TcpConnection, Timestamp
    from pymuduo.codec import ProtocolError

_log = logging.getLogger("redis")

_LARGE_REPLY_BYTES = 4096  # is sent at once: a read may bring thousands of requests for a large value
_MAX_REQUEST_BYTES = MAX_STRING_BYTES + 65_536
_MAX_WORDS = 1 << 16
_MAX_UNREAD_BYTES = 1 << 20
_MAX_BYTES_AHEAD = 1 << 20
_PATIENCE_S = 10.0


class Service:
    """The server without its sockets: one keyspace for all loops, behind one lock.

    Give ``on_connection`` and the codec's ``on_message`` to a ``TcpServer``, and call ``sweep`` now and then.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.codec = RespCodec(batch_callback=self._on_requests, max_bytes=_MAX_REQUEST_BYTES, max_words=_MAX_WORDS)
        self.codec.error_callback = self._on_protocol_error
        self.tables = Tables()
        self.store = Store()
        self.hub = Hub()
        self.watches = Watches(self.store)
        self.waiting_room = WaitingRoom(self.store, self._give_up, self._go_on)
        self.began = time.monotonic()
        self.clients: dict[int, Client] = {}
        self.connection_count = self.command_count = 0

    # --- callbacks: in the threads of the connections ---

    def on_connection(self, connection: TcpConnection) -> None:
        """Note who comes, and forget who leaves."""
        if connection.connected:
            _log.info("%s is up", connection.peer_address)
            with self._lock:
                self.connection_count += 1
                client = connection.context = Client(connection, self.connection_count, self)
                self.clients[client.number] = client
            return
        _log.info("%s is down%s", connection.peer_address, f": {connection.error}" if connection.error else "")
        client = connection.context
        with self._lock:
            del self.clients[client.number]
            self.waiting_room.leave(client)
            self.watches.leave(client)
            self.hub.leave(client)

    def send_outbox(self, client: Client) -> None:
        """Send what clients on other loops have given to one; in its loop."""
        with self._lock:
            data = b"".join(client.take_outbox())
        client.connection.send(data)

    def sweep(self, loop: EventLoop) -> None:
        """Drop keys that have expired: some now, the rest in the iterations to come. Call it now and then."""
        with self._lock:
            is_done = self.store.sweep()
        if not is_done:
            loop.queue_in_loop(self.sweep, loop)

    # --- private ---

    def _on_requests(self, connection: TcpConnection, requests: list[list[bytes]], receive_time: Timestamp) -> None:
        self._serve(connection.context, requests)

    def _on_protocol_error(self, connection: TcpConnection, error: ProtocolError) -> None:
        _log.warning("%s is cut off: %s", connection.peer_address, error)
        connection.send(b"-ERR Protocol error: %b\r\n" % str(error).encode())

    def _serve(self, client: Client, requests: list[list[bytes]]) -> None:
        rest = iter(requests)
        ready = self.waiting_room.ready
        with self._lock:
            replies = client.replies = client.take_outbox()
            append = replies.append
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
            self.command_count += len(requests) - len(client.backlog)
            is_waiting = client.wait is not None  # if that is over a moment later, _go_on comes after this
        connection = client.connection
        connection.send(b"".join(replies))
        if client.is_leaving:
            connection.message_callback = _drop
            connection.shutdown(within_s=_PATIENCE_S)
        elif is_waiting:
            connection.message_callback = _leave_for_later
        elif connection.output_size > _MAX_UNREAD_BYTES:
            connection.message_callback = _leave_for_later
            connection.write_complete_callback = self._on_write_complete

    def _is_held_up(self, client: Client, rest: Iterator[list[bytes]]) -> bool:
        """Look what to do after a reply that is none, or large: whether the other requests have to wait."""
        if client.wait is None and not client.is_leaving:
            assert client.replies is not None
            client.connection.send(b"".join(client.replies))
            client.replies.clear()
            if client.connection.output_size <= _MAX_UNREAD_BYTES:
                return False
        client.backlog = list(rest)
        return True

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
        connection = client.connection
        if not connection.connected:
            return
        connection.message_callback = self.codec.on_message
        connection.start_read()
        backlog, client.backlog = client.backlog, []
        if backlog:
            self._serve(client, backlog)
        # What has arrived meanwhile: for the codec, or for another callback if it has to wait again.
        take = connection.message_callback
        assert take is not None
        take(connection, connection.input_buffer, connection.loop.poll_return_time)


def _leave_for_later(connection: TcpConnection, buffer: Buffer, receive_time: Timestamp) -> None:
    """Take nothing from who has to wait: its message callback for that time."""
    if len(buffer) > _MAX_BYTES_AHEAD:
        connection.stop_read()


def _drop(connection: TcpConnection, buffer: Buffer, receive_time: Timestamp) -> None:
    """Listen no more to who has said QUIT; what stayed unread would make a reset of our goodbye."""
    buffer.retrieve_all()
