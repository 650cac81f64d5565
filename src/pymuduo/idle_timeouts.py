"""Ends, or reports, connections on which nothing happens for too long; any number of them.

Nothing is done when a message comes or goes. A connection counts its bytes anyway; a wheel (``timing_wheel``) looks
at each connection eight times in a time-out, and whatever it compares (its *mark*: bytes received, say) is either as
it was, or new, and then the time begins again. So a time-out of T seconds comes after T at the earliest and, because
the last byte may have come just after a look, after T + T/8 and two ticks of T/512 at the latest.

Each loop has wheels of its own, one for each kind of time-out, made when the first connection of that loop is
watched. They hold connections weakly: one that has ended is not kept. They end with their last entry, or their loop.
"""

from __future__ import annotations

import enum
import time
import weakref
from typing import TYPE_CHECKING

from pymuduo.tcp_connection import TcpConnection
from pymuduo.timing_wheel import TimingWheel

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from pymuduo.event_loop import EventLoop

    IdleCallback: TypeAlias = Callable[[TcpConnection, "IdleKind"], object]

_LOOKS = 8  # in a time-out
_DROP = -1.0


class IdleKind(enum.Enum):
    """What has not happened for too long."""

    READ = "nothing received"
    WRITE = "nothing sent"
    BOTH = "nothing received or sent"
    STALL = "output has waited without moving: the peer does not read"
    MESSAGE = "a message has begun and is still incomplete"


class IdleTimeouts:
    """Time-outs for all connections that are given to ``watch``; a server or client does that (``idle_timeouts``).

    One object may serve connections of any number of loops and servers. A time-out of T seconds comes T seconds after
    the last byte at the earliest, and T·8/7 + 0.02 seconds after it at the latest, unless the loop is held up. Bytes
    are payload: with TLS a record counts when it is complete, and only *read_s* and *both_s* end one that never is.

    Args:
        read_s: seconds in which nothing was received. Time in which reading is stopped (``stop_read``, or the peer
            has sent its FIN and you have a callback for it) does not count: the peer is not to blame.
        write_s: seconds in which nothing was sent: for heart-beats, with a callback.
        both_s: seconds in which nothing was received or sent.
        stall_s: seconds in which output has waited and none of it has left: the peer does not read.
        message_s: seconds that a message may take from its first byte to its last, as far as that shows in
            ``input_buffer``: something is in it, and nothing has been taken from it. A byte now and then does not put
            it off. Time in which reading is stopped does not count.
        callback: ``(connection, kind)`` in the connection's loop; decides what to do (see ``end``), and is called
            again after another such time. Unset, the connection is ended: see ``end``.

    Attributes:
        callback: as given. The times never change.

    Raises:
        ValueError: a time is not above 0, or none is given.

    muduo: ``examples/idleconnection``, which puts every message's connection into another bucket.
    """

    __slots__ = ("__weakref__", "_times", "_wheels", "callback")

    def __init__(
        self,
        *,
        read_s: float | None = None,
        write_s: float | None = None,
        both_s: float | None = None,
        stall_s: float | None = None,
        message_s: float | None = None,
        callback: IdleCallback | None = None,
    ) -> None:
        given = {
            IdleKind.READ: read_s,
            IdleKind.WRITE: write_s,
            IdleKind.BOTH: both_s,
            IdleKind.STALL: stall_s,
            IdleKind.MESSAGE: message_s,
        }
        self._times = {kind: float(seconds) for kind, seconds in given.items() if seconds is not None}
        if not self._times:
            raise ValueError("IdleTimeouts: no time is given")
        for kind, seconds in self._times.items():
            if not seconds > 0:
                raise ValueError(f"IdleTimeouts: {kind.name.lower()}_s must be above 0 seconds, got {seconds:g}")
        self.callback = callback
        self._wheels: dict[EventLoop, _LoopWheels] = {}  # each entry is touched by its loop's thread alone

    def watch(self, connection: TcpConnection) -> None:
        """Begin with *connection*, until it ends; once for each. The thread of the connection's loop only."""
        loop = connection.loop
        loop.assert_in_loop_thread()
        wheels = self._wheels.get(loop)
        if wheels is None:
            wheels = self._wheels[loop] = _LoopWheels(loop, self)
        wheels.watch(connection)

    def end(self, connection: TcpConnection, kind: IdleKind) -> None:
        """Log it (INFO) and close *connection*, whose ``error`` is a TimeoutError: what is done without a callback."""
        connection.fail(TimeoutError(f"{kind.value} for {self._times[kind]:g} s"))

    def __len__(self) -> int:
        """How many connections are being watched, some that have just ended included; from any thread."""
        return sum([len(wheels) for wheels in self._wheels.copy().values()])

    def __repr__(self) -> str:
        times = ", ".join([f"{kind.name.lower()}_s={seconds:g}" for kind, seconds in self._times.items()])
        return f"<IdleTimeouts {times}>"


class _LoopWheels:
    """The wheels of one loop."""

    __slots__ = ("_loop", "_owner", "_watchers")

    def __init__(self, loop: EventLoop, owner: IdleTimeouts) -> None:
        self._loop = loop
        self._owner = owner
        self._watchers = [
            _Watcher(loop, owner, kind, seconds, self._end_if_empty) for kind, seconds in owner._times.items()
        ]
        loop.call_at_close(self._end)

    def watch(self, connection: TcpConnection) -> None:
        now = time.monotonic()
        for watcher in self._watchers:
            watcher.watch(connection, now)

    def _end_if_empty(self) -> None:
        if not any(len(watcher.wheel) for watcher in self._watchers):
            self._loop.forget_at_close(self._end)
            self._end()

    def _end(self) -> None:
        self._owner._wheels.pop(self._loop, None)
        for watcher in self._watchers:
            watcher.wheel.close()

    def __len__(self) -> int:
        return len(self._watchers[0].wheel)


class _Entry(weakref.ref[TcpConnection]):
    """A connection, its mark when that was last seen to change, and when that was."""

    __slots__ = ("mark", "since")

    mark: int | None
    since: float


class _Watcher:
    """One kind of time-out in one loop."""

    __slots__ = ("_kind", "_mark_of", "_owner", "_timeout_s", "wheel")

    def __init__(
        self,
        loop: EventLoop,
        owner: IdleTimeouts,
        kind: IdleKind,
        timeout_s: float,
        empty_callback: Callable[[], object],
    ) -> None:
        self._owner = owner
        self._kind = kind
        self._mark_of = _MARKS[kind]
        self._timeout_s = timeout_s
        self.wheel = TimingWheel(loop, timeout_s / _LOOKS, self._look, empty_callback)

    def watch(self, connection: TcpConnection, now: float) -> None:
        entry = _Entry(connection)
        entry.mark = self._mark_of(connection)
        entry.since = now
        self.wheel.add(entry)

    def _look(self, entry: _Entry, now: float) -> float:
        connection = entry()
        if connection is None or connection.disconnected:
            return _DROP
        mark = self._mark_of(connection)
        if mark is None or mark != entry.mark:
            entry.mark = mark
            entry.since = now
            return self._timeout_s
        left = entry.since + self._timeout_s - now
        if left > 0:
            return left
        entry.since = now
        self._report(connection)
        return self._timeout_s

    def _report(self, connection: TcpConnection) -> None:
        callback = self._owner.callback
        if callback is None:
            self._owner.end(connection, self._kind)
            return
        try:
            callback(connection, self._kind)
        except Exception as e:
            if connection.loop.handle_exception(e, connection):
                connection.force_close()


# What is compared from look to look. None: there is nothing that the peer, or we, should do just now.


def _received(connection: TcpConnection) -> int | None:
    return connection.bytes_received if _is_listened_to(connection) else None


def _sent(connection: TcpConnection) -> int | None:
    return connection.bytes_sent


def _received_or_sent(connection: TcpConnection) -> int | None:
    return connection.bytes_received + connection.bytes_sent


def _sent_of_waiting(connection: TcpConnection) -> int | None:
    return connection.bytes_sent if connection.output_size else None


def _taken_of_begun(connection: TcpConnection) -> int | None:
    size = connection.input_size
    return connection.bytes_received - size if size and _is_listened_to(connection) else None


def _is_listened_to(connection: TcpConnection) -> bool:
    """Whether the peer could be heard; one that we have said goodbye to is expected to leave, whatever we read."""
    return connection.is_reading or not connection.connected


_MARKS = {
    IdleKind.READ: _received,
    IdleKind.WRITE: _sent,
    IdleKind.BOTH: _received_or_sent,
    IdleKind.STALL: _sent_of_waiting,
    IdleKind.MESSAGE: _taken_of_begun,
}
