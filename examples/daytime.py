"""Daytime (RFC 867): tell each newcomer the date and the time, and hang up.

What it teaches: ending a connection in good order. ``shutdown`` lets everything that was sent leave, then tells the
peer that this was all; the peer closes in its turn, and that ends the connection here. A peer that never does may
not keep a descriptor of ours: after a while the connection is closed by force.

    python daytime.py        and elsewhere        nc 127.0.0.1 2013
"""

from __future__ import annotations

import argparse
import logging
import time

from pymuduo import EventLoop, InetAddress, TcpConnection, TcpServer

_PATIENCE_S = 10.0


def on_connection(connection: TcpConnection) -> None:
    """Log who comes and who leaves; tell the time and hang up."""
    logging.info("%s is %s", connection.peer_address, "up" if connection.connected else "down")
    if connection.connected:
        connection.send(time.strftime("%A, %B %d, %Y %H:%M:%S-%Z\r\n").encode())
        connection.shutdown(within_s=_PATIENCE_S)


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="daytime server: tells the date and the time, and hangs up")
    parser.add_argument("--port", type=int, default=2013, help="0 lets the kernel choose; default %(default)s")
    parser.add_argument("--threads", type=int, default=0, help="I/O loops; 0, the default: the main loop does it all")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with EventLoop() as loop:
        loop.quit_on_signals()
        try:
            server = TcpServer(loop, InetAddress.any(options.port), "daytime")
            server.thread_num = options.threads
        except (OSError, ValueError) as e:
            parser.error(str(e))
        server.connection_callback = on_connection
        server.start()
        loop.run()


if __name__ == "__main__":
    main()
