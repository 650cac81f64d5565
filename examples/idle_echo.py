"""Echo that does not wait for ever: it asks the silent whether they are there, and closes who does not answer or read.

What it teaches: time-outs for any number of connections, without a timer for each. A callback decides what a time-out
means: here a silent peer is sent a question, and closed when it has been silent once more. Without a callback it would
be closed at once, which needs one line: ``server.idle_timeouts = IdleTimeouts(read_s=60)``.

    python idle_echo.py --idle 5 --threads 2        and elsewhere        nc 127.0.0.1 2007
"""

from __future__ import annotations

import argparse
import logging

from pymuduo import (
    Buffer,
    EventLoop,
    IdleKind,
    IdleTimeouts,
    InetAddress,
    TcpConnection,
    TcpServer,
    Timestamp,
)

_MAX_UNREAD_BYTES = 1 << 20
_QUESTION = b"are you there?\n"


def on_connection(connection: TcpConnection) -> None:
    """Log who comes and who leaves; why it was closed, if it was, the library logs."""
    logging.info("%s is %s", connection.peer_address, "up" if connection.connected else "down")


class IdleEcho:
    """The callbacks. A connection's context says whether it has been asked."""

    def __init__(self, idle_s: float) -> None:
        self.timeouts = IdleTimeouts(read_s=idle_s, stall_s=idle_s, callback=self.on_idle)

    def on_message(self, connection: TcpConnection, buffer: Buffer, receive_time: Timestamp) -> None:
        """Send back all that has arrived."""
        connection.context = None
        connection.send(buffer)

    def on_idle(self, connection: TcpConnection, kind: IdleKind) -> None:
        """Ask a silent peer once; close it the second time, or if it does not read."""
        if kind is IdleKind.READ and connection.context is None:
            connection.context = "asked"
            connection.send(_QUESTION)
        else:
            self.timeouts.end(connection, kind)

    def on_high_water_mark(self, connection: TcpConnection, unread_bytes: int) -> None:
        """Take no more from a peer that does not read. Meanwhile only ``stall_s`` counts: its silence is our wish."""
        connection.stop_read()

    def on_low_water_mark(self, connection: TcpConnection) -> None:
        """Listen again."""
        connection.start_read()


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="echo server that closes idle connections")
    parser.add_argument("--port", type=int, default=2007, help="0 lets the kernel choose; default %(default)s")
    parser.add_argument("--threads", type=int, default=0, help="I/O loops; 0, the default: the main loop does it all")
    parser.add_argument("--idle", type=float, default=60.0, help="seconds of silence; default %(default)s")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with EventLoop() as loop:
        loop.quit_on_signals()
        try:
            echo = IdleEcho(options.idle)
            server = TcpServer(loop, InetAddress.any(options.port), "idle-echo")
            server.thread_num = options.threads
        except (OSError, ValueError) as e:
            parser.error(str(e))
        server.connection_callback = on_connection
        server.message_callback = echo.on_message
        server.idle_timeouts = echo.timeouts
        server.high_water_mark = _MAX_UNREAD_BYTES
        server.low_water_mark = _MAX_UNREAD_BYTES // 4
        server.high_water_mark_callback = echo.on_high_water_mark
        server.low_water_mark_callback = echo.on_low_water_mark
        server.start()
        loop.run()


if __name__ == "__main__":
    main()
