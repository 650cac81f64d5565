"""Finger, step 6 of 7: a server that looks users up, and has none.

What it teaches: state stands in an object, whose method is the callback. A client may ask with ``/W`` in front, for
more; that it is taken off is all that this server does about it.

    python finger06.py --port 1079        and elsewhere        nc -C 127.0.0.1 1079
"""

from __future__ import annotations

import argparse
import logging

from pymuduo import EventLoop, InetAddress, TcpConnection, TcpServer, Timestamp
from pymuduo.codec import LineCodec

_MAX_LINE_BYTES = 512
_PATIENCE_S = 10.0


class Register:
    """Who there is. Nobody, so far."""

    def __init__(self) -> None:
        self._users: dict[str, str] = {}

    def on_line(self, connection: TcpConnection, line: bytes, receive_time: Timestamp) -> None:
        """Log the question, answer, and hang up."""
        logging.info("%s asks %r", connection.peer_address, line)
        user = line.decode("utf-8", "replace").removeprefix("/W").strip()
        connection.send(self._users.get(user, "No such user").encode() + b"\r\n")
        connection.shutdown(within_s=_PATIENCE_S)


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="finger, step 6 of 7: looks users up in an empty register")
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
        register = Register()
        codec = LineCodec(register.on_line, delimiter=b"\r\n", max_bytes=_MAX_LINE_BYTES)
        server.message_callback = codec.on_message
        server.start()
        loop.run()


if __name__ == "__main__":
    main()
