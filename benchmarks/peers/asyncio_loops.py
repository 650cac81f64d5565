"""asyncio's own loop and those that take its place, and what their servers share."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import signal
from collections.abc import Awaitable, Callable

from peers import command

LOOPS = ("asyncio", "uvloop", "rloop", "zuvloop")

Start = Callable[[int], Awaitable[asyncio.Server]]
"""Starts the server on a port."""


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line with the option that names the loop."""
    parser.add_argument("--loop", choices=LOOPS, default="asyncio", help="(%(default)s)")
    return command.parse(parser)


def run(loop: str, port: int, start: Start) -> None:
    """Serve on a loop of that kind until SIGTERM or SIGINT."""
    new_loop: Callable[[], asyncio.AbstractEventLoop] = importlib.import_module(loop).new_event_loop
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(_serve(port, start))


async def _serve(port: int, start: Start) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    server = await start(port)
    command.announce(server.sockets[0].getsockname()[1])
    await ended.wait()
    server.close()
