"""GET, SET and PING of Redis on asyncio, on any of its loops; for ``redis_bench.py``.

protocol         ``data_received``, a parser over the bytes of a read, one ``write`` a reply: what one writes first
protocol-joined  the same with one ``write`` for all replies of a read: tuned by hand
streams          ``readuntil`` and ``readexactly``, one ``write`` and ``drain`` a reply
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import cast

from peers import asyncio_loops, command
from peers.asyncio_loops import Start

_STAR, _DOLLAR = b"*$"

values: dict[bytes, bytes] = {}


# --- commands ---


def get(words: list[bytes]) -> bytes:
    """Return the value of a key."""
    value = values.get(words[1])
    return b"$-1\r\n" if value is None else b"$%d\r\n%b\r\n" % (len(value), value)


def set_(words: list[bytes]) -> bytes:
    """Set the value of a key."""
    values[words[1]] = words[2]
    return b"+OK\r\n"


def ping(words: list[bytes]) -> bytes:
    """Answer."""
    return b"+PONG\r\n"


COMMANDS: dict[bytes, tuple[Callable[[list[bytes]], bytes], int]] = {
    b"GET": (get, 2),
    b"SET": (set_, 3),
    b"PING": (ping, 1),
}


def answer(words: list[bytes]) -> bytes:
    """Return the reply to a request."""
    handler, count = COMMANDS.get(words[0].upper(), (None, 0))
    if handler is None:
        return b"-ERR unknown command\r\n"
    if len(words) != count:
        return b"-ERR wrong number of arguments\r\n"
    return handler(words)


# --- protocol ---


def parse(data: bytes, at: int) -> tuple[list[bytes], int] | None:
    """Return the request that begins at *at*, and where it ends; None if it is not all there.

    Raises:
        ValueError: it is malformed.
    """
    end = data.find(b"\r\n", at)
    if end < 0:
        return None
    if data[at] != _STAR:
        return data[at:end].split(), end + 2
    count = int(data[at + 1 : end])
    at = end + 2
    words = []
    for _ in range(count):
        end = data.find(b"\r\n", at)
        if end < 0:
            return None
        if data[at] != _DOLLAR:
            raise ValueError("expected '$'")
        begin = end + 2
        end = begin + int(data[at + 1 : end])
        at = end + 2
        if at > len(data):
            return None
        words.append(data[begin:end])
    return words, at


class RedisProtocol(asyncio.Protocol):
    """A connection."""

    def __init__(self) -> None:
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is not derived from asyncio's

    def data_received(self, data: bytes) -> None:
        """Answer what is complete, keep the rest."""
        try:
            for words in self.requests(data):
                self._transport.write(answer(words))
        except ValueError:
            self._transport.close()

    def requests(self, data: bytes) -> Iterator[list[bytes]]:
        """Yield the requests that *data* completes."""
        if self._rest:
            data = self._rest + data
        at = 0
        while at < len(data):
            parsed = parse(data, at)
            if parsed is None:
                break
            words, at = parsed
            if words:
                yield words
        self._rest = data[at:]


class JoinedRedisProtocol(RedisProtocol):
    """A connection that answers all requests of a read with one write."""

    def data_received(self, data: bytes) -> None:
        """Answer what is complete, keep the rest."""
        try:
            self._transport.write(b"".join([answer(words) for words in self.requests(data)]))
        except ValueError:
            self._transport.close()


def protocol_server(protocol: type[RedisProtocol]) -> Start:
    """Return what starts a server with protocols of this kind."""

    async def start(port: int) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        return await loop.create_server(protocol, "127.0.0.1", port, backlog=command.BACKLOG)

    return start


# --- streams ---


async def read_request(reader: asyncio.StreamReader) -> list[bytes]:
    """Read a request."""
    line = await reader.readuntil(b"\r\n")
    if line[0] != _STAR:
        return line.split()
    words = []
    for _ in range(int(line[1:])):
        header = await reader.readuntil(b"\r\n")
        if header[0] != _DOLLAR:
            raise ValueError("expected '$'")
        word = await reader.readexactly(int(header[1:]) + 2)
        words.append(word[:-2])
    return words


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer request by request until the peer leaves."""
    try:
        while True:
            words = await read_request(reader)
            if words:
                writer.write(answer(words))
                await writer.drain()
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError, ValueError):
        pass
    finally:
        writer.close()


async def start_streams(port: int) -> asyncio.Server:
    """Serve with streams."""
    return await asyncio.start_server(serve, "127.0.0.1", port, backlog=command.BACKLOG)


SERVICES: dict[str, Start] = {
    "protocol": protocol_server(RedisProtocol),
    "protocol-joined": protocol_server(JoinedRedisProtocol),
    "streams": start_streams,
}


def main() -> None:
    """Parse the command line and serve."""
    parser = command.parser(__doc__, SERVICES)
    parser.set_defaults(mode="protocol")
    options = asyncio_loops.parse(parser)
    asyncio_loops.run(options.loop, options.port, SERVICES[options.mode])


if __name__ == "__main__":
    main()
