"""Sudoku server with several loops and a pool: the loops do the network, threads or processes solve for all of them.

What it teaches: the two ways to use more threads, together. Loops are for many connections and much traffic, a pool is
for long computations; which of the two is short of processors, a measurement says. A connection stays with its loop,
a request goes to whichever worker is free. Nothing is shared but the pool's queue: what belongs to a connection is
counted in the thread of its loop, where every answer brings it.

What the GIL does: more loops are more threads that want it, and the workers take it for 5 ms at a time; so here as well
only ``--processes`` can solve more, if the puzzles are worth the way. See sudoku_pool.py.

    python server_hybrid.py --threads 2 --workers 2        and elsewhere        python pipeline.py --connections 10
"""

from __future__ import annotations

import argparse
import logging

from pymuduo import EventLoop, InetAddress, TcpServer
from sudoku_pool import SolverPool
from sudoku_session import SudokuService

_MAX_IN_WORK = 64


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="sudoku server with loops, and threads or processes that solve")
    parser.add_argument("--port", type=int, default=9981, help="0 lets the kernel choose; default %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="I/O loops beside the main loop; default %(default)s")
    parser.add_argument("--workers", type=int, default=2, help="threads that solve; default %(default)s")
    parser.add_argument("--processes", type=int, default=0, help="that solve, instead of threads")
    options = parser.parse_args()
    if options.workers < 1 or options.processes < 0:
        parser.error("--workers must be 1 at least, and --processes 0")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with SolverPool(options.workers, options.processes) as pool, EventLoop() as loop:
        loop.quit_on_signals()
        try:
            server = TcpServer(loop, InetAddress.any(options.port), "sudoku")
            server.thread_num = options.threads
        except (OSError, ValueError) as e:
            parser.error(str(e))
        SudokuService(pool.begin, _MAX_IN_WORK).serve(server)
        server.start()
        loop.run()


if __name__ == "__main__":
    main()
