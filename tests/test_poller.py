"""The pollers: both keep the same promises."""

from __future__ import annotations

import errno
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from pymuduo import Channel, EPollPoller, EventLoop, Poller, PollPoller
from pymuduo.channel import BaseChannel
from pymuduo.poller import default_poller

READ, WRITE = 0x1, 0x4


@pytest.fixture(params=[EPollPoller, PollPoller], ids=["epoll", "poll"])
def poller(request: pytest.FixtureRequest) -> Iterator[Poller]:
    """Return a new poller, of each kind in turn."""
    made: Poller = request.param()
    yield made
    made.close()


def watch(poller: Poller, loop: EventLoop, fd: int, events: int) -> Channel:
    """Return a channel that the poller watches (its loop has another poller, and is not asked)."""
    channel = Channel(loop, fd)
    channel.events = events
    poller.update_channel(channel)
    return channel


def active_of(poller: Poller, timeout_ms: int = 0) -> list[BaseChannel]:
    active: list[BaseChannel] = []
    poller.poll(timeout_ms, active)
    return active


# --- which one ---


@pytest.mark.parametrize(
    ("value", "kind"), [(None, EPollPoller), ("", EPollPoller), ("epoll", EPollPoller), ("poll", PollPoller)]
)
def test_the_environment_chooses_the_poller(
    monkeypatch: pytest.MonkeyPatch, value: str | None, kind: type[Poller]
) -> None:
    if value is None:
        monkeypatch.delenv("PYMUDUO_POLLER", raising=False)
    else:
        monkeypatch.setenv("PYMUDUO_POLLER", value)
    made = default_poller()
    assert type(made) is kind
    made.close()


def test_any_other_value_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYMUDUO_POLLER", "kqueue")
    with pytest.raises(ValueError, match="PYMUDUO_POLLER must be 'epoll' or 'poll', got 'kqueue'"):
        default_poller()


def test_a_loop_with_a_poller_that_does_not_exist_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYMUDUO_POLLER", "kqueue")
    with pytest.raises(ValueError, match="kqueue"):
        EventLoop()
    assert EventLoop.current() is None
    monkeypatch.setenv("PYMUDUO_POLLER", "poll")
    EventLoop().close()


@pytest.mark.parametrize("kind", ["epoll", "poll"])
def test_a_loop_runs_with_either(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setenv("PYMUDUO_POLLER", kind)
    called: list[str] = []
    with EventLoop() as loop:
        loop.run_after(0.001, called.append, "timer")
        loop.run_after(0.001, loop.quit)
        loop.run()
    assert called == ["timer"]


# --- polling ---


def test_a_poll_without_limit_waits_for_an_event(
    loop: EventLoop, poller: Poller, pair: tuple[socket.socket, socket.socket]
) -> None:
    channel = watch(poller, loop, pair[0].fileno(), READ)
    pair[1].send(b"x")
    assert active_of(poller, -1) == [channel]
    assert channel.revents == READ


def test_a_poll_ends_when_time_is_up_and_not_before(loop: EventLoop, poller: Poller) -> None:
    begin = time.monotonic()
    assert active_of(poller, 20) == []
    assert time.monotonic() - begin >= 0.02


def test_active_channels_are_appended(
    loop: EventLoop, poller: Poller, pair: tuple[socket.socket, socket.socket]
) -> None:
    channels = [watch(poller, loop, end.fileno(), WRITE) for end in pair]
    active: list[BaseChannel] = []
    poller.poll(0, active)
    poller.poll(0, active)
    assert sorted(map(id, active)) == sorted(map(id, channels * 2))


def test_interest_can_be_changed_and_lost_and_taken_up_again(
    loop: EventLoop, poller: Poller, pair: tuple[socket.socket, socket.socket]
) -> None:
    channel = watch(poller, loop, pair[0].fileno(), READ)
    assert active_of(poller) == []
    channel.events = READ | WRITE
    poller.update_channel(channel)
    assert active_of(poller) == [channel]
    assert channel.revents == WRITE
    channel.events = 0
    poller.update_channel(channel)
    assert active_of(poller) == []
    channel.events = WRITE
    poller.update_channel(channel)
    assert active_of(poller) == [channel]


def test_a_hang_up_is_reported_unasked_but_not_without_any_interest(
    loop: EventLoop, poller: Poller, pair: tuple[socket.socket, socket.socket]
) -> None:
    channel = watch(poller, loop, pair[0].fileno(), 0x8)
    pair[1].close()
    assert active_of(poller) == [channel]
    assert channel.revents & select.EPOLLHUP
    channel.events = 0
    poller.update_channel(channel)
    assert active_of(poller) == []


def test_every_one_of_many_channels_is_reported(loop: EventLoop, poller: Poller) -> None:
    pairs = [socket.socketpair() for _ in range(200)]
    channels = [watch(poller, loop, one.fileno(), READ) for one, _ in pairs]
    for _, other in pairs:
        other.send(b"x")
    seen: set[int] = set()
    for _ in range(20):  # level-triggered: an event list that was too short catches up
        seen |= {channel.fd for channel in active_of(poller)}
    assert seen == {channel.fd for channel in channels}
    for one, other in pairs:
        one.close()
        other.close()


def test_the_event_list_of_epoll_doubles_when_a_poll_fills_it(loop: EventLoop) -> None:
    poller = EPollPoller()
    capacity = poller.event_capacity
    assert capacity == 16
    pairs = [socket.socketpair() for _ in range(100)]
    for one, _ in pairs:
        watch(poller, loop, one.fileno(), WRITE)
    sizes = [len(active_of(poller)) for _ in range(5)]
    assert sizes == [16, 32, 64, 100, 100]
    assert poller.event_capacity == 128
    poller.close()
    for one, other in pairs:
        one.close()
        other.close()


# --- which channels ---


def test_a_poller_knows_its_channels(
    loop: EventLoop, poller: Poller, pair: tuple[socket.socket, socket.socket]
) -> None:
    channel, stranger = watch(poller, loop, pair[0].fileno(), READ), Channel(loop, pair[1].fileno())
    assert poller.has_channel(channel)
    assert not poller.has_channel(stranger)
    assert poller.channels() == [channel]
    assert poller.channel_count == 1
    channel.events = 0
    poller.update_channel(channel)
    assert poller.has_channel(channel)  # known, though not watched
    poller.remove_channel(channel)
    assert not poller.has_channel(channel)
    assert poller.channel_count == 0


def test_removed_twice_it_is_counted_once(
    loop: EventLoop, poller: Poller, pair: tuple[socket.socket, socket.socket]
) -> None:
    channel = watch(poller, loop, pair[0].fileno(), READ)
    poller.remove_channel(channel)
    poller.remove_channel(channel)
    assert poller.channel_count == 0


def test_a_second_channel_on_a_descriptor_is_refused_and_changes_nothing(
    loop: EventLoop, poller: Poller, pair: tuple[socket.socket, socket.socket]
) -> None:
    first = watch(poller, loop, pair[0].fileno(), READ)
    with pytest.raises(ValueError, match=rf"descriptor {pair[0].fileno()} already has a channel"):
        watch(poller, loop, pair[0].fileno(), WRITE)
    assert poller.channels() == [first]
    assert active_of(poller) == []


def test_a_removed_descriptor_can_have_a_new_channel(
    loop: EventLoop, poller: Poller, pair: tuple[socket.socket, socket.socket]
) -> None:
    first = watch(poller, loop, pair[0].fileno(), WRITE)
    poller.remove_channel(first)
    second = watch(poller, loop, pair[0].fileno(), WRITE)
    assert active_of(poller) == [second]


def test_high_descriptor_numbers_are_found(
    loop: EventLoop, poller: Poller, pair: tuple[socket.socket, socket.socket]
) -> None:
    numbers = [os.dup2(pair[0].fileno(), number) for number in (63, 64, 65, 700)]
    channels = [watch(poller, loop, number, WRITE) for number in numbers]
    assert poller.channels() == channels
    assert sorted(c.fd for c in active_of(poller)) == numbers
    for channel in channels:
        poller.remove_channel(channel)
        os.close(channel.fd)


def test_a_closed_descriptor_is_refused_and_leaves_the_poller_unchanged(
    loop: EventLoop, poller: Poller, pair: tuple[socket.socket, socket.socket]
) -> None:
    known = watch(poller, loop, pair[0].fileno(), WRITE)
    fd = os.dup(pair[0].fileno())
    os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        watch(poller, loop, fd, READ)
    assert caught.value.errno == errno.EBADF
    assert poller.channels() == [known]
    assert active_of(poller) == [known]


def test_a_negative_descriptor_is_refused_and_leaves_the_poller_unchanged(loop: EventLoop, poller: Poller) -> None:
    with pytest.raises((OSError, ValueError)):
        watch(poller, loop, -1, READ)
    assert poller.channels() == []
    assert poller.channel_count == 0


def test_what_epoll_can_not_watch_is_refused(loop: EventLoop) -> None:
    poller = EPollPoller()
    with open(__file__, "rb") as file, pytest.raises(OSError, match="not permitted") as caught:
        watch(poller, loop, file.fileno(), READ)
    assert caught.value.errno == errno.EPERM
    assert poller.channels() == []
    poller.close()


def test_a_descriptor_closed_under_its_channel_is_logged_not_raised(
    loop: EventLoop, pair: tuple[socket.socket, socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    poller = EPollPoller()
    channel = watch(poller, loop, os.dup(pair[0].fileno()), READ)
    os.close(channel.fd)
    channel.events = 0
    poller.remove_channel(channel)
    assert f"fd={channel.fd}" in caplog.text
    assert poller.channel_count == 0
    poller.close()


def test_none_is_no_channel() -> None:
    # In a process of its own: a compiled build that takes None here ends the process.
    code = """
from pymuduo import EPollPoller, PollPoller
for poller in (EPollPoller(), PollPoller()):
    for method in (poller.has_channel, poller.update_channel, poller.remove_channel):
        try:
            method(None)
        except (TypeError, AttributeError):
            print("refused")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "refused\n" * 6)


def test_close_twice_is_harmless(poller: Poller) -> None:
    poller.close()
    poller.close()
    assert poller.channels() == []


def test_repr_tells_the_kind_and_how_many(
    loop: EventLoop, poller: Poller, pair: tuple[socket.socket, socket.socket]
) -> None:
    watch(poller, loop, pair[0].fileno(), READ)
    assert repr(poller) == f"<{type(poller).__name__} 1 channels>"
