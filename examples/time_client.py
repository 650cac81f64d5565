"""Asks a time server (RFC 868) what time it is, prints it, and ends; exit code 1 if nobody tells.

What it teaches: a client that wants one thing. Everything that can go wrong ends the loop: nobody is there, the answer
is cut short, or none comes at all; a client without a time limit waits for ever.

    python time_client.py --host 127.0.0.1 --port 2037        while        python time_server.py        runs
"""

from __future__ import annotations

import argparse
import datetime
import logging
import struct
import sys

from pymuduo import Buffer, EventLoop, TcpClient, TcpConnection, Timestamp

_FROM_1900_TO_1970_S = 2_208_988_800
_WRAP_S = 1 << 32  # the four bytes begin again at 0 in February 2036
_ANSWER_BYTES = 4


def time_of(answer: bytes) -> datetime.datetime:
    """Return the time that the four bytes mean: in the era that began in 1900, or if that is long ago, in the next."""
    since_1970 = struct.unpack(">I", answer)[0] - _FROM_1900_TO_1970_S
    if since_1970 < 0:
        since_1970 += _WRAP_S
    return datetime.datetime.fromtimestamp(since_1970, datetime.UTC)


class Question:
    """What is asked of one server, and what came of it."""

    def __init__(self, loop: EventLoop, host: str, port: int, timeout_s: float) -> None:
        self.answer: bytes | None = None
        self._loop = loop
        self._timeout_s = timeout_s
        self._client = TcpClient(loop, (host, port), "time-client", connect_timeout_s=timeout_s)
        self._client.connection_callback = self.on_connection
        self._client.message_callback = self.on_message
        self._client.connect_failed_callback = self.on_failure

    def ask(self) -> None:
        """Connect, and wait for the answer for a while."""
        self._loop.run_after(self._timeout_s, self._loop.quit)
        self._client.connect()

    def on_connection(self, connection: TcpConnection) -> None:
        """End with the connection: what the server has not said by then it will not say."""
        if not connection.connected:
            self._loop.quit()

    def on_message(self, connection: TcpConnection, buffer: Buffer, receive_time: Timestamp) -> None:
        """Take the answer when it is all there: four bytes may come one by one."""
        if len(buffer) >= _ANSWER_BYTES:
            self.answer = buffer.retrieve_as_bytes(_ANSWER_BYTES)
            connection.force_close()
            self._loop.quit()

    def on_failure(self, client: TcpClient, error: Exception) -> None:
        """End: nobody is there."""
        logging.error("%s", error)
        self._loop.quit()


def main() -> None:
    """Ask once."""
    parser = argparse.ArgumentParser(description="asks a time server for the time")
    parser.add_argument("--host", default="127.0.0.1", help="default %(default)s")
    parser.add_argument("--port", type=int, default=2037, help="default %(default)s")
    parser.add_argument("--timeout", type=float, default=5.0, help="seconds to wait; default %(default)s")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    with EventLoop() as loop:
        loop.quit_on_signals()
        try:
            question = Question(loop, options.host, options.port, options.timeout)
        except ValueError as e:
            parser.error(str(e))
        question.ask()
        loop.run()
    if question.answer is None:
        sys.exit(f"{options.host} port {options.port} did not tell the time")
    print(time_of(question.answer).isoformat(sep=" "))


if __name__ == "__main__":
    main()
