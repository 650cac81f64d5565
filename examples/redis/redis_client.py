"""One client: what it has chosen, what it is in the middle of, and what it still has to be answered.

Everything here is touched with the server's lock held; ``backlog`` alone belongs to the loop of the connection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from redis_replies import RESP2, CommandError, Dialect

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pymuduo import TcpConnection
    from redis_blocking import Wait
    from redis_service import Service
    from redis_store import Store

    Handler = Callable[["Client", list[bytes]], bytes]
    Entry = tuple[Handler, int, bool]
    """A handler, how many words its command has at least, its name among them, and whether it may have more."""
    Table = Mapping[bytes | tuple[bytes, bytes], Entry]
    """Entries by name; a subcommand's by two of them."""

_MAX_QUEUED_BYTES = 64 << 20
_MAX_QUEUED = 100_000
_MAX_NAMES = 100_000


class Client:
    """A connection's context: it finds everything of the server that its commands need.

    Attributes:
        commands: what it may say at this moment, by name: one of the service's tables.
        dialect: the version of the protocol; null: its "nothing", which the most frequent command needs.
        replies: those of the requests that are being served now; None while it is not this client's turn.
        outbox: what clients on other loops have given it, and its own loop has yet to send.
        queue: what it has said since MULTI, None outside; has_failed: something of it was wrong.
        watching: the keys that must not change before EXEC; is_dirty: one of them has.
        channels, patterns: what it listens to.
        wait: the list that it waits for, or None.
        backlog: requests that have to wait, because they came together with one that does.
        is_leaving: it has said QUIT.
    """

    __slots__ = (
        "_queued_bytes",
        "backlog",
        "channels",
        "commands",
        "connection",
        "dialect",
        "facts",
        "has_failed",
        "is_dirty",
        "is_executing",
        "is_leaving",
        "name",
        "null",
        "number",
        "outbox",
        "patterns",
        "queue",
        "replies",
        "service",
        "store",
        "wait",
        "watching",
    )

    def __init__(self, connection: TcpConnection, number: int, service: Service) -> None:
        self.connection = connection
        self.number = number
        self.service = service
        self.store: Store = service.store
        self.commands: Table = service.tables.normal
        self.name = b""
        self.facts: dict[bytes, bytes] = {}
        self.replies: list[bytes] | None = None
        self.outbox: list[bytes] = []
        self.queue: list[list[bytes]] | None = None
        self._queued_bytes = 0
        self.has_failed = self.is_dirty = self.is_executing = self.is_leaving = False
        self.watching: dict[bytes, None] = {}
        self.channels: dict[bytes, None] = {}
        self.patterns: dict[bytes, None] = {}
        self.wait: Wait | None = None
        self.backlog: list[list[bytes]] = []
        self.speak(RESP2)

    @property
    def subscription_count(self) -> int:
        """How many channels and patterns it listens to."""
        return len(self.channels) + len(self.patterns)

    def speak(self, dialect: Dialect) -> None:
        """Go on in this version of the protocol."""
        self.dialect = dialect
        self.null = dialect.null
        self.choose_commands()

    def choose_commands(self) -> None:
        """Choose the table for the state that it is in now."""
        tables = self.service.tables
        if self.queue is not None:
            self.commands = tables.queueing
        elif self.dialect is RESP2 and (self.channels or self.patterns):
            self.commands = tables.subscribed
        else:
            self.commands = tables.normal

    def deliver(self, data: bytes) -> bool:
        """Send what it has not asked for; what it has asked for before comes first. False if it has left.

        It leaves in the order of the lock, like all that a client is sent. So what comes from another loop's thread is
        not handed to the connection there: replies to requests that are served afterwards would overtake it.
        """
        if self.replies is not None:
            self.replies.append(data)
        elif self.outbox:
            self.outbox.append(data)
        elif not self.connection.loop.is_in_loop_thread():
            self.outbox.append(data)
            # It is up while the server knows it, so its loop is open: its end has to come here first.
            self.connection.loop.queue_in_loop(self.service.send_outbox, self)
        else:
            return self.connection.send(data)
        return True

    def take_outbox(self) -> list[bytes]:
        """Empty the outbox into a new list."""
        outbox, self.outbox = self.outbox, []
        return outbox

    # --- transactions ---

    def begin(self) -> None:
        """From now on requests are queued."""
        self.queue, self._queued_bytes, self.has_failed = [], 0, False
        self.choose_commands()

    def enqueue(self, request: list[bytes]) -> None:
        """Keep a request for EXEC.

        Raises:
            CommandError: it would be too much; then EXEC will fail.
        """
        assert self.queue is not None
        self._queued_bytes += sum(map(len, request))
        if self._queued_bytes > _MAX_QUEUED_BYTES or len(self.queue) >= _MAX_QUEUED:
            self.has_failed = True
            raise CommandError("ERR the transaction is too long")
        self.queue.append(request)

    def end(self) -> list[list[bytes]]:
        """Serve requests again from now on, and return those that were queued."""
        queue, self.queue = self.queue or [], None
        self.choose_commands()
        return queue


def note(names: dict[bytes, None], name: bytes) -> bool:
    """Add a name to those that a client subscribes to or watches; False if it is there already.

    Raises:
        CommandError: there are too many for one client.
    """
    if name in names:
        return False
    if len(names) >= _MAX_NAMES:
        raise CommandError(f"ERR a client can't subscribe to or watch more than {_MAX_NAMES} names")
    names[name] = None
    return True
