"""Sudoku pipeline: keeps so many requests of every connection in flight, and prints rates and latencies.

What it teaches: a closed loop. Every answer is followed by the next request, so the server is always busy and never
overloaded, and the rate is the most that it can do. The latency is then no more than the number in flight divided by
that rate, whatever the server is like: to learn how long clients of their own pace wait, use loadtest.py.

    python server_basic.py        and elsewhere        python pipeline.py --connections 10 --pipeline 5
"""

from __future__ import annotations

import argparse
import itertools
import logging
import sys
import time
from collections.abc import Sequence

from pymuduo import EventLoop
from sudoku_client import Crew, SudokuClient, parser, read_puzzles
from sudoku_latency import Summary


class Pipeline(Crew):
    """Sends a request for every answer."""

    def __init__(self, loop: EventLoop, options: argparse.Namespace, puzzles: Sequence[bytes]) -> None:
        super().__init__(loop, options)
        self._puzzles = itertools.cycle(puzzles)
        self._depth: int = options.pipeline
        self._seconds: float = options.seconds
        self._started = self._second_started = time.monotonic()
        self._latencies: list[float] = []  # of the second that runs
        self._all: list[float] = []
        self._unsolved = 0

    def begin(self) -> None:
        """Fill all pipelines."""
        self._started = self._second_started = time.monotonic()
        for client in self.clients:
            self._send(client, self._depth)
        self.loop.run_every(1.0, self._tell)
        self.loop.run_after(self._seconds, self.finish)

    def answered(self, client: SudokuClient, result: bytes, latency_s: float) -> None:
        """Note how long it took, and send the next request."""
        self._latencies.append(latency_s)
        self._unsolved += not result.isdigit()
        self._send(client, 1)

    def report(self) -> None:
        """Print the sum of all seconds."""
        self._all += self._latencies
        rate = len(self._all) / (time.monotonic() - self._started)
        print(f"in all {len(self._all)}, unsolved {self._unsolved}, {rate:.0f}/s {Summary.of(self._all)}", flush=True)

    def _tell(self) -> None:
        """Print the second that has passed."""
        now = time.monotonic()
        rate = len(self._latencies) / (now - self._second_started)
        print(f"{rate:.0f}/s in flight {self.in_flight} {Summary.of(self._latencies)}", flush=True)
        self._all += self._latencies
        self._latencies = []
        self._second_started = now

    def _send(self, client: SudokuClient, count: int) -> None:
        now = time.monotonic()
        client.send((puzzle, now) for puzzle in itertools.islice(self._puzzles, count))


def main() -> None:
    """Ask for some seconds, or until Ctrl-C or SIGTERM; the exit code is 1 if the server has failed."""
    options_parser = parser("keeps requests to a sudoku server in flight, and prints rates and latencies")
    options_parser.add_argument("--pipeline", type=int, default=1, help="in flight on each; default %(default)s")
    options_parser.add_argument("--seconds", type=float, default=5.0, help="how long; default %(default)s")
    options = options_parser.parse_args()
    if options.connections < 1 or options.pipeline < 1 or not options.seconds >= 0:
        options_parser.error("it takes at least one connection, one request in flight, and no negative time")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    puzzles = read_puzzles(options.file)
    with EventLoop() as loop:
        loop.quit_on_signals()
        try:
            crew = Pipeline(loop, options, puzzles)
        except ValueError as e:
            options_parser.error(str(e))
        code = crew.run()
    sys.exit(code)


if __name__ == "__main__":
    main()
