"""A client of a sudoku server: sends puzzles under numbers, takes the answers in any order, and checks them.

What it teaches: the other end of a protocol with ids. What was sent stands in a table under its id until its answer
comes; an answer that nobody waits for, or that is wrong, is an error of the server's and ends the program.

All of it belongs to the thread of the loop.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import logging
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from pymuduo import EventLoop, TcpClient, TcpConnection, Timestamp
from pymuduo.codec import LineCodec
from sudoku_session import DELIMITER, MAX_LINE_BYTES, TOO_BUSY
from sudoku_solver import NO_SOLUTION, TOO_HARD, is_puzzle, is_solution

_PUZZLES = Path(__file__).with_name("puzzles.txt")

is_right = functools.lru_cache(4096)(is_solution)  # the same puzzles are asked again and again


class SudokuClient:
    """One connection that asks.

    Args:
        crew: the clients that it is one of, which hears of everything.
        name: for the log, and the beginning of every id.
    """

    def __init__(self, crew: Crew, name: str) -> None:
        self._crew = crew
        self._ids = (b"%s-%08d" % (name.encode(), number) for number in itertools.count())
        self._in_flight: dict[bytes, tuple[bytes, float]] = {}
        self._codec = LineCodec(batch_callback=self._on_lines, delimiter=DELIMITER, max_bytes=MAX_LINE_BYTES)
        self._client = TcpClient(crew.loop, (crew.host, crew.port), name)
        self._client.connection_callback = self._on_connection
        self._client.message_callback = self._codec.on_message
        self._client.connect_failed_callback = lambda client, error: crew.fail(f"can't connect: {error}")

    @property
    def in_flight(self) -> int:
        """How many requests have no answer yet."""
        return len(self._in_flight)

    def connect(self) -> None:
        """Begin to connect."""
        self._client.connect()

    def send(self, puzzles: Iterable[tuple[bytes, float]]) -> None:
        """Send puzzles in one piece, each with the moment from which its latency counts."""
        connection = self._client.connection
        if connection is None:
            return  # it has just gone down, and the crew is about to hear of it
        requests = {key: puzzle for puzzle, key in zip(puzzles, self._ids, strict=False)}
        if not requests:
            return
        self._in_flight.update(requests)
        self._codec.send_all(connection, [b"%s:%s" % (key, puzzle) for key, (puzzle, _) in requests.items()])

    def _on_connection(self, connection: TcpConnection) -> None:
        if connection.connected:
            self._crew.connected(self)
        else:
            self._crew.fail(f"the server has left: {connection.error or 'it closed the connection'}")

    def _on_lines(self, connection: TcpConnection, lines: list[bytes], receive_time: Timestamp) -> None:
        now = time.monotonic()
        for line in lines:
            key, _, result = line.partition(b":")
            puzzle, since = self._in_flight.pop(key, (b"", 0.0))
            if not puzzle:
                self._crew.fail(f"an answer to no question: {line!r}")
            elif result in (NO_SOLUTION, TOO_HARD, TOO_BUSY) or is_right(puzzle, result):
                self._crew.answered(self, result, now - since)
            else:
                self._crew.fail(f"a wrong answer to {puzzle!r}: {line!r}")


class Crew:
    """The clients of one program, and what it does with their answers; a program defines the rest.

    Args:
        options: what ``parser`` has read.
    """

    def __init__(self, loop: EventLoop, options: argparse.Namespace) -> None:
        self.loop = loop
        self.host: str = options.host
        self.port: int = options.port
        self.clients = [SudokuClient(self, f"c{number:04d}") for number in range(1, options.connections + 1)]
        self.failed = False
        self._up = 0
        self._is_over = False

    @property
    def in_flight(self) -> int:
        """How many requests of all clients have no answer yet."""
        return sum(client.in_flight for client in self.clients)

    def connected(self, client: SudokuClient) -> None:
        """Begin when all are connected."""
        self._up += 1
        if self._up == len(self.clients):
            self.begin()

    def fail(self, message: str) -> None:
        """Log why it makes no sense to go on, and stop; what follows from that is not told."""
        if not self._is_over:
            logging.error("%s port %d: %s", self.host, self.port, message)
            self.failed = True
            self.finish()

    def finish(self) -> None:
        """Stop."""
        self._is_over = True
        self.loop.quit()

    def run(self) -> int:
        """Connect, go on until the end, Ctrl-C or SIGTERM, report, and return the exit code."""
        for client in self.clients:
            client.connect()
        self.loop.run()
        self._is_over = True
        self.report()
        return int(self.failed)

    def begin(self) -> None:
        """All are connected: send the first puzzles."""
        raise NotImplementedError

    def answered(self, client: SudokuClient, result: bytes, latency_s: float) -> None:
        """Take an answer; it is right, or one of the words that may take its place."""
        raise NotImplementedError

    def report(self) -> None:
        """Print the result."""
        raise NotImplementedError


def parser(description: str) -> argparse.ArgumentParser:
    """Return a parser that knows what all these programs want to know."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument("file", nargs="?", type=Path, default=_PUZZLES, help="a puzzle a line; some are at hand")
    result.add_argument("--host", default="127.0.0.1", help="default %(default)s")
    result.add_argument("--port", type=int, default=9981, help="default %(default)s")
    result.add_argument("--connections", type=int, default=1, help="default %(default)s")
    return result


def read_puzzles(path: Path) -> Sequence[bytes]:
    """Return the puzzles of a file, or leave with a message; lines that are none are left out."""
    try:
        puzzles = [line.strip() for line in path.read_bytes().splitlines() if is_puzzle(line.strip())]
    except OSError as e:
        sys.exit(str(e))
    if not puzzles:
        sys.exit(f"{path} has no line of 81 digits")
    return puzzles
