"""Finger, step 7 of 7: a server that knows its users.

What it teaches: what never changes may be read in any thread without a lock. The real client speaks to it when it
listens on port 79.

    python finger07.py --user "ann:Ann is at lunch"        and elsewhere        nc -C 127.0.0.1 1079
"""

from __future__ import annotations

import argparse
import logging

from pymuduo import EventLoop, InetAddress, TcpConnection, TcpServer, Timestamp
from pymuduo.codec import LineCodec

_MAX_LINE_BYTES = 512
_PATIENCE_S = 10.0


class Register:
    """Who there is. Filled before the server starts and never changed, so any loop may read it."""

    def __init__(self, users: list[tuple[str, str]]) -> None:
        self._users: dict[str, str] = dict(users)

    def on_line(self, connection: TcpConnection, line: bytes, receive_time: Timestamp) -> None:
        """Log the question, answer, and hang up."""
        logging.info("%s asks %r", connection.peer_address, line)
        user = line.decode("utf-8", "replace").removeprefix("/W").strip()
        connection.send(self._users.get(user, "No such user").encode() + b"\r\n")
        connection.shutdown(within_s=_PATIENCE_S)


def user_and_text(argument: str) -> tuple[str, str]:
    """Return what ``NAME:TEXT`` says."""
    name, colon, text = argument.partition(":")
    if not name or not colon:
        raise ValueError(f"NAME:TEXT is required, got {argument!r}")
    return name, text


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="finger, step 7 of 7: answers who its users are")
    parser.add_argument("--port", type=int, default=1079, help="0 lets the kernel choose; default %(default)s")
    parser.add_argument("--threads", type=int, default=0, help="I/O loops; 0, the default: the main loop does it all")
    parser.add_argument(
        "--user", action="append", default=[], type=user_and_text, metavar="NAME:TEXT", help="a user; may be repeated"
    )
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with EventLoop() as loop:
        loop.quit_on_signals()
        try:
            server = TcpServer(loop, InetAddress.any(options.port), "finger")
            server.thread_num = options.threads
        except (OSError, ValueError) as e:
            parser.error(str(e))
        register = Register(options.user)
        codec = LineCodec(register.on_line, delimiter=b"\r\n", max_bytes=_MAX_LINE_BYTES)
        server.message_callback = codec.on_message
        server.start()
        loop.run()


if __name__ == "__main__":
    main()
