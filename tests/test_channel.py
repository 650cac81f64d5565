"""Channel: one descriptor's events become callbacks, for whoever is interested now."""

# mypy: disable-error-code="func-returns-value"
# (lambda: (first(), second()) is how a callback does two things here)

from __future__ import annotations

import errno
import gc
import os
import socket
import threading
import weakref
from typing import Any

import pytest

from pymuduo import Channel, EventLoop, Timestamp

READ, WRITE, ERROR, HANG_UP, INVALID, PEER_SHUTDOWN = 0x1, 0x4, 0x8, 0x10, 0x20, 0x2000


class Recorder:
    """A channel whose callbacks note that they were called."""

    def __init__(self, loop: EventLoop, fd: int) -> None:
        self.channel = Channel(loop, fd)
        self.called: list[str] = []
        self.times: list[Timestamp] = []
        self.channel.read_callback = self.on_read
        self.channel.write_callback = lambda: self.called.append("write")
        self.channel.close_callback = lambda: self.called.append("close")
        self.channel.error_callback = lambda: self.called.append("error")

    def on_read(self, receive_time: Timestamp) -> None:
        self.called.append("read")
        self.times.append(receive_time)

    def end(self) -> None:
        self.channel.disable_all()
        self.channel.remove()


def iterate(loop: EventLoop, times: int = 1) -> None:
    """Run iterations that do not wait."""
    for _ in range(times):
        loop.queue_in_loop(loop.quit)
        loop.run()


# --- each callback ---


def test_the_read_callback_gets_the_time_at_which_the_poll_returned(
    loop: EventLoop, pair: tuple[socket.socket, socket.socket]
) -> None:
    recorder = Recorder(loop, pair[0].fileno())
    recorder.channel.enable_reading()
    iterate(loop)
    assert recorder.called == []
    pair[1].send(b"x")
    before = Timestamp.now()
    iterate(loop)
    assert recorder.called == ["read"]
    assert before <= recorder.times[0] <= Timestamp.now()
    recorder.end()


def test_events_are_level_triggered(loop: EventLoop, pair: tuple[socket.socket, socket.socket]) -> None:
    recorder = Recorder(loop, pair[0].fileno())
    recorder.channel.enable_reading()
    pair[1].send(b"xy")
    iterate(loop, 3)
    assert recorder.called == ["read"] * 3
    pair[0].recv(2)
    iterate(loop)
    assert recorder.called == ["read"] * 3
    recorder.end()


def test_the_write_callback_comes_while_there_is_room(
    loop: EventLoop, pair: tuple[socket.socket, socket.socket]
) -> None:
    recorder = Recorder(loop, pair[0].fileno())
    recorder.channel.enable_writing()
    iterate(loop)
    assert recorder.called == ["write"]
    try:
        while True:
            pair[0].send(b"x" * 65536)
    except BlockingIOError:
        pass
    iterate(loop)
    assert recorder.called == ["write"]
    recorder.end()


def test_read_comes_before_write(loop: EventLoop, pair: tuple[socket.socket, socket.socket]) -> None:
    recorder = Recorder(loop, pair[0].fileno())
    recorder.channel.enable_writing()
    recorder.channel.enable_reading()
    pair[1].send(b"x")
    iterate(loop)
    assert recorder.called == ["read", "write"]
    recorder.end()


def test_a_peer_that_leaves_bytes_behind_is_read_before_it_is_closed(
    loop: EventLoop, pair: tuple[socket.socket, socket.socket]
) -> None:
    recorder = Recorder(loop, pair[0].fileno())
    recorder.channel.enable_reading()
    pair[1].send(b"last words")
    pair[1].close()
    iterate(loop)
    assert recorder.called == ["read"]
    recorder.end()


def test_without_a_close_callback_the_end_of_a_pipe_comes_to_the_read_callback(loop: EventLoop) -> None:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    heard: list[bytes] = []
    channel = Channel(loop, reader)

    def on_readable(receive_time: Timestamp) -> None:
        heard.append(os.read(reader, 100))
        if not heard[-1]:
            channel.disable_all()
            channel.remove()
            loop.quit()

    channel.read_callback = on_readable
    channel.enable_reading()
    os.write(writer, b"last words")
    os.close(writer)
    loop.run()
    os.close(reader)
    assert heard == [b"last words", b""]


def test_the_close_callback_comes_on_a_hang_up_with_nothing_to_read(loop: EventLoop) -> None:
    read_end, write_end = os.pipe2(os.O_NONBLOCK)
    recorder = Recorder(loop, read_end)
    recorder.channel.enable_reading()
    os.close(write_end)
    iterate(loop)
    assert recorder.called == ["close"]
    recorder.end()
    os.close(read_end)


def test_the_error_callback_comes_on_an_error(loop: EventLoop) -> None:
    read_end, write_end = os.pipe2(os.O_NONBLOCK)
    recorder = Recorder(loop, write_end)
    recorder.channel.enable_writing()
    os.close(read_end)
    iterate(loop)
    assert recorder.called == ["error", "write"]
    recorder.end()
    os.close(write_end)


def test_unset_callbacks_are_not_called(loop: EventLoop, caplog: pytest.LogCaptureFixture) -> None:
    read_end, write_end = os.pipe2(os.O_NONBLOCK)
    reader, writer = Channel(loop, read_end), Channel(loop, write_end)
    reader.enable_reading()
    writer.enable_writing()
    os.write(write_end, b"x")
    iterate(loop)
    writer.disable_all()
    writer.remove()
    os.close(write_end)
    os.read(read_end, 1)
    iterate(loop)
    reader.disable_all()
    reader.remove()
    os.close(read_end)
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("interest", "revents", "expected"),
    [
        (READ, READ, ["read"]),
        (READ, WRITE, []),
        (WRITE, READ, []),
        (READ | WRITE, READ | WRITE, ["read", "write"]),
        (READ, HANG_UP, ["close"]),
        (READ, HANG_UP | READ, ["read"]),
        (WRITE, HANG_UP | WRITE, ["close", "write"]),
        (READ, ERROR, ["error"]),
        (READ, INVALID, ["error"]),
        (READ, ERROR | READ | HANG_UP, ["error", "read"]),
        (READ, PEER_SHUTDOWN, []),
        (READ | PEER_SHUTDOWN, PEER_SHUTDOWN, ["read"]),
        (ERROR, ERROR, ["error"]),
        (READ | WRITE, ERROR | HANG_UP | WRITE, ["close", "error", "write"]),
    ],
)
def test_the_order_of_callbacks_is_close_error_read_write(
    loop: EventLoop, pair: tuple[socket.socket, socket.socket], interest: int, revents: int, expected: list[str]
) -> None:
    recorder = Recorder(loop, pair[0].fileno())
    recorder.channel.set_interest(interest)
    recorder.channel.revents = revents
    recorder.channel.handle_event()
    assert recorder.called == expected
    recorder.end()


# --- the interest set ---


def test_interest_is_what_was_asked_for(loop: EventLoop, pair: tuple[socket.socket, socket.socket]) -> None:
    channel = Channel(loop, pair[0].fileno())
    assert channel.is_none_event
    channel.enable_reading()
    channel.enable_writing()
    assert (channel.is_reading, channel.is_writing, channel.is_none_event) == (True, True, False)
    assert channel.events == READ | WRITE
    channel.disable_reading()
    assert (channel.is_reading, channel.is_writing) == (False, True)
    channel.disable_writing()
    assert channel.is_none_event
    channel.enable_reading()
    channel.disable_all()
    assert channel.is_none_event
    channel.remove()


def test_without_interest_not_even_a_hang_up_is_reported(
    loop: EventLoop, pair: tuple[socket.socket, socket.socket]
) -> None:
    recorder = Recorder(loop, pair[0].fileno())
    recorder.channel.enable_reading()
    recorder.channel.disable_reading()
    pair[1].close()
    iterate(loop, 2)
    assert recorder.called == []
    recorder.channel.remove()


def test_interest_in_errors_alone_keeps_a_channel_watched_for_hang_ups(
    loop: EventLoop, pair: tuple[socket.socket, socket.socket]
) -> None:
    recorder = Recorder(loop, pair[0].fileno())
    recorder.channel.set_interest(ERROR)
    pair[1].send(b"x")
    iterate(loop)
    assert recorder.called == []
    pair[0].recv(1)
    pair[1].close()
    iterate(loop)
    assert recorder.called == ["close"]
    recorder.end()


def test_an_interest_can_be_taken_up_again(loop: EventLoop, pair: tuple[socket.socket, socket.socket]) -> None:
    recorder = Recorder(loop, pair[0].fileno())
    pair[1].send(b"x")
    for round_ in range(1, 4):
        recorder.channel.enable_reading()
        iterate(loop)
        recorder.channel.disable_all()
        iterate(loop)
        assert recorder.called == ["read"] * round_
    recorder.channel.remove()
    recorder.channel.enable_reading()  # also after remove: it comes back
    iterate(loop)
    assert recorder.called == ["read"] * 4
    recorder.end()


def test_interest_lost_in_the_read_callback_masks_the_write_of_the_same_event(
    loop: EventLoop, pair: tuple[socket.socket, socket.socket]
) -> None:
    recorder = Recorder(loop, pair[0].fileno())
    recorder.channel.read_callback = lambda _: (recorder.called.append("read"), recorder.channel.disable_writing())
    recorder.channel.enable_reading()
    recorder.channel.enable_writing()
    pair[1].send(b"x")
    iterate(loop)
    assert recorder.called == ["read"]
    recorder.end()


def test_disabled_in_the_close_callback_it_hears_nothing_more(
    loop: EventLoop, pair: tuple[socket.socket, socket.socket]
) -> None:
    recorder = Recorder(loop, pair[0].fileno())
    recorder.channel.close_callback = lambda: (recorder.called.append("close"), recorder.end())
    recorder.channel.set_interest(READ | WRITE)
    recorder.channel.revents = HANG_UP | ERROR | WRITE
    recorder.channel.handle_event()
    assert recorder.called == ["close"]


def test_disabled_in_the_error_callback_it_hears_nothing_more(
    loop: EventLoop, pair: tuple[socket.socket, socket.socket]
) -> None:
    recorder = Recorder(loop, pair[0].fileno())
    recorder.channel.error_callback = lambda: (recorder.called.append("error"), recorder.end())
    recorder.channel.set_interest(READ | WRITE)
    recorder.channel.revents = ERROR | READ | WRITE
    recorder.channel.handle_event()
    assert recorder.called == ["error"]


# --- the same iteration ---


@pytest.mark.parametrize("how", ["disable", "remove", "close"])
def test_a_channel_stopped_by_another_ones_handler_is_not_called_any_more(loop: EventLoop, how: str) -> None:
    pairs = [socket.socketpair() for _ in range(2)]
    recorders = [Recorder(loop, one.fileno()) for one, _ in pairs]

    def stop(other: int) -> None:
        recorders[other].channel.disable_all()
        if how != "disable":
            recorders[other].channel.remove()
        if how == "close":
            pairs[other][0].close()

    # Whichever is handled first stops the other one.
    recorders[0].channel.read_callback = lambda _: (recorders[0].called.append("read"), stop(1))
    recorders[1].channel.read_callback = lambda _: (recorders[1].called.append("read"), stop(0))
    for recorder, (_, theirs) in zip(recorders, pairs, strict=True):
        recorder.channel.enable_reading()
        theirs.send(b"x")
    iterate(loop)
    assert sorted(len(recorder.called) for recorder in recorders) == [0, 1]
    for recorder, (one, theirs) in zip(recorders, pairs, strict=True):
        recorder.end()
        one.close()
        theirs.close()


def test_a_new_channel_on_a_reused_number_gets_no_old_events(loop: EventLoop) -> None:
    pairs = [socket.socketpair() for _ in range(2)]
    recorders = [Recorder(loop, one.fileno()) for one, _ in pairs]
    newcomers: list[tuple[Recorder, socket.socket, socket.socket]] = []

    def replace(other: int) -> None:
        number = pairs[other][0].fileno()
        recorders[other].end()
        pairs[other][0].close()
        one, theirs = socket.socketpair()
        if one.fileno() == number:
            reused = one
        else:
            os.dup2(one.fileno(), number)
            one.close()
            reused = socket.socket(fileno=number)
        # The number has come back as another, silent connection.
        newcomer = Recorder(loop, number)
        newcomer.channel.enable_reading()
        newcomers.append((newcomer, reused, theirs))

    recorders[0].channel.read_callback = lambda _: (recorders[0].called.append("read"), replace(1))
    recorders[1].channel.read_callback = lambda _: (recorders[1].called.append("read"), replace(0))
    for recorder, (_, theirs) in zip(recorders, pairs, strict=True):
        recorder.channel.enable_reading()
        theirs.send(b"x")
    iterate(loop)
    ((newcomer, reused, theirs),) = newcomers
    assert newcomer.called == []
    theirs.send(b"y")
    for recorder in recorders:
        recorder.end()
    iterate(loop)
    assert newcomer.called == ["read"]
    newcomer.end()
    for sock in (reused, theirs, *pairs[0], *pairs[1]):
        sock.close()


def test_a_channel_may_end_itself_in_its_callback(loop: EventLoop, pair: tuple[socket.socket, socket.socket]) -> None:
    recorder = Recorder(loop, pair[0].fileno())
    recorder.channel.read_callback = lambda _: (recorder.called.append("read"), recorder.end())
    recorder.channel.enable_reading()
    pair[1].send(b"x")
    iterate(loop, 2)
    assert recorder.called == ["read"]
    assert not loop.has_channel(recorder.channel)


def test_urgent_data_does_not_spin_the_loop(loop: EventLoop) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as client,
    ):
        ours, _ = listener.accept()
        ours.setblocking(False)
        recorder = Recorder(loop, ours.fileno())
        received = bytearray()
        recorder.channel.read_callback = lambda _: received.extend(ours.recv(100))
        recorder.channel.enable_reading()
        client.send(b"!", socket.MSG_OOB)
        client.send(b"normal")
        loop.run_after(0.2, loop.quit)
        before = loop.iteration
        loop.run()
        assert bytes(received) == b"normal"
        assert loop.iteration - before < 10
        recorder.end()
        ours.close()


@pytest.mark.provokes_errors("of a handler")
def test_a_handler_that_raises_does_not_keep_events_from_the_others(
    loop: EventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    pairs = [socket.socketpair() for _ in range(3)]
    called: list[int] = []

    def handle(number: int) -> None:
        called.append(number)
        raise ZeroDivisionError("of a handler")

    recorders = [Recorder(loop, one.fileno()) for one, _ in pairs]
    for number, (recorder, (_, theirs)) in enumerate(zip(recorders, pairs, strict=True)):
        recorder.channel.read_callback = lambda _, number=number: handle(number)
        recorder.channel.enable_reading()
        theirs.send(b"x")
    iterate(loop)
    assert sorted(called) == [0, 1, 2]
    assert caplog.text.count("ZeroDivisionError: of a handler") == 3
    assert "<Channel fd=" in caplog.text
    for recorder, (one, theirs) in zip(recorders, pairs, strict=True):
        recorder.end()
        one.close()
        theirs.close()


# --- tie ---


class Owner:
    """Owns a recorder's channel and ties it to itself."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        recorder.channel.tie(self)


def test_a_tied_channel_calls_back_while_its_owner_lives(
    loop: EventLoop, pair: tuple[socket.socket, socket.socket]
) -> None:
    recorder = Recorder(loop, pair[0].fileno())
    owner = Owner(recorder)
    recorder.channel.enable_reading()
    pair[1].send(b"x")
    iterate(loop)
    assert owner.recorder.called == ["read"]
    recorder.end()


def test_a_tied_channel_never_calls_back_for_an_owner_that_is_gone(
    loop: EventLoop, pair: tuple[socket.socket, socket.socket]
) -> None:
    recorder = Recorder(loop, pair[0].fileno())
    owner = Owner(recorder)
    recorder.channel.enable_reading()
    pair[1].send(b"x")
    del owner
    gc.collect()
    iterate(loop)
    assert recorder.called == []
    recorder.end()


def test_the_owner_is_kept_alive_during_a_callback_and_only_then(
    loop: EventLoop, pair: tuple[socket.socket, socket.socket]
) -> None:
    recorder = Recorder(loop, pair[0].fileno())
    owners = [Owner(recorder)]
    gone = weakref.ref(owners[0])
    alive: list[bool] = []

    def drop_the_owner(_: object) -> None:
        owners.clear()
        gc.collect()
        alive.append(gone() is not None)
        recorder.channel.disable_all()

    recorder.channel.read_callback = drop_the_owner
    recorder.channel.enable_reading()
    pair[1].send(b"x")
    iterate(loop)
    assert alive == [True]
    gc.collect()
    assert gone() is None
    recorder.channel.remove()


def test_an_owner_that_can_not_be_weakly_referenced_is_refused(
    loop: EventLoop, pair: tuple[socket.socket, socket.socket]
) -> None:
    with pytest.raises(TypeError):
        Channel(loop, pair[0].fileno()).tie(5)


# --- refusals ---


def test_remove_while_interested_raises_and_changes_nothing(
    loop: EventLoop, pair: tuple[socket.socket, socket.socket]
) -> None:
    channel = Channel(loop, pair[0].fileno())
    channel.enable_reading()
    with pytest.raises(RuntimeError, match="must be disabled before it is removed"):
        channel.remove()
    assert loop.has_channel(channel)
    assert channel.is_reading
    channel.disable_all()
    channel.remove()
    assert not loop.has_channel(channel)


def test_remove_twice_is_harmless(loop: EventLoop, pair: tuple[socket.socket, socket.socket]) -> None:
    channel = Channel(loop, pair[0].fileno())
    channel.enable_reading()
    channel.disable_all()
    channel.remove()
    channel.remove()


def test_remove_of_a_channel_never_enabled_is_harmless(
    loop: EventLoop, pair: tuple[socket.socket, socket.socket]
) -> None:
    Channel(loop, pair[0].fileno()).remove()


@pytest.mark.parametrize("method", ["enable_reading", "enable_writing", "remove"])
def test_another_thread_is_refused_and_nothing_changes(
    loop_thread: EventLoop, pair: tuple[socket.socket, socket.socket], method: str
) -> None:
    channel = Channel(loop_thread, pair[0].fileno())
    with pytest.raises(RuntimeError, match=rf"'loop'.*'{threading.current_thread().name}'"):
        getattr(channel, method)()
    assert channel.is_none_event


def test_a_second_channel_of_a_descriptor_is_refused(
    loop: EventLoop, pair: tuple[socket.socket, socket.socket]
) -> None:
    first, second = Recorder(loop, pair[0].fileno()), Channel(loop, pair[0].fileno())
    first.channel.enable_reading()
    with pytest.raises(ValueError, match=rf"descriptor {pair[0].fileno()} already has a channel"):
        second.enable_reading()
    assert second.is_none_event
    assert loop.has_channel(first.channel)
    assert not loop.has_channel(second)
    second.remove()
    assert loop.has_channel(first.channel)
    first.end()


def test_a_closed_descriptor_is_refused_and_the_interest_stays_none(loop: EventLoop) -> None:
    fd = os.open("/dev/null", os.O_RDONLY)
    os.close(fd)
    channel = Channel(loop, fd)
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        channel.enable_reading()
    assert caught.value.errno == errno.EBADF
    assert channel.is_none_event
    assert not loop.has_channel(channel)


def test_a_negative_descriptor_is_refused_and_leaves_nothing_behind(loop: EventLoop) -> None:
    def enable() -> Channel:
        channel = Channel(loop, -1)
        channel.enable_reading()
        return channel

    with pytest.raises((OSError, ValueError)):
        enable()
    with pytest.raises((OSError, ValueError)):
        enable()


# --- the object ---


def test_repr_names_descriptor_and_events(loop: EventLoop, pair: tuple[socket.socket, socket.socket]) -> None:
    channel = Channel(loop, pair[0].fileno())
    assert repr(channel) == f"<Channel fd={channel.fd} events=none revents=none>"
    channel.enable_reading()
    channel.enable_writing()
    channel.revents = HANG_UP | READ | PEER_SHUTDOWN | ERROR | INVALID
    assert repr(channel) == f"<Channel fd={channel.fd} events=IN|OUT revents=IN|ERR|HUP|NVAL|RDHUP>"
    channel.disable_all()
    channel.remove()


def test_an_unknown_attribute_is_refused(loop: EventLoop, pair: tuple[socket.socket, socket.socket]) -> None:
    channel: Any = Channel(loop, pair[0].fileno())
    with pytest.raises(AttributeError):
        channel.raed_callback = None
