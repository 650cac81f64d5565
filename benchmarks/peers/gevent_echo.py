"""The suite's services on gevent's ``StreamServer``: a greenlet a connection.

echo   ``recv`` → ``sendall``
line   the socket as a file, a line at a time
frame  the same, a frame at a time
"""

# mypy: disable-error-code="import-not-found, import-untyped"
from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Callable

import gevent
from gevent.server import StreamServer

from peers import command

_HEADER_BYTES = 4


def echo(connection: socket.socket) -> None:
    """Send back what arrives."""
    while data := connection.recv(command.READ_BYTES):
        connection.sendall(data)


def echo_lines(connection: socket.socket) -> None:
    """Send back each line."""
    with connection.makefile("rb") as file:
        for line in file:
            connection.sendall(line)


def echo_frames(connection: socket.socket) -> None:
    """Send back each frame."""
    with connection.makefile("rb") as file:
        while len(header := file.read(_HEADER_BYTES)) == _HEADER_BYTES:
            connection.sendall(header + file.read(int.from_bytes(header, "big")))


SERVICES: dict[str, Callable[[socket.socket], None]] = {"echo": echo, "line": echo_lines, "frame": echo_frames}


def until_it_leaves(service: Callable[[socket.socket], None]) -> Callable[[socket.socket, object], None]:
    """Return *service* for one peer, whose leaving is no error."""

    def serve(connection: socket.socket, address: object) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(ConnectionError):
            service(connection)

    return serve


def main() -> None:
    """Parse the command line and serve until SIGTERM or SIGINT."""
    options = command.parse(command.parser(__doc__, SERVICES))
    service = until_it_leaves(SERVICES[options.mode])
    server = StreamServer(("127.0.0.1", options.port), service, backlog=command.BACKLOG)
    for number in (signal.SIGTERM, signal.SIGINT):
        gevent.signal_handler(number, server.close)
    server.start()
    command.announce(server.server_port)
    server.serve_forever(stop_timeout=0)


if __name__ == "__main__":
    main()
