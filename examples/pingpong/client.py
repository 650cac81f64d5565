"""Ping-pong: many sessions, each bouncing one block to and fro, and the bytes that pass.

What it teaches: connections on a pool of loops of one's own. The main loop deals them out and waits; each lives in
the thread of its loop, counts there, and brings its sums home with ``run_in_loop`` when it ends.

    python server.py        and elsewhere        python client.py --sessions 100 --block-size 16384 --seconds 10
"""

from __future__ import annotations

import argparse
import logging
import signal
import socket
import sys
import time

from pymuduo import Buffer, EventLoop, EventLoopThreadPool, InetAddress, TcpConnection, Timestamp

_CONNECT_TIMEOUT_S = 10.0


class Client:
    """Runs the sessions and adds up what they did; belongs to the main loop."""

    def __init__(self, loop: EventLoop, sockets: list[socket.socket], block_size: int) -> None:
        self._loop = loop
        self._sockets = sockets
        self._block = bytes(i % 128 for i in range(block_size))
        self._connections: list[TcpConnection] = []
        self._running = len(sockets)
        self._started = 0.0
        self._bytes = 0
        self._messages = 0

    def start(self, pool: EventLoopThreadPool) -> None:
        """Deal the sockets out and let them play."""
        self._started = time.monotonic()
        for number, sock in enumerate(self._sockets):
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            local, peer = (InetAddress(*name[:2]) for name in (sock.getsockname(), sock.getpeername()))
            loop = pool.next_loop()
            connection = TcpConnection(loop, "pingpong", sock.detach(), local, peer, number)
            connection.connection_callback = self._on_connection
            connection.message_callback = self._on_message
            self._connections.append(connection)
            loop.run_in_loop(connection.connect_established)

    def stop(self) -> None:
        """End the game; every session ends when its last block has come home or the server closes."""
        for connection in self._connections:
            connection.shutdown()

    def report(self) -> None:
        """Print what was done."""
        seconds = time.monotonic() - self._started
        print(f"{self._bytes} bytes, {self._messages} messages in {seconds:.3f} s")
        print(f"{self._bytes / seconds / (1 << 20):.3f} MiB/s throughput")
        print(f"{self._bytes / max(self._messages, 1):.3f} bytes a message on average", flush=True)

    def _on_connection(self, connection: TcpConnection) -> None:
        if connection.connected:
            connection.send(self._block)
        else:  # no byte comes any more, so these are final
            self._loop.run_in_loop(self._add, connection.bytes_received, connection.messages_received)

    def _on_message(self, connection: TcpConnection, buffer: Buffer, receive_time: Timestamp) -> None:
        connection.send(buffer)

    def _add(self, bytes_received: int, messages_received: int) -> None:
        self._bytes += bytes_received
        self._messages += messages_received
        self._running -= 1
        if self._running == 0:
            self._loop.quit()


def connect(host: str, port: int, count: int) -> list[socket.socket]:
    """Return *count* connected sockets, or leave with a message."""
    try:
        return [socket.create_connection((host, port), _CONNECT_TIMEOUT_S) for _ in range(count)]
    except OSError as e:
        sys.exit(f"can't connect to {host} port {port}: {e}")


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
    if options.sessions < 1 or options.block_size < 1:
        parser.error("it takes at least one session and one byte")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    client_sockets = connect(options.host, options.port, options.sessions)
    with EventLoop() as loop:
        client = Client(loop, client_sockets, options.block_size)
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, client.stop)
        pool = EventLoopThreadPool(loop, "pingpong", options.threads)
        pool.start()
        client.start(pool)
        loop.run_after(options.seconds, client.stop)
        loop.run()
        client.report()
        pool.stop()


if __name__ == "__main__":
    main()
