"""Sudoku server with one loop and a pool: the loop does the network, threads or processes solve.

What it teaches: where to compute, and where not. The loop reads and hands out; ``connection.send`` takes the answers
from the thread that has them. So answers overtake one another, and a client needs ids to tell which is which.

What the GIL does: threads solve no more than the loop itself would, since one at a time runs Python; ``--processes``
can, if the puzzles are worth the way. See sudoku_pool.py.

    python server_threadpool.py --processes 2        and elsewhere        python pipeline.py --pipeline 20
"""

from __future__ import annotations

import argparse
import contextlib
import logging

from pymuduo import EventLoop, InetAddress, TcpServer
from server_basic import begin
from sudoku_pool import SolverPool
from sudoku_session import SudokuService

_MAX_IN_WORK = 64


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="sudoku server with one loop, and threads or processes that solve")
    parser.add_argument("--port", type=int, default=9981, help="0 lets the kernel choose; default %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="that solve; 0: the loop does it; default %(default)s")
    parser.add_argument("--processes", type=int, default=0, help="that solve, instead of threads")
    options = parser.parse_args()
    if min(options.threads, options.processes) < 0:
        parser.error("--threads and --processes must be 0 at least")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with contextlib.ExitStack() as stack:
        service = SudokuService(begin, max_in_work=1)
        if options.threads or options.processes:
            pool = stack.enter_context(SolverPool(options.threads, options.processes))
            service = SudokuService(pool.begin, _MAX_IN_WORK)
        loop = stack.enter_context(EventLoop())
        loop.quit_on_signals()
        try:
            server = TcpServer(loop, InetAddress.any(options.port), "sudoku")
        except (OSError, ValueError) as e:
            parser.error(str(e))
        service.serve(server)
        server.start()
        loop.run()


if __name__ == "__main__":
    main()
