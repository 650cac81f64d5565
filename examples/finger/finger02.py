"""Finger, step 2 of 7: a server that accepts connections.

What it teaches: a server without callbacks drops what its clients say, and serves until they leave. Who comes and who
goes is logged by the library, at level DEBUG.

    python finger02.py --port 1079        and elsewhere        nc 127.0.0.1 1079
"""

from __future__ import annotations

import argparse
import logging

from pymuduo import EventLoop, InetAddress, TcpServer


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="finger, step 2 of 7: a server that only listens")
    parser.add_argument("--port", type=int, default=1079, help="0 lets the kernel choose; default %(default)s")
    parser.add_argument("--threads", type=int, default=0, help="I/O loops; 0, the default: the main loop does it all")
    options = parser.parse_args()
    logging.basicConfig(level=logging.DEBUG, format="%(asctime)s %(message)s")
    with EventLoop() as loop:
        loop.quit_on_signals()
        try:
            server = TcpServer(loop, InetAddress.any(options.port), "finger")
            server.thread_num = options.threads
        except (OSError, ValueError) as e:
            parser.error(str(e))
        server.start()
        loop.run()


if __name__ == "__main__":
    main()
