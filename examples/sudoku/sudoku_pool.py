"""Threads or processes that solve: ``concurrent.futures`` beside the loops.

What it teaches: bringing work out of a loop and its result back. The loop submits, and never waits; whoever has the
result calls ``send`` on the connection, which any thread may. The connection may be gone by then, and nobody minds.

What the GIL does: threads solve one at a time, and the loop has to wait for its turn as well, up to 5 ms whenever it
wakes (``sys.setswitchinterval``); so threads keep a long puzzle from holding up the short ones of others, but add no
throughput. Processes can, on processors that are free; but a puzzle's way there and back costs about half as much as an
ordinary puzzle, so they pay for hard ones. On a free-threaded build threads are the better of the two.

The processes come from a fork server: a process with threads had better not fork. They never hear of Ctrl-C, which a
terminal sends to all of a program's processes: it is the loop that ends them; and should the server be killed, they
end by themselves. If one of them is killed, ``concurrent.futures`` gives up all: from then on a request ends its
connection, with a line in the log.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from types import TracebackType
from typing import TypeAlias

from sudoku_session import Request, Session
from sudoku_solver import answer

Done: TypeAlias = Callable[[Session, Request, bytes], object]


class SolverPool:
    """Solves what the loops bring. Make it before the loops and close it after them: that is what ``with`` does.

    Args:
        threads: how many threads solve.
        processes: how many processes do, instead of threads, unless it is 0.
    """

    def __init__(self, threads: int, processes: int = 0) -> None:
        self._in_processes = processes > 0
        self._executor = _processes(processes) if processes else ThreadPoolExecutor(threads, "solver")

    def __enter__(self) -> SolverPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._executor.shutdown(cancel_futures=True)

    def begin(self, session: Session, request: Request, done: Done = Session.answer) -> None:
        """Have it solved, then call ``done(session, request, answer)`` in some thread; from any loop.

        Whatever happens *done* is called, unless the pool is closed before. If nobody wants the answer any more, or
        the workers have died, it gets ``b""``, and the connection is or will be gone.
        """
        try:
            if self._in_processes:
                future = self._executor.submit(answer, request.puzzle)
            else:
                future = self._executor.submit(_answer_if_wanted, session, request)
        except BrokenExecutor as e:
            future = Future()
            future.set_exception(e)
        future.add_done_callback(lambda future: _finish(future, session, request, done))


def _processes(count: int) -> Executor:
    """Return a pool of processes, all running."""
    executor = ProcessPoolExecutor(count, multiprocessing.get_context("forkserver"), _end_with_parent)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # what is started now inherits it
    try:
        for started in [executor.submit(answer, bytes(81).replace(b"\0", b"0")) for _ in range(count)]:
            started.result()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return executor


def _end_with_parent() -> None:
    """Let this process end when the server does; otherwise it would wait for work for ever."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _answer_if_wanted(session: Session, request: Request) -> bytes:
    return answer(request.puzzle) if session.is_wanted else b""


def _finish(future: Future[bytes], session: Session, request: Request, done: Done) -> None:
    if future.cancelled():
        return
    error = future.exception()
    if error is None:
        done(session, request, future.result())
    else:
        logging.error("%s: not solved: %r", session.connection.name, error)
        session.connection.force_close()
        done(session, request, b"")
