"""memcached: keys and values for all who connect, forgotten when the memory is full or their time is over.

What it teaches: a protocol that exists, with clients that others have written, at the speed of the library. A codec
in compiled code cuts what has arrived into requests; all requests of one read are carried out under one lock, and
their answers leave as one piece. That is the whole message path, and why it is short.

What it costs to be safe is paid by who needs it. A few bytes of requests can ask for gigabytes of answers; so what is
long is answered a part at a time, and who does not read is not listened to. A block that is too large is thrown away as
it comes, as memcached does, and the connection lives on.

With ``--threads`` all loops share one cache, behind one lock (see ``memcached_store``).

    python server.py --memory 64        and elsewhere        memccapable -a, or any client; telnet 127.0.0.1 11211
"""

from __future__ import annotations

import argparse
import logging

from memcached_codec import RequestCodec, Skip, TooLarge
from memcached_commands import STORAGE, Commands, QuitError
from memcached_lines import Words
from memcached_store import MAX_ITEM_BYTES, Store
from pymuduo import Buffer, ConnectionLimits, EventLoop, IdleTimeouts, InetAddress, TcpConnection, TcpServer, Timestamp

_MAX_LINE_BYTES = 1 << 18  # a get of thousands of keys; memcached has no limit for it
_MAX_UNREAD_BYTES = 1 << 20
_STALL_S = 60.0  # nobody has to wait longer for a peer that does not read
_PATIENCE_S = 10.0
_SWEEP_S = 1.0
_SWEPT_AT_ONCE = 2000  # some milliseconds


class MemcachedServer:
    """Connections on one side, the commands on the other.

    Its callbacks run in the loops of the connections; what they share is the store, under its lock. The context of a
    connection is None, or the requests that have to wait until the answers to earlier ones have left.
    """

    def __init__(self, server: TcpServer, max_bytes: int) -> None:
        self._server = server
        self._store = Store(max_bytes)
        self._commands = Commands(self._store, self._stats, self._settings, _set_verbosity)
        self._codec = RequestCodec(
            batch_callback=self.on_requests, blocks=STORAGE, max_line_bytes=_MAX_LINE_BYTES, max_bytes=MAX_ITEM_BYTES
        )
        server.high_water_mark = _MAX_UNREAD_BYTES
        server.low_water_mark = _MAX_UNREAD_BYTES // 4
        server.connection_callback = self.on_connection
        server.message_callback = self._codec.on_message
        server.high_water_mark_callback = self.on_high_water_mark
        server.low_water_mark_callback = self.on_low_water_mark
        server.peer_shutdown_callback = self.on_peer_shutdown
        server.loop.run_every(_SWEEP_S, self.sweep)

    def sweep(self) -> None:
        """Remove what has expired, a part at a time; in the main loop."""
        if self._store.sweep(_SWEPT_AT_ONCE):
            self._server.loop.queue_in_loop(self.sweep)

    def on_connection(self, connection: TcpConnection) -> None:
        """Log who comes, and who leaves for what reason."""
        what = "up" if connection.connected else f"down: {connection.error}" if connection.error else "down"
        logging.info("%s is %s", connection.peer_address, what)

    def on_requests(self, connection: TcpConnection, requests: list[Words], receive_time: Timestamp) -> None:
        """Take what a read has brought."""
        if type(requests[0]) is TooLarge:
            connection.message_callback = Skip(requests[0].missing_bytes, self._codec.on_message)
        if connection.context is None:
            self._answer(connection, requests)
        else:
            connection.context += requests

    def on_high_water_mark(self, connection: TcpConnection, unread_bytes: int) -> None:
        """Take no more from a peer that does not read."""
        connection.stop_read()

    def on_low_water_mark(self, connection: TcpConnection) -> None:
        """Go on: the peer has read."""
        if connection.context is None:
            connection.start_read()

    def on_write_complete(self, connection: TcpConnection) -> None:
        """Answer what has had to wait."""
        requests, connection.context = connection.context, None
        connection.write_complete_callback = None
        self._answer(connection, requests)
        if connection.context is None:
            if connection.peer_has_shut_down:
                connection.shutdown()
            connection.start_read()

    def on_peer_shutdown(self, connection: TcpConnection) -> None:
        """Answer what has been asked, and hang up."""
        if connection.context is None:
            connection.shutdown()

    # --- private ---

    def _answer(self, connection: TcpConnection, requests: list[Words]) -> None:
        """Answer requests with one send; those that follow a long answer wait until it has left."""
        answers: list[bytes] = []
        left: list[Words] = []
        is_quitting = False
        with self._store.lock:
            self._store.begin()
            try:
                left = self._commands.answer(requests, answers)
            except QuitError:
                is_quitting = True
        if left:
            connection.context = left
            connection.stop_read()
            connection.write_complete_callback = self.on_write_complete  # first: the kernel may take all at once
        connection.send(b"".join(answers))
        if is_quitting:
            connection.input_buffer.retrieve_all()
            connection.message_callback = _drop
            connection.shutdown(within_s=_PATIENCE_S)

    # --- what the commands ask for ---

    def _stats(self) -> dict[str, object]:
        told = self._server.stats()
        return {
            "curr_connections": told.connections,
            "total_connections": told.accepted,
            "rejected_connections": told.refused,
            "bytes_read": told.bytes_received,
            "bytes_written": told.bytes_sent,
            "threads": max(self._server.thread_num, 1),
        }

    def _settings(self) -> dict[str, object]:
        limits = self._server.limits
        return {
            "maxbytes": self._store.max_bytes,
            "maxconns": limits.max_connections if limits else 0,
            "tcpport": self._server.address.port,
            "num_threads": max(self._server.thread_num, 1),
            "item_size_max": MAX_ITEM_BYTES,
            "cas_enabled": "yes",
        }


def _set_verbosity(level: int) -> None:
    logging.getLogger().setLevel(logging.DEBUG if level > 0 else logging.INFO)


def _drop(connection: TcpConnection, buffer: Buffer, receive_time: Timestamp) -> None:
    buffer.retrieve_all()


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="memcached: keys and values, forgotten when the memory is full")
    parser.add_argument("--port", type=int, default=11211, help="0 lets the kernel choose; default %(default)s")
    parser.add_argument("--threads", type=int, default=0, help="I/O loops; 0, the default: the main loop does it all")
    parser.add_argument("--memory", type=int, default=64, metavar="MB", help="for items; default %(default)s")
    parser.add_argument("--connections", type=int, default=1024, help="at a time; default %(default)s")
    options = parser.parse_args()
    if options.memory < 2:
        parser.error(f"--memory must be 2 at least, so that the largest item fits, got {options.memory}")
    if options.connections < 1:
        parser.error(f"--connections must be 1 at least, got {options.connections}")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with EventLoop() as loop:
        loop.quit_on_signals()
        try:
            server = TcpServer(loop, InetAddress.any(options.port), "memcached")
            server.thread_num = options.threads
        except (OSError, ValueError) as e:
            parser.error(str(e))
        server.limits = ConnectionLimits(max_connections=options.connections)
        server.idle_timeouts = IdleTimeouts(stall_s=_STALL_S)
        MemcachedServer(server, options.memory << 20)
        server.start()
        loop.run()


if __name__ == "__main__":
    main()
