"""Watches whether a server is up: stays connected, tells when the connection goes and how long it had lasted.

What it teaches: a client that never gives up. ``retry`` connects again after each end and each failure, waiting longer
each time, up to half a minute. A server whose machine has lost power says nothing at all, so silence counts as an end.

    python uptime.py --host 127.0.0.1 --port 2019        while        python chargen.py        comes and goes
"""

from __future__ import annotations

import argparse
import logging

from pymuduo import Buffer, EventLoop, IdleTimeouts, TcpClient, TcpConnection, Timestamp


class Watch:
    """Tells what becomes of one server."""

    def __init__(self, loop: EventLoop, host: str, port: int, silence_s: float) -> None:
        self.client = TcpClient(loop, (host, port), "uptime", retry=True)
        self.client.connection_callback = self.on_connection
        self.client.message_callback = self.on_message
        self.client.connect_failed_callback = self.on_failure
        self.client.idle_timeouts = IdleTimeouts(read_s=silence_s)
        self._up_since = Timestamp.now()
        self._down_since = self._up_since

    def on_connection(self, connection: TcpConnection) -> None:
        """Tell that the server came up, or went down and why."""
        if connection.connected:
            self._up_since = Timestamp.now()
            logging.info("%s is up, after %.3f s", connection.peer_address, self._up_since - self._down_since)
        else:
            self._down_since = Timestamp.now()
            why = connection.error or "it has closed the connection"
            was_up_s = self._down_since - self._up_since
            logging.info("%s is down, after %.3f s: %s", connection.peer_address, was_up_s, why)

    def on_message(self, connection: TcpConnection, buffer: Buffer, receive_time: Timestamp) -> None:
        """Whatever it says, it is alive."""
        buffer.retrieve_all()

    def on_failure(self, client: TcpClient, error: Exception) -> None:
        """Tell; the client tries again by itself."""
        logging.info("still down: %s", error)


def main() -> None:
    """Watch until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="tells when a server comes up and goes down")
    parser.add_argument("--host", default="127.0.0.1", help="default %(default)s")
    parser.add_argument("--port", type=int, default=2019, help="default %(default)s")
    parser.add_argument("--silence", type=float, default=60.0, help="seconds that mean it is gone; default %(default)s")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with EventLoop() as loop:
        loop.quit_on_signals()
        try:
            watch = Watch(loop, options.host, options.port, options.silence)
        except ValueError as e:
            parser.error(str(e))
        watch.client.connect()
        loop.run()


if __name__ == "__main__":
    main()
