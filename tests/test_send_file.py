"""send_file: parts of files in order with everything else, in bounded memory, and told of when they can't be sent."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from conftest import (
    PATIENCE_S,
    Received,
    call_in_loop,
    eventually,
    memory_bytes,
    open_descriptors,
    receive_all,
    receive_exactly,
)
from pymuduo import EventLoop, TcpConnection, send_file

MIB = 1 << 20


class Sender:
    """A server's connection that sends files, and what it was told of them."""

    def __init__(self, serve: Any, threads: int = 0, **settings: Any) -> None:
        self.told: list[OSError | None] = []
        self.done = threading.Event()
        self.connection: TcpConnection
        self.up = threading.Event()
        self.down = threading.Event()
        self.server = serve(threads, connection_callback=self.on_connection, **settings)
        self.client = self.server.connect()
        assert self.up.wait(PATIENCE_S)

    def on_connection(self, connection: TcpConnection) -> None:
        self.connection = connection
        (self.up if connection.connected else self.down).set()

    def on_sent(self, connection: TcpConnection, error: OSError | None) -> None:
        assert connection.loop.is_in_loop_thread()
        self.told.append(error)
        self.done.set()


@pytest.fixture
def big_file(tmp_path: Path) -> Path:
    path = tmp_path / "big"
    path.write_bytes(os.urandom(MIB) * 20)
    return path


@pytest.mark.parametrize("threads", [0, 1])
def test_a_whole_file_arrives_as_it_is(serve, threads, big_file):
    sender = Sender(serve, threads)
    with sender.client as client:
        assert send_file(sender.connection, big_file, callback=sender.on_sent)
        sender.connection.shutdown()
        received = receive_all(client)
    assert hashlib.sha256(received).digest() == hashlib.sha256(big_file.read_bytes()).digest()
    assert sender.done.wait(PATIENCE_S)
    assert sender.told == [None]


def test_files_and_sends_leave_in_the_order_in_which_they_were_made(serve, tmp_path):
    sender = Sender(serve)
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")

    def send() -> None:
        connection = sender.connection
        assert connection is not None
        connection.send(b"before|")
        send_file(connection, path, 2, 5)
        connection.send(b"|between|")
        connection.send(b"more|")
        with path.open("rb") as file:
            send_file(connection, file, 8)
        send_file(connection, path, 10, 0, sender.on_sent)
        connection.send(b"|after")
        connection.shutdown()

    with sender.client as client:
        call_in_loop(sender.server.loop, send)
        assert receive_all(client) == b"before|23456|between|more|89|after"
    assert sender.told == [None]


def test_sends_of_another_thread_keep_their_place(serve, tmp_path):
    sender = Sender(serve, 1)
    path = tmp_path / "file"
    path.write_bytes(b"file")
    with sender.client as client:
        for number in range(200):
            sender.connection.send(b"<%d>" % number)
            send_file(sender.connection, path)
        sender.connection.shutdown()
        assert receive_all(client) == b"".join(b"<%d>file" % number for number in range(200))


def test_afterwards_the_connection_is_as_before(serve, tmp_path):
    sender = Sender(serve)
    path = tmp_path / "file"
    path.write_bytes(b"file")
    with sender.client as client:
        send_file(sender.connection, path, callback=sender.on_sent)
        assert receive_exactly(client, 4) == b"file"
        assert sender.done.wait(PATIENCE_S)
        eventually(lambda: sender.connection.layer is None, "the layer for files stays")
        sender.connection.send(b"more")
        assert receive_exactly(client, 4) == b"more"
        assert call_in_loop(sender.connection.loop, lambda: sender.connection.bytes_sent) == 8


def test_input_is_received_while_a_file_waits(serve, big_file):
    received = Received()
    sender = Sender(serve, message_callback=lambda c, b, t: received.extend(b.retrieve_all_as_bytes()))
    with sender.client as client:
        send_file(sender.connection, big_file)
        send_file(sender.connection, big_file)
        client.sendall(b"x" * 5000)
        eventually(lambda: len(received) == 5000)
        sender.connection.shutdown()
        assert len(receive_all(client)) == 40 * MIB


def test_what_waits_of_a_file_counts_as_output(serve, big_file):
    above: list[int] = []
    low = threading.Event()
    sender = Sender(
        serve,
        high_water_mark=MIB,
        low_water_mark=1000,
        high_water_mark_callback=lambda connection, size: above.append(size),
        low_water_mark_callback=lambda connection: low.set(),
    )
    with sender.client as client:
        send_file(sender.connection, big_file)
        eventually(lambda: above)
        assert MIB < above[0] < 20 * MIB
        assert call_in_loop(sender.server.loop, lambda: sender.connection.output_size) <= above[0]
        receive_exactly(client, 20 * MIB)
        assert low.wait(PATIENCE_S)


def test_a_file_that_becomes_shorter_ends_the_connection_and_says_so(serve, big_file):
    sender = Sender(serve)
    with sender.client as client:
        send_file(sender.connection, big_file, callback=sender.on_sent)
        receive_exactly(client, 1000)
        os.truncate(big_file, MIB)
        received = receive_all(client)
    assert len(received) < 20 * MIB
    assert sender.down.wait(PATIENCE_S)
    assert sender.done.wait(PATIENCE_S)
    assert len(sender.told) == 1
    assert "were promised" in str(sender.told[0])
    assert sender.connection.error is sender.told[0]


def test_a_file_that_is_removed_meanwhile_is_sent_all_the_same(serve, big_file):
    sender = Sender(serve)
    with sender.client as client:
        send_file(sender.connection, big_file)
        big_file.unlink()
        sender.connection.shutdown()
        assert len(receive_all(client)) == 20 * MIB


@pytest.mark.parametrize("end", ["force_close", "reset"])
def test_a_connection_that_ends_lets_go_of_the_file_and_says_so(serve, big_file, end):
    sender = Sender(serve)
    before = open_descriptors()
    with sender.client as client:
        send_file(sender.connection, big_file, callback=sender.on_sent)
        receive_exactly(client, 1000)
        if end == "force_close":
            sender.connection.force_close()
        else:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.close()
        assert sender.done.wait(PATIENCE_S)
        assert len(sender.told) == 1
        assert isinstance(sender.told[0], ConnectionError)
    eventually(lambda: open_descriptors() <= before)


def test_a_closed_connection_refuses_and_keeps_nothing(serve, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"file")
    sender = Sender(serve)
    with sender.client:
        sender.connection.force_close()
        assert sender.down.wait(PATIENCE_S)
        before = open_descriptors()
        assert send_file(sender.connection, path, callback=sender.on_sent) is False
        assert open_descriptors() <= before
    assert sender.told == []


def test_what_can_not_be_sent_is_refused_at_once(serve, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"file")
    sender = Sender(serve)
    with sender.client:
        with pytest.raises(FileNotFoundError):
            send_file(sender.connection, tmp_path / "absent")
        with pytest.raises(ValueError, match="beyond the end"):
            send_file(sender.connection, path, 2, 3)
        with pytest.raises(ValueError, match="negative"):
            send_file(sender.connection, path, -1)
        with pytest.raises(ValueError, match="no ordinary file"):
            send_file(sender.connection, tmp_path)
        reader, writer = os.pipe()
        try:
            with pytest.raises(ValueError, match="no ordinary file"):
                send_file(sender.connection, reader)
        finally:
            os.close(reader)
            os.close(writer)
        sender.connection.send(b"still here")
        assert receive_exactly(sender.client, 10) == b"still here"


def test_a_loop_that_is_closed_lets_go_of_files(big_file, pair):
    ours, _theirs = pair
    told: list[OSError | None] = []
    with EventLoop() as loop:
        connection = TcpConnection(loop, "c", os.dup(ours.fileno()), None, None)  # type: ignore[arg-type]
        connection.connect_established()
        assert send_file(connection, big_file, callback=lambda c, error: told.append(error))
        loop.quit()
        loop.run()
    assert len(told) == 1
    assert isinstance(told[0], ConnectionError)


@pytest.mark.measures_memory
def test_the_memory_does_not_grow_with_the_file(serve, tmp_path):
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(300 * MIB)

    sender = Sender(serve)
    with sender.client as client:
        before = memory_bytes()
        send_file(sender.connection, path)
        sender.connection.shutdown()
        area = bytearray(MIB)
        total, most = 0, before
        while count := client.recv_into(area):
            total += count
            most = max(most, memory_bytes())
    assert total == 300 * MIB
    assert most - before < 30 * MIB
