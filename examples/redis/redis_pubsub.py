"""Publish and subscribe.

A message is encoded once for each version of the protocol and delivered to all who listen, on whatever loop they live
(see ``Client.deliver``). Who listens and does not read is cut off: to leave out messages would let it stay and
misunderstand.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from redis_client import Client, note
from redis_glob import matcher
from redis_replies import CommandError, array, bulk, bulks, integer, text_of

if TYPE_CHECKING:
    from redis_replies import Dialect

MAX_UNREAD_BYTES = 32 << 20
"""What a subscriber may leave unread: Redis's own limit."""

Listeners = dict[bytes, dict[Client, None]]


class Hub:
    """Who listens to which channels and patterns; with the server's lock held."""

    def __init__(self) -> None:
        self.channels: Listeners = {}
        self.patterns: Listeners = {}
        self._matchers: dict[bytes, re.Pattern[bytes]] = {}

    def publish(self, channel: bytes, message: bytes) -> int:
        """Hand a message to all who listen, and return how many they are."""
        count = self._hand_out(self.channels.get(channel, {}), b"message", bulk(channel), bulk(message))
        for pattern, fits in self._matchers.items():
            if fits.fullmatch(channel):
                listeners = self.patterns[pattern]
                count += self._hand_out(listeners, b"pmessage", bulk(pattern), bulk(channel), bulk(message))
        return count

    @staticmethod
    def _hand_out(listeners: dict[Client, None], kind: bytes, *parts: bytes) -> int:
        encoded: dict[Dialect, bytes] = {}
        for client in listeners:
            dialect = client.dialect
            data = encoded.get(dialect)
            if data is None:
                data = encoded[dialect] = dialect.push(kind, *parts)
            client.deliver(data)
        return len(listeners)

    def join(self, client: Client, name: bytes, *, is_pattern: bool) -> None:
        """Let a client listen to a channel or pattern; harmless if it does already.

        Raises:
            CommandError: it listens to too many, or this is no pattern.
        """
        if is_pattern:
            fits = matcher(name)
            if note(client.patterns, name):
                self._matchers[name] = fits
                self.patterns.setdefault(name, {})[client] = None
        elif note(client.channels, name):
            self.channels.setdefault(name, {})[client] = None

    def part(self, client: Client, name: bytes, *, is_pattern: bool) -> None:
        """Let a client listen no longer; harmless if it does not."""
        own, table = (client.patterns, self.patterns) if is_pattern else (client.channels, self.channels)
        if name not in own:
            return
        del own[name], table[name][client]
        if not table[name]:
            del table[name]
            if is_pattern:
                del self._matchers[name]

    def leave(self, client: Client) -> None:
        """Forget a client."""
        for name in list(client.channels):
            self.part(client, name, is_pattern=False)
        for name in list(client.patterns):
            self.part(client, name, is_pattern=True)
        _note_state(client)


def _note_state(client: Client) -> None:
    """Let a client say what it may say now, and let it be cut off or not."""
    client.choose_commands()
    client.connection.max_output_bytes = MAX_UNREAD_BYTES if client.subscription_count else 0


def subscribe(client: Client, request: list[bytes]) -> bytes:
    """Listen to channels."""
    return _join(client, b"subscribe", request[1:], is_pattern=False)


def psubscribe(client: Client, request: list[bytes]) -> bytes:
    """Listen to all channels that match patterns."""
    return _join(client, b"psubscribe", request[1:], is_pattern=True)


def _join(client: Client, kind: bytes, names: list[bytes], *, is_pattern: bool) -> bytes:
    replies = []
    for name in names:
        try:
            client.service.hub.join(client, name, is_pattern=is_pattern)
        except CommandError as e:
            replies.append(e.reply)
            break
        replies.append(client.dialect.push(kind, bulk(name), integer(client.subscription_count)))
    _note_state(client)
    return b"".join(replies)


def unsubscribe(client: Client, request: list[bytes]) -> bytes:
    """Listen to channels no longer; to none, if none is named."""
    return _part(client, b"unsubscribe", request[1:] or list(client.channels), is_pattern=False)


def punsubscribe(client: Client, request: list[bytes]) -> bytes:
    """Give patterns up; all, if none is named."""
    return _part(client, b"punsubscribe", request[1:] or list(client.patterns), is_pattern=True)


def _part(client: Client, kind: bytes, names: list[bytes], *, is_pattern: bool) -> bytes:
    replies = []
    for name in names:
        client.service.hub.part(client, name, is_pattern=is_pattern)
        replies.append(client.dialect.push(kind, bulk(name), integer(client.subscription_count)))
    if not replies:
        replies.append(client.dialect.push(kind, client.null, integer(client.subscription_count)))
    _note_state(client)
    return b"".join(replies)


def publish(client: Client, request: list[bytes]) -> bytes:
    """Send a message to a channel."""
    return integer(client.service.hub.publish(request[1], request[2]))


def pubsub_channels(client: Client, request: list[bytes]) -> bytes:
    """Tell to which channels somebody listens."""
    if len(request) > 3:
        raise CommandError(
            f"ERR unknown subcommand or wrong number of arguments for '{text_of(request[1])}'. Try PUBSUB HELP."
        )
    fits = matcher(request[2] if len(request) == 3 else b"*").fullmatch
    return bulks([channel for channel in client.service.hub.channels if fits(channel)])


def pubsub_numsub(client: Client, request: list[bytes]) -> bytes:
    """Tell how many listen to each of the channels."""
    counts = [(channel, len(client.service.hub.channels.get(channel, ()))) for channel in request[2:]]
    return array([part for channel, count in counts for part in (bulk(channel), integer(count))])


def pubsub_numpat(client: Client, request: list[bytes]) -> bytes:
    """Tell how many patterns there are."""
    return integer(len(client.service.hub.patterns))
