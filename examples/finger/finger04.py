"""Finger, step 4 of 7: a server that reads a line and hangs up.

What it teaches: bytes arrive in any pieces; a codec waits until a line is complete, and cuts off who never ends one.

    python finger04.py --port 1079        and elsewhere        nc -C 127.0.0.1 1079
"""

from __future__ import annotations

import argparse
import logging

from pymuduo import EventLoop, InetAddress, TcpConnection, TcpServer, Timestamp
from pymuduo.codec import LineCodec

_MAX_LINE_BYTES = 512
_PATIENCE_S = 10.0


def on_line(connection: TcpConnection, line: bytes, receive_time: Timestamp) -> None:
    """Log the question when it is complete, and hang up."""
    logging.info("%s asks %r", connection.peer_address, line)
    connection.shutdown(within_s=_PATIENCE_S)


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="finger, step 4 of 7: reads a line and hangs up")
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
        codec = LineCodec(on_line, delimiter=b"\r\n", max_bytes=_MAX_LINE_BYTES)
        server.message_callback = codec.on_message
        server.start()
        loop.run()


if __name__ == "__main__":
    main()
