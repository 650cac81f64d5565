"""pipe: every byte in order, both ways, within bounds, and the end of one made known to the other."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import os
import random
import socket
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from conftest import (
    PATIENCE_S,
    ServerThread,
    call_in_loop,
    eventually,
    memory_bytes,
    receive_all,
    receive_exactly,
    reset,
)
from pymuduo import Buffer, TcpConnection, Timestamp
from pymuduo.pipe import Pipe, pipe

MIB = 1 << 20


class Ends:
    """Two clients of one server whose connections are to be coupled."""

    def __init__(self, server: ServerThread, ups: list[TcpConnection]) -> None:
        self.loop = server.loop
        self.near = server.connect()
        eventually(lambda: len(ups) == 1)
        self.far = server.connect()
        eventually(lambda: len(ups) == 2)
        self.one, self.other = ups

    def couple(self, **marks: int) -> Pipe:
        return pipe(self.one, self.other, **marks)

    def close(self) -> None:
        self.near.close()
        self.far.close()


Couple = Callable[..., Ends]


@pytest.fixture(params=[0, 2], ids=["one-loop", "two-loops"])
def ends_of(request: pytest.FixtureRequest, serve) -> Iterator[Couple]:
    """Return a function that makes two clients of a server whose connections do not read yet."""
    with contextlib.ExitStack() as stack:

        def make(**settings: Any) -> Ends:
            ups: list[TcpConnection] = []
            users = settings.pop("connection_callback", None)

            def on_connection(connection: TcpConnection) -> None:
                if connection.connected:
                    connection.stop_read()
                    ups.append(connection)
                if users is not None:
                    users(connection)

            ends = Ends(serve(request.param, connection_callback=on_connection, **settings), ups)
            stack.callback(ends.close)
            return ends

        yield make


@pytest.fixture(params=["here", "in one's loop", "in the other's loop"])
def couple(request: pytest.FixtureRequest, ends_of: Couple) -> Callable[..., tuple[Ends, Pipe]]:
    """Return a function that makes two clients and couples their connections, from whatever thread."""

    def make(**marks: int) -> tuple[Ends, Pipe]:
        ends = ends_of()
        if request.param == "here":
            return ends, ends.couple(**marks)
        connection = ends.one if request.param == "in one's loop" else ends.other
        return ends, call_in_loop(connection.loop, lambda: ends.couple(**marks))

    return make


@pytest.mark.parametrize("data", [b"", b"early"])
def test_a_fin_from_before_the_pipe_is_passed_on(ends_of, data):
    halves: list[TcpConnection] = []
    ends = ends_of(peer_shutdown_callback=halves.append, message_callback=lambda c, b, t: None)
    assert not call_in_loop(ends.one.loop, lambda: ends.one.peer_has_shut_down)
    if data:
        ends.one.start_read()
    ends.near.sendall(data)
    ends.near.shutdown(socket.SHUT_WR)
    eventually(lambda: halves == [ends.one])
    assert call_in_loop(ends.one.loop, lambda: ends.one.peer_has_shut_down)
    coupled = ends.couple()
    assert receive_all(ends.far) == data
    ends.far.sendall(b"answer")
    ends.far.shutdown(socket.SHUT_WR)
    assert receive_all(ends.near) == b"answer"
    eventually(lambda: coupled.is_closed)


def feed(sock: socket.socket, data: bytes, *, end: bool = True, seed: int = 0) -> threading.Thread:
    """Send *data* in pieces of all sizes, in a thread; then FIN."""
    sizes = random.Random(seed)

    def send() -> None:
        at = 0
        with contextlib.suppress(OSError):
            while at < len(data):
                piece = data[at : at + sizes.choice((1, 100, 5000, 70_000, 300_000))]
                sock.sendall(piece)
                at += len(piece)
            if end:
                sock.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def end_of(sock: socket.socket) -> bytes:
    """Receive until the stream ends or is cut off."""
    received = bytearray()
    with contextlib.suppress(ConnectionResetError):
        while chunk := sock.recv(MIB):
            received += chunk
    return bytes(received)


def wait_until_closed(coupled: Pipe) -> None:
    eventually(lambda: coupled.is_closed)


def wait_for_input(connection: TcpConnection, count: int) -> None:
    eventually(lambda: call_in_loop(connection.loop, lambda: connection.input_size) == count)


# --- bytes ---


@pytest.mark.parametrize("marks", [{}, {"high_water_mark": 1000, "low_water_mark": 1}])
def test_every_byte_arrives_in_order_both_ways_at_once(couple, marks):
    ends, coupled = couple(**marks)
    forth, back = os.urandom(3 * MIB), os.urandom(2 * MIB)
    senders = [feed(ends.near, forth, seed=1), feed(ends.far, back, seed=2)]
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(receive_all(ends.near)))
    reader.start()
    assert receive_all(ends.far) == forth
    reader.join(PATIENCE_S)
    assert received == [back]
    for sender in senders:
        sender.join(PATIENCE_S)
    wait_until_closed(coupled)
    assert (coupled.forth.byte_count, coupled.back.byte_count) == (len(forth), len(back))


def test_many_small_messages_go_back_and_forth(couple):
    ends, _ = couple()
    for number in range(300):
        word = b"%d" % number
        ends.near.sendall(word)
        assert receive_exactly(ends.far, len(word)) == word
        ends.far.sendall(word)
        assert receive_exactly(ends.near, len(word)) == word


def test_bytes_that_are_on_their_way_while_it_is_made_keep_their_order(couple):
    for turn in range(20):
        ends, coupled = couple()
        words = b"".join(b"%d " % number for number in range(2000))
        senders = [feed(ends.near, words, seed=turn), feed(ends.far, words, seed=turn)]
        assert receive_exactly(ends.far, len(words)) == words
        assert receive_exactly(ends.near, len(words)) == words
        for sender in senders:
            sender.join(PATIENCE_S)
        coupled.force_close()
        wait_until_closed(coupled)


def test_what_waits_in_the_input_buffers_goes_first(ends_of):
    ends = ends_of()
    for connection in (ends.one, ends.other):
        connection.message_callback = lambda c, buffer, receive_time: None  # leave it
        connection.start_read()
    ends.near.sendall(b"first ")
    ends.far.sendall(b"FIRST ")
    for connection in (ends.one, ends.other):
        wait_for_input(connection, 6)
    ends.couple()
    ends.near.sendall(b"then")
    ends.far.sendall(b"THEN")
    assert receive_exactly(ends.far, 10) == b"first then"
    assert receive_exactly(ends.near, 10) == b"FIRST THEN"


def test_it_may_be_made_in_a_message_callback_whose_rest_goes_on(ends_of):
    ends = ends_of()

    def take_preamble(connection: TcpConnection, buffer: Buffer, receive_time: Timestamp) -> None:
        assert buffer.retrieve_as_bytes(6) == b"HELLO\n"
        ends.couple()

    ends.one.message_callback = take_preamble
    ends.one.start_read()
    ends.near.sendall(b"HELLO\nand the rest")
    assert receive_exactly(ends.far, 12) == b"and the rest"
    ends.far.sendall(b"welcome")
    assert receive_exactly(ends.near, 7) == b"welcome"


# --- bounds ---


@pytest.mark.measures_memory
def test_a_slow_reader_holds_the_sender_up_and_costs_no_memory(couple):
    ends, coupled = couple()
    block = os.urandom(MIB)
    blocks = 200
    sent = hashlib.sha256()
    for _ in range(blocks):
        sent.update(block)

    def send() -> None:
        for _ in range(blocks):
            ends.near.sendall(block)
        ends.near.shutdown(socket.SHUT_WR)

    before = memory_bytes()
    most = 0
    sender = threading.Thread(target=send)
    sender.start()
    eventually(lambda: coupled.forth.pause_count)
    received = hashlib.sha256()
    into = memoryview(bytearray(MIB))
    while count := ends.far.recv_into(into):
        received.update(into[:count])
        most = max(most, memory_bytes())
    sender.join(PATIENCE_S)
    assert received.digest() == sent.digest()
    assert most - before < 20 * MIB


def test_one_direction_goes_on_while_the_other_is_held_up(couple):
    ends, coupled = couple(high_water_mark=100_000)
    flood = bytes(64 * MIB)
    sender = feed(ends.near, flood)
    eventually(lambda: coupled.forth.pause_count)
    answer = os.urandom(3 * MIB)
    answering = feed(ends.far, answer)
    assert receive_exactly(ends.near, len(answer)) == answer
    assert coupled.back.byte_count == len(answer)
    assert coupled.forth.byte_count < len(flood)
    assert len(receive_all(ends.far)) == len(flood)
    sender.join(PATIENCE_S)
    answering.join(PATIENCE_S)


def test_held_up_and_going_on_many_times(couple):
    ends, coupled = couple(high_water_mark=70_000, low_water_mark=10_000)
    data = os.urandom(30 * MIB)
    sender = feed(ends.near, data)
    eventually(lambda: coupled.forth.pause_count)
    assert receive_all(ends.far) == data
    sender.join(PATIENCE_S)


# --- the end ---


def test_the_end_of_one_direction_is_passed_on_and_the_other_goes_on(couple):
    ends, coupled = couple()
    ends.near.sendall(b"a question")
    ends.near.shutdown(socket.SHUT_WR)
    assert receive_all(ends.far) == b"a question"
    for _ in range(3):
        ends.far.sendall(b"a long answer ")
        assert receive_exactly(ends.near, 14) == b"a long answer "
    assert not coupled.is_closed
    ends.far.shutdown(socket.SHUT_WR)
    assert ends.near.recv(1) == b""
    wait_until_closed(coupled)
    assert ends.one.error is None
    assert ends.other.error is None


def test_an_end_waits_behind_bytes_that_are_held_up(couple):
    ends, coupled = couple(high_water_mark=10_000)
    data = os.urandom(8 * MIB)
    sender = feed(ends.near, data)
    eventually(lambda: coupled.forth.pause_count)
    assert receive_all(ends.far) == data
    sender.join(PATIENCE_S)


@pytest.mark.parametrize("how", ["reset", "force_close"])
def test_who_breaks_takes_the_other_along_after_what_was_received(couple, how):
    ends, coupled = couple()
    ends.near.sendall(b"last words")
    eventually(lambda: coupled.forth.byte_count == 10)
    if how == "reset":
        reset(ends.near)
    else:
        ends.one.force_close()
    assert end_of(ends.far) == b"last words"
    wait_until_closed(coupled)


def test_what_was_received_of_one_that_broke_still_goes_to_a_slow_reader(couple):
    ends, coupled = couple(high_water_mark=16 * MIB)
    data = os.urandom(8 * MIB)
    sender = feed(ends.near, data, end=False)
    sender.join(PATIENCE_S)
    eventually(lambda: coupled.forth.byte_count == len(data))
    ends.one.force_close()
    eventually(lambda: ends.one.disconnected)
    assert end_of(ends.far) == data
    wait_until_closed(coupled)


def test_one_that_leaves_in_the_middle_of_a_flood_ends_the_flood(couple):
    ends, coupled = couple()
    sender = feed(ends.near, bytes(64 * MIB))
    receive_exactly(ends.far, MIB)
    ends.far.close()  # unread bytes: the kernel resets
    end_of(ends.near)
    sender.join(PATIENCE_S)
    assert not sender.is_alive()
    wait_until_closed(coupled)


def test_force_close_ends_both(couple):
    ends, coupled = couple()
    coupled.force_close()
    assert end_of(ends.near) == end_of(ends.far) == b""
    wait_until_closed(coupled)


def test_a_connection_that_has_ended_already_takes_the_other_along(ends_of):
    ends = ends_of()
    ends.near.close()
    eventually(lambda: ends.one.disconnected)
    coupled = ends.couple()
    assert end_of(ends.far) == b""
    wait_until_closed(coupled)


def test_both_may_have_ended_already(ends_of):
    ends = ends_of()
    ends.close()
    eventually(lambda: ends.one.disconnected and ends.other.disconnected)
    coupled = ends.couple()
    wait_until_closed(coupled)


# --- callbacks, and what is left ---


def test_callbacks_of_the_connections_are_called_before_the_pipes_own(ends_of):
    events: list[str] = []

    def on_connection(connection: TcpConnection) -> None:
        if not connection.connected:
            events.append("down")

    ends = ends_of(connection_callback=on_connection, close_callback=lambda c: events.append("close"))
    coupled = ends.couple()
    coupled.closed_callback = lambda p: events.append("pipe" if p is coupled else "another pipe")
    ends.near.shutdown(socket.SHUT_WR)
    ends.far.shutdown(socket.SHUT_WR)
    eventually(lambda: len(events) == 5)
    assert sorted(events) == ["close", "close", "down", "down", "pipe"]
    assert events[-1] == "pipe"


@pytest.mark.provokes_errors("no pipe was expected to end")
def test_a_closed_callback_that_raises_is_reported(ends_of, caplog):
    ends = ends_of()
    coupled = ends.couple()

    def fail(closed: Pipe) -> None:
        raise ValueError("no pipe was expected to end")

    coupled.closed_callback = fail
    coupled.force_close()
    eventually(lambda: "no pipe was expected to end" in caplog.text)


def test_a_connection_that_is_kept_keeps_no_pipe(ends_of):
    ends = ends_of()
    reference = weakref.ref(ends.couple())
    ends.close()

    def is_gone() -> bool:
        gc.collect()
        return reference() is None

    eventually(is_gone)
    assert ends.one.close_callback is None


def test_it_lives_without_being_referenced(ends_of):
    ends = ends_of()
    ends.couple()
    gc.collect()
    ends.near.sendall(b"hello")
    assert receive_exactly(ends.far, 5) == b"hello"


def test_repr_tells_whom_it_couples_and_how_much_went_through(ends_of):
    ends = ends_of()
    coupled = ends.couple()
    ends.near.sendall(b"hello")
    receive_exactly(ends.far, 5)
    names = f"{ends.one.name} and {ends.other.name}"
    assert repr(coupled) == f"<Pipe {names}, 5 bytes forth, 0 back>"
    coupled.force_close()
    wait_until_closed(coupled)
    assert repr(coupled) == f"<Pipe {names} closed, 5 bytes forth, 0 back>"


def test_what_makes_no_sense_is_refused(ends_of):
    ends = ends_of()
    with pytest.raises(ValueError, match="can't be coupled with itself"):
        pipe(ends.one, ends.one)
    for marks in ({"high_water_mark": 3}, {"high_water_mark": 10, "low_water_mark": 10}, {"high_water_mark": 0}):
        with pytest.raises(ValueError, match="low_water_mark must be above 0"):
            ends.couple(**marks)


def test_a_connection_that_is_not_up_yet_is_refused(ends_of, pair):
    ends = ends_of()
    one, _ = pair
    address = ends.one.local_address
    unborn = TcpConnection(ends.one.loop, "unborn", os.dup(one.fileno()), address, address)
    with pytest.raises(ValueError, match="is not up yet"):
        pipe(ends.one, unborn)
    unborn.discard()
