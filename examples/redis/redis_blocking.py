"""BLPOP and BRPOP: clients that wait for a list to have something.

What is pushed goes to those who wait when the command that pushed it is over (a whole transaction, if it was one), to
who has waited longest first. The client that waits may live on another loop than the one that pushes: its answer is
sent from here, and its own loop then goes on with what it has asked for meanwhile.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from redis_client import Client
from redis_replies import NOTHING, CommandError, bulks

if TYPE_CHECKING:
    from collections.abc import Callable

    from pymuduo import Timer
    from redis_store import Store

_MAX_TIMEOUT_S = 1e9
_MAX_DIGITS = 32


@dataclass(eq=False)
class Wait:
    """What a client waits for. The timer is None if it waits for ever."""

    keys: list[bytes]
    is_left: bool
    timer: Timer | None = None


class WaitingRoom:
    """Who waits for which lists; with the server's lock held.

    Args:
        give_up: ``(client, wait)`` in the client's loop, without the lock, when its time is up.
        go_on: ``(client)`` in the client's loop, without the lock, when it has got something.
    """

    def __init__(
        self, store: Store, give_up: Callable[[Client, Wait], object], go_on: Callable[[Client], object]
    ) -> None:
        self._store = store
        self._give_up = give_up
        self._go_on = go_on
        self._lines: dict[bytes, dict[Client, None]] = {}
        self.ready: list[bytes] = []
        """Keys of lists that were pushed to and for which somebody waits."""
        self.client_count = 0
        store.awaited = self._lines
        store.pushed_callback = self.ready.append

    def enter(self, client: Client, wait: Wait, timeout_s: float) -> None:
        """Let a client wait, 0 seconds: for ever."""
        for key in wait.keys:
            self._lines.setdefault(key, {})[client] = None
        client.wait = wait
        self.client_count += 1
        if timeout_s > 0:
            wait.timer = client.connection.loop.run_after(timeout_s, self._give_up, client, wait)

    def leave(self, client: Client) -> None:
        """Let a client wait no longer; harmless if it does not."""
        wait, client.wait = client.wait, None
        if wait is None:
            return
        self.client_count -= 1
        if wait.timer is not None:
            wait.timer.cancel()
        for key in wait.keys:
            line = self._lines.get(key)
            if line is not None:
                line.pop(client, None)
                if not line:
                    del self._lines[key]

    def serve(self) -> None:
        """Give those who wait what there is."""
        while self.ready:
            key = self.ready.pop(0)
            while (line := self._lines.get(key)) and (reply := _take_for_first(self._store, key, line)):
                client = next(iter(line))
                self.leave(client)
                client.deliver(reply)
                # While it waits it is up, so its loop is open: its end has to come here first.
                client.connection.loop.queue_in_loop(self._go_on, client)


def _take_for_first(store: Store, key: bytes, line: dict[Client, None]) -> bytes | None:
    """Take from a list for the first in line, and return the reply; None if there is no such list."""
    value = store.values.get(key) if store.has(key) else None
    client = next(iter(line))
    if type(value) is not deque or client.wait is None:
        return None
    return _taken(store, key, value, is_left=client.wait.is_left)


def _taken(store: Store, key: bytes, value: deque[bytes], *, is_left: bool) -> bytes:
    element = value.popleft() if is_left else value.pop()
    if not value:
        store.delete(key)
    else:
        store.touch(key)
    return bulks([key, element])


def blpop(client: Client, request: list[bytes]) -> bytes:
    """Take the first element of the first list that has one, or wait for one."""
    return _pop(client, request, is_left=True)


def brpop(client: Client, request: list[bytes]) -> bytes:
    """Take the last element of the first list that has one, or wait for one."""
    return _pop(client, request, is_left=False)


def _pop(client: Client, request: list[bytes], *, is_left: bool) -> bytes:
    timeout_s = _timeout_of(request[-1])
    for key in request[1:-1]:
        value = client.store.find(key, deque)
        if value is not None:
            return _taken(client.store, key, value, is_left=is_left)
    if client.is_executing:
        return client.dialect.null_array
    client.service.waiting_room.enter(client, Wait(request[1:-1], is_left), timeout_s)
    return NOTHING


def _timeout_of(text: bytes) -> float:
    try:
        timeout_s = float(text) if len(text) <= _MAX_DIGITS else math.nan
    except ValueError:
        timeout_s = math.nan
    if not timeout_s <= _MAX_TIMEOUT_S:
        raise CommandError("ERR timeout is not a float or out of range")
    if timeout_s < 0:
        raise CommandError("ERR timeout is negative")
    return timeout_s
