"""Sudoku server, the basic one: it solves puzzles in the loop.

What it teaches: a callback that computes holds up everybody on its loop, so a long list of work is cut into turns. One
puzzle of each connection is solved in an iteration, and between two puzzles the loop looks after the others: a peer
that sends a thousand puzzles at once does not keep the next one waiting for all of them. Answers come in the order of
the requests. What is requested and answered: see sudoku_session.py.

What the GIL does: nothing, with one thread; and one thread that solves does as much as any number of them would.

With ``--threads`` the connections are dealt out to as many loops; server_multiloop.py is about that.

    python server_basic.py        and elsewhere        python pipeline.py        or by hand        nc -C 127.0.0.1 9981
"""

from __future__ import annotations

import argparse
import logging

from pymuduo import EventLoop, InetAddress, TcpServer
from sudoku_session import Request, Session, SudokuService
from sudoku_solver import answer


def begin(session: Session, request: Request) -> None:
    """Solve it in the loop's next iteration."""
    session.connection.loop.queue_in_loop(solve, session, request)


def solve(session: Session, request: Request) -> None:
    """Solve it now, if somebody still wants to know."""
    if session.is_wanted:
        session.answer(request, answer(request.puzzle))


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="sudoku server that solves in its loop")
    parser.add_argument("--port", type=int, default=9981, help="0 lets the kernel choose; default %(default)s")
    parser.add_argument("--threads", type=int, default=0, help="I/O loops; 0, the default: the main loop does it all")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with EventLoop() as loop:
        loop.quit_on_signals()
        try:
            server = TcpServer(loop, InetAddress.any(options.port), "sudoku")
            server.thread_num = options.threads
        except (OSError, ValueError) as e:
            parser.error(str(e))
        SudokuService(begin, max_in_work=1).serve(server)
        server.start()
        loop.run()


if __name__ == "__main__":
    main()
