"""The other poller: poll(2), for systems and tests where epoll is not wanted (``PYMUDUO_POLLER=poll``)."""

from __future__ import annotations

import os
import select

from pymuduo.channel import ADDED, NEW, BaseChannel
from pymuduo.poller.base import Poller


class PollPoller(Poller):
    """Waits with poll: cost in proportion to what is watched. muduo: ``PollPoller``."""

    __slots__ = ("_poll",)

    def __init__(self) -> None:
        super().__init__()
        self._poll = select.poll()

    def poll(self, timeout_ms: int, active: list[BaseChannel]) -> None:
        """Wait for events and append the channels that have some."""
        for fd, revents in self._poll.poll(timeout_ms):
            channel = self._channels[fd]
            if channel is not None:
                channel.revents = revents
                active.append(channel)

    def update_channel(self, channel: BaseChannel) -> None:
        """Change what is watched; no interest takes the descriptor out."""
        if channel.events == 0:
            self._take_out(channel)
            return
        if channel.index == NEW:
            os.fstat(channel.fd)  # poll(2) itself would only report a descriptor that is not open, for ever
        self._remember(channel)
        self._poll.register(channel.fd, channel.events)
        channel.index = ADDED

    def remove_channel(self, channel: BaseChannel) -> None:
        """Forget a channel."""
        self._take_out(channel)
        self._forget(channel)

    def _take_out(self, channel: BaseChannel) -> None:
        if channel.index == ADDED:
            channel.index = NEW
            self._poll.unregister(channel.fd)
