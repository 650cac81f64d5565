"""The suite's services on asyncio's protocols, on any of its loops.

echo           ``data_received`` → ``transport.write``
echo-buffered  a ``BufferedProtocol``: what is read goes into a buffer of our own; tuned by hand
line           split at newlines, one ``write`` a line: what one writes first
line-joined    split at newlines, all lines of a read in one ``write``; tuned by hand
line-whole     the same without a look at a single line, which only an echo can do; tuned to the utmost
frame          one ``write`` a frame
frame-joined   all frames of a read in one ``write``; tuned by hand
broadcast      one ``write`` a frame and connection
sudoku         as line
"""

from __future__ import annotations

import asyncio
import struct
from typing import ClassVar, cast

from peers import asyncio_loops, command, sudoku

_HEADER = struct.Struct(">I")


class Connection(asyncio.BaseProtocol):
    """Keeps its transport."""

    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is not derived from asyncio's


class Echo(Connection, asyncio.Protocol):
    """Sends back what arrives."""

    def data_received(self, data: bytes) -> None:
        """Send it back."""
        self.transport.write(data)


class BufferedEcho(Connection, asyncio.BufferedProtocol):
    """Sends back what arrives in a buffer of its own; the transport keeps what it sends, so that is a copy."""

    # One for all: between ``get_buffer`` and ``buffer_updated`` no other connection reads.
    _buffer: ClassVar[bytearray] = bytearray(256 * 1024)
    _view: ClassVar[memoryview] = memoryview(_buffer)

    def get_buffer(self, sizehint: int) -> bytearray:
        """Return where to read to."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Send it back."""
        self.transport.write(bytes(self._view[:nbytes]))


class LineEcho(Connection, asyncio.Protocol):
    """Sends back each line with a write of its own."""

    def __init__(self) -> None:
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        """Send what is complete, keep the rest."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self.transport.write(line + b"\n")


class JoinedLineEcho(LineEcho):
    """Sends back all complete lines of a read with one write; each line is answered by itself."""

    def data_received(self, data: bytes) -> None:
        """Send what is complete, keep the rest."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if lines:
            self.transport.write(b"".join([line + b"\n" for line in lines]))


class WholeLineEcho(LineEcho):
    """Sends back all complete lines of a read with one write, and touches none of them."""

    def data_received(self, data: bytes) -> None:
        """Send what is complete, keep the rest."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if lines:
            lines.append(b"")
            self.transport.write(b"\n".join(lines))


class FrameEcho(Connection, asyncio.Protocol):
    """Sends back each frame with a write of its own."""

    def __init__(self) -> None:
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        """Take what is complete, keep the rest."""
        for payload in self.payloads(data):
            self.take(payload)

    def payloads(self, data: bytes) -> list[bytes]:
        """Return the payloads that *data* completes."""
        if self._rest:
            data = self._rest + data
        found = []
        at, size = 0, len(data)
        while size - at >= _HEADER.size:
            begin = at + _HEADER.size
            end = begin + _HEADER.unpack_from(data, at)[0]
            if end > size:
                break
            found.append(data[begin:end])
            at = end
        self._rest = data[at:]
        return found

    def take(self, payload: bytes) -> None:
        """Send it back."""
        self.transport.write(_HEADER.pack(len(payload)) + payload)


class JoinedFrameEcho(FrameEcho):
    """Sends back all complete frames of a read with one write."""

    def data_received(self, data: bytes) -> None:
        """Send what is complete, keep the rest."""
        parts: list[bytes] = []
        pack = _HEADER.pack
        for payload in self.payloads(data):
            parts += pack(len(payload)), payload
        if parts:
            self.transport.write(b"".join(parts))


class Broadcast(FrameEcho):
    """Sends each frame to every connection."""

    _members: ClassVar[set[asyncio.Transport]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Let it in."""
        super().connection_made(transport)
        self._members.add(self.transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let it go."""
        self._members.discard(self.transport)

    def take(self, payload: bytes) -> None:
        """Send it to all."""
        frame = _HEADER.pack(len(payload)) + payload
        for member in self._members:
            member.write(frame)


class Sudoku(LineEcho):
    """Answers each puzzle with its solution."""

    def data_received(self, data: bytes) -> None:
        """Solve what is complete, keep the rest."""
        *puzzles, self._rest = (self._rest + data).split(b"\n")
        for puzzle in puzzles:
            self.transport.write(sudoku.solve(puzzle) + b"\n")


SERVICES: dict[str, type[Connection]] = {
    "echo": Echo,
    "echo-buffered": BufferedEcho,
    "line": LineEcho,
    "line-joined": JoinedLineEcho,
    "line-whole": WholeLineEcho,
    "frame": FrameEcho,
    "frame-joined": JoinedFrameEcho,
    "broadcast": Broadcast,
    "sudoku": Sudoku,
}


def main() -> None:
    """Parse the command line and serve."""
    options = asyncio_loops.parse(command.parser(__doc__, SERVICES))

    async def start(port: int) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        return await loop.create_server(
            SERVICES[options.mode], "127.0.0.1", port, backlog=command.BACKLOG, ssl=command.tls_context(options)
        )

    asyncio_loops.run(options.loop, options.port, start)


if __name__ == "__main__":
    main()
