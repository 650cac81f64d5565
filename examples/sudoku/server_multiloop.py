"""Sudoku server with several loops: each connection's puzzles are solved by the loop that it lives on.

What it teaches: a server that holds no state between connections needs one number to use more threads, and not a line
of locking. The log tells what each loop does: a connection never changes its loop, so one busy client keeps one loop
busy, and those that share the loop with it wait while those on the others do not. The counts belong to the loops, as
in discard.py: each is written by one thread only.

What the GIL does: the loops take turns at solving, 5 ms each, so together they solve no more than one would. On a
free-threaded build they do.

    python server_multiloop.py --threads 2        and elsewhere        python pipeline.py --connections 4
"""

from __future__ import annotations

import argparse
import logging

import server_basic
from pymuduo import EventLoop, InetAddress, TcpServer
from sudoku_session import Request, Session, SudokuService


class Tallies:
    """How many requests each loop has begun."""

    def __init__(self) -> None:
        self._loops: list[EventLoop] = []
        self._last: list[int] = []

    def add_loop(self, loop: EventLoop) -> None:
        """Start a count for a loop; in its thread, before it serves (the loops start one after the other)."""
        loop.context = 0
        self._last.append(0)
        self._loops.append(loop)

    def report(self) -> None:
        """Log what each loop has done since the last report, if any has; the main loop's thread."""
        counts = [loop.context for loop in self._loops]
        if counts != self._last:
            new = (now - before for now, before in zip(counts, self._last, strict=True))
            logging.info("begun by each loop: %s", " ".join(map(str, new)))
            self._last = counts


def begin(session: Session, request: Request) -> None:
    """Count, then do as the basic server does."""
    session.connection.loop.context += 1
    server_basic.begin(session, request)


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="sudoku server with several loops that solve")
    parser.add_argument("--port", type=int, default=9981, help="0 lets the kernel choose; default %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="I/O loops; 0: the main loop; default %(default)s")
    parser.add_argument("--interval", type=float, default=3.0, help="seconds between reports; default %(default)s")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with EventLoop() as loop:
        loop.quit_on_signals()
        tallies = Tallies()
        try:
            server = TcpServer(loop, InetAddress.any(options.port), "sudoku")
            server.thread_num = options.threads
            loop.run_every(options.interval, tallies.report)
        except (OSError, ValueError) as e:
            parser.error(str(e))
        server.thread_init_callback = tallies.add_loop
        SudokuService(begin, max_in_work=1).serve(server)
        server.start()
        loop.run()


if __name__ == "__main__":
    main()
