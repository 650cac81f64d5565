"""File transfer by the kernel: it copies the file from its cache to the socket, and no byte comes through Python.

What it teaches: ``send_file``. It queues a part of a file as ``send`` queues bytes, so what is sent before, between
and behind stays in order, and ``shutdown`` waits for it. There is no piece to read, nothing to keep in a context and
nothing to close; and a client that ends its half of the connection at once needs no care, because all that it is to
get has been queued.

The kernel still reads from the disk what it does not have in its cache, while the loop waits: milliseconds a time, in
which nobody else on this loop is served. For files on something slower than a disk, read them in a thread of your own.

    python download3.py FILE        and elsewhere        nc -N 127.0.0.1 2021 < /dev/null > copy
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from pymuduo import EventLoop, IdleTimeouts, InetAddress, TcpConnection, TcpServer, send_file

_IDLE_S = 300.0  # long: megabytes wait in the kernel, and a slow client may take minutes to make room


class FileServer:
    """Sends one file to everybody. Nothing in it changes, so all loops may use it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_connection(self, connection: TcpConnection) -> None:
        """Send the file, and then no more."""
        logging.info("%s is %s", connection.peer_address, "up" if connection.connected else "down")
        if connection.connected:
            try:
                send_file(connection, self._path, callback=self._on_sent)
            except (OSError, ValueError) as e:  # it can't be opened; or it is no file
                logging.error("%s: %s", self._path, e)
            connection.shutdown()

    @staticmethod
    def _on_sent(connection: TcpConnection, error: OSError | None) -> None:
        if error is not None:
            logging.info("%s has not got it all: %s", connection.peer_address, error)


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="file server: sends a file to whoever connects, by sendfile")
    parser.add_argument("file", type=Path, nargs="?", default=Path(__file__), help="default: this program")
    parser.add_argument("--port", type=int, default=2021, help="0 lets the kernel choose; default %(default)s")
    parser.add_argument("--threads", type=int, default=0, help="I/O loops; 0, the default: the main loop does it all")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with EventLoop() as loop:
        loop.quit_on_signals()
        try:
            server = TcpServer(loop, InetAddress.any(options.port), "download3")
            server.thread_num = options.threads
        except (OSError, ValueError) as e:
            parser.error(str(e))
        server.connection_callback = FileServer(options.file).on_connection
        server.idle_timeouts = IdleTimeouts(both_s=_IDLE_S)
        server.start()
        loop.run()


if __name__ == "__main__":
    main()
