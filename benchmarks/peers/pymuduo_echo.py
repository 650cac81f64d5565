"""The suite's services on pymuduo, written as its users write them.

echo  send the buffer back
line  one ``send`` a line

SIGTERM or SIGINT ends it in good order, and then it prints ``connections per loop: N N …``: how many each loop was
given since the start.
"""

from __future__ import annotations

import argparse
import os
import signal
import threading

from pymuduo import Buffer, EventLoop, InetAddress, TcpConnection, TcpServer, Timestamp


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


def echo(connection: TcpConnection, buffer: Buffer, receive_time: Timestamp) -> None:
    """Send back what arrived; ``send`` drains the buffer."""
    connection.send(buffer)


def echo_lines(connection: TcpConnection, buffer: Buffer, receive_time: Timestamp) -> None:
    """Send back each complete line."""
    while (end := buffer.find(b"\n")) >= 0:
        connection.send(buffer.retrieve_as_bytes(end + 1))


SERVICES = {"echo": echo, "line": echo_lines}


def serve(mode: str, port: int, threads: int) -> None:
    """Serve until SIGTERM or SIGINT."""
    count = ConnectionCount()
    with EventLoop() as loop:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: loop.quit())
        server = TcpServer(loop, InetAddress.loopback(port), "echo")
        server.thread_num = threads
        server.connection_callback = count
        server.message_callback = SERVICES[mode]
        server.start()
        print(f"listening on 127.0.0.1:{server.address.port}", flush=True)
        loop.run()
        server.stop(0)
        server.join(5)
    print("connections per loop:", *count.per_loop(max(threads, 1)), flush=True)


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0, help="0 lets the kernel choose (%(default)s)")
    parser.add_argument("--cpu", type=int, metavar="N", help="run on processor N only")
    parser.add_argument("--mode", choices=SERVICES, default="echo", help="the service (%(default)s)")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="I/O loops; 0: the main loop does it all")
    options = parser.parse_args()
    if options.cpu is not None:
        os.sched_setaffinity(0, {options.cpu})
    serve(options.mode, options.port, options.threads)


if __name__ == "__main__":
    main()
