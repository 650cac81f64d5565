"""What waits for events: the part that every poller shares.

A poller belongs to one loop and is touched by that loop's thread alone. It finds a channel by its descriptor in a
list, because descriptors are small integers and a list look-up is the cheapest there is.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from pymuduo.channel import BaseChannel

if TYPE_CHECKING:
    import builtins


class Poller:
    """Waits for events on the descriptors of its channels; level-triggered.

    Thread rule: the loop's thread. muduo: ``Poller``.
    """

    __slots__ = ("_channels", "channel_count")

    def __init__(self) -> None:
        self._channels: list[BaseChannel | None] = [None] * 64
        self.channel_count = 0

    def poll(self, timeout_ms: int, active: builtins.list[BaseChannel]) -> None:
        """Wait for events, at most *timeout_ms* (-1: without limit), and append the channels that have some."""
        raise NotImplementedError

    def update_channel(self, channel: BaseChannel) -> None:
        """Let the kernel know of a channel's interest; none takes the descriptor out.

        Raises:
            OSError: the kernel refused (out of memory or watches), and nothing has changed.
            ValueError: another channel watches the same descriptor.
        """
        raise NotImplementedError

    def remove_channel(self, channel: BaseChannel) -> None:
        """Forget a channel; its descriptor may be closed, and its number used again, after this."""
        raise NotImplementedError

    def close(self) -> None:
        """Close what the poller opened."""
        self._channels = []
        self.channel_count = 0

    def has_channel(self, channel: BaseChannel) -> bool:
        """Whether the channel is known here."""
        return channel.fd < len(self._channels) and self._channels[channel.fd] is channel

    def channels(self) -> list[BaseChannel]:
        """Return the channels known here, in the order of their descriptors."""
        return [channel for channel in self._channels if channel is not None]

    def _remember(self, channel: BaseChannel) -> None:
        fd = channel.fd
        if fd < 0:
            raise OSError(errno.EBADF, f"{channel!r} has no descriptor: {os.strerror(errno.EBADF)}")
        if fd >= len(self._channels):
            self._channels.extend([None] * (2 * fd - len(self._channels) + 1))
        known = self._channels[fd]
        if known is None:
            self._channels[fd] = channel
            self.channel_count += 1
        elif known is not channel:
            raise ValueError(f"descriptor {fd} already has a channel: {known!r}")

    def _forget(self, channel: BaseChannel) -> None:
        fd = channel.fd
        if fd < len(self._channels) and self._channels[fd] is channel:
            self._channels[fd] = None
            self.channel_count -= 1

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.channel_count} channels>"
