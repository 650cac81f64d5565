"""The suite's services on Tornado's ``TCPServer``: a coroutine a connection.

echo   ``read_bytes`` → ``write``
line   ``read_until`` → ``write``, a line at a time
frame  ``read_bytes`` → ``write``, a frame at a time
"""

# mypy: disallow-subclassing-any=False
# mypy: disable-error-code="import-not-found"
from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable

from tornado.iostream import IOStream, StreamClosedError
from tornado.netutil import bind_sockets
from tornado.tcpserver import TCPServer

from peers import command

_HEADER_BYTES = 4


async def echo(stream: IOStream) -> None:
    """Send back what arrives."""
    while True:
        await stream.write(await stream.read_bytes(command.READ_BYTES, partial=True))


async def echo_lines(stream: IOStream) -> None:
    """Send back each line."""
    while True:
        await stream.write(await stream.read_until(b"\n"))


async def echo_frames(stream: IOStream) -> None:
    """Send back each frame."""
    while True:
        header = await stream.read_bytes(_HEADER_BYTES)
        await stream.write(header + await stream.read_bytes(int.from_bytes(header, "big")))


SERVICES: dict[str, Callable[[IOStream], Awaitable[None]]] = {"echo": echo, "line": echo_lines, "frame": echo_frames}


class Server(TCPServer):
    """Gives one of the services."""

    def __init__(self, service: Callable[[IOStream], Awaitable[None]]) -> None:
        super().__init__()
        self._service = service

    async def handle_stream(self, stream: IOStream, address: tuple[str, int]) -> None:
        """Serve one peer until it leaves."""
        stream.set_nodelay(True)
        with contextlib.suppress(StreamClosedError):
            await self._service(stream)


async def serve(mode: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT."""
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    server = Server(SERVICES[mode])
    sockets = bind_sockets(port, "127.0.0.1", backlog=command.BACKLOG)
    server.add_sockets(sockets)
    command.announce(sockets[0].getsockname()[1])
    await ended.wait()
    server.stop()


def main() -> None:
    """Parse the command line and serve."""
    options = command.parse(command.parser(__doc__, SERVICES))
    asyncio.run(serve(options.mode, options.port))


if __name__ == "__main__":
    main()
