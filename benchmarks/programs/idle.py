"""What an idle connection costs a server, in bytes of user memory; each has echoed one message of 64 B.

malloc    all that malloc gave, Python's objects included: a run with PYTHONMALLOC=malloc, so that nothing is counted
          twice or left out, whoever allocates (pymuduo's connections are Python objects, uvloop's handles are C)
heap      what tracemalloc sees: Python's objects and raw memory that it was asked for, not C libraries' own malloc
resident  by how much the process grew, with the allocators that it has by default

Each in a process of its own. A figure is the difference between a few connections and many, divided by their number,
so that what a server costs by itself cancels out. The kernel's memory is not in it.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import json
import os
import resource
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable
from typing import cast

from programs import command, loops

_FIRST = 100  # connections that are there before the first look
_SPARE_DESCRIPTORS = 64
_LIMIT_S = 60


class MallInfo(ctypes.Structure):
    """glibc's ``struct mallinfo2``."""

    _fields_ = (
        ("arena", ctypes.c_size_t),
        ("ordblks", ctypes.c_size_t),
        ("smblks", ctypes.c_size_t),
        ("hblks", ctypes.c_size_t),
        ("hblkhd", ctypes.c_size_t),
        ("usmblks", ctypes.c_size_t),
        ("fsmblks", ctypes.c_size_t),
        ("uordblks", ctypes.c_size_t),
        ("fordblks", ctypes.c_size_t),
        ("keepcost", ctypes.c_size_t),
    )


def malloc_bytes() -> int:
    """Return what is allocated: in the heaps, and in mappings of their own."""
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallinfo2"):
        raise loops.PeerAbsentError("this C library has no mallinfo2")
    library.mallinfo2.restype = MallInfo
    info = library.mallinfo2()
    return int(info.uordblks + info.hblkhd)


LOOKS: dict[str, Callable[[], int]] = {
    "malloc": malloc_bytes,
    "heap": lambda: tracemalloc.get_traced_memory()[0],
    "resident": command.resident_bytes,
}


class Holders:
    """The processes that hold connections."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._processes: list[subprocess.Popen[str]] = []

    def add(self, connections: int) -> None:
        """Start one, and wait until its connections are there; not in the loop's thread."""
        asked = ("--port", str(self._port), "--connections", str(connections))
        holder = subprocess.Popen(
            [sys.executable, "-m", "programs.hold", *asked], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._processes.append(holder)
        assert holder.stdout is not None
        said = holder.stdout.readline().strip()
        command.check(said == f"holding {connections}", f"{connections} connections were asked for: {said!r}")

    def end(self) -> None:
        """Let go of all connections."""
        for holder in self._processes:
            holder.kill()
            holder.communicate()


class Observer(threading.Thread):
    """Opens connections from beside the loop, and looks at the memory in it."""

    def __init__(self, look: Callable[[], int], port: int, loop: loops.Loop, connections: int) -> None:
        super().__init__(daemon=True)
        self._look = look
        self._holders = Holders(port)
        self._loop = loop
        self._connections = connections
        self.bytes_each: float | None = None

    def run(self) -> None:
        """Look, open, look again; then end the loop."""
        try:
            self._holders.add(_FIRST)
            before = self._look_in_loop()
            self._holders.add(self._connections)
            self.bytes_each = (self._look_in_loop() - before) / self._connections
        finally:
            self._holders.end()
            self._loop.call_from_thread(self._loop.stop)

    def _look_in_loop(self) -> int:
        seen: list[int] = []
        done = threading.Event()

        def look() -> None:
            gc.collect()
            seen.append(self._look())
            done.set()

        self._loop.call_from_thread(look)
        command.check(done.wait(_LIMIT_S), "the loop hangs")
        return seen[0]


def serve_on_pymuduo(connections: int, look: Callable[[], int]) -> float | None:
    """Serve echo and observe."""
    loops.require("pymuduo")
    from pymuduo import Buffer, EventLoop, InetAddress, TcpConnection, TcpServer, Timestamp

    def echo(connection: TcpConnection, buffer: Buffer, receive_time: Timestamp) -> None:
        connection.send(buffer)

    with EventLoop() as loop, TcpServer(loop, InetAddress.loopback(0), "idle") as server:
        server.message_callback = echo
        server.start()
        observer = Observer(look, server.address.port, loops.of_pymuduo(loop), connections)
        observer.start()
        loop.run()
        observer.join()
    return observer.bytes_each


def serve_on_asyncio(peer: str, connections: int, look: Callable[[], int]) -> float | None:
    """Serve echo and observe."""

    class Echo(asyncio.Protocol):
        transport: asyncio.Transport

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = cast(asyncio.Transport, transport)

        def data_received(self, data: bytes) -> None:
            self.transport.write(data)

    loop = loops.new_asyncio_loop(peer)
    server = loop.run_until_complete(loop.create_server(Echo, "127.0.0.1", 0, backlog=4096))
    observer = Observer(look, server.sockets[0].getsockname()[1], loops.of_asyncio(loop), connections)
    observer.start()
    loop.run_forever()
    observer.join()
    server.close()
    loop.run_until_complete(asyncio.sleep(0.1))  # the connections see their ends, and close
    loop.close()
    return observer.bytes_each


def measure_one(peer: str, kind: str, connections: int) -> float:
    """Return bytes a connection, seen in this process."""
    if kind == "heap":
        tracemalloc.start()
    if peer == "pymuduo":
        each = serve_on_pymuduo(connections, LOOKS[kind])
    else:
        each = serve_on_asyncio(peer, connections, LOOKS[kind])
    command.check(each is not None, "the connections could not be made")
    assert each is not None
    return each


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Measure one kind here, or each in a process of its own."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    possible = min(options.connections, hard - _FIRST - _SPARE_DESCRIPTORS)
    command.check(possible > 0, f"{hard} descriptors are too few")
    if options.kind is not None:
        return {f"{options.kind}_bytes": measure_one(options.peer, options.kind, possible), "connections": possible}
    figures: dict[str, float] = {}
    for kind in LOOKS:
        asked = ["--peer", options.peer, "--connections", str(possible), "--kind", kind, "--json"]
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONMALLOC"}
        if kind == "malloc":
            environment["PYTHONMALLOC"] = "malloc"
        done = subprocess.run(
            [sys.executable, "-m", "programs.idle", *asked],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            timeout=_LIMIT_S,
            check=True,
        )
        told = json.loads(done.stdout)
        if "absent" in told:
            raise loops.PeerAbsentError(told["absent"])
        figures |= told["figures"]
    return figures


if __name__ == "__main__":
    parser = command.parser(__doc__)
    parser.add_argument("--connections", type=command.count, default=10_000, metavar="N", help="(%(default)s)")
    parser.add_argument("--kind", choices=LOOKS, help="one figure, with the allocator of this process (all)")
    command.main(parser.parse_args(), measure)
