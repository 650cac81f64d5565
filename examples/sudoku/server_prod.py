"""Sudoku server for production: it does not fall over when there is more to do than it can.

What it teaches: overload is decided at the door. So many requests of all connections may be in work; who comes when
all places are taken hears ``ServerTooBusy`` at once, instead of an answer that comes when nobody waits any more. (A
semaphore that nobody waits for counts the places, for all loops at once, so the bound is exact.) One client alone can't
take all of them if ``--max-in-work`` is smaller: its further requests are not read until some are answered. So latency
has a bound, memory has one, and what is turned away is counted.

A second port, on this machine only, tells how it is doing: ``stats`` gives numbers, a name and a value on each line,
after them ``END``; ``reset`` begins anew. The one lock is in sudoku_stats.py.

    python server_prod.py --processes 2 --stats-port 9982    and    python loadtest.py --rate 5000
    echo stats | nc -N 127.0.0.1 9982
"""

from __future__ import annotations

import argparse
import logging
import threading
import time

from pymuduo import EventLoop, InetAddress, TcpConnection, TcpServer, Timestamp
from pymuduo.codec import LineCodec
from sudoku_pool import SolverPool
from sudoku_session import TOO_BUSY, Request, Session, SudokuService
from sudoku_solver import NO_SOLUTION, TOO_HARD
from sudoku_stats import Statistics

_MAX_COMMAND_BYTES = 64
_MAX_UNREAD_STATS_BYTES = 1 << 18


class Production:
    """Begins what may begin, turns away the rest, and counts. Any loop and any worker may call any of it."""

    def __init__(self, pool: SolverPool, max_queue: int) -> None:
        self.stats = Statistics()
        self._pool = pool
        self._places = threading.BoundedSemaphore(max_queue)

    def begin(self, session: Session, request: Request) -> bytes | None:
        """Have it solved if there is a place; in the connection's loop."""
        self.stats.add_request(time.monotonic())
        if not self._places.acquire(blocking=False):
            self.stats.add_dropped(time.monotonic())
            return TOO_BUSY
        self._pool.begin(session, request, self._done)
        return None

    def refused(self) -> None:
        """Count what was no request; in the connection's loop."""
        self.stats.add_bad(time.monotonic())

    def _done(self, session: Session, request: Request, result: bytes) -> None:
        """Send the answer and give the place to the next one; in a worker's thread."""
        self._places.release()
        now = time.monotonic()
        if result:
            self.stats.add_answer(now, now - request.received, result not in (NO_SOLUTION, TOO_HARD))
        else:
            self.stats.add_abandoned(now)
        session.answer(request, result)


def serve_statistics(loop: EventLoop, port: int, stats: Statistics) -> None:
    """Answer questions about the server, to this machine only."""

    def on_line(connection: TcpConnection, line: bytes, receive_time: Timestamp) -> None:
        command = line.strip()
        if command == b"stats":
            report = stats.report(time.monotonic())
            connection.send("".join(f"{name} {value}\r\n" for name, value in report.items()).encode() + b"END\r\n")
        elif command == b"reset":
            stats.reset()
            connection.send(b"OK\r\n")
        else:
            connection.send(b"there are stats and reset\r\n")

    server = TcpServer(loop, InetAddress.loopback(port), "statistics")
    server.message_callback = LineCodec(on_line, max_bytes=_MAX_COMMAND_BYTES).on_message
    server.max_output_bytes = _MAX_UNREAD_STATS_BYTES
    server.start()


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="sudoku server that survives overload and tells how it is doing")
    parser.add_argument("--port", type=int, default=9981, help="0 lets the kernel choose; default %(default)s")
    parser.add_argument("--stats-port", type=int, default=0, help="for statistics; 0, the default: the kernel chooses")
    parser.add_argument("--threads", type=int, default=0, help="I/O loops; 0, the default: the main loop does it all")
    parser.add_argument("--workers", type=int, default=2, help="threads that solve; default %(default)s")
    parser.add_argument("--processes", type=int, default=0, help="that solve, instead of threads")
    parser.add_argument("--max-queue", type=int, default=500, help="requests in work; default %(default)s")
    parser.add_argument("--max-in-work", type=int, default=100, help="of one connection; default %(default)s")
    options = parser.parse_args()
    if min(options.workers, options.max_queue, options.max_in_work) < 1 or options.processes < 0:
        parser.error("it takes at least one worker, and one request in work; --processes must be 0 at least")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with SolverPool(options.workers, options.processes) as pool, EventLoop() as loop:
        loop.quit_on_signals()
        production = Production(pool, options.max_queue)
        try:
            server = TcpServer(loop, InetAddress.any(options.port), "sudoku")
            server.thread_num = options.threads
            SudokuService(production.begin, options.max_in_work, production.refused).serve(server)
            server.start()
            serve_statistics(loop, options.stats_port, production.stats)
        except (OSError, ValueError) as e:
            parser.error(str(e))
        loop.run()


if __name__ == "__main__":
    main()
