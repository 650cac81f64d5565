"""Makes many hubs one: what is published at one of them is told to the others by a server in the middle, the engine.

What it teaches: a program that is a server and, beside that, a client that must never end. The engine (NATS or Redis)
is a part that others have written and operate; when it restarts, the hubs go on by themselves and find it again.

*Where the bridge lives*: in the hub, as an option, and not in a process of its own. The hub alone can tell a message
that a client has published, which goes out, from one that has come in, which must not. A bridge outside would need a
way to listen to all topics and to say "this one is not from here", in a protocol that has no words for it; and two of
them by mistake would double every message.

*Once, and no echo*: what comes from the engine is given to subscribers and never to the engine, so nothing goes in
circles. The engine tells a message to all hubs, to the one it is from as well; so each message begins with its origin,
a word that the hub draws when it starts, and a hub drops its own. (NATS can leave out the sender's connection, but the
connection that follows a broken one is not the sender.) Behind the origin stands a number that grows, and a hub drops
what is not newer than the last that it has heard of this origin: an engine that hung may tell what an old connection
brought when it has told news from the next one already.

*At most once*: a hub's own subscribers hear a message whatever becomes of the engine. The other hubs miss what is
published while the engine is away or reads too slowly, and perhaps what was under way when it left; nothing is sent
again. What one hub publishes arrives everywhere in its order. What two hubs publish at once may arrive in one order
here and in another one there, so their last messages on a topic may differ until the next.

*Names*: topic ``a b`` of hubs named ``hub`` is ``hub.a%20b`` at the engine: whatever has a meaning in a NATS subject
or a Redis pattern, and the dot, is escaped. What others put there is dropped unless it looks like ours. Every hub is
told everything, because it keeps the last message of each topic for subscribers who are still to come.
"""

from __future__ import annotations

import logging
import re
import secrets
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import quote_from_bytes, unquote_to_bytes, urlsplit

from hub_codec import HubCodec, HubMessage
from hub_engine import Engine
from hub_nats import NatsEngine
from hub_redis import RedisEngine
from pymuduo import EventLoop, TcpConnection

_ENGINES: dict[str, type[Engine]] = {"nats": NatsEngine, "redis": RedisEngine}
_ENVELOPE = re.compile(rb"([0-9a-f]{16}) ([0-9]{1,18}) (.*)", re.DOTALL)
_MAX_ORIGINS = 10_000  # each start of a hub is one; those that were silent for longest are forgotten first
_REPORT_S = 10.0

Deliver = Callable[[TcpConnection, list[tuple[bytes, bytes]]], object]
"""``(connection, messages)``: topics, and the messages as the hub sends them."""


class EngineAddress(NamedTuple):
    """What ``nats://10.0.0.1:4222/hub`` says."""

    kind: type[Engine]
    host: str
    port: int
    prefix: str

    @classmethod
    def parse(cls, url: str) -> EngineAddress:
        """Return the parts; ValueError if they make no sense (an argparse type)."""
        parts = urlsplit(url)
        kind = _ENGINES.get(parts.scheme)
        prefix = parts.path.strip("/") or "hub"
        if kind is None or not parts.hostname or not re.fullmatch(r"[\w-]+", prefix, re.ASCII):
            raise ValueError(f"a bridge is nats://HOST:PORT/NAME or redis://HOST:PORT/NAME, got {url}")
        return cls(kind, parts.hostname, kind.port if parts.port is None else parts.port, prefix)


class Bridge:
    """Tells the other hubs what is published here, and this one what is published there. Confined to its loop."""

    def __init__(self, loop: EventLoop, address: EngineAddress, deliver: Deliver) -> None:
        self._prefix = f"{address.prefix}."
        self._origin = secrets.token_hex(8).encode()
        self._number = 0
        self._last_of: OrderedDict[bytes, int] = OrderedDict()
        self._codec = HubCodec()
        self._deliver = deliver
        self._untold = self._strange = 0
        self._engine = address.kind(loop, address.host, address.port, f"{self._prefix}*".encode(), self._on_messages)
        self._engine.start()
        loop.run_every(_REPORT_S, self._report)

    def publish(self, topic: bytes, content: bytes) -> None:
        """Tell the other hubs, if the engine is there."""
        self._number += 1
        if not self._engine.publish(self._name_of(topic), b"%b %d %b" % (self._origin, self._number, content)):
            self._untold += 1

    def _on_messages(self, connection: TcpConnection, messages: list[tuple[bytes, bytes]]) -> None:
        """Take names and payloads from the engine."""
        heard = []
        for name, payload in messages:
            envelope = _ENVELOPE.fullmatch(payload)
            topic = unquote_to_bytes(name[len(self._prefix) :])
            if envelope is None or self._name_of(topic) != name:
                self._strange += 1
                continue
            origin, number, content = envelope.groups()
            if origin == self._origin or not self._is_new(origin, int(number)):
                continue
            try:
                heard.append((topic, self._codec.encode(HubMessage(b"pub", topic, content))))
            except ValueError:  # of two lines, say, of which the second would be a command
                self._strange += 1
        if heard:
            self._deliver(connection, heard)

    def _is_new(self, origin: bytes, number: int) -> bool:
        last = self._last_of.pop(origin, -1)
        self._last_of[origin] = max(last, number)
        if len(self._last_of) > _MAX_ORIGINS:
            self._last_of.popitem(last=False)
        return number > last

    def _name_of(self, topic: bytes) -> bytes:
        return (self._prefix + quote_from_bytes(topic, safe="").replace(".", "%2E")).encode()

    def _report(self) -> None:
        if self._untold or self._strange:
            logging.warning("bridge: %d messages untold, %d strange ones dropped", self._untold, self._strange)
            self._untold = self._strange = 0
