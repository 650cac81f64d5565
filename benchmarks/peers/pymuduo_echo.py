"""The echo and line services on pymuduo, written as its users write them.

On SIGTERM it prints ``connections per loop: n n …`` (as many as were open at once at most) and ends.
"""

from __future__ import annotations

import argparse
import os
import signal
from types import FrameType

from pymuduo import Buffer, EventLoop, InetAddress, TcpConnection, TcpServer, Timestamp

peak: dict[EventLoop, int] = {}
now: dict[EventLoop, int] = {}


def count(connection: TcpConnection) -> None:
    """Count connections; each loop's thread touches its own entry."""
    loop = connection.loop
    now[loop] = now.get(loop, 0) + (1 if connection.connected else -1)
    peak[loop] = max(peak.get(loop, 0), now[loop])


def echo(connection: TcpConnection, buffer: Buffer, receive_time: Timestamp) -> None:
    """Send back what was received."""
    connection.send(buffer)


def echo_lines(connection: TcpConnection, buffer: Buffer, receive_time: Timestamp) -> None:
    """Send back each line with a send of its own."""
    while (end := buffer.find(b"\n")) >= 0:
        connection.send(buffer.retrieve_as_bytes(end + 1))


SERVICES = {"echo": echo, "line": echo_lines}


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--cpu", type=int, help="run on this processor only")
    parser.add_argument("--mode", choices=SERVICES, default="echo")
    parser.add_argument("--threads", type=int, default=0, help="I/O loops in threads of their own")
    args = parser.parse_args()
    if args.cpu is not None:
        os.sched_setaffinity(0, {args.cpu})
    with EventLoop() as loop:

        def end(number: int, frame: FrameType | None) -> None:
            loop.quit()

        signal.signal(signal.SIGTERM, end)
        server = TcpServer(loop, InetAddress.loopback(args.port), "echo")
        server.thread_num = args.threads
        server.connection_callback = count
        server.message_callback = SERVICES[args.mode]
        server.start()
        loops = server.thread_pool.loops()
        print(f"listening on {server.address}", flush=True)
        loop.run()
        print("connections per loop:", *(peak.get(one, 0) for one in loops), flush=True)


if __name__ == "__main__":
    main()
