"""Sudoku load test: sends requests at a fixed rate, come what may, and prints how long the answers take.

What it teaches: an open loop, and honest latencies. Real clients don't wait for one another, so a server that stalls
for a second has a second's worth of them waiting. A program that sends the next request after the last answer would
count one slow answer there, and so would one that counts from the moment of sending if its own sending was held up:
that is called coordinated omission. Here every request has a moment at which it is due, which nothing can put off, and
its latency counts from that.

    python server_prod.py        and elsewhere        python loadtest.py --rate 1000 --connections 10
"""

from __future__ import annotations

import argparse
import itertools
import logging
import sys
import time
from collections import Counter
from collections.abc import Sequence

from pymuduo import EventLoop
from sudoku_client import Crew, SudokuClient, parser, read_puzzles
from sudoku_latency import Histogram, Summary

_TICK_S = 0.005
_PATIENCE_S = 10.0


class LoadTest(Crew):
    """Sends what is due, over the connections in turn."""

    def __init__(self, loop: EventLoop, options: argparse.Namespace, puzzles: Sequence[bytes]) -> None:
        super().__init__(loop, options)
        self._puzzles = itertools.cycle(puzzles)
        self._rate: float = options.rate
        self._count = max(int(options.rate * options.seconds), 1)
        self._started = 0.0
        self._sent = 0
        self._latencies: list[float] = []  # of the second that runs
        self._all: list[float] = []
        self._results: Counter[str] = Counter()

    def begin(self) -> None:
        """Start the clock; the first request is due at once."""
        self._started = time.monotonic()
        self.loop.run_every(_TICK_S, self._send_due)
        self.loop.run_every(1.0, self._tell)

    def answered(self, client: SudokuClient, result: bytes, latency_s: float) -> None:
        """Note how long it took, unless the server was too busy: that answer is quick and worth nothing."""
        solved = result.isdigit()
        self._results["solved" if solved else result.decode()] += 1
        if solved:
            self._latencies.append(latency_s)
        if self._sent == self._count and self.in_flight == 0:
            self.finish()

    def report(self) -> None:
        """Print the sum of all seconds, and the picture."""
        self._all += self._latencies
        histogram = Histogram()
        for latency_s in self._all:
            histogram.add(latency_s)
        for line in histogram.lines():
            print(line)
        results = ", ".join(f"{number} {result}" for result, number in sorted(self._results.items())) or "0 solved"
        print(f"{self._sent} sent, {results}, {self.in_flight} unanswered")
        print(f"in all {len(self._all)} {Summary.of(self._all)}", flush=True)

    def _send_due(self) -> None:
        due = min(int((time.monotonic() - self._started) * self._rate) + 1, self._count)
        if self._sent == due:
            return
        count = len(self.clients)
        for number, client in enumerate(self.clients):
            first = self._sent + (number - self._sent) % count  # the first one that is this client's
            moments = (self._started + at / self._rate for at in range(first, due, count))
            client.send([(next(self._puzzles), moment) for moment in moments])
        self._sent = due
        if due == self._count:
            self.loop.run_after(_PATIENCE_S, self.finish)

    def _tell(self) -> None:
        """Print the second that has passed."""
        print(f"recv {len(self._latencies)} in flight {self.in_flight} {Summary.of(self._latencies)}", flush=True)
        self._all += self._latencies
        self._latencies = []


def main() -> None:
    """Send for some seconds, or until Ctrl-C or SIGTERM; the exit code is 1 if the server has failed."""
    options_parser = parser("sends puzzles to a sudoku server at a fixed rate, and prints how long the answers take")
    options_parser.add_argument("--rate", type=float, default=100.0, help="requests a second; default %(default)s")
    options_parser.add_argument("--seconds", type=float, default=5.0, help="how long; default %(default)s")
    options = options_parser.parse_args()
    if options.connections < 1 or not 0 < options.rate <= 1e6 or not 0 <= options.seconds <= 1e9:
        options_parser.error("it takes at least one connection, a rate above 0, up to a million, and no endless time")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    puzzles = read_puzzles(options.file)
    with EventLoop() as loop:
        loop.quit_on_signals()
        try:
            crew = LoadTest(loop, options, puzzles)
        except ValueError as e:
            options_parser.error(str(e))
        code = crew.run()
    sys.exit(code)


if __name__ == "__main__":
    main()
