"""The default poller: epoll, level-triggered. See ``poller.base`` for the thread rule."""

from __future__ import annotations

import logging
import os

from pymuduo import _sys
from pymuduo.channel import BaseChannel
from pymuduo.poller.base import Poller

_log = logging.getLogger("pymuduo.poller")

_INITIAL_EVENTS = 16  # doubles whenever a poll fills it, so that a busy loop asks less often
_MAX_EVENTS = 4096  # past this one iteration would take too long for timers and functors
_ADD, _DELETE, _MODIFY = 1, 2, 3
_NEW, _ADDED = -1, 1
_EINTR = 4


class EPollPoller(Poller):
    """Waits with epoll: cost in proportion to what happened, not to what is watched. muduo: ``EPollPoller``."""

    __slots__ = ("_epoll",)

    def __init__(self) -> None:
        super().__init__()
        self._epoll = _sys.Epoll(_INITIAL_EVENTS)

    @property
    def event_capacity(self) -> int:
        """How many events one poll can return."""
        return self._epoll.capacity

    def poll(self, timeout_ms: int, active: list[BaseChannel]) -> None:
        """Wait for events and append the channels that have some. Errors other than EINTR raise OSError."""
        count = self._epoll.wait(timeout_ms)
        if count < 0:
            if count != -_EINTR:
                raise OSError(-count, f"epoll_wait failed: {os.strerror(-count)}")
            return
        for i in range(count):
            channel = self._channels[self._epoll.fd_at(i)]
            if channel is not None:
                channel.revents = self._epoll.events_at(i)
                active.append(channel)
        if count == self._epoll.capacity and count < _MAX_EVENTS:
            self._epoll.grow()

    def update_channel(self, channel: BaseChannel) -> None:
        """Let the kernel know of a channel's interest; none takes the descriptor out."""
        if channel.events == 0:
            self._take_out(channel)
            return
        self._remember(channel)
        result = self._epoll.control(_MODIFY if channel.index == _ADDED else _ADD, channel.fd, channel.events)
        if result < 0:
            if channel.index != _ADDED:
                self._forget(channel)
            raise OSError(-result, f"epoll_ctl of {channel!r} failed: {os.strerror(-result)}")
        channel.index = _ADDED

    def remove_channel(self, channel: BaseChannel) -> None:
        """Forget a channel."""
        self._take_out(channel)
        self._forget(channel)

    def close(self) -> None:
        """Close the epoll descriptor."""
        Poller.close(self)
        self._epoll.close()

    def _take_out(self, channel: BaseChannel) -> None:
        if channel.index == _ADDED:
            channel.index = _NEW
            result = self._epoll.control(_DELETE, channel.fd, 0)
            if result < 0:
                # Somebody closed the descriptor under the channel: epoll has dropped it by itself.
                _log.warning("epoll_ctl DEL of %r failed: %s", channel, os.strerror(-result))
