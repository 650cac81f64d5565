"""File transfer piece by piece: the next 64 KiB of the file are read when the last ones have gone.

What it teaches: what a connection is in the middle of is its context. Here that is the open file: made when the
connection is up, read whenever the write-complete callback says that everything has left, and closed at the end of the
file or of the connection, whichever comes first. However big the file and however slow the client, one piece is in our
memory, and the client sets the pace.

A client that has nothing to say may end its half of the connection at once, as ``nc -N`` does. To a server that is the
end as soon as nothing is left to be sent, and between two pieces nothing is; so this one says, with a peer-shutdown
callback, that it ends its connections itself.

Each piece is read in the loop's thread: some microseconds if the kernel has it in its cache. On a disk that has to be
asked it takes milliseconds, in which everybody else on this loop waits; more loops (``--threads``) spread that, because
Python lets other threads run while one waits for a disk.

    python download2.py FILE        and elsewhere        nc -N 127.0.0.1 2021 < /dev/null > copy
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from pymuduo import EventLoop, IdleTimeouts, InetAddress, TcpConnection, TcpServer

_PIECE_BYTES = 64 << 10
_IDLE_S = 300.0  # long: megabytes wait in the kernel, and a slow client may take minutes to make room


class FileServer:
    """Sends one file to everybody. Nothing in it changes, so all loops may use it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_connection(self, connection: TcpConnection) -> None:
        """Open the file for a client who comes; close it for one who leaves in the middle."""
        logging.info("%s is %s", connection.peer_address, "up" if connection.connected else "down")
        if not connection.connected:
            self._close(connection)
            return
        try:
            connection.context = self._path.open("rb", buffering=0)
        except OSError as e:
            logging.error("%s", e)
            connection.shutdown()
            return
        self.send_piece(connection)

    def send_piece(self, connection: TcpConnection) -> None:
        """Send the next piece, or the end of the stream: a connection's write-complete callback."""
        if connection.context is None:
            return
        try:
            piece = connection.context.read(_PIECE_BYTES)
        except OSError as e:
            logging.error("%s: %s", self._path, e)
            piece = b""
        if piece:
            connection.send(piece)
        else:
            self._close(connection)
            connection.shutdown()

    def on_peer_shutdown(self, connection: TcpConnection) -> None:
        """Go on: a client that says no more still listens."""

    @staticmethod
    def _close(connection: TcpConnection) -> None:
        if connection.context is not None:
            connection.context.close()
            connection.context = None


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="file server: sends a file to whoever connects, piece by piece")
    parser.add_argument("file", type=Path, nargs="?", default=Path(__file__), help="default: this program")
    parser.add_argument("--port", type=int, default=2021, help="0 lets the kernel choose; default %(default)s")
    parser.add_argument("--threads", type=int, default=0, help="I/O loops; 0, the default: the main loop does it all")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with EventLoop() as loop:
        loop.quit_on_signals()
        files = FileServer(options.file)
        try:
            server = TcpServer(loop, InetAddress.any(options.port), "download2")
            server.thread_num = options.threads
        except (OSError, ValueError) as e:
            parser.error(str(e))
        server.connection_callback = files.on_connection
        server.write_complete_callback = files.send_piece
        server.peer_shutdown_callback = files.on_peer_shutdown
        server.idle_timeouts = IdleTimeouts(both_s=_IDLE_S)
        server.start()
        loop.run()


if __name__ == "__main__":
    main()
