"""One descriptor's events, turned into callbacks: muduo's ``Channel``.

A channel belongs to one loop and is touched by that loop's thread alone. It does not own its descriptor: whoever
made it removes the channel first and closes the descriptor after.

Events are level-triggered. Between the moment the poller reports an event and the moment the channel handles it,
another handler of the same iteration may have changed this channel's interest or removed it; so every event is
checked against the interest as it is now.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from pymuduo.event_loop import EventLoop
    from pymuduo.timestamp import Timestamp

# The bits are the same for epoll and poll on Linux. Urgent data (EPOLLPRI) is not asked for: a byte sent out of
# band would keep the event up for ever, and no stream protocol of this century uses one.
READ_EVENT = 0x001
WRITE_EVENT = 0x004
ERROR_EVENT = 0x008  # always reported; asking for it alone keeps a descriptor watched for errors
HANG_UP_EVENT = 0x010
INVALID_EVENT = 0x020
PEER_SHUTDOWN_EVENT = 0x2000

# The same as C integers in a compiled build.
_READ, _WRITE, _ERROR = READ_EVENT, WRITE_EVENT, ERROR_EVENT
_HANG_UP, _INVALID, _PEER_SHUTDOWN = HANG_UP_EVENT, INVALID_EVENT, PEER_SHUTDOWN_EVENT

_NAMES = (
    (READ_EVENT, "IN"),
    (0x002, "PRI"),
    (WRITE_EVENT, "OUT"),
    (ERROR_EVENT, "ERR"),
    (HANG_UP_EVENT, "HUP"),
    (INVALID_EVENT, "NVAL"),
    (PEER_SHUTDOWN_EVENT, "RDHUP"),
)

# Where the poller has put a channel (``Channel.index``).
NEW = -1
ADDED = 1
_NEW = NEW


class ChannelHost:
    """What a channel asks of its loop. ``EventLoop`` is one; it is made of channels, so it comes after them."""

    __slots__ = ("poll_return_time",)

    poll_return_time: Timestamp

    def update_channel(self, channel: BaseChannel) -> None:
        """Watch the descriptor for what ``channel.events`` says."""
        raise NotImplementedError

    def remove_channel(self, channel: BaseChannel) -> None:
        """Forget the channel."""
        raise NotImplementedError


class BaseChannel:
    """A descriptor's place in a loop: its interest and its events. What they lead to is for its kinds to say.

    Attributes:
        events: the bits asked for (the interest set). revents: the bits that the last poll reported.

    Thread rule: the loop's thread.
    """

    __slots__ = ("__weakref__", "events", "fd", "index", "loop", "revents")

    loop: EventLoop
    fd: int
    events: int
    revents: int
    index: int

    def _set_up(self, loop: EventLoop, fd: int) -> None:
        self.loop = loop
        self.fd = fd
        self.events = 0
        self.revents = 0
        self.index = _NEW

    def handle_event(self) -> None:
        """React to what ``revents`` says; the loop does this."""
        revents = self.revents
        # ERR and HUP come unasked: a channel without interest was disabled after the poll had returned.
        if self.events == 0:
            return
        if revents & _HANG_UP and not revents & _READ:
            self._handle_close()
            if self.events == 0:
                return
        if revents & (_ERROR | _INVALID):
            self._handle_error()
        if revents & (_READ | _PEER_SHUTDOWN) & self.events:
            self._handle_read()
        if revents & _WRITE & self.events:
            self._handle_write()

    def _handle_read(self) -> None:
        raise NotImplementedError

    def _handle_write(self) -> None:
        raise NotImplementedError

    def _handle_close(self) -> None:
        raise NotImplementedError

    def _handle_error(self) -> None:
        raise NotImplementedError

    # --- the interest set ---

    def set_interest(self, events: int) -> None:
        """Ask for exactly these event bits; none takes the descriptor out of the poller's sight."""
        if events != self.events:
            old = self.events
            self.events = events
            try:
                self.loop.update_channel(self)
            except BaseException:
                self.events = old
                raise

    def enable_reading(self) -> None:
        """Ask to hear of what can be read."""
        self.set_interest(self.events | _READ)

    def disable_reading(self) -> None:
        """Stop hearing of what can be read."""
        self.set_interest(self.events & ~_READ)

    def enable_writing(self) -> None:
        """Ask to hear when writing would not block."""
        self.set_interest(self.events | _WRITE)

    def disable_writing(self) -> None:
        """Stop hearing that writing would not block."""
        self.set_interest(self.events & ~_WRITE)

    def disable_all(self) -> None:
        """Ask for nothing: no callback comes after this, not even for events already reported."""
        self.set_interest(0)

    def remove(self) -> None:
        """Leave the loop for good; the descriptor may be closed after this.

        Raises:
            RuntimeError: the channel still has an interest (``disable_all`` comes first).
        """
        if self.events:
            raise RuntimeError(f"{self!r} must be disabled before it is removed")
        self.loop.remove_channel(self)

    def abandon(self) -> None:
        """Leave the loop because it is being closed."""
        self.disable_all()
        self.remove()

    def handle_failure(self, exception: BaseException) -> None:
        """Report what came out of ``handle_event``; what is no ``Exception`` goes on to whoever runs the loop."""
        if not isinstance(exception, Exception):
            raise exception
        self.loop.handle_exception(exception, self)

    def callback_name(self) -> str:
        """Return what handles this channel's events, for a log line."""
        return repr(self)

    @property
    def is_none_event(self) -> bool:
        """Whether nothing is asked for."""
        return self.events == 0

    @property
    def is_reading(self) -> bool:
        """Whether reading is asked for."""
        return self.events & _READ != 0

    @property
    def is_writing(self) -> bool:
        """Whether writing is asked for."""
        return self.events & _WRITE != 0

    def __repr__(self) -> str:
        return f"<Channel fd={self.fd} events={event_names(self.events)} revents={event_names(self.revents)}>"


class Channel(BaseChannel):
    """Watches a descriptor for a loop and calls back on what happens to it.

    Set the callbacks you need, then ``enable_reading`` or ``enable_writing``; at the end ``disable_all`` and
    ``remove``. An unset callback is not called.

    Attributes:
        read_callback: called with the time at which the poll returned, when there is something to read (also the
            end of the stream, or an error that reading will report).
        write_callback: called with nothing, when writing would not block.
        close_callback: called with nothing, when the other end is gone and nothing is left to read. Unset, the read
            callback is called, if reading is asked for: the end of a pipe comes that way.
        error_callback: called with nothing, when the descriptor is in error.
        events: the bits asked for (the interest set). revents: the bits that the last poll reported.

    Thread rule: the loop's thread. muduo: ``Channel``.
    """

    __slots__ = ("_owner", "close_callback", "error_callback", "read_callback", "write_callback")

    def __init__(self, loop: EventLoop, fd: int) -> None:
        self._set_up(loop, fd)
        self._owner: weakref.ref[Any] | None = None
        self.read_callback: Callable[[Timestamp], object] | None = None
        self.write_callback: Callable[[], object] | None = None
        self.close_callback: Callable[[], object] | None = None
        self.error_callback: Callable[[], object] | None = None

    def tie(self, owner: object) -> None:
        """Call back only while *owner* exists; it is kept alive during a callback, and only then.

        Raises:
            TypeError: *owner* can't be weakly referenced.
        """
        self._owner = weakref.ref(owner)

    def handle_event(self) -> None:
        """Call back for what ``revents`` says; the loop does this."""
        if self._owner is not None:
            owner = self._owner()
            if owner is None:
                return
        BaseChannel.handle_event(self)

    def callback_name(self) -> str:
        """Return the name of the callback that most likely handled the last events."""
        return callback_name(self.write_callback if self.revents == _WRITE else self.read_callback)

    def _handle_read(self) -> None:
        if self.read_callback is not None:
            self.read_callback(self.loop.poll_return_time)

    def _handle_write(self) -> None:
        if self.write_callback is not None:
            self.write_callback()

    def _handle_close(self) -> None:
        if self.close_callback is not None:
            self.close_callback()
        elif self.read_callback is not None and self.events & _READ:
            self.read_callback(self.loop.poll_return_time)  # the end of a pipe; unheard, it would come for ever

    def _handle_error(self) -> None:
        if self.error_callback is not None:
            self.error_callback()


def callback_name(callback: object) -> str:
    """Return a function's qualified name, and for a method what it is bound to."""
    while hasattr(callback, "func"):  # functools.partial
        callback = callback.func
    name = getattr(callback, "__qualname__", None)
    if name is None:
        return repr(callback)
    module = getattr(callback, "__module__", None)
    owner = getattr(callback, "__self__", None)
    return f"{module}.{name}" if module else f"{name} of {owner!r}" if owner is not None else str(name)


def event_names(events: int) -> str:
    """Return the names of event bits, as ``IN|OUT``. muduo: ``eventsToString``."""
    return "|".join([name for bit, name in _NAMES if events & bit]) or "none"
