"""Eight threads that do something at the same time, and what they do it to."""

from __future__ import annotations

import functools
import queue
from collections.abc import Callable
from typing import Any

from conftest import PATIENCE_S, call_in_loop, eventually, run_at_once
from pymuduo import EventLoop, TcpConnection

THREADS = 8
EVERYBODY = range(THREADS)
Serve = Callable[..., Any]


def in_threads(work: Callable[[int], object]) -> None:
    """Run ``work(i)`` in eight threads at once; raise what one of them raised."""
    run_at_once([functools.partial(work, i) for i in EVERYBODY], None)


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
