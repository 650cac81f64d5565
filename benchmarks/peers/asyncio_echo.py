"""The same echo and line services on asyncio's protocols, with asyncio's own loop or uvloop.

echo         ``data_received`` → ``transport.write``
line         split at newlines, one ``write`` a line: what a programmer writes first
line-joined  split at newlines, one joined ``write`` for all of them: tuned by hand
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
from typing import cast


class Echo(asyncio.Protocol):
    """Sends back what it receives."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self.rest = b""

    def data_received(self, data: bytes) -> None:
        """Send it back."""
        self.transport.write(data)


class LineEcho(Echo):
    """Sends back each line with a write of its own."""

    def data_received(self, data: bytes) -> None:
        """Split and send."""
        lines = (self.rest + data).split(b"\n")
        self.rest = lines.pop()
        for line in lines:
            self.transport.write(line + b"\n")


class JoinedLineEcho(Echo):
    """Sends back all lines of a read with one write."""

    def data_received(self, data: bytes) -> None:
        """Split, join and send."""
        lines = (self.rest + data).split(b"\n")
        self.rest = lines.pop()
        if lines:
            self.transport.write(b"".join([line + b"\n" for line in lines]))


PROTOCOLS = {"echo": Echo, "line": LineEcho, "line-joined": JoinedLineEcho}


async def serve(mode: str, port: int) -> None:
    """Serve until SIGTERM."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    server = await loop.create_server(PROTOCOLS[mode], "127.0.0.1", port, backlog=4096)
    print(f"listening on 127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await ended.wait()
    server.close()


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--cpu", type=int, help="run on this processor only")
    parser.add_argument("--mode", choices=PROTOCOLS, default="echo")
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio")
    args = parser.parse_args()
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # it warns of every message lost when the load ends
    if args.cpu is not None:
        os.sched_setaffinity(0, {args.cpu})
    if args.loop == "uvloop":
        import uvloop

        uvloop.run(serve(args.mode, args.port))
    else:
        asyncio.run(serve(args.mode, args.port))


if __name__ == "__main__":
    main()
