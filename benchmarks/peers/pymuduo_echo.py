"""The suite's services on pymuduo, written as its users write them.

echo          send the buffer back
line          ``LineCodec``, a callback and a ``send`` a line
line-batch    ``LineCodec``, a callback and a ``send_all`` for all lines of a read
line-by-hand  without a codec: ``find`` in the buffer, one ``send`` a line
frame         ``LengthHeaderCodec``, as line
frame-batch   ``LengthHeaderCodec``, as line-batch
broadcast     ``LengthHeaderCodec``: a frame is encoded once and sent to every connection, by the loop that it lives on
sudoku        ``LineCodec``, as line
checksum      send the buffer back after its checksum has been computed in plain Python, which takes time

SIGTERM or SIGINT ends it in good order, and then it prints ``connections per loop: N N …``: how many each loop was
given since the start.
"""

from __future__ import annotations

import signal
import ssl
import threading
from collections.abc import Callable

from peers import command, sudoku
from pymuduo import Buffer, EventLoop, InetAddress, TcpConnection, TcpServer, Timestamp
from pymuduo.codec import Codec, LengthHeaderCodec, LineCodec


class ConnectionCount:
    """Counts the connections that each loop is given; a connection callback for any number of loops."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._given: dict[EventLoop, int] = {}

    def __call__(self, connection: TcpConnection) -> None:
        """Count a connection that came up."""
        if connection.connected:
            with self._lock:
                self._given[connection.loop] = self._given.get(connection.loop, 0) + 1

    def per_loop(self, loops: int) -> list[int]:
        """Return the counts of *loops* loops; a loop that was given none counts too."""
        with self._lock:
            given = list(self._given.values())
        return given + [0] * (loops - len(given))


# --- services: each is given the server and sets its callbacks ---


def echo(server: TcpServer) -> None:
    """Send back what arrives."""

    def on_message(connection: TcpConnection, buffer: Buffer, receive_time: Timestamp) -> None:
        connection.send(buffer)

    server.message_callback = on_message


def echo_summed(server: TcpServer) -> None:
    """Send back what arrives, once its Adler-32 has been computed the slow way."""

    def on_message(connection: TcpConnection, buffer: Buffer, receive_time: Timestamp) -> None:
        low, high = 1, 0
        for byte in buffer.peek():
            low = (low + byte) % 65521
            high = (high + low) % 65521
        connection.context = high << 16 | low
        connection.send(buffer)

    server.message_callback = on_message


def echo_lines_by_hand(server: TcpServer) -> None:
    """Send back each line, without a codec."""

    def on_message(connection: TcpConnection, buffer: Buffer, receive_time: Timestamp) -> None:
        while (end := buffer.find(b"\n")) >= 0:
            connection.send(buffer.retrieve_as_bytes(end + 1))

    server.message_callback = on_message


def echo_each(codec: Codec) -> Callable[[TcpServer], None]:
    """Return a service: send back each message by itself."""

    def on_message(connection: TcpConnection, message: bytes, receive_time: Timestamp) -> None:
        codec.send(connection, message)

    def serve(server: TcpServer) -> None:
        codec.message_callback = on_message
        server.message_callback = codec.on_message

    return serve


def echo_batches(codec: Codec) -> Callable[[TcpServer], None]:
    """Return a service: send back all messages of a read together."""

    def on_messages(connection: TcpConnection, messages: list[bytes], receive_time: Timestamp) -> None:
        codec.send_all(connection, messages)

    def serve(server: TcpServer) -> None:
        codec.batch_callback = on_messages
        server.message_callback = codec.on_message

    return serve


def solve_sudokus(server: TcpServer) -> None:
    """Answer each puzzle with its solution."""

    def on_puzzle(connection: TcpConnection, puzzle: bytes, receive_time: Timestamp) -> None:
        codec.send(connection, sudoku.solve(puzzle))

    codec = LineCodec(on_puzzle)
    server.message_callback = codec.on_message


class Members:
    """The connections of one loop, known to its thread alone."""

    def __init__(self, loop: EventLoop) -> None:
        self.loop = loop
        self.connections: set[TcpConnection] = set()

    def send(self, data: bytes) -> None:
        """Send it to all."""
        for connection in self.connections:
            connection.send(data)


def broadcast(server: TcpServer) -> None:
    """Send each frame to all connections; a frame hops to each loop once, not to each connection."""
    members: dict[EventLoop, Members] = {}
    count = server.connection_callback
    assert count is not None

    def on_loop(loop: EventLoop) -> None:
        members[loop] = Members(loop)

    def on_connection(connection: TcpConnection) -> None:
        count(connection)
        connections = members[connection.loop].connections
        (connections.add if connection.connected else connections.discard)(connection)

    def on_payload(connection: TcpConnection, payload: bytes, receive_time: Timestamp) -> None:
        frame = codec.encode(payload)
        for of_loop in members.values():
            of_loop.loop.run_in_loop(of_loop.send, frame)

    codec = LengthHeaderCodec(on_payload)
    server.thread_init_callback = on_loop
    server.connection_callback = on_connection
    server.message_callback = codec.on_message


SERVICES: dict[str, Callable[[TcpServer], None]] = {
    "echo": echo,
    "line": echo_each(LineCodec()),
    "line-batch": echo_batches(LineCodec()),
    "line-by-hand": echo_lines_by_hand,
    "frame": echo_each(LengthHeaderCodec()),
    "frame-batch": echo_batches(LengthHeaderCodec()),
    "broadcast": broadcast,
    "sudoku": solve_sudokus,
    "checksum": echo_summed,
}


def serve(mode: str, port: int, threads: int, context: ssl.SSLContext | None) -> None:
    """Serve until SIGTERM or SIGINT."""
    count = ConnectionCount()
    with EventLoop() as loop:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, loop.quit)
        server = TcpServer(loop, InetAddress.loopback(port), "echo", ssl_context=context)
        server.thread_num = threads
        server.connection_callback = count
        SERVICES[mode](server)
        server.start()
        command.announce(server.address.port)
        loop.run()
        server.stop(0)
        server.join(5)
    print("connections per loop:", *count.per_loop(max(threads, 1)), flush=True)


def main() -> None:
    """Parse the command line and serve."""
    parser = command.parser(__doc__, SERVICES)
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="I/O loops; 0: the main loop does it all")
    options = command.parse(parser)
    serve(options.mode, options.port, options.threads, command.tls_context(options))


if __name__ == "__main__":
    main()
