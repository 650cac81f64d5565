"""Ping-pong: send everything back, as fast as it comes. The server of muduo's throughput benchmark.

What it teaches: nothing that echo.py does not, on purpose: what is measured is the library. Run client.py against it.
"""

from __future__ import annotations

import argparse
import logging

from pymuduo import Buffer, EventLoop, InetAddress, TcpConnection, TcpServer, Timestamp


def on_message(connection: TcpConnection, buffer: Buffer, receive_time: Timestamp) -> None:
    """Send back all that has arrived. Each peer has one block under way, so nothing can pile up."""
    connection.send(buffer)


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="ping-pong server: the other end of client.py")
    parser.add_argument("--port", type=int, default=33333, help="0 lets the kernel choose; default %(default)s")
    parser.add_argument("--threads", type=int, default=0, help="I/O loops; 0, the default: the main loop does it all")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with EventLoop() as loop:
        loop.quit_on_signals()
        try:
            server = TcpServer(loop, InetAddress.any(options.port), "pingpong")
            server.thread_num = options.threads
        except (OSError, ValueError) as e:
            parser.error(str(e))
        server.message_callback = on_message
        server.start()
        loop.run()


if __name__ == "__main__":
    main()
