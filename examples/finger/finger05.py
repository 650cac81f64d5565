"""Finger, step 5 of 7: a server that answers that there is nobody.

What it teaches: what is sent before ``shutdown`` arrives before the end of the stream.

    python finger05.py --port 1079        and elsewhere        nc -C 127.0.0.1 1079
"""

from __future__ import annotations

import argparse
import logging

from pymuduo import EventLoop, InetAddress, TcpConnection, TcpServer, Timestamp
from pymuduo.codec import LineCodec

_MAX_LINE_BYTES = 512
_PATIENCE_S = 10.0


def on_line(connection: TcpConnection, line: bytes, receive_time: Timestamp) -> None:
    """Log the question, answer, and hang up."""
    logging.info("%s asks %r", connection.peer_address, line)
    connection.send(b"No such user\r\n")
    connection.shutdown(within_s=_PATIENCE_S)


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="finger, step 5 of 7: answers that there is no such user")
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
