"""BLPOP, BLMOVE and the like: clients that wait for a list to have something.

What is pushed goes to those who wait when the command that pushed it is over (a whole transaction, if it was one), to
who has waited longest first. The client that waits may live on another loop than the one that pushes: its answer is
delivered from here, and its own loop then goes on with what it has asked for meanwhile. An element is taken when its
answer is on its way: one that has left by then gets nothing. (Who leaves later may take an element along; the protocol
has no word for having got it.)
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from redis_client import Client
from redis_lists import End, end_of, take
from redis_replies import NOTHING, CommandError, WrongTypeError, bulk, bulks

if TYPE_CHECKING:
    from collections.abc import Callable

    from pymuduo import Timer
    from redis_store import Store

_MAX_TIMEOUT_S = 1e9
_MAX_DIGITS = 32


@dataclass(eq=False)
class Wait:
    """What a client waits for, and to which list it goes besides. The timer is None if it waits for ever."""

    keys: list[bytes]
    is_left: bool
    target: End | None = None
    timer: Timer | None = None

    def reply(self, key: bytes, element: bytes) -> bytes:
        """Return the answer, now that there is an element."""
        return bulks([key, element]) if self.target is None else bulk(element)


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
            while (line := self._lines.get(key)) and self._give(key, next(iter(line))):
                pass

    def _give(self, key: bytes, client: Client) -> bool:
        """Let the first in a line have what it waits for; False if there is no such list."""
        store, wait = self._store, client.wait
        value = store.values.get(key) if store.has(key) else None
        if type(value) is not deque or wait is None:
            return False
        self.leave(client)
        if wait.target is not None and store.type_name(wait.target.key) not in {"none", "list"}:
            client.deliver(WrongTypeError().reply)
        elif client.deliver(wait.reply(key, value[0 if wait.is_left else -1])):
            take(store, key, value, is_left=wait.is_left, target=wait.target)
        else:
            return True  # it has left a moment ago: the next in line gets the element
        client.connection.loop.queue_in_loop(self._go_on, client)
        return True


def blpop(client: Client, request: list[bytes]) -> bytes:
    """Take the first element of the first list that has one, or wait for one."""
    return _pop(client, Wait(request[1:-1], True), request[-1])


def brpop(client: Client, request: list[bytes]) -> bytes:
    """Take the last element of the first list that has one, or wait for one."""
    return _pop(client, Wait(request[1:-1], False), request[-1])


def blmove(client: Client, request: list[bytes]) -> bytes:
    """Take an element from one end of a list to one end of another, or wait for one."""
    _, key, target, one, other, timeout = request
    source = end_of(key, one)
    return _pop(client, Wait([key], source.is_left, end_of(target, other)), timeout)


def brpoplpush(client: Client, request: list[bytes]) -> bytes:
    """Take the last element of a list to the front of another, or wait for one."""
    _, key, target, timeout = request
    return _pop(client, Wait([key], False, End(target, True)), timeout)


def _pop(client: Client, wait: Wait, timeout: bytes) -> bytes:
    timeout_s = _timeout_of(timeout)
    for key in wait.keys:
        value = client.store.find(key, deque)
        if value is not None:
            return wait.reply(key, take(client.store, key, value, is_left=wait.is_left, target=wait.target))
    if client.is_executing:
        return client.dialect.null_array if wait.target is None else client.null
    client.service.waiting_room.enter(client, wait, timeout_s)
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
