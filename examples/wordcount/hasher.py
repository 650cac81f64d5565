"""Counts the words of files and deals the counts out to receivers, each word always to the same one.

What it teaches: producing at the pace of those who take it. The files are read piece by piece, and only while no
receiver has much unread: reading stops when one's output passes the high-water mark and goes on below the low one. So
files of any size go through a few megabytes of memory. The receiver of a word is chosen by a hash that is the same in
every process, which Python's own ``hash`` is not.

    python hasher.py words.txt --to 127.0.0.1:2020 --to 127.0.0.1:2021
"""

from __future__ import annotations

import argparse
import logging
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pymuduo import EventLoop, InetAddress, TcpClient, TcpConnection
from pymuduo.codec import LineCodec

_END = b"\\end"
_PIECE_BYTES = 1 << 16
_MAX_WORD_BYTES = 1024  # a longer one is counted by its beginning
_HIGH_WATER_MARK = 1 << 20
_CODEC = LineCodec(delimiter=b"\r\n", max_bytes=4096)


def words_of(paths: list[Path]) -> Iterator[list[bytes]]:
    """Return the words of the files, some thousand at a time."""
    for path in paths:
        with path.open("rb") as file:
            rest = b""
            while piece := file.read(_PIECE_BYTES):
                *words, rest = (rest + piece).replace(b"\n", b" ").replace(b"\r", b" ").replace(b"\t", b" ").split(b" ")
                rest = rest[:_MAX_WORD_BYTES]
                yield [word[:_MAX_WORD_BYTES] for word in words if word]
            if rest:
                yield [rest]


class Hasher:
    """Connects to every receiver, then reads and deals out; everything happens in one loop."""

    def __init__(self, loop: EventLoop, receivers: list[InetAddress], paths: list[Path]) -> None:
        self.failure: str | None = None
        self.is_done = False  # every receiver has taken its share, and left
        self.word_count = 0
        self._loop = loop
        self._pieces = words_of(paths)
        self._connections: dict[int, TcpConnection] = {}
        self._is_queued = False
        self._is_all_sent = False
        self._clients = [self._client(number, address) for number, address in enumerate(receivers)]

    def start(self) -> None:
        """Connect; the rest follows."""
        for client in self._clients:
            client.connect()

    def _client(self, number: int, address: InetAddress) -> TcpClient:
        client = TcpClient(self._loop, address, f"receiver{number}")
        client.high_water_mark = _HIGH_WATER_MARK
        client.low_water_mark = _HIGH_WATER_MARK // 4
        client.connection_callback = lambda connection: self.on_connection(number, connection)
        client.low_water_mark_callback = self.on_low_water_mark
        client.connect_failed_callback = lambda client, error: self.fail(f"{address}: {error}")
        return client

    def on_connection(self, number: int, connection: TcpConnection) -> None:
        """Begin when all are there; end when all have gone, having got everything."""
        if connection.connected:
            self._connections[number] = connection
            if len(self._connections) == len(self._clients):
                self.go_on_later()
            return
        del self._connections[number]
        if not self._is_all_sent or connection.error is not None:
            self.fail(f"{connection.peer_address} broke off: {connection.error or 'closed'}")
        elif not self._connections:
            self.is_done = True
            self._loop.quit()

    def on_low_water_mark(self, connection: TcpConnection) -> None:
        """Go on reading."""
        self.go_on_later()

    def go_on_later(self) -> None:
        """Deal out the next piece after the loop has seen to its connections."""
        if not self._is_queued:
            self._is_queued = True
            self._loop.queue_in_loop(self._go_on)

    def _go_on(self) -> None:
        self._is_queued = False
        if self._is_all_sent or self.failure or len(self._connections) < len(self._clients):
            return
        if any(connection.output_size >= _HIGH_WATER_MARK for connection in self._connections.values()):
            return  # its low-water mark will call
        try:
            words = next(self._pieces, None)
        except OSError as e:
            self.fail(str(e))
            return
        if words is None:
            self._is_all_sent = True
            for connection in self._connections.values():
                _CODEC.send(connection, _END)
                connection.shutdown()
            return
        self.word_count += len(words)
        shares: list[list[bytes]] = [[] for _ in self._clients]
        for word, count in Counter(words).items():
            shares[zlib.crc32(word) % len(shares)].append(b"%b\t%d" % (word, count))
        for number, share in enumerate(shares):
            _CODEC.send_all(self._connections[number], share)
        self.go_on_later()

    def fail(self, why: str) -> None:
        """End without having told everything."""
        self.failure = self.failure or why
        self._loop.quit()


def main() -> None:
    """Count, deal out, and end."""
    parser = argparse.ArgumentParser(description="counts words and deals the counts out to receivers")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="text")
    parser.add_argument(
        "--to",
        action="append",
        required=True,
        metavar="HOST:PORT",
        help="a receiver; repeat it",
    )
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with EventLoop() as loop:
        loop.quit_on_signals()
        try:
            hasher = Hasher(loop, [InetAddress.parse(receiver) for receiver in options.to], options.files)
        except ValueError as e:
            parser.error(str(e))
        hasher.start()
        loop.run()
        if hasher.failure is None and not hasher.is_done:
            hasher.failure = "interrupted"
    if hasher.failure:
        sys.exit(hasher.failure)
    logging.info("%d words dealt out", hasher.word_count)


if __name__ == "__main__":
    main()
