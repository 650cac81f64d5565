"""Sudoku in batches: sends a file of puzzles, and prints how long one takes.

What it teaches: the difference between working and asking. ``--local`` solves the puzzles in this program; without it
every connection sends all of them, in as many batches as you like, the next one when the last answer has come. One
batch keeps the server busy without a pause; as many batches as puzzles is question and answer, and what that takes
longer is the way there and back.

    python server_basic.py        and elsewhere        python batch.py --batches 10        python batch.py --local
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence

from pymuduo import EventLoop
from sudoku_client import Crew, SudokuClient, parser, read_puzzles
from sudoku_solver import answer, is_solution


class Batches(Crew):
    """Sends every batch over every connection."""

    def __init__(self, loop: EventLoop, options: argparse.Namespace, puzzles: Sequence[bytes]) -> None:
        super().__init__(loop, options)
        self._puzzles = puzzles
        size = -(-len(puzzles) // options.batches)
        self._batches = [puzzles[at : at + size] for at in range(0, len(puzzles), size)]
        self._next = dict.fromkeys(self.clients, 0)
        self._started = time.monotonic()
        self._results: Counter[str] = Counter()

    def begin(self) -> None:
        """Send everybody's first batch."""
        self._started = time.monotonic()
        for client in self.clients:
            self._send(client)

    def answered(self, client: SudokuClient, result: bytes, latency_s: float) -> None:
        """Count, and send the next batch when the last answer of this one has come."""
        self._results["solved" if result.isdigit() else result.decode()] += 1
        if client.in_flight == 0:
            self._send(client)

    def report(self) -> None:
        """Print what was answered, and how long that took."""
        count, seconds = self._results.total(), time.monotonic() - self._started
        print(", ".join(f"{number} {result}" for result, number in sorted(self._results.items())) or "no answer")
        print_times(count, seconds)

    def _send(self, client: SudokuClient) -> None:
        number = self._next[client]
        if number < len(self._batches):
            self._next[client] += 1
            now = time.monotonic()
            client.send((puzzle, now) for puzzle in self._batches[number])
        elif self._results.total() == len(self.clients) * len(self._puzzles):
            self.finish()


def print_times(count: int, seconds: float) -> None:
    """Print what one puzzle took."""
    print(f"{count} puzzles in {seconds:.3f} s, {1e6 * seconds / max(count, 1):.1f} us each", flush=True)


def solve_here(puzzles: Sequence[bytes]) -> None:
    """Solve them in this program, which has no loop, until Ctrl-C or SIGTERM; either interrupts Python itself."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    answers: list[bytes] = []
    started = time.monotonic()
    with contextlib.suppress(KeyboardInterrupt):
        for puzzle in puzzles:
            answers.append(answer(puzzle))  # one by one: those that there are when it is interrupted count
    seconds = time.monotonic() - started
    print(f"{sum(map(is_solution, puzzles, answers))} solved")
    print_times(len(answers), seconds)


def main() -> None:
    """Send until all is answered, Ctrl-C or SIGTERM; the exit code is 1 if the server has failed."""
    options_parser = parser("sends a file of puzzles to a sudoku server, and prints how long one takes")
    options_parser.add_argument("--batches", type=int, default=1, help="to cut the file into; default %(default)s")
    options_parser.add_argument("--local", action="store_true", help="solve in this program, without a server")
    options = options_parser.parse_args()
    if options.connections < 1 or options.batches < 1:
        options_parser.error("it takes at least one connection and one batch")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    puzzles = read_puzzles(options.file)
    if options.local:
        solve_here(puzzles)
        return
    with EventLoop() as loop:
        loop.quit_on_signals()
        try:
            crew = Batches(loop, options, puzzles)
        except ValueError as e:
            options_parser.error(str(e))
        code = crew.run()
    sys.exit(code)


if __name__ == "__main__":
    main()
