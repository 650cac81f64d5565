"""File transfer, the simplest way: whoever connects is sent a file, and then the end of the stream.

What it teaches: what simple costs. The file is read as a whole and sent as a whole, and what a client has not taken yet
stays in our memory: a hundred clients of a file of 50 MiB are up to 5 GiB. (``send`` copies nothing more, it keeps the
bytes that it was given.) And the loop does nothing else while the file is read: 50 MiB take some 40 ms if the kernel
has them in its cache, and as long as the disk takes if it has not. So there is a limit to the file and to the number of
clients. ``download2.py`` needs 64 KiB a client, and ``download3.py`` next to nothing.

The bytes that were sent leave before the end of the stream: ``shutdown`` sees to that.

    python download.py FILE        and elsewhere        nc -N 127.0.0.1 2021 < /dev/null > copy
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from pymuduo import ConnectionLimits, EventLoop, IdleTimeouts, InetAddress, TcpConnection, TcpServer

_MAX_FILE_BYTES = 64 << 20
_MAX_CLIENTS = 32
_IDLE_S = 300.0  # long: megabytes wait in the kernel, and a slow client may take minutes to make room


class FileServer:
    """Sends one file to everybody. Nothing in it changes, so all loops may use it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_connection(self, connection: TcpConnection) -> None:
        """Send the file, and then no more."""
        logging.info("%s is %s", connection.peer_address, "up" if connection.connected else "down")
        if connection.connected:
            connection.send(self._read())
            connection.shutdown()

    def _read(self) -> bytes:
        try:
            with self._path.open("rb") as file:
                content = file.read(_MAX_FILE_BYTES + 1)
        except OSError as e:
            logging.error("%s", e)
            return b""
        if len(content) > _MAX_FILE_BYTES:
            logging.error("%s has more than %d bytes: not sent", self._path, _MAX_FILE_BYTES)
            return b""
        return content


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="file server: sends a file to whoever connects, as a whole")
    parser.add_argument("file", type=Path, nargs="?", default=Path(__file__), help="default: this program")
    parser.add_argument("--port", type=int, default=2021, help="0 lets the kernel choose; default %(default)s")
    parser.add_argument("--threads", type=int, default=0, help="I/O loops; 0, the default: the main loop does it all")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with EventLoop() as loop:
        loop.quit_on_signals()
        try:
            server = TcpServer(loop, InetAddress.any(options.port), "download")
            server.thread_num = options.threads
        except (OSError, ValueError) as e:
            parser.error(str(e))
        server.connection_callback = FileServer(options.file).on_connection
        server.idle_timeouts = IdleTimeouts(both_s=_IDLE_S)
        server.limits = ConnectionLimits(max_connections=_MAX_CLIENTS)
        server.start()
        loop.run()


if __name__ == "__main__":
    main()
