"""The suite's services on asyncio's protocols, on asyncio's own loop or on uvloop.

echo         ``data_received`` → ``transport.write``
line         split at newlines, one ``write`` a line: what one writes first
line-joined  split at newlines, all lines of a read in one ``write``: tuned by hand
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
from collections.abc import Callable, Coroutine
from typing import Any, cast


class Echo(asyncio.Protocol):
    """Sends back what arrives."""

    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is not derived from asyncio's

    def data_received(self, data: bytes) -> None:
        """Send it back."""
        self.transport.write(data)


class LineEcho(Echo):
    """Sends back each line with a write of its own."""

    def __init__(self) -> None:
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        """Send what is complete, keep the rest."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self.transport.write(line + b"\n")


class JoinedLineEcho(LineEcho):
    """Sends back all complete lines of a read with one write."""

    def data_received(self, data: bytes) -> None:
        """Send what is complete, keep the rest."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if lines:
            self.transport.write(b"".join([line + b"\n" for line in lines]))


SERVICES: dict[str, type[Echo]] = {"echo": Echo, "line": LineEcho, "line-joined": JoinedLineEcho}


def runner(loop: str) -> Callable[[Coroutine[Any, Any, None]], None]:
    """Return the ``run`` of a loop by its name."""
    if loop == "uvloop":
        import uvloop

        return cast(Callable[[Coroutine[Any, Any, None]], None], uvloop.run)
    return asyncio.run


async def serve(mode: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    server = await loop.create_server(SERVICES[mode], "127.0.0.1", port, backlog=4096)
    print(f"listening on 127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await ended.wait()
    server.close()


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0, help="0 lets the kernel choose (%(default)s)")
    parser.add_argument("--cpu", type=int, metavar="N", help="run on processor N only")
    parser.add_argument("--mode", choices=SERVICES, default="echo", help="the service (%(default)s)")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio", help="(%(default)s)")
    options = parser.parse_args()
    if options.cpu is not None:
        os.sched_setaffinity(0, {options.cpu})
    runner(options.loop)(serve(options.mode, options.port))


if __name__ == "__main__":
    main()
