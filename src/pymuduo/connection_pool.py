"""Keeps connections to a server, or several alike, and lends them out: for clients that ask and are answered.

A *member* is a place for one connection. It goes round this table:

==========  ===========================================  ==========================================================
state       what leads on                                to
==========  ===========================================  ==========================================================
CONNECTING  connected                                    UP
CONNECTING  could not connect                            RESTING: out of service
UP          a failure: a lease failed; or the            CONNECTING at once; RESTING if it was the third time in a
            connection went down under one, or unused    row, or if the member was on trial
            when it had only just come up
UP          the connection went down, unused             CONNECTING at once
RESTING     the time is up                               CONNECTING, on trial
==========  ===========================================  ==========================================================

On trial a member serves one lease at a time, until one of them is done well. Each rest is twice as long as the one
before, from half a second to thirty, and blurred, so that not all come back in the same moment. So a server that is
down costs a connect now and then, and one that takes connections but does not answer gets a question now and then,
while the others serve.

Everything belongs to the pool's loop. The doors from other threads, ``start``, ``request``, ``close`` and the ends of
a lease, hop into it.
"""

from __future__ import annotations

import collections
import enum
import logging
import random
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from pymuduo import connector
from pymuduo.tcp_client import TcpClient

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import TypeAlias

    from pymuduo.callbacks import ConnectionCallback, MessageCallback, Target
    from pymuduo.event_loop import EventLoop
    from pymuduo.tcp_connection import TcpConnection
    from pymuduo.timer_queue import Timer

    RequestCallback: TypeAlias = Callable[["Lease | None"], object]
    LostCallback: TypeAlias = Callable[["Lease"], object]

_log = logging.getLogger("pymuduo.connection_pool")

_MAX_FAILURES = 3  # in a row, and the member rests
_FIRST_REST_S = 0.5
_LONGEST_REST_S = 30.0
_STABLE_S = 5.0  # a connection that goes down sooner, unused, was of no use
_WAIT_S = 10.0
_MAX_WAITING = 1000


class PoolStats(NamedTuple):
    """What a pool has and does at this moment (``ConnectionPool.stats``).

    Attributes:
        members: places for connections. up: connections that serve. resting: members out of service.
        leases: connections lent out, each as often as it is. waiting: callers that wait for one.
        rests: how often a member was taken out of service so far.
    """

    members: int
    up: int
    resting: int
    leases: int
    waiting: int
    rests: int


class Lease:
    """A connection, lent out for one request and its answer.

    Give it back with ``done`` or ``failed``: once; what comes later does nothing. As a context manager it does that
    itself: failed if an exception leaves the block.

    Attributes:
        connection: send on it. Answers come to the pool's ``message_callback``: they belong to its leases in the order
            in which these were sent on.
        context: yours; the library does not touch it.
        lost_callback: ``(lease)``, in the pool's loop, if the connection goes down before the lease is given back. The
            answer will not come. The lease is over then.
    """

    __slots__ = ("_member", "_pool", "connection", "context", "lost_callback")

    def __init__(self, pool: ConnectionPool, member: _Member, connection: TcpConnection) -> None:
        self._pool = pool
        self._member: _Member | None = member
        self.connection = connection
        self.context: Any = None
        self.lost_callback: LostCallback | None = None

    @property
    def is_over(self) -> bool:
        """Whether it has been given back or lost."""
        return self._member is None

    def done(self) -> None:
        """Give the connection back: the answer has come, whatever it says. From any thread."""
        self._end(True)

    def failed(self) -> None:
        """Give the connection back as unusable: no answer in time, or none that makes sense. From any thread.

        It is closed, so that an answer that comes late is not taken for that of another request; other leases of it
        are lost. Three times in a row, and its place is out of service for a while.
        """
        self._end(False)

    def _end(self, is_well: bool) -> None:
        loop = self._pool.loop
        if loop.is_in_loop_thread():
            self._pool._end_lease(self, is_well)
        else:
            loop.post(self._pool._end_lease, (self, is_well))  # a loop that is closed has ended everything

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end(kind is None)

    def __repr__(self) -> str:
        return f"<Lease of {self.connection!r}{', over' if self.is_over else ''}>"


class ConnectionPool:
    """Connections to one server or several alike, lent out to whoever asks for one.

    Set the callbacks, then ``start``. The pool connects, and connects again whatever goes down, until ``close`` or
    until its loop is closed.

    Args:
        loop: where the connections live, and callbacks run.
        targets: the server, or a list of servers; each an InetAddress, a UnixAddress or ``(host name, port)``. The
            connections are spread over them in turn.
        name: for connection names and logs.
        size: how many connections.
        max_outstanding: how often one connection may be lent out at a time: 1 for plain requests and answers, more if
            the server takes one request after another without waiting (pipelining).
        max_waiting: how many callers may wait for a connection.
        wait_s: for how many seconds.
        connect_timeout_s, ssl_context, server_hostname: as of ``TcpClient``.

    Attributes:
        loop, name, targets: as given.
        connection_callback, message_callback: given to each connection.
        context: yours; the library does not touch it.

    Raises:
        ValueError: a number is too small, or there is no target.
    """

    __slots__ = (
        "__weakref__",
        "_ends_with_loop",
        "_first",
        "_is_closed",
        "_is_serving",
        "_is_started",
        "_max_outstanding",
        "_max_waiting",
        "_members",
        "_wait_s",
        "_wait_timer",
        "_waiting",
        "connection_callback",
        "context",
        "loop",
        "message_callback",
        "name",
        "targets",
    )

    def __init__(
        self,
        loop: EventLoop,
        targets: Target | Sequence[Target],
        name: str,
        *,
        size: int,
        max_outstanding: int = 1,
        max_waiting: int = _MAX_WAITING,
        wait_s: float = _WAIT_S,
        connect_timeout_s: float = connector.CONNECT_TIMEOUT_S,
        ssl_context: ssl.SSLContext | None = None,
        server_hostname: str | None = None,
    ) -> None:
        for what, number, least in (
            ("size", size, 1),
            ("max_outstanding", max_outstanding, 1),
            ("max_waiting", max_waiting, 0),
        ):
            if number < least:
                raise ValueError(f"ConnectionPool: {what} must be {least} or more, got {number}")
        if not wait_s >= 0:
            raise ValueError(f"ConnectionPool: wait_s must be 0 or more seconds, got {wait_s}")
        self.targets: tuple[Target, ...] = _as_targets(targets)
        if not self.targets:
            raise ValueError("ConnectionPool: no target is given")
        self.loop = loop
        self.name = name
        self.connection_callback: ConnectionCallback | None = None
        self.message_callback: MessageCallback | None = None
        self.context: Any = None
        self._max_outstanding = max_outstanding
        self._max_waiting = max_waiting
        self._wait_s = wait_s
        self._wait_timer: Timer | None = None
        self._waiting: collections.deque[tuple[float, RequestCallback]] = collections.deque()  # the longest first
        self._first = 0  # whom to ask first, so that members with nothing to do take turns
        self._is_started = False
        self._ends_with_loop = False
        self._is_closed = False
        self._is_serving = False
        self._members = [
            _Member(
                self,
                TcpClient(
                    loop,
                    self.targets[number % len(self.targets)],
                    f"{name}-{number + 1}",
                    connect_timeout_s=connect_timeout_s,
                    ssl_context=ssl_context,
                    server_hostname=server_hostname,
                ),
            )
            for number in range(size)
        ]

    # --- doors: from any thread ---

    def start(self) -> None:
        """Begin to connect; from any thread. Twice is harmless.

        Raises:
            RuntimeError: the loop is closed.
        """
        self.loop.run_in_loop(self._start_in_loop)

    def request(self, callback: RequestCallback) -> None:
        """Call ``callback(lease)`` in the loop as soon as a connection is free: at once, inside this, if one is.

        From any thread, but from another one it is never at once. ``callback(None)`` means that there was none within
        ``wait_s``, that too many are waiting already, or that the pool is closed. Callers are served in order.

        Raises:
            RuntimeError: the loop is closed.
        """
        self.loop.run_in_loop(self._request_in_loop, callback)

    def close(self) -> None:
        """Close all connections now; from any thread, for good. Leases are lost, and callers that wait get None."""
        if self.loop.is_in_loop_thread():
            self._close_in_loop()
        else:
            self.loop.post(self._close_in_loop, ())

    # --- the loop's thread only ---

    def lease(self) -> Lease | None:
        """Return a connection that is free, the least busy one; None if there is none. The loop's thread only."""
        self.loop.assert_in_loop_thread()
        chosen: _Member | None = None
        size = len(self._members)
        for at in range(self._first, self._first + size):
            member = self._members[at % size]
            if member.has_room and (chosen is None or len(member.leases) < len(chosen.leases)):
                chosen = member
                self._first = (at + 1) % size
                if not member.leases:
                    break
        return None if chosen is None else chosen.lend()

    def stats(self) -> PoolStats:
        """Count what there is at this moment. The loop's thread only."""
        self.loop.assert_in_loop_thread()
        return PoolStats(
            members=len(self._members),
            up=sum([member.is_up for member in self._members]),
            resting=sum([member.state is MemberState.RESTING for member in self._members]),
            leases=sum([len(member.leases) for member in self._members]),
            waiting=len(self._waiting),
            rests=sum([member.rest_count for member in self._members]),
        )

    def _start_in_loop(self) -> None:
        if not self._is_started and not self._is_closed:
            self._is_started = True
            self._end_with_loop()
            for member in self._members:
                member.connect()

    def _request_in_loop(self, callback: RequestCallback) -> None:
        lease = None if self._waiting or self._is_closed else self.lease()
        if lease is not None or self._is_closed or len(self._waiting) >= self._max_waiting or self._wait_s == 0:
            self._answer(callback, lease)
            return
        self._end_with_loop()
        self._waiting.append((time.monotonic() + self._wait_s, callback))
        if self._wait_timer is None:
            self._wait_timer = self.loop.run_after(self._wait_s, self._end_waits)

    def _end_with_loop(self) -> None:
        if not self._ends_with_loop:
            self._ends_with_loop = True
            self.loop.call_at_close(self._close_in_loop)

    def _serve_waiting(self) -> None:
        """Lend out what is free to those who wait."""
        if self._is_serving:
            return  # a callback that is being served has given its lease back: the loop below goes on with that
        self._is_serving = True
        try:
            while self._waiting:
                lease = self.lease()
                if lease is None:
                    return
                _, callback = self._waiting.popleft()
                self._answer(callback, lease)
        finally:
            self._is_serving = False

    def _answer(self, callback: RequestCallback, lease: Lease | None) -> None:
        try:
            callback(lease)
        except Exception as e:
            self.loop.handle_exception(e, self)
            if lease is not None:
                lease.failed()

    def _end_waits(self) -> None:
        """Send away who has waited for too long, and look again when the next one has."""
        self._wait_timer = None
        now = time.monotonic()
        while self._waiting and self._waiting[0][0] <= now:
            _, callback = self._waiting.popleft()
            self._answer(callback, None)
        if self._waiting and self._wait_timer is None:
            self._wait_timer = self.loop.run_after(self._waiting[0][0] - now, self._end_waits)

    def _end_lease(self, lease: Lease, is_well: bool) -> None:
        member, lease._member = lease._member, None
        if member is not None:
            member.take_back(lease, is_well)
            self._serve_waiting()

    def _close_in_loop(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        if self._ends_with_loop:
            self.loop.forget_at_close(self._close_in_loop)
        if self._wait_timer is not None:
            self._wait_timer.cancel()
            self._wait_timer = None
        for member in self._members:
            member.close()
        while self._waiting:
            _, callback = self._waiting.popleft()
            self._answer(callback, None)

    def __enter__(self) -> ConnectionPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        targets = ", ".join(map(str, self.targets))
        return f"<ConnectionPool {self.name!r} {len(self._members)} to {targets}{' closed' if self._is_closed else ''}>"


class MemberState(enum.Enum):
    """Where a member is; the table above says what leads on."""

    CONNECTING = "connecting"
    UP = "up"
    RESTING = "resting"
    CLOSED = "closed"


class _Member:
    """A place for one connection at a time. After three failures in a row or more, it is on trial when it is up."""

    __slots__ = (
        "_client",
        "_failures",
        "_has_failed",
        "_has_served",
        "_pool",
        "_timer",
        "_up_since",
        "connection",
        "leases",
        "rest_count",
        "state",
    )

    def __init__(self, pool: ConnectionPool, client: TcpClient) -> None:
        self._pool = pool
        self._client = client
        client.connection_callback = self._handle_connection
        client.connect_failed_callback = self._handle_connect_failed
        self._timer: Timer | None = None
        self._failures = 0  # in a row
        # Of this connection:
        self._has_failed = False
        self._has_served = False
        self._up_since = 0.0
        self.connection: TcpConnection | None = None
        self.leases: list[Lease] = []
        self.rest_count = 0
        self.state = MemberState.CONNECTING

    @property
    def is_up(self) -> bool:
        """Whether its connection serves."""
        return self.connection is not None and not self._has_failed and self.connection.connected

    @property
    def has_room(self) -> bool:
        """Whether it can be lent out once more."""
        return self.is_up and len(self.leases) < (self._pool._max_outstanding if self._failures < _MAX_FAILURES else 1)

    def lend(self) -> Lease:
        """Lend the connection out; there must be room."""
        assert self.connection is not None
        lease = Lease(self._pool, self, self.connection)
        self.leases.append(lease)
        return lease

    def take_back(self, lease: Lease, is_well: bool) -> None:
        """Take a lease back, and draw conclusions."""
        self.leases.remove(lease)
        if is_well:
            self._has_served = True
            self._failures = 0
        elif not self._has_failed:
            self._note_failure(1)
            lease.connection.force_close()

    def connect(self) -> None:
        """Begin to connect, unless the pool has been closed."""
        self._timer = None
        if self.state is not MemberState.CLOSED:
            self.state = MemberState.CONNECTING
            self._has_failed = self._has_served = False
            self._client.message_callback = self._pool.message_callback
            self._client.connect()

    def close(self) -> None:
        """End for good."""
        self.state = MemberState.CLOSED
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._client.close()

    def _handle_connect_failed(self, client: TcpClient, error: Exception) -> None:
        if self.state is MemberState.CONNECTING:
            _log.debug("%s: can't connect to %s: %s", client.name, client.target, error)
            self._note_failure(_MAX_FAILURES)
            self._go_on()

    def _handle_connection(self, connection: TcpConnection) -> None:
        users = self._pool.connection_callback
        if connection.connected:
            self.state = MemberState.UP
            self.connection = connection
            self._up_since = time.monotonic()
            if users is not None:
                users(connection)
            self._pool._serve_waiting()
        else:
            try:
                if users is not None:
                    users(connection)
            finally:
                self._handle_down()

    def _handle_down(self) -> None:
        lost, self.leases = self.leases, []
        self.connection = None
        is_short = time.monotonic() - self._up_since < _STABLE_S
        if lost or (is_short and not self._has_served):
            self._note_failure(1)
        elif not self._has_failed:
            self._failures = 0
        if self.state is not MemberState.CLOSED:
            self._go_on()
        for lease in lost:
            lease._member = None
        for lease in lost:
            if lease.lost_callback is not None:
                try:
                    lease.lost_callback(lease)
                except Exception as e:
                    self._pool.loop.handle_exception(e, self._pool)

    def _note_failure(self, least: int) -> None:
        """Count a failure, once for each connection."""
        if not self._has_failed:
            self._has_failed = True
            self._failures = max(self._failures + 1, least)

    def _go_on(self) -> None:
        """Connect again, at once or after a rest."""
        if not self._has_failed or self._failures < _MAX_FAILURES:
            self.state = MemberState.CONNECTING
            self._pool.loop.post(self.connect, ())  # the client has yet to hear of the connection's end
            return
        rest_s = min(_LONGEST_REST_S, _FIRST_REST_S * 2.0 ** min(16, self._failures - _MAX_FAILURES))
        rest_s *= random.uniform(0.5, 1.0)  # noqa: S311 - no secret
        _log.info("%s: %s is out of service for %.1f s", self._client.name, self._client.target, rest_s)
        self.state = MemberState.RESTING
        self.rest_count += 1
        self._timer = self._pool.loop.run_after(rest_s, self.connect)


def _as_targets(targets: Any) -> tuple[Target, ...]:
    """Return one target or several as a tuple of targets."""
    is_one = hasattr(targets, "sockaddr") or (
        isinstance(targets, tuple) and len(targets) == 2 and isinstance(targets[0], str)
    )
    return (targets,) if is_one else tuple(targets)
