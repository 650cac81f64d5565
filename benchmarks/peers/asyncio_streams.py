"""The suite's services on asyncio's streams, on any of its loops: a coroutine a connection, ``drain`` after each write.

echo   ``read`` → ``write``
line   ``readline`` → ``write``, a line at a time
frame  ``readexactly`` → ``write``, a frame at a time
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from peers import asyncio_loops, command

_HEADER_BYTES = 4

Service = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send back what arrives."""
    while data := await reader.read(command.READ_BYTES):
        writer.write(data)
        await writer.drain()


async def echo_lines(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send back each line."""
    while line := await reader.readline():
        writer.write(line)
        await writer.drain()


async def echo_frames(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send back each frame."""
    while True:
        header = await reader.readexactly(_HEADER_BYTES)
        payload = await reader.readexactly(int.from_bytes(header, "big"))
        writer.write(header + payload)
        await writer.drain()


SERVICES: dict[str, Service] = {"echo": echo, "line": echo_lines, "frame": echo_frames}


def until_it_leaves(service: Service) -> Service:
    """Return *service* for one peer, whose leaving is no error."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await service(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    return serve


def main() -> None:
    """Parse the command line and serve."""
    options = asyncio_loops.parse(command.parser(__doc__, SERVICES))
    service = until_it_leaves(SERVICES[options.mode])

    async def start(port: int) -> asyncio.Server:
        return await asyncio.start_server(service, "127.0.0.1", port, backlog=command.BACKLOG)

    asyncio_loops.run(options.loop, options.port, start)


if __name__ == "__main__":
    main()
