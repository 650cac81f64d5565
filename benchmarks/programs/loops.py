"""A peer's event loop under names that all peers share, so that a program has one body for all of them.

The doors are the peer's own bound methods, not wrappers: calling one costs what it costs in a program written for that
peer alone.
"""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pymuduo import EventLoop

PEERS = ("pymuduo", "uvloop", "asyncio")


class PeerAbsentError(Exception):
    """A peer, or a tool that the program needs, is not on this machine; the message says which."""


class Timer(Protocol):
    """What ``call_later`` returns."""

    def cancel(self) -> None:
        """Never call."""


@dataclass(frozen=True)
class Loop:
    """One peer's loop.

    Attributes:
        run: serve until ``stop``. stop: in the loop's thread.
        call_soon: ``(callback, *args)``, in the loop's thread. call_from_thread: the same from any thread.
        call_later: ``(seconds, callback, *args)``, in the loop's thread.
        watch: ``(fd, callback)``: call when *fd* is readable, with one argument or none. unwatch: ``(fd)``.
    """

    run: Callable[[], object]
    stop: Callable[[], object]
    close: Callable[[], object]
    call_soon: Callable[..., object]
    call_from_thread: Callable[..., object]
    call_later: Callable[..., Timer]
    watch: Callable[[int, Callable[..., object]], object]
    unwatch: Callable[[int], object]


def make(peer: str) -> Loop:
    """Return the loop of *peer*, one of ``PEERS``, for the calling thread.

    Raises:
        PeerAbsentError: it is not installed.
    """
    if peer != "pymuduo":
        return of_asyncio(new_asyncio_loop(peer))
    require("pymuduo")
    from pymuduo import EventLoop

    return of_pymuduo(EventLoop())


def new_asyncio_loop(peer: str) -> asyncio.AbstractEventLoop:
    """Return uvloop's or asyncio's own loop.

    Raises:
        PeerAbsentError: uvloop is not installed.
    """
    if peer == "asyncio":
        return asyncio.new_event_loop()
    require("uvloop")
    import uvloop

    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def of_asyncio(loop: asyncio.AbstractEventLoop) -> Loop:
    """Return *loop* under the shared names."""
    return Loop(
        run=loop.run_forever,
        stop=loop.stop,
        close=loop.close,
        call_soon=loop.call_soon,
        call_from_thread=loop.call_soon_threadsafe,
        call_later=loop.call_later,
        watch=loop.add_reader,
        unwatch=loop.remove_reader,
    )


def require(module: str) -> None:
    """Raise PeerAbsentError unless *module* can be imported."""
    if importlib.util.find_spec(module) is None:
        raise PeerAbsentError(f"{module} is not installed")


def of_pymuduo(loop: EventLoop) -> Loop:
    """Return *loop* under the shared names."""
    from pymuduo import Channel

    channels: dict[int, Channel] = {}

    def watch(fd: int, callback: Callable[..., object]) -> None:
        channel = channels[fd] = Channel(loop, fd)
        channel.read_callback = callback
        channel.enable_reading()

    def unwatch(fd: int) -> None:
        channel = channels.pop(fd)
        channel.disable_all()
        channel.remove()

    return Loop(
        run=loop.run,
        stop=loop.quit,
        close=loop.close,
        call_soon=loop.queue_in_loop,
        call_from_thread=loop.queue_in_loop,
        call_later=loop.run_after,
        watch=watch,
        unwatch=unwatch,
    )
