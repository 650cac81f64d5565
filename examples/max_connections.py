"""Echo for so many and no more: who comes when it is full is told so, and hangs up or is hung up on.

What it teaches: two limits for two purposes. The polite one counts connections and says "full"; but each refusal costs
a connection for as long as its peer takes to leave. So a hard one stands behind it, ``ConnectionLimits``, which closes
newcomers before anything is made for them. ``connection_count`` may be read in any thread; newcomers who are counted at
the same moment on two loops may both be turned away from the last place, but never both be let in.

    python max_connections.py --most 2        and elsewhere, three times        nc 127.0.0.1 2007
"""

from __future__ import annotations

import argparse
import logging

from pymuduo import Buffer, ConnectionLimits, EventLoop, InetAddress, TcpConnection, TcpServer, Timestamp

_PATIENCE_S = 3.0
_REFUSED_AT_ONCE = 100  # how many may be hearing that it is full
_MAX_UNREAD_BYTES = 1 << 20


class Doorkeeper:
    """Lets in as many as there are places."""

    def __init__(self, server: TcpServer, most: int) -> None:
        self._server = server
        self._most = most

    def on_connection(self, connection: TcpConnection) -> None:
        """Count who is there, this one included, and turn away the one too many."""
        logging.info("%s is %s", connection.peer_address, "up" if connection.connected else "down")
        if not connection.connected or self._server.connection_count <= self._most:
            return
        logging.info("full: %s is turned away", connection.peer_address)
        connection.context = "turned away"
        connection.send(b"full, come back later\r\n")
        connection.shutdown(within_s=_PATIENCE_S)


def on_message(connection: TcpConnection, buffer: Buffer, receive_time: Timestamp) -> None:
    """Send back all that arrives, except to those who are leaving."""
    if connection.context is None:
        connection.send(buffer)
    else:
        buffer.retrieve_all()


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="echo server with a limit of connections")
    parser.add_argument("--most", type=int, default=100, help="connections at a time; default %(default)s")
    parser.add_argument("--port", type=int, default=2007, help="0 lets the kernel choose; default %(default)s")
    parser.add_argument("--threads", type=int, default=0, help="I/O loops; 0, the default: the main loop does it all")
    options = parser.parse_args()
    if options.most < 1:
        parser.error(f"--most must be 1 at least, got {options.most}")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with EventLoop() as loop:
        loop.quit_on_signals()
        try:
            server = TcpServer(loop, InetAddress.any(options.port), "max-connections")
            server.thread_num = options.threads
        except (OSError, ValueError) as e:
            parser.error(str(e))
        server.limits = ConnectionLimits(max_connections=options.most + _REFUSED_AT_ONCE)
        server.max_output_bytes = _MAX_UNREAD_BYTES
        server.connection_callback = Doorkeeper(server, options.most).on_connection
        server.message_callback = on_message
        server.start()
        loop.run()


if __name__ == "__main__":
    main()
