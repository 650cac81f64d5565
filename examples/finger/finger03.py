"""Finger, step 3 of 7: a server that hangs up at once.

What it teaches: the connection callback runs when a connection comes up, and again when it has gone down;
``shutdown`` sends FIN, and a peer that does not answer it is not waited for for ever.

    python finger03.py --port 1079        and elsewhere        nc 127.0.0.1 1079
"""

from __future__ import annotations

import argparse
import logging

from pymuduo import EventLoop, InetAddress, TcpConnection, TcpServer

_PATIENCE_S = 10.0


def on_connection(connection: TcpConnection) -> None:
    """Log who comes and who leaves, and hang up on whoever comes."""
    logging.info("%s is %s", connection.peer_address, "up" if connection.connected else "down")
    if connection.connected:
        connection.shutdown(within_s=_PATIENCE_S)


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="finger, step 3 of 7: a server that hangs up at once")
    parser.add_argument("--port", type=int, default=1079, help="0 lets the kernel choose; default %(default)s")
    parser.add_argument("--threads", type=int, default=0, help="I/O loops; 0, the default: the main loop does it all")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with EventLoop() as loop:
        loop.quit_on_signals()
        try:
            server = TcpServer(loop, InetAddress.any(options.port), "finger")
            server.thread_num = options.threads
        except (OSError, ValueError) as e:
            parser.error(str(e))
        server.connection_callback = on_connection
        server.start()
        loop.run()


if __name__ == "__main__":
    main()
