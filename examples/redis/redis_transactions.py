"""MULTI and EXEC: requests that are kept, and then served with nothing between them. WATCH: only if nothing changed.

A transaction needs no more than the lock that every batch of requests holds anyhow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from redis_client import Client, note
from redis_replies import MAX_REPLY_BYTES, OK, QUEUED, TOO_LONG, CommandError, array

if TYPE_CHECKING:
    from redis_store import Store


class Watches:
    """Who watches which keys; with the server's lock held."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._watchers: dict[bytes, dict[Client, None]] = {}
        store.watched = self._watchers
        store.changed_callback = self._note_change

    def add(self, client: Client, key: bytes) -> None:
        """Let a client watch a key."""
        self._store.has(key)  # one that has expired is gone already, and that is no change
        if note(client.watching, key):
            self._watchers.setdefault(key, {})[client] = None

    def leave(self, client: Client) -> None:
        """Let a client watch nothing."""
        for key in client.watching:
            watchers = self._watchers[key]
            del watchers[client]
            if not watchers:
                del self._watchers[key]
        client.watching.clear()
        client.is_dirty = False

    def _note_change(self, key: bytes) -> None:
        for client in self._watchers[key]:
            client.is_dirty = True


def watch(client: Client, request: list[bytes]) -> bytes:
    """Let the next EXEC do nothing if one of the keys changes before."""
    if client.queue is not None:
        raise CommandError("ERR WATCH inside MULTI is not allowed")
    for key in request[1:]:
        client.service.watches.add(client, key)
    return OK


def unwatch(client: Client, request: list[bytes]) -> bytes:
    """Watch no key any more."""
    client.service.watches.leave(client)
    return OK


def multi(client: Client, request: list[bytes]) -> bytes:
    """Begin a transaction."""
    if client.queue is not None:
        raise CommandError("ERR MULTI calls can not be nested")
    client.begin()
    return OK


def enqueue(client: Client, request: list[bytes]) -> bytes:
    """Keep a request for EXEC: what every other command means inside a transaction."""
    client.enqueue(request)
    return QUEUED


def discard(client: Client, request: list[bytes]) -> bytes:
    """Forget the transaction."""
    if client.queue is None:
        raise CommandError("ERR DISCARD without MULTI")
    client.end()
    client.service.watches.leave(client)
    return OK


def exec_(client: Client, request: list[bytes]) -> bytes:
    """Do the transaction."""
    if client.queue is None:
        raise CommandError("ERR EXEC without MULTI")
    for key in list(client.watching):
        client.store.has(key)  # to expire is to change
    is_dirty, has_failed = client.is_dirty, client.has_failed
    queue = client.end()
    client.service.watches.leave(client)
    if has_failed:
        raise CommandError("EXECABORT Transaction discarded because of previous errors.")
    if is_dirty:
        return client.dialect.null_array
    client.is_executing = True
    replies = []
    size = 0
    for queued in queue:
        handler = client.service.tables.find(queued[0])[0]
        try:
            reply = handler(client, queued)
        except CommandError as e:
            reply = e.reply
        size += len(reply)
        replies.append(reply if size <= MAX_REPLY_BYTES else CommandError(TOO_LONG).reply)
    client.is_executing = False
    return array(replies)
