"""Echo (RFC 862): send back whatever arrives. The smallest server of use; read it first.

What it teaches: a server is a loop, an address and a few functions that the loop calls. Nothing here waits: what is
sent is queued, and leaves when the function returns. So a peer that sends without ever reading would fill our memory;
the last two functions stop listening to it until it has read.

    python echo.py --threads 2        and elsewhere        nc 127.0.0.1 2007
"""

from __future__ import annotations

import argparse
import logging

from pymuduo import Buffer, EventLoop, InetAddress, TcpConnection, TcpServer, Timestamp

_MAX_UNREAD_BYTES = 1 << 20


def on_connection(connection: TcpConnection) -> None:
    """Log who comes and who leaves."""
    logging.info("%s is %s", connection.peer_address, "up" if connection.connected else "down")


def on_message(connection: TcpConnection, buffer: Buffer, receive_time: Timestamp) -> None:
    """Send back all that has arrived; ``send`` drains the buffer."""
    connection.send(buffer)


def on_high_water_mark(connection: TcpConnection, unread_bytes: int) -> None:
    """Take no more from a peer that does not read."""
    connection.stop_read()


def on_write_complete(connection: TcpConnection) -> None:
    """Everything is on its way: listen again (harmless if we never stopped)."""
    connection.start_read()


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="echo server: sends back whatever arrives")
    parser.add_argument("--port", type=int, default=2007, help="0 lets the kernel choose; default %(default)s")
    parser.add_argument("--threads", type=int, default=0, help="I/O loops; 0, the default: the main loop does it all")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with EventLoop() as loop:
        loop.quit_on_signals()  # run() returns, and leaving the block closes what is open
        try:
            server = TcpServer(loop, InetAddress.any(options.port), "echo")
            server.thread_num = options.threads
        except (OSError, ValueError) as e:  # the port is taken; or a number is out of range
            parser.error(str(e))
        server.high_water_mark = _MAX_UNREAD_BYTES
        server.connection_callback = on_connection
        server.message_callback = on_message
        server.high_water_mark_callback = on_high_water_mark
        server.write_complete_callback = on_write_complete
        server.start()
        loop.run()


if __name__ == "__main__":
    main()
