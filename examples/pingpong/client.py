"""Ping-pong: many sessions, each bouncing one block to and fro, and the bytes that pass.

What it teaches: clients on a pool of loops of one's own. The main loop deals them out and waits; each connection lives
in the thread of its loop, counts there, and brings its sums home with ``run_in_loop`` when it ends. The game begins
when all are connected; and however the server behaves, it ends.

    python server.py        and elsewhere        python client.py --sessions 100 --block-size 16384 --seconds 10
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import time

from pymuduo import Buffer, EventLoop, EventLoopThreadPool, TcpClient, TcpConnection, Timestamp

_CONNECT_TIMEOUT_S = 10.0
_FAREWELL_S = 1.0  # what the last blocks have to come home, and the server to close


class Client:
    """Runs the sessions and adds up what they did; belongs to the main loop, but for callbacks of connections."""

    def __init__(self, loop: EventLoop, session_count: int, block_size: int, seconds: float) -> None:
        self.failure: str | None = None
        self._loop = loop
        self._session_count = session_count
        self._block = bytes(i % 128 for i in range(block_size))
        self._seconds = seconds
        self._connections: list[TcpConnection] = []
        self._running = session_count
        self._is_stopping = False
        self._started = time.monotonic()
        self._bytes = 0
        self._messages = 0

    def start(self, pool: EventLoopThreadPool, host: str, port: int) -> None:
        """Connect all sessions, dealt out to the loops; the rest follows."""
        for number in range(self._session_count):
            tcp = TcpClient(pool.next_loop(), (host, port), f"session{number}", connect_timeout_s=_CONNECT_TIMEOUT_S)
            tcp.connection_callback = self._on_connection
            tcp.message_callback = self._on_message
            tcp.connect_failed_callback = self._on_connect_failed
            tcp.connect()

    def stop(self) -> None:
        """End the game; every session ends when its last block has come home or the server closes, or soon after."""
        if self._is_stopping or not self._connections:
            self._loop.quit()
        self._is_stopping = True
        for connection in self._connections:
            connection.shutdown(within_s=_FAREWELL_S)

    def report(self) -> None:
        """Print what was done."""
        seconds = time.monotonic() - self._started
        print(f"{self._bytes} bytes, {self._messages} messages in {seconds:.3f} s")
        print(f"{self._bytes / seconds / (1 << 20):.3f} MiB/s throughput")
        print(f"{self._bytes / max(self._messages, 1):.3f} bytes a message on average", flush=True)

    # --- in the threads of the connections ---

    def _on_connection(self, connection: TcpConnection) -> None:
        if connection.connected:
            self._loop.run_in_loop(self._enter, connection)
        else:  # no byte comes any more, so these are final
            self._loop.run_in_loop(self._leave, connection.bytes_received, connection.messages_received)

    def _on_message(self, connection: TcpConnection, buffer: Buffer, receive_time: Timestamp) -> None:
        connection.send(buffer)

    def _on_connect_failed(self, client: TcpClient, error: Exception) -> None:
        self._loop.run_in_loop(self._fail, str(error))

    # --- in the main loop ---

    def _enter(self, connection: TcpConnection) -> None:
        self._connections.append(connection)
        if len(self._connections) == self._session_count:
            self._started = time.monotonic()
            self._loop.run_after(self._seconds, self.stop)
            for each in self._connections:
                each.send(self._block)

    def _leave(self, bytes_received: int, messages_received: int) -> None:
        self._bytes += bytes_received
        self._messages += messages_received
        self._running -= 1
        if self._running == 0:
            self._loop.quit()

    def _fail(self, why: str) -> None:
        self.failure = self.failure or why
        self._loop.quit()


def main() -> None:
    """Play for some seconds, or until Ctrl-C, and print the result."""
    parser = argparse.ArgumentParser(description="ping-pong client: measures throughput against server.py")
    parser.add_argument("--host", default="127.0.0.1", help="default %(default)s")
    parser.add_argument("--port", type=int, default=33333, help="default %(default)s")
    parser.add_argument("--threads", type=int, default=0, help="loops; 0, the default: the main loop does it all")
    parser.add_argument("--sessions", type=int, default=1, help="connections; default %(default)s")
    parser.add_argument("--block-size", type=int, default=16384, help="bytes; default %(default)s")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long to play; default %(default)s")
    options = parser.parse_args()
    if options.sessions < 1 or options.block_size < 1 or not options.seconds >= 0:
        parser.error("it takes at least one session and one byte, and no negative time")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    with EventLoop() as loop:
        client = Client(loop, options.sessions, options.block_size, options.seconds)
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, client.stop)
        try:
            pool = EventLoopThreadPool(loop, "pingpong", options.threads)
            pool.start()
            client.start(pool, options.host, options.port)
        except ValueError as e:
            parser.error(str(e))
        loop.run()
        failure = client.failure
        if failure is None:
            client.report()
        pool.stop()
    if failure is not None:
        sys.exit(f"can't connect to {options.host} port {options.port}: {failure}")


if __name__ == "__main__":
    main()
