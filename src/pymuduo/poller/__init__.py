"""What waits for events: epoll by default, poll if ``PYMUDUO_POLLER=poll``."""

from __future__ import annotations

import os

from pymuduo.poller.base import Poller
from pymuduo.poller.epoll import EPollPoller
from pymuduo.poller.poll import PollPoller

__all__ = ["EPollPoller", "PollPoller", "Poller", "default_poller"]


def default_poller() -> Poller:
    """Return a new poller of the kind that the environment variable ``PYMUDUO_POLLER`` names (``epoll``, ``poll``).

    Raises:
        ValueError: the variable names something else.

    muduo: ``Poller::newDefaultPoller``.
    """
    kind = os.environ.get("PYMUDUO_POLLER") or "epoll"
    if kind == "epoll":
        return EPollPoller()
    if kind == "poll":
        return PollPoller()
    raise ValueError(f"PYMUDUO_POLLER must be 'epoll' or 'poll', got {kind!r}")
