"""memcached: keys and values for all who connect, forgotten when the memory is full or their time is over.

What it teaches: a protocol that exists, with clients that others have written, at the speed of the library. A codec
in compiled code cuts what has arrived into requests; all requests of one read are carried out under one lock, and
their answers leave as one piece. That is the whole message path, and why it is short.

What it costs to be safe is paid by who needs it. A few bytes of requests can ask for gigabytes of answers; so what
might be long is answered in portions, and who does not read is not listened to. A block that is too large is thrown
away as it comes, as memcached does, and the connection lives on. Both are states that few connections are ever in.

With ``--threads`` all loops share one cache, behind one lock (see ``memcached_store``).

    python server.py --memory 64        and elsewhere        memccapable -a, or any client; telnet 127.0.0.1 11211
"""

from __future__ import annotations

import argparse
import logging
from collections import deque

from memcached_commands import STORAGE, Commands, Portions, QuitError
from memcached_lines import MAX_SIZE, SIZE_AT, Words
from memcached_store import MAX_ITEM_BYTES, Store
from pymuduo import Buffer, ConnectionLimits, EventLoop, IdleTimeouts, InetAddress, TcpConnection, TcpServer, Timestamp
from pymuduo.codec import CommandCodec, ProtocolError

_MAX_LINE_BYTES = 1 << 18  # a get of thousands of keys; memcached has no limit for it
_MAX_UNREAD_BYTES = 1 << 20
_STALL_S = 60.0  # nobody has to wait longer for a peer that does not read
_PATIENCE_S = 10.0
_PIECES_A_TURN = 8
_SWEEP_S = 1.0
_SWEPT_AT_ONCE = 2000  # some milliseconds

_log = logging.getLogger("memcached")


class Session:
    """What an unusual connection is about, as its context; the usual one has None.

    Attributes:
        requests: what is left to be answered, in portions. skip_bytes: of a block that is too large, still to come.
        is_over: the peer sends no more.
    """

    def __init__(self) -> None:
        self.requests: deque[Portions] = deque()
        self.skip_bytes = 0
        self.is_over = False


class MemcachedServer:
    """Connections on one side, the commands on the other.

    Its callbacks run in the loops of the connections; what they share is the store, under its lock.
    """

    def __init__(self, server: TcpServer, max_bytes: int) -> None:
        self._server = server
        self._store = Store(max_bytes)
        self._commands = Commands(self._store, self._stats, self._settings, self._set_verbosity)
        self._codec = CommandCodec(blocks=STORAGE, max_line_bytes=_MAX_LINE_BYTES, max_bytes=MAX_ITEM_BYTES)
        server.high_water_mark = _MAX_UNREAD_BYTES
        server.low_water_mark = _MAX_UNREAD_BYTES // 4
        server.connection_callback = self.on_connection
        server.message_callback = self.on_message
        server.high_water_mark_callback = self.on_high_water_mark
        server.low_water_mark_callback = self.on_low_water_mark
        server.peer_shutdown_callback = self.on_peer_shutdown
        server.loop.run_every(_SWEEP_S, self.sweep)

    def sweep(self) -> None:
        """Remove what has expired, a part at a time; in the main loop."""
        if self._store.sweep(_SWEPT_AT_ONCE):
            self._server.loop.queue_in_loop(self.sweep)

    def on_connection(self, connection: TcpConnection) -> None:
        """Say who comes and who leaves to those who asked for it with ``verbosity``."""
        _log.debug("%s is %s", connection.peer_address, "up" if connection.connected else "down")

    def on_message(self, connection: TcpConnection, buffer: Buffer, receive_time: Timestamp) -> None:
        """Answer all complete requests with one send."""
        while connection.context is None and (size := len(buffer)) > 0:
            try:
                requests = self._codec.decode(buffer)
            except ProtocolError as e:
                connection.context = Session()
                self._refuse(connection, connection.context, buffer, e)
                break
            if not requests:
                return
            self._answer(connection, requests, size)
        if connection.context is not None:
            self._take(connection, connection.context, buffer)

    def on_high_water_mark(self, connection: TcpConnection, unread_bytes: int) -> None:
        """Take no more from a peer that does not read."""
        connection.stop_read()

    def on_low_water_mark(self, connection: TcpConnection) -> None:
        """Go on: the peer has read."""
        if connection.context is None:
            connection.start_read()
        else:
            self._go_on(connection, connection.context)

    def on_peer_shutdown(self, connection: TcpConnection) -> None:
        """Answer what has been asked, and hang up."""
        session = connection.context
        if session is not None and session.requests:
            session.is_over = True
        else:
            connection.shutdown()

    # --- the usual connection ---

    def _answer(self, connection: TcpConnection, requests: list[Words], size: int) -> None:
        answers: list[bytes] = []
        is_quitting = False
        with self._store.lock:
            self._store.begin()
            if self._commands.might_be_long(requests, size):
                connection.context = Session()
                connection.context.requests.append(self._commands.portions(requests))
                return
            try:
                self._commands.answer(requests, answers)
            except QuitError:
                is_quitting = True
        connection.send(b"".join(answers))
        if is_quitting:
            self._hang_up(connection)

    def _hang_up(self, connection: TcpConnection) -> None:
        """Send what is to be sent, and listen no more."""
        connection.message_callback = _drop
        connection.shutdown(within_s=_PATIENCE_S)

    # --- the unusual one ---

    def _take(self, connection: TcpConnection, session: Session, buffer: Buffer) -> None:
        """Note what is to be answered, and answer a part of it."""
        while len(buffer) > 0:
            if session.skip_bytes > 0:
                count = min(session.skip_bytes, len(buffer))
                buffer.retrieve(count)
                session.skip_bytes -= count
                continue
            try:
                requests = self._codec.decode(buffer)
            except ProtocolError as e:
                self._refuse(connection, session, buffer, e)
                continue
            if not requests:
                break
            session.requests.append(self._commands.portions(requests))
        self._go_on(connection, session)

    def _refuse(self, connection: TcpConnection, session: Session, buffer: Buffer, error: ProtocolError) -> None:
        """Take what the codec does not: a line that announces too large a block. Too long a line ends it all."""
        end = buffer.find(b"\n")
        if not 0 <= end <= _MAX_LINE_BYTES:
            _log.warning("%s is cut off: %s", connection.peer_address, error)
            buffer.retrieve_all()
            connection.force_close()
            return
        line = buffer.retrieve_as_bytes(end + 1).removesuffix(b"\n").removesuffix(b"\r")
        words = [word for word in line.split(b" ") if word]
        size = int(words[SIZE_AT])
        if size <= MAX_SIZE:
            session.skip_bytes = size + 2
        session.requests.append(self._commands.portions([words]))

    def _go_on(self, connection: TcpConnection, session: Session) -> None:
        """Answer in portions, as long as the peer reads them and others need not wait."""
        if connection.context is not session:
            return  # done meanwhile
        for _ in range(_PIECES_A_TURN):
            if not session.requests:
                self._finish(connection, session)
                return
            answers: list[bytes] = []
            is_quitting = False
            with self._store.lock:
                self._store.begin()
                try:
                    self._commands.answer_some(session.requests, answers)
                except QuitError:
                    is_quitting = True
            is_open = connection.send(b"".join(answers))
            if is_quitting or not is_open:
                connection.context = None
                self._hang_up(connection)
                return
            if connection.output_size >= _MAX_UNREAD_BYTES:
                return  # reading has been stopped, and the low-water mark will come
        connection.stop_read()
        connection.loop.queue_in_loop(self._go_on, connection, session)

    def _finish(self, connection: TcpConnection, session: Session) -> None:
        if session.is_over:
            connection.context = None
            connection.shutdown()
            return
        if session.skip_bytes == 0:
            connection.context = None
        connection.start_read()

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

    def _set_verbosity(self, level: int) -> None:
        _log.setLevel(logging.DEBUG if level > 0 else logging.INFO)


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
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with EventLoop() as loop:
        loop.quit_on_signals()
        server = TcpServer(loop, InetAddress.any(options.port), "memcached")
        server.thread_num = options.threads
        server.limits = ConnectionLimits(max_connections=options.connections)
        server.idle_timeouts = IdleTimeouts(stall_s=_STALL_S)
        MemcachedServer(server, options.memory << 20)
        server.start()
        loop.run()


if __name__ == "__main__":
    main()
