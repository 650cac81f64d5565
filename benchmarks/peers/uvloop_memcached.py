"""get and set of memcached's text protocol on asyncio, on any of its loops; for ``memcached_bench.py``.

protocol         ``data_received``, a parser over the bytes of a read, one ``write`` an answer: what one writes first
protocol-joined  the same with one ``write`` for all answers of a read: tuned by hand

Neither forgets anything: no expiry, no order of use, no limit of memory. The example does all of that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import cast

from peers import asyncio_loops, command

_MAX_KEY_BYTES = 250
_MAX_VALUE_BYTES = 1 << 20
_BAD_LINE = b"CLIENT_ERROR bad command line format\r\n"

values: dict[bytes, tuple[bytes, bytes]] = {}
"""The flags and the value of each key."""


class MemcachedProtocol(asyncio.Protocol):
    """A connection."""

    def __init__(self) -> None:
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is not derived from asyncio's

    def data_received(self, data: bytes) -> None:
        """Answer what is complete, keep the rest."""
        for answer in self.answers(data):
            self._transport.write(answer)

    def answers(self, data: bytes) -> Iterator[bytes]:
        """Yield the answers to the requests that *data* completes."""
        if self._rest:
            data = self._rest + data
        at = 0
        while (end := data.find(b"\n", at)) >= 0:
            words = data[at:end].split()
            begin = end + 1
            if not words:
                yield b"ERROR\r\n"
            elif words[0] == b"get":
                yield get(words)
            elif words[0] == b"set" and len(words) in (5, 6):
                try:
                    size = int(words[4])
                except ValueError:
                    size = -1
                if not 0 <= size <= _MAX_VALUE_BYTES:
                    yield _BAD_LINE
                    self._transport.close()
                    return
                end = begin + size
                if len(data) < end + 2:
                    break
                answer = (
                    set_(words, data[begin:end])
                    if data[end : end + 2] == b"\r\n"
                    else b"CLIENT_ERROR bad data chunk\r\n"
                )
                if words[-1] != b"noreply":
                    yield answer
                begin = end + 2
            else:
                yield b"ERROR\r\n"
            at = begin
        self._rest = data[at:]


class JoinedMemcachedProtocol(MemcachedProtocol):
    """A connection that answers all requests of a read with one write."""

    def data_received(self, data: bytes) -> None:
        """Answer what is complete, keep the rest."""
        self._transport.write(b"".join(self.answers(data)))


def get(words: list[bytes]) -> bytes:
    """Return the values of some keys."""
    if len(words) < 2:
        return b"ERROR\r\n"
    found = []
    for key in words[1:]:
        item = values.get(key)
        if item is not None:
            flags, value = item
            found.append(b"VALUE %b %b %d\r\n%b\r\n" % (key, flags, len(value), value))
    found.append(b"END\r\n")
    return b"".join(found)


def set_(words: list[bytes], value: bytes) -> bytes:
    """Set the value of a key."""
    _, key, flags, exptime = words[:4]
    if len(key) > _MAX_KEY_BYTES or not flags.isdigit() or not exptime.lstrip(b"-").isdigit():
        return _BAD_LINE
    values[key] = flags, value
    return b"STORED\r\n"


SERVICES: dict[str, type[MemcachedProtocol]] = {
    "protocol": MemcachedProtocol,
    "protocol-joined": JoinedMemcachedProtocol,
}


def main() -> None:
    """Parse the command line and serve."""
    parser = command.parser(__doc__, SERVICES)
    parser.set_defaults(mode="protocol")
    options = asyncio_loops.parse(parser)

    async def start(port: int) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        return await loop.create_server(SERVICES[options.mode], "127.0.0.1", port, backlog=command.BACKLOG)

    asyncio_loops.run(options.loop, options.port, start)


if __name__ == "__main__":
    main()
