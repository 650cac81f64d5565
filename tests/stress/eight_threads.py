"""Eight threads that do something at the same time, and what they do it to."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

from conftest import PATIENCE_S, call_in_loop, eventually
from pymuduo import EventLoop, TcpConnection

THREADS = 8
EVERYBODY = range(THREADS)
Serve = Callable[..., Any]


def in_threads(work: Callable[[int], object]) -> None:
    """Run ``work(i)`` in eight threads at once; raise what one of them raised."""
    start = threading.Barrier(THREADS)
    errors: list[BaseException] = []

    def run(i: int) -> None:
        start.wait(PATIENCE_S)
        try:
            work(i)
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=run, args=(i,)) for i in EVERYBODY]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def settle(loop: EventLoop) -> None:
    """Let the loop do all that was queued until now, and what that has queued."""
    call_in_loop(loop, lambda: None)
    call_in_loop(loop, lambda: None)


class Peer:
    """A client's socket and the server's connection to it, with what the connection's callbacks were told."""

    def __init__(self, serve: Serve, **settings: Any) -> None:
        self.events: list[str] = []
        newcomers: queue.Queue[TcpConnection] = queue.Queue()

        def on_connection(connection: TcpConnection) -> None:
            self.events.append("up" if connection.connected else "down")
            if connection.connected:
                newcomers.put(connection)

        self.server = serve(
            1, connection_callback=on_connection, close_callback=lambda c: self.events.append("closed"), **settings
        )
        self.socket = self.server.connect()
        self.connection = newcomers.get(timeout=PATIENCE_S)

    def has_ended_once(self) -> bool:
        """Whether the connection is gone, and everybody has been told of it once."""
        eventually(lambda: self.server.server.connection_count == 0)
        settle(self.connection.loop)
        return self.events == ["up", "down", "closed"]
