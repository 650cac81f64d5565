"""TcpConnection: what its users rely on, over real sockets."""

from __future__ import annotations

import array
import contextlib
import logging
import os
import socket
import subprocess
import sys
import threading
from typing import Any

import pytest

from conftest import PATIENCE_S, Received, call_in_loop, eventually, own_sockets, receive_all, receive_exactly, reset
from pymuduo import Buffer, Channel, ConnectionState, EventLoop, InetAddress, Layer, TcpConnection
from pymuduo.tcp_connection import ConnectionOwner

MIB = 1 << 20


class Recorder:
    """Callbacks that note what they were called with, and the connection once it is up."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.up = threading.Event()
        self.down = threading.Event()
        self.closed = threading.Event()
        self.connection: TcpConnection | None = None
        self.received = Received()

    def settings(self) -> dict[str, Any]:
        return {
            "connection_callback": self.on_connection,
            "message_callback": self.on_message,
            "close_callback": self.on_close,
        }

    def on_connection(self, connection: TcpConnection) -> None:
        if connection.connected:
            self.events.append("up")
            self.connection = connection
            self.up.set()
        else:
            self.events.append("down")
            self.down.set()

    def on_message(self, connection: TcpConnection, buffer: Buffer, receive_time: object) -> None:
        self.events.append("message")
        self.received += buffer.retrieve_all_as_bytes()

    def on_close(self, connection: TcpConnection) -> None:
        self.events.append("close")
        self.closed.set()

    def wait_up(self) -> TcpConnection:
        assert self.up.wait(PATIENCE_S)
        assert self.connection is not None
        return self.connection


@pytest.fixture(params=[0, 1], ids=["base-loop", "io-thread"])
def threads(request: pytest.FixtureRequest) -> int:
    """Run the test with the connection in the base loop and in a thread of the pool."""
    return int(request.param)


# --- the life ---


def test_callbacks_run_in_order_up_message_down_close(serve, threads):
    recorder = Recorder()
    server = serve(threads, **recorder.settings())
    with server.connect() as client:
        client.sendall(b"hello")
        eventually(lambda: bytes(recorder.received) == b"hello")
    assert recorder.closed.wait(PATIENCE_S)
    assert recorder.events == ["up", "message", "down", "close"]


def test_states_go_connecting_connected_disconnecting_disconnected(loop):
    seen = []
    connection, theirs = unborn(loop)
    connection.connection_callback = lambda c: seen.append(c.state)
    states = [connection.state]
    connection.connect_established()
    states.append(connection.state)
    connection.shutdown()
    states.append(connection.state)
    theirs.close()
    connection.close_callback = lambda c: loop.quit()
    loop.run()
    states.append(connection.state)
    assert [state.name for state in states] == ["CONNECTING", "CONNECTED", "DISCONNECTING", "DISCONNECTED"]
    assert seen == [ConnectionState.CONNECTED, ConnectionState.DISCONNECTED]
    connection.connect_destroyed()
    connection.connect_destroyed()


def test_a_connection_closed_before_it_was_established_never_calls_back(loop):
    connection, theirs = unborn(loop)
    called: list[str] = []
    connection.connection_callback = lambda c: called.append("connection")
    connection.close_callback = lambda c: called.append("close")
    connection.force_close()
    loop.quit()
    loop.run()
    connection.connect_established()
    assert connection.state is ConnectionState.DISCONNECTED
    assert called == []
    connection.connect_destroyed()
    assert theirs.recv(1) == b""
    theirs.close()


def unborn(loop: EventLoop) -> tuple[TcpConnection, socket.socket]:
    """Return a connection that is not established yet, and its peer."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.settimeout(PATIENCE_S)
    address = InetAddress.loopback(1)
    return TcpConnection(loop, "c", ours.detach(), address, address), theirs


def test_a_shutdown_before_it_is_up_takes_effect_once_it_is(loop):
    connection, theirs = unborn(loop)
    connection.shutdown()
    connection.connect_established()
    loop.quit()
    loop.run()
    assert connection.state is ConnectionState.DISCONNECTING
    assert theirs.recv(1) == b""
    connection.connect_destroyed()
    theirs.close()


def test_a_delayed_close_before_it_is_up_takes_effect_once_it_is(loop):
    connection, theirs = unborn(loop)
    connection.close_callback = lambda c: loop.quit()
    connection.force_close_with_delay(0.001)
    connection.connect_established()
    assert connection.state is ConnectionState.DISCONNECTING
    loop.run()
    connection.connect_destroyed()
    assert theirs.recv(1) == b""
    theirs.close()


def test_name_addresses_and_repr_tell_who_it_is(serve):
    recorder = Recorder()
    server = serve(0, **recorder.settings())
    with server.connect() as client:
        connection = recorder.wait_up()
        assert connection.name == f"test-127.0.0.1:{server.port}#1"
        assert connection.local_address == InetAddress.loopback(server.port)
        assert connection.peer_address == InetAddress.loopback(client.getsockname()[1])
        assert connection.name in repr(connection)
        assert "CONNECTED" in repr(connection)
        assert connection.connected
        assert not connection.disconnected


def test_keep_alive_is_on(serve):
    recorder = Recorder()
    server = serve(0, **recorder.settings())
    with server.connect():
        connection = recorder.wait_up()
        assert _keep_alive_of(connection) == 1


def _keep_alive_of(connection: TcpConnection) -> int:
    """Return SO_KEEPALIVE of the descriptor at the server's end of *connection*."""
    for sock in own_sockets():
        try:
            ends = sock.getsockname(), sock.getpeername()
        except OSError:
            continue
        if ends == (connection.local_address.sockaddr, connection.peer_address.sockaddr):
            return sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    raise AssertionError("no such descriptor")


def test_context_belongs_to_the_user(serve):
    recorder = Recorder()
    server = serve(0, **recorder.settings())
    with server.connect():
        connection = recorder.wait_up()
        assert connection.context is None
        connection.context = {"user": "anna"}
        assert connection.context == {"user": "anna"}


def test_an_unknown_attribute_is_refused(serve):
    recorder = Recorder()
    server = serve(0, **recorder.settings())
    with server.connect():
        connection = recorder.wait_up()
        with pytest.raises(AttributeError):
            connection.mesage_callback = None  # type: ignore[attr-defined]


def test_counters_count_bytes_and_messages(serve):
    recorder = Recorder()
    server = serve(0, **recorder.settings())
    with server.connect() as client:
        connection = recorder.wait_up()
        client.sendall(b"12345")
        eventually(lambda: bytes(recorder.received) == b"12345")
        call_in_loop(server.loop, lambda: [connection.send(b"abc"), connection.send(b"de")])
        assert receive_exactly(client, 5) == b"abcde"
        counts = call_in_loop(
            server.loop,
            lambda: (
                connection.bytes_received,
                connection.messages_received,
                connection.bytes_sent,
                connection.messages_sent,
            ),
        )
        assert counts == (5, 1, 5, 2)


def test_tcp_info_tells_round_trip_time(serve):
    recorder = Recorder()
    server = serve(0, **recorder.settings())
    with server.connect():
        connection = recorder.wait_up()
        info = call_in_loop(server.loop, connection.tcp_info)
        assert info.state == 1
        assert info.snd_mss > 0


def test_what_is_not_a_door_refuses_other_threads(serve):
    recorder = Recorder()
    server = serve(0, **recorder.settings())
    with server.connect():
        connection = recorder.wait_up()
        for call in (
            connection.tcp_info,
            connection.connect_destroyed,
            lambda: connection.set_tcp_no_delay(True),
            lambda: connection.output_size,
            lambda: connection.input_buffer,
        ):
            with pytest.raises(RuntimeError, match=r"'base'.*'MainThread'"):
                call()


# --- send ---


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, Buffer])
def test_send_takes_bytes_likes_and_buffers(serve, threads, kind):
    recorder = Recorder()
    server = serve(threads, **recorder.settings())
    with server.connect() as client:
        connection = recorder.wait_up()
        assert connection.send(kind(b"payload")) is True
        assert receive_exactly(client, 7) == b"payload"


def test_send_drains_a_buffer_and_leaves_the_others(serve):
    recorder = Recorder()
    server = serve(1, **recorder.settings())
    with server.connect() as client:
        connection = recorder.wait_up()
        buffer, array_ = Buffer(b"abc"), bytearray(b"def")
        connection.send(buffer)
        connection.send(array_)
        array_[:] = b"XXX"  # sent bytes are a copy
        assert len(buffer) == 0
        assert receive_exactly(client, 6) == b"abcdef"


def test_send_of_memoryview_of_wide_items_sends_its_bytes(serve):
    recorder = Recorder()
    server = serve(0, **recorder.settings())
    with server.connect() as client:
        connection = recorder.wait_up()
        numbers = array.array("i", [1, 2, 3])
        connection.send(memoryview(numbers))
        assert receive_exactly(client, 12) == numbers.tobytes()


@pytest.mark.parametrize("wrong", ["text", 5, None, [1, 2], object()])
def test_send_of_anything_else_raises_type_error_naming_the_type(serve, wrong):
    recorder = Recorder()
    server = serve(0, **recorder.settings())
    with server.connect():
        connection = recorder.wait_up()
        with pytest.raises(TypeError, match=type(wrong).__name__):
            connection.send(wrong)


def test_send_of_nothing_is_accepted_and_sends_nothing(serve):
    recorder = Recorder()
    server = serve(0, **recorder.settings())
    with server.connect() as client:
        connection = recorder.wait_up()
        assert connection.send(b"")
        assert connection.send(Buffer())
        connection.shutdown()
        assert receive_all(client) == b""


def test_send_after_close_returns_false_and_says_so_in_the_debug_log(serve, threads, caplog):
    recorder = Recorder()
    server = serve(threads, **recorder.settings())
    server.connect().close()
    connection = recorder.wait_up()
    assert recorder.closed.wait(PATIENCE_S)
    with caplog.at_level(logging.DEBUG, "pymuduo.tcp_connection"):
        assert connection.send(b"late") is False
        assert call_in_loop(connection.loop, connection.send, b"late") is False
    assert "send after close, 4 bytes dropped" in caplog.text
    buffer = Buffer(b"kept")
    assert connection.send(buffer) is False
    assert bytes(buffer) == b"kept"


def test_sends_of_one_callback_leave_together(serve):
    """Sixteen answers to a pipelined request arrive as one segment, because they left with one write."""

    def on_message(connection: TcpConnection, buffer: Buffer, when: object) -> None:
        for _ in range(16):
            connection.send(b"x" * 32)
        buffer.retrieve_all()

    server = serve(0, message_callback=on_message)
    with server.connect() as client:
        client.sendall(b"go")
        assert len(client.recv(4096)) == 512


def test_send_is_in_order_across_sizes_and_kinds(serve, threads):
    """Small, shared, large and mutable pieces mixed: what arrives is what was sent, byte for byte."""
    recorder = Recorder()
    server = serve(threads, **recorder.settings())
    with server.connect() as client:
        connection = recorder.wait_up()
        expected = bytearray()

        def send_all() -> None:
            for i in range(500):
                piece = bytes([i % 251]) * (1, 7, 100, 3000, 70_000)[i % 5]
                expected.extend(piece)
                connection.send((bytes, bytearray, memoryview, Buffer)[i % 4](piece))

        call_in_loop(connection.loop, send_all)
        assert receive_exactly(client, len(expected)) == expected


def test_64_mib_to_a_slow_reader_arrive_byte_for_byte(serve, threads):
    recorder = Recorder()
    server = serve(threads, **recorder.settings())
    payload = os.urandom(64 * MIB)
    with server.connect() as client:
        connection = recorder.wait_up()
        assert connection.send(payload)
        connection.shutdown()
        received = bytearray()
        size = 1
        while chunk := client.recv(size):
            received += chunk
            size = min(size * 2 + 1, 3 * MIB)  # begins with single bytes
        assert received == payload


def test_one_byte_reads_and_writes_lose_nothing(serve, threads):
    server = serve(threads, message_callback=lambda c, b, t: c.send(b))
    payload = bytes(range(256)) * 8
    with server.connect() as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sender = threading.Thread(target=lambda: [client.sendall(payload[i : i + 1]) for i in range(len(payload))])
        sender.start()
        assert b"".join(client.recv(1) for _ in payload) == payload
        sender.join()


def test_a_message_left_in_the_buffer_is_there_next_time(serve):
    lengths: list[int] = []

    def on_message(connection: TcpConnection, buffer: Buffer, when: object) -> None:
        lengths.append(len(buffer))
        if len(buffer) >= 200_000:
            connection.send(buffer)

    server = serve(0, message_callback=on_message)
    payload = bytes(i * 7 % 256 for i in range(200_000))
    with server.connect() as client:
        client.sendall(payload)
        assert receive_exactly(client, len(payload)) == payload
    assert lengths == sorted(lengths)


def test_a_kept_view_of_the_input_does_not_change(serve):
    """A view taken in a callback shows the same bytes after other connections have been read."""
    kept: list[memoryview] = []

    def on_message(connection: TcpConnection, buffer: Buffer, when: object) -> None:
        kept.append(buffer.peek())
        connection.send(buffer)

    server = serve(0, message_callback=on_message)
    with server.connect() as first, server.connect() as second:
        for i in range(20):
            for client in (first, second):
                message = b"%d from %d" % (i, client.fileno())
                client.sendall(message)
                assert receive_exactly(client, len(message)) == message
    seen = [bytes(view) for view in kept]
    assert len(set(seen)) == 40
    assert seen[0].startswith(b"0 from")
    kept.clear()


# --- callbacks about output ---


def test_write_complete_comes_after_the_callback_that_sent(serve):
    order: list[str] = []
    done = threading.Event()

    def on_message(connection: TcpConnection, buffer: Buffer, when: object) -> None:
        order.append("send")
        connection.send(buffer)
        order.append("sent")

    def on_write_complete(connection: TcpConnection) -> None:
        order.append("complete")
        done.set()

    server = serve(0, message_callback=on_message, write_complete_callback=on_write_complete)
    with server.connect() as client:
        client.sendall(b"x")
        assert receive_exactly(client, 1) == b"x"
        assert done.wait(PATIENCE_S)
    assert order == ["send", "sent", "complete"]


def test_write_complete_waits_for_a_slow_reader(serve):
    recorder = Recorder()
    complete = threading.Event()
    server = serve(0, write_complete_callback=lambda c: complete.set(), **recorder.settings())
    with server.connect() as client:
        connection = recorder.wait_up()
        connection.send(bytes(32 * MIB))
        assert eventually(lambda: call_in_loop(server.loop, lambda: connection.output_size)) > 0
        assert not complete.is_set()
        receive_exactly(client, 32 * MIB)
        assert complete.wait(PATIENCE_S)
        assert call_in_loop(server.loop, lambda: connection.output_size) == 0


def test_a_write_complete_that_sends_again_goes_on_for_ever(serve):
    sent = 0

    def generate(connection: TcpConnection) -> None:
        nonlocal sent
        if connection.connected:
            sent += 1
            connection.send(b"%06d" % sent)

    server = serve(0, connection_callback=generate, write_complete_callback=generate)
    with server.connect() as client:
        stream = receive_exactly(client, 6 * 1000)
    assert stream == b"".join(b"%06d" % i for i in range(1, 1001))


def test_high_water_mark_is_called_once_on_the_way_up(serve):
    recorder = Recorder()
    marks: list[int] = []
    server = serve(0, high_water_mark=MIB, high_water_mark_callback=lambda c, n: marks.append(n), **recorder.settings())
    with server.connect() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, MIB)  # or it would grow, and hold more the second time
        connection = recorder.wait_up()
        for _ in range(3):
            call_in_loop(server.loop, connection.send, bytes(8 * MIB))
        call_in_loop(server.loop, lambda: None)
        assert len(marks) == 1
        assert marks[0] >= MIB
        receive_exactly(client, 24 * MIB)
        eventually(lambda: call_in_loop(server.loop, lambda: connection.output_size) == 0)
        for _ in range(3):
            call_in_loop(server.loop, connection.send, bytes(8 * MIB))
        call_in_loop(server.loop, lambda: None)
        assert len(marks) == 2
        receive_exactly(client, 24 * MIB)


def test_high_water_mark_is_not_called_for_what_the_kernel_takes(serve):
    recorder = Recorder()
    marks: list[int] = []
    server = serve(0, high_water_mark=100, high_water_mark_callback=lambda c, n: marks.append(n), **recorder.settings())
    with server.connect() as client:
        connection = recorder.wait_up()
        call_in_loop(server.loop, connection.send, bytes(2000))
        receive_exactly(client, 2000)
        call_in_loop(server.loop, lambda: None)
        assert marks == []


# --- ends ---


def test_shutdown_sends_queued_bytes_before_fin(serve, threads):
    recorder = Recorder()
    server = serve(threads, **recorder.settings())
    with server.connect() as client:
        connection = recorder.wait_up()
        connection.send(bytes(20 * MIB))
        connection.send(b"end")
        connection.shutdown()
        connection.shutdown()
        assert connection.send(b"too late") is False
        everything = receive_all(client)
        assert len(everything) == 20 * MIB + 3
        assert everything.endswith(b"end")
        client.sendall(b"still heard")
        eventually(lambda: bytes(recorder.received) == b"still heard")
    assert recorder.closed.wait(PATIENCE_S)


def test_shutdown_inside_the_message_callback_sends_the_answer_first(serve, threads):
    def on_message(connection: TcpConnection, buffer: Buffer, when: object) -> None:
        connection.send(buffer)
        connection.shutdown()

    server = serve(threads, message_callback=on_message)
    with server.connect() as client:
        client.sendall(b"question")
        assert receive_all(client) == b"question"


def test_a_peer_that_half_closes_gets_everything_that_was_queued_for_it(serve, threads):
    """muduo loses it: its connection closes as soon as read returns 0."""
    recorder = Recorder()
    server = serve(threads, **recorder.settings())
    with server.connect() as client:
        connection = recorder.wait_up()
        connection.send(bytes(20 * MIB))
        client.shutdown(socket.SHUT_WR)
        assert len(receive_all(client)) == 20 * MIB
    assert recorder.closed.wait(PATIENCE_S)
    assert recorder.events == ["up", "down", "close"]


def test_a_peer_that_half_closes_gets_the_answer_to_its_last_message(serve, threads):
    server = serve(threads, message_callback=lambda c, b, t: c.send(b))
    with server.connect() as client:
        client.sendall(b"last words")
        client.shutdown(socket.SHUT_WR)
        assert receive_all(client) == b"last words"


def test_a_send_from_another_thread_before_the_peers_fin_is_handled_is_delivered(serve):
    recorder = Recorder()
    server = serve(0, **recorder.settings())
    with server.connect() as client:
        connection = recorder.wait_up()

        def hold_the_loop() -> None:
            client.shutdown(socket.SHUT_WR)
            sender = threading.Thread(target=connection.send, args=(b"queued behind the FIN",))
            sender.start()
            sender.join()

        call_in_loop(server.loop, hold_the_loop)
        assert receive_all(client) == b"queued behind the FIN"


def test_shutdown_within_a_time_sends_all_and_does_not_wait_for_ever(serve, threads):
    recorder = Recorder()
    server = serve(threads, **recorder.settings())
    with server.connect() as client:
        connection = recorder.wait_up()
        connection.send(bytes(1_000_000))
        connection.shutdown(within_s=5.0)
        assert receive_all(client) == bytes(1_000_000)
        assert not connection.disconnected, "it waits for the peer's FIN"
        client.close()
        eventually(lambda: connection.disconnected)
    recorder = Recorder()
    server = serve(threads, **recorder.settings())
    with server.connect() as client:
        connection = recorder.wait_up()
        connection.send(b"goodbye")
        connection.shutdown(within_s=0.05)
        eventually(lambda: connection.disconnected)  # although the peer has not moved
        assert receive_all(client) == b"goodbye"


@pytest.mark.parametrize("seconds", [-1, float("nan")])
def test_shutdown_within_no_time_is_refused_and_nothing_happens(serve, seconds):
    recorder = Recorder()
    server = serve(0, **recorder.settings())
    with server.connect() as client:
        connection = recorder.wait_up()
        with pytest.raises(ValueError, match="within_s must be 0 or more"):
            connection.shutdown(within_s=seconds)
        assert connection.send(b"still up")
        assert receive_exactly(client, 8) == b"still up"


@pytest.mark.parametrize("end", ["shutdown", "force_close_with_delay", "stop"])
def test_what_another_thread_sent_before_the_end_began_is_delivered(serve, end):
    """The send is accepted and queued while the loop is in a callback, which then ends the connection."""
    holder: list[Any] = []

    def on_message(connection: TcpConnection, buffer: Buffer, when: object) -> None:
        buffer.retrieve_all()
        accepted: list[bool] = []
        sender = threading.Thread(target=lambda: accepted.append(connection.send(b"accepted")))
        sender.start()
        sender.join()
        assert accepted == [True]
        if end == "shutdown":
            connection.shutdown()
        elif end == "force_close_with_delay":
            connection.force_close_with_delay(0.05)
        else:
            holder[0].server.stop(PATIENCE_S)

    server = serve(0, message_callback=on_message)
    holder.append(server)
    with server.connect() as client:
        client.sendall(b"x")
        assert receive_all(client) == b"accepted"


def test_a_callback_may_destroy_a_connection_that_nobody_else_holds():
    """In a process of its own, whose allocator overwrites what is freed: a use after that would crash."""
    program = """
import socket
from pymuduo import EventLoop, InetAddress, TcpConnection
with EventLoop() as loop:
    for _ in range(20):
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        connection = TcpConnection(loop, "c", ours.detach(), InetAddress.loopback(1), InetAddress.loopback(2))
        connection.message_callback = lambda c, buffer, when: (c.connect_destroyed(), loop.quit())
        connection.connect_established()
        del connection
        theirs.send(b"x")
        loop.run()
        theirs.close()
print("done")
"""
    environment = os.environ | {"PYTHONMALLOC": "debug", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (0, "done\n"), ended.stderr


def test_a_connection_without_an_owner_destroys_itself(loop):
    connection, theirs = unborn(loop)
    connection.connect_established()
    descriptors = len(os.listdir("/proc/self/fd"))
    theirs.close()
    connection.close_callback = lambda c: loop.queue_in_loop(loop.queue_in_loop, loop.quit)
    loop.run()
    assert connection.disconnected
    assert len(os.listdir("/proc/self/fd")) == descriptors - 2  # both ends
    with pytest.raises(OSError, match="closed"):
        connection.tcp_info()


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_an_exit_in_the_down_callback_does_not_keep_the_owner_from_hearing(loop, error):
    connection, theirs = unborn(loop)
    heard: list[str] = []

    class Owner(ConnectionOwner):
        def remove_connection(self, connection: TcpConnection) -> None:
            heard.append("removal")

    def leave(connection: TcpConnection) -> None:
        if not connection.connected:
            raise error

    connection.connection_callback = leave
    connection.close_callback = lambda c: heard.append("close")
    connection.set_owner(Owner())
    connection.connect_established()
    theirs.close()
    with pytest.raises(error):
        loop.run()
    assert heard == ["close", "removal"]
    connection.connect_destroyed()


@pytest.mark.provokes_errors("MemoryError")
def test_a_channel_hears_of_an_exception_out_of_its_own_handling(loop, caplog):
    """A connection's channel closes the connection then: a level-triggered event would come again for ever."""
    ours, theirs = socket.socketpair()

    class Failing(Channel):
        failures = 0

        def handle_failure(self, exception: BaseException) -> None:
            super().handle_failure(exception)
            Failing.failures += 1
            self.disable_all()
            loop.quit()

    def fail(receive_time: object) -> None:
        raise MemoryError

    channel = Failing(loop, ours.fileno())
    channel.read_callback = fail
    channel.enable_reading()
    theirs.sendall(b"x")
    loop.run()
    assert Failing.failures == 1
    assert caplog.text.count("exception in a callback") == 1
    channel.remove()
    ours.close()
    theirs.close()


def test_force_close_drops_what_is_unsent_and_calls_back_once(serve, threads):
    recorder = Recorder()
    server = serve(threads, **recorder.settings())
    with server.connect() as client:
        connection = recorder.wait_up()
        connection.send(bytes(32 * MIB))
        connection.force_close()
        connection.force_close()
        assert connection.send(b"no") is False
        assert recorder.closed.wait(PATIENCE_S)
        assert len(receive_all_or_reset(client)) < 32 * MIB
    assert recorder.events == ["up", "down", "close"]


def receive_all_or_reset(sock: socket.socket) -> bytes:
    received = bytearray()
    try:
        while chunk := sock.recv(MIB):
            received += chunk
    except ConnectionResetError:
        pass
    return bytes(received)


def test_force_close_does_not_call_back_inside_itself(serve):
    order: list[str] = []

    def on_connection(connection: TcpConnection) -> None:
        order.append("up" if connection.connected else "down")

    def on_message(connection: TcpConnection, buffer: Buffer, when: object) -> None:
        connection.force_close()
        order.append("still in the message callback")

    server = serve(0, connection_callback=on_connection, message_callback=on_message)
    with server.connect() as client:
        client.sendall(b"x")
        receive_all_or_reset(client)
    eventually(lambda: order == ["up", "still in the message callback", "down"])


def test_force_close_with_delay_lets_output_go_and_closes_when_time_is_up(serve):
    recorder = Recorder()
    server = serve(0, **recorder.settings())
    with server.connect() as client:
        connection = recorder.wait_up()
        connection.send(b"goodbye")
        connection.force_close_with_delay(0.05)
        assert connection.send(b"refused") is False
        assert receive_all(client) == b"goodbye"
    assert recorder.closed.wait(PATIENCE_S)


def test_force_close_with_delay_is_forgotten_when_the_peer_closes_first(serve):
    recorder = Recorder()
    server = serve(0, **recorder.settings())
    with server.connect():
        connection = recorder.wait_up()
        timers = call_in_loop(server.loop, lambda: server.loop.timer_count)
        connection.force_close_with_delay(1000)
    assert recorder.closed.wait(PATIENCE_S)
    assert call_in_loop(server.loop, lambda: server.loop.timer_count) == timers


@pytest.mark.parametrize("seconds", [-1, float("nan")])
def test_force_close_with_delay_refuses_a_delay_that_is_none(serve, seconds):
    recorder = Recorder()
    server = serve(0, **recorder.settings())
    with server.connect():
        with pytest.raises(ValueError, match="seconds"):
            recorder.wait_up().force_close_with_delay(seconds)


def test_a_reset_ends_the_connection_once(serve, threads):
    recorder = Recorder()
    server = serve(threads, **recorder.settings())
    client = server.connect()
    recorder.wait_up()
    reset(client)
    assert recorder.closed.wait(PATIENCE_S)
    assert recorder.events == ["up", "down", "close"]


def test_a_reset_in_the_middle_of_a_send_ends_the_connection_and_the_server_lives(serve, threads):
    recorder = Recorder()
    server = serve(threads, **recorder.settings())
    client = server.connect()
    connection = recorder.wait_up()
    connection.send(bytes(32 * MIB))
    receive_exactly(client, MIB)
    reset(client)
    assert recorder.closed.wait(PATIENCE_S)
    assert recorder.events == ["up", "down", "close"]
    with server.connect() as other:
        other.sendall(b"alive")
        eventually(lambda: bytes(recorder.received) == b"alive")


def test_what_arrived_before_the_connection_broke_is_still_delivered(serve):
    """The answer can't be sent any more, but what the peer sent before it reset was received."""
    held = threading.Event()
    release = threading.Event()
    received = bytearray()
    closed = threading.Event()

    def on_message(connection: TcpConnection, buffer: Buffer, when: object) -> None:
        received.extend(buffer.retrieve_all_as_bytes())
        if not held.is_set():
            held.set()
            assert release.wait(PATIENCE_S)
            connection.send(b"answer")

    server = serve(0, message_callback=on_message, close_callback=lambda c: closed.set())
    client = server.connect()
    client.sendall(b"first")
    assert held.wait(PATIENCE_S)
    client.sendall(b" second")
    client.close()
    release.set()
    assert closed.wait(PATIENCE_S)
    assert bytes(received) == b"first second"


# --- reading stopped ---


def test_stop_read_holds_the_peer_back_and_start_read_loses_nothing(serve, threads):
    recorder = Recorder()
    server = serve(threads, **recorder.settings())
    payload = bytes(i % 251 for i in range(8 * MIB))
    with server.connect() as client:
        connection = recorder.wait_up()
        connection.stop_read()
        call_in_loop(connection.loop, lambda: None)
        assert not connection.is_reading
        sender = threading.Thread(target=client.sendall, args=(payload,))
        sender.start()
        assert bytes(recorder.received) == b""
        connection.start_read()
        sender.join(PATIENCE_S)
        eventually(lambda: len(recorder.received) == len(payload))
        assert bytes(recorder.received) == payload
        assert connection.is_reading


def test_a_fin_is_noticed_while_reading_is_stopped(serve, threads):
    recorder = Recorder()
    server = serve(threads, **recorder.settings())
    client = server.connect()
    connection = recorder.wait_up()
    connection.stop_read()
    client.close()
    assert recorder.closed.wait(PATIENCE_S)
    assert recorder.events == ["up", "down", "close"]


def test_a_reset_is_noticed_while_reading_is_stopped(serve, threads):
    recorder = Recorder()
    server = serve(threads, **recorder.settings())
    client = server.connect()
    connection = recorder.wait_up()
    connection.stop_read()
    call_in_loop(connection.loop, lambda: None)
    client.sendall(b"unread")
    reset(client)
    assert recorder.closed.wait(PATIENCE_S)


def test_bytes_before_a_fin_wait_for_start_read(serve, threads):
    recorder = Recorder()
    server = serve(threads, **recorder.settings())
    client = server.connect()
    connection = recorder.wait_up()
    connection.stop_read()
    call_in_loop(connection.loop, lambda: None)
    client.sendall(b"unread")
    client.close()
    iterations = call_in_loop(connection.loop, lambda: connection.loop.iteration)
    for _ in range(20):
        call_in_loop(connection.loop, lambda: None)
    assert call_in_loop(connection.loop, lambda: connection.loop.iteration) < iterations + 100, "the loop spins"
    assert not recorder.down.is_set()
    connection.start_read()
    assert recorder.closed.wait(PATIENCE_S)
    assert bytes(recorder.received) == b"unread"


def test_bytes_before_both_fins_wait_for_start_read_without_a_spinning_loop(serve, threads):
    recorder = Recorder()
    server = serve(threads, **recorder.settings())
    client = server.connect()
    connection = recorder.wait_up()
    connection.stop_read()
    connection.shutdown()
    client.sendall(b"unread")
    assert receive_all(client) == b""
    client.close()
    iterations = call_in_loop(connection.loop, lambda: connection.loop.iteration)
    for _ in range(20):
        call_in_loop(connection.loop, lambda: None)
    assert call_in_loop(connection.loop, lambda: connection.loop.iteration) < iterations + 100, "the loop spins"
    connection.start_read()
    assert recorder.closed.wait(PATIENCE_S)
    assert bytes(recorder.received) == b"unread"


def test_urgent_data_does_not_spin_the_loop(serve):
    recorder = Recorder()
    server = serve(0, **recorder.settings())
    with server.connect() as client:
        connection = recorder.wait_up()
        client.send(b"!", socket.MSG_OOB)
        client.sendall(b"normal")
        eventually(lambda: b"normal" in recorder.received)
        before = call_in_loop(connection.loop, lambda: connection.loop.iteration)
        for _ in range(20):
            call_in_loop(connection.loop, lambda: None)
        assert call_in_loop(connection.loop, lambda: connection.loop.iteration) < before + 100


def test_stop_read_of_another_connection_holds_within_the_same_iteration(loop):
    """Both have bytes waiting; the first one handled stops the other."""
    address = InetAddress.loopback(1)
    connections: list[TcpConnection] = []
    peers: list[socket.socket] = []
    heard: list[str] = []

    def on_message(connection: TcpConnection, buffer: Buffer, when: object) -> None:
        heard.append(connection.name)
        buffer.retrieve_all()
        for other in connections:
            if other is not connection:
                other.stop_read()
        loop.run_after(0.01, loop.quit)

    for name in ("a", "b"):
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        connection = TcpConnection(loop, name, ours.detach(), address, address)
        connection.message_callback = on_message
        connection.connect_established()
        connections.append(connection)
        peers.append(theirs)
    for peer in peers:
        peer.sendall(b"x")
    loop.run()
    assert len(heard) == 1
    for connection, peer in zip(connections, peers, strict=True):
        connection.connect_destroyed()
        peer.close()


# --- callbacks that misbehave ---


@pytest.mark.provokes_errors("on purpose")
def test_a_callback_that_raises_closes_its_connection_and_no_other(serve, threads, caplog):
    def on_message(connection: TcpConnection, buffer: Buffer, when: object) -> None:
        data = buffer.retrieve_all_as_bytes()
        if data == b"raise":
            raise ZeroDivisionError("on purpose")
        connection.send(data)

    server = serve(threads, message_callback=on_message)
    with server.connect() as bad, server.connect() as good:
        bad.sendall(b"raise")
        assert receive_all(bad) == b""
        good.sendall(b"fine")
        assert receive_exactly(good, 4) == b"fine"
    assert "ZeroDivisionError: on purpose" in caplog.text
    assert f"test-127.0.0.1:{server.port}#1" in caplog.text


def test_the_last_bytes_leave_in_the_turn_in_which_the_peers_end_is_read_and_are_told_of_all_the_same(serve):
    recorder = Recorder()
    server = serve(
        0,
        **recorder.settings(),
        write_complete_callback=lambda c: recorder.events.append("complete"),
        low_water_mark_callback=lambda c: recorder.events.append("low"),
        high_water_mark=1024,
    )
    with server.connect() as client:
        connection = recorder.wait_up()
        is_held, may_go_on = threading.Event(), threading.Event()

        def hold() -> None:
            if connection.output_size < 1024:  # until the kernel takes no more
                connection.send(bytes(65536))
                server.loop.queue_in_loop(hold)
                return
            recorder.events.clear()
            is_held.set()
            may_go_on.wait(PATIENCE_S)

        server.loop.queue_in_loop(hold)
        assert is_held.wait(PATIENCE_S)
        client.shutdown(socket.SHUT_WR)
        client.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while client.recv(MIB):  # so there is room for the rest
                pass
        may_go_on.set()
        assert recorder.closed.wait(PATIENCE_S)
    assert sorted(recorder.events[:2]) == ["complete", "low"]
    assert recorder.events[2:] == ["down", "close"]


def test_the_last_bytes_are_told_of_though_our_fin_leaves_with_them_and_the_peers_has_come(serve):
    """The kernel reports the end of both directions before what was queued of the last bytes has run."""
    recorder = Recorder()
    has_ended = threading.Event()
    server = serve(
        0,
        **recorder.settings(),
        peer_shutdown_callback=lambda c: has_ended.set(),
        write_complete_callback=lambda c: recorder.events.append("complete"),
    )
    with server.connect() as client:
        connection = recorder.wait_up()
        client.shutdown(socket.SHUT_WR)
        assert has_ended.wait(PATIENCE_S)
        may_go_on = threading.Event()
        server.loop.queue_in_loop(may_go_on.wait, PATIENCE_S)  # so that both come in one turn
        assert connection.send(b"last")
        connection.shutdown()
        may_go_on.set()
        assert receive_all(client) == b"last"
        assert recorder.closed.wait(PATIENCE_S)
    assert recorder.events == ["up", "complete", "down", "close"]


@pytest.mark.parametrize("which", ["connection", "write_complete", "high_water_mark", "close"])
@pytest.mark.provokes_errors("ZeroDivisionError")
def test_any_callback_that_raises_is_logged_with_the_connections_name(serve, which, caplog):
    def boom(connection: TcpConnection, *rest: object) -> None:
        raise ZeroDivisionError(which)

    server = serve(
        0,
        message_callback=lambda c, b, t: c.send(bytes(16 * MIB)),
        high_water_mark=1024,
        **{f"{which}_callback": boom},
    )
    with server.connect() as client:
        with contextlib.suppress(OSError):  # a callback that raised at once has closed it
            client.sendall(b"x")
            client.shutdown(socket.SHUT_WR)
        if which == "high_water_mark":
            eventually(lambda: "ZeroDivisionError" in caplog.text)  # before there is room for all of it
        receive_all_or_reset(client)
    eventually(lambda: "ZeroDivisionError: " + which in caplog.text)
    eventually(lambda: server.server.connection_count == 0)
    assert f"test-127.0.0.1:{server.port}#1" in caplog.text


def test_an_exception_handler_replaces_the_policy(serve):
    seen: list[tuple[BaseException, object]] = []

    def on_message(connection: TcpConnection, buffer: Buffer, when: object) -> None:
        if buffer.retrieve_all_as_bytes() == b"raise":
            raise ZeroDivisionError
        connection.send(b"still here")

    server = serve(0, message_callback=on_message)
    server.loop.exception_handler = lambda e, source: seen.append((e, source))
    with server.connect() as client:
        client.sendall(b"raise")
        eventually(lambda: seen)
        client.sendall(b"x")
        assert receive_exactly(client, 10) == b"still here"
        assert isinstance(seen[0][0], ZeroDivisionError)
        assert seen[0][1] is server.server.connections[0]


def test_a_callback_may_close_another_connection_that_has_bytes_waiting(serve):
    clients: list[TcpConnection] = []
    heard: list[bytes] = []

    def on_connection(connection: TcpConnection) -> None:
        if connection.connected:
            clients.append(connection)

    def on_message(connection: TcpConnection, buffer: Buffer, when: object) -> None:
        heard.append(buffer.retrieve_all_as_bytes())
        for other in clients:
            if other is not connection:
                other.force_close()

    server = serve(0, connection_callback=on_connection, message_callback=on_message)
    with server.connect() as first, server.connect() as second:
        eventually(lambda: len(clients) == 2)

        def both_at_once() -> None:
            first.sendall(b"first")
            second.sendall(b"second")

        call_in_loop(server.loop, both_at_once)
        assert receive_all_or_reset(second) == b""
        eventually(lambda: heard and server.server.connection_count <= 1)


def test_a_callback_may_send_on_the_connection_that_just_went_down(serve):
    results: list[bool] = []

    def on_connection(connection: TcpConnection) -> None:
        if not connection.connected:
            results.append(connection.send(b"too late"))
            connection.shutdown()
            connection.force_close()
            connection.stop_read()
            connection.start_read()

    server = serve(0, connection_callback=on_connection)
    server.connect().close()
    eventually(lambda: results == [False])


def test_all_doors_are_harmless_after_the_end(serve, threads):
    recorder = Recorder()
    server = serve(threads, **recorder.settings())
    server.connect().close()
    connection = recorder.wait_up()
    eventually(lambda: server.server.connection_count == 0)
    assert connection.send(b"x") is False
    connection.shutdown()
    connection.force_close()
    connection.force_close_with_delay(0)
    connection.start_read()
    connection.stop_read()
    call_in_loop(connection.loop, lambda: None)
    assert connection.state is ConnectionState.DISCONNECTED
    with pytest.raises(OSError):
        call_in_loop(connection.loop, connection.tcp_info)


def test_bytes_sent_before_run_returns_have_left(loop):
    """uvloop's issue 631: a program whose last bytes never left, because the loop ended first."""
    connection, theirs = unborn(loop)
    connection.connect_established()

    def send_and_quit() -> None:
        connection.send(b"last")
        loop.quit()

    loop.queue_in_loop(send_and_quit)
    loop.run()
    theirs.settimeout(PATIENCE_S)
    assert receive_exactly(theirs, 4) == b"last"
    connection.connect_destroyed()
    theirs.close()


def test_bytes_sent_before_an_interrupt_have_left(loop):
    connection, theirs = unborn(loop)

    def on_message(connection: TcpConnection, buffer: Buffer, when: object) -> None:
        connection.send(buffer)
        raise KeyboardInterrupt

    connection.message_callback = on_message
    connection.connect_established()
    theirs.sendall(b"ping")
    with pytest.raises(KeyboardInterrupt):
        loop.run()
    theirs.settimeout(PATIENCE_S)
    assert receive_exactly(theirs, 4) == b"ping"
    connection.connect_destroyed()
    theirs.close()


def test_closing_the_loop_closes_its_connections(loop):
    connection, theirs = unborn(loop)
    events: list[bool] = []
    connection.connection_callback = lambda c: events.append(c.connected)
    connection.connect_established()
    loop.close()
    assert events == [True, False]
    assert theirs.recv(1) == b""
    theirs.close()
    assert connection.send(b"x") is False
    with EventLoop() as another:
        another.quit()
        another.run()


# --- what the peer's FIN leaves open ---


def test_with_a_peer_shutdown_callback_a_request_ended_by_fin_is_answered(serve, threads):
    received = bytearray()
    told: list[str] = []

    def on_message(connection: TcpConnection, buffer: Buffer, receive_time: object) -> None:
        received.extend(buffer.retrieve_all_as_bytes())

    def on_peer_shutdown(connection: TcpConnection) -> None:
        told.append(connection.state.name)
        connection.send(bytes(received)[::-1])
        connection.shutdown()

    ended = threading.Event()
    server = serve(
        threads,
        message_callback=on_message,
        peer_shutdown_callback=on_peer_shutdown,
        close_callback=lambda c: ended.set(),
    )
    with server.connect() as client:
        client.sendall(b"question")
        client.shutdown(socket.SHUT_WR)
        assert receive_all(client) == b"noitseuq"
    assert ended.wait(PATIENCE_S)
    assert told == ["CONNECTED"]


def test_a_half_open_connection_lives_until_it_is_ended_here(serve, threads):
    recorder = Recorder()
    half = threading.Event()
    server = serve(threads, peer_shutdown_callback=lambda c: half.set(), **recorder.settings())
    with server.connect() as client:
        connection = recorder.wait_up()
        client.shutdown(socket.SHUT_WR)
        assert half.wait(PATIENCE_S)
        for number in range(100):  # many iterations of its loop, none of which may find a reason to end it
            call_in_loop(connection.loop, connection.send, b"%3d" % number)
        assert receive_exactly(client, 300)[-3:] == b" 99"
        assert connection.connected
        polls = call_in_loop(connection.loop, lambda: connection.loop.iteration)
        call_in_loop(connection.loop, lambda: None)
        assert call_in_loop(connection.loop, lambda: connection.loop.iteration) - polls < 20, "the loop spins"
        connection.force_close()
        assert recorder.closed.wait(PATIENCE_S)
    assert recorder.events == ["up", "down", "close"]


@pytest.mark.parametrize("is_read", [True, False])
def test_the_peers_fin_behind_ours_is_told_whether_it_is_read_or_not(serve, threads, is_read):
    """With both directions over the kernel reports a hang-up, at once even if nothing is being read."""
    recorder = Recorder()
    told: list[str] = []
    server = serve(threads, peer_shutdown_callback=lambda c: told.append(c.state.name), **recorder.settings())
    with server.connect() as client:
        connection = recorder.wait_up()
        if not is_read:
            call_in_loop(connection.loop, connection.stop_read)
        connection.shutdown()
        assert receive_all(client) == b""
        client.shutdown(socket.SHUT_WR)
        assert recorder.closed.wait(PATIENCE_S)
    assert told == ["DISCONNECTING"]
    assert recorder.events == ["up", "down", "close"]
    assert connection.error is None


def test_a_half_open_connection_whose_peer_resets_ends(serve, threads):
    recorder = Recorder()
    half = threading.Event()
    server = serve(threads, peer_shutdown_callback=lambda c: half.set(), **recorder.settings())
    client = server.connect()
    recorder.wait_up()
    client.shutdown(socket.SHUT_WR)
    assert half.wait(PATIENCE_S)
    reset(client)
    assert recorder.closed.wait(PATIENCE_S)
    assert recorder.connection is not None
    assert isinstance(recorder.connection.error, ConnectionError)


def test_a_fin_of_both_ends_closes_a_half_open_connection_once_all_is_sent(serve, threads):
    recorder = Recorder()
    half = threading.Event()
    server = serve(threads, peer_shutdown_callback=lambda c: half.set(), **recorder.settings())
    with server.connect() as client:
        connection = recorder.wait_up()
        client.shutdown(socket.SHUT_WR)
        assert half.wait(PATIENCE_S)
        connection.send(b"x" * (8 * MIB))
        connection.shutdown()
        assert len(receive_all(client)) == 8 * MIB
        assert recorder.closed.wait(PATIENCE_S)
    assert recorder.connection is not None
    assert recorder.connection.error is None


# --- how much may wait ---


def test_the_low_water_mark_is_told_once_after_the_high_one(serve, threads):
    told: list[Any] = []
    low = threading.Event()

    def on_low(connection: TcpConnection) -> None:
        told.append(("low", connection.output_size))
        low.set()

    recorder = Recorder()
    server = serve(
        threads,
        high_water_mark=4 * MIB,
        low_water_mark=MIB,
        high_water_mark_callback=lambda connection, size: told.append("high"),
        low_water_mark_callback=on_low,
        **recorder.settings(),
    )
    with server.connect() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, MIB)  # or it would grow, and hold more the second time
        connection = recorder.wait_up()
        for round_ in range(1, 3):
            low.clear()
            connection.send(b"x" * (20 * MIB))
            eventually(lambda expected=2 * round_ - 1: len(told) == expected)
            receive_exactly(client, 20 * MIB)
            assert low.wait(PATIENCE_S)
            assert told[-2] == "high"
            assert told[-1][0] == "low"
            assert told[-1][1] <= MIB
    assert len(told) == 4


def test_below_the_high_water_mark_the_low_one_is_not_told(serve):
    told: list[Any] = []
    written = threading.Event()
    recorder = Recorder()
    server = serve(
        high_water_mark=64 * MIB,
        low_water_mark=MIB,
        low_water_mark_callback=told.append,
        write_complete_callback=lambda connection: written.set(),
        **recorder.settings(),
    )
    with server.connect() as client:
        recorder.wait_up().send(b"x" * (20 * MIB))
        receive_exactly(client, 20 * MIB)
        assert written.wait(PATIENCE_S)
    assert recorder.closed.wait(PATIENCE_S)
    assert told == []


def test_a_peer_that_never_reads_is_cut_off_at_max_output_bytes_and_the_log_says_so(serve, threads, caplog):
    recorder = Recorder()
    server = serve(threads, max_output_bytes=10 * MIB, **recorder.settings())
    with server.connect() as client:
        connection = recorder.wait_up()
        sent = 0
        while connection.send(b"x" * MIB):
            sent += MIB
            assert sent < 100 * MIB
            call_in_loop(connection.loop, lambda: None)
        assert recorder.closed.wait(PATIENCE_S)
        with contextlib.suppress(ConnectionResetError):
            assert len(receive_all(client)) < sent
    assert "max_output_bytes is 10485760" in str(connection.error)
    assert "is cut off" in caplog.text
    assert recorder.events == ["up", "down", "close"]


def test_max_output_bytes_does_not_count_what_the_kernel_takes(serve):
    recorder = Recorder()
    server = serve(max_output_bytes=100, **recorder.settings())
    with server.connect() as client:
        connection = recorder.wait_up()
        for _ in range(100):
            assert connection.send(b"x" * 101)
            assert receive_exactly(client, 101)


# --- why it ended ---


def test_error_tells_a_reset_from_a_fin(serve):
    recorder = Recorder()
    server = serve(**recorder.settings())
    client = server.connect()
    connection = recorder.wait_up()
    assert connection.error is None
    reset(client)
    assert recorder.closed.wait(PATIENCE_S)
    assert isinstance(connection.error, ConnectionResetError)
    recorder = Recorder()
    for name, callback in recorder.settings().items():
        setattr(server.server, name, callback)
    with server.connect():
        connection = recorder.wait_up()
    assert recorder.closed.wait(PATIENCE_S)
    assert connection.error is None


def test_fail_ends_a_connection_and_keeps_the_first_reason(serve, threads):
    recorder = Recorder()
    server = serve(threads, **recorder.settings())
    with server.connect() as client:
        connection = recorder.wait_up()

        def fail_twice() -> None:
            connection.fail(TimeoutError("first"))
            connection.fail(TimeoutError("second"))
            assert not connection.send(b"late")

        call_in_loop(connection.loop, fail_twice)
        assert receive_all(client) == b""
    assert recorder.closed.wait(PATIENCE_S)
    assert str(connection.error) == "first"
    assert recorder.events == ["up", "down", "close"]


# --- layers ---


class Rot13(Layer):
    """A layer that turns letters, asks for a password first, and says goodbye at the end."""

    TABLE = bytes.maketrans(
        b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", b"NOPQRSTUVWXYZABCDEFGHIJKLMnopqrstuvwxyzabcdefghijklm"
    )

    def __init__(self) -> None:
        super().__init__()
        self.holds_up = True
        self.greeting = bytearray()
        self.wire = bytearray()
        self.plain = bytearray()
        self.is_ready = False
        self.detached = 0

    def start(self) -> None:
        self.say(b"password?\n")

    def say(self, data: bytes) -> None:
        self.wire += data
        self.unsent = len(self.wire) + len(self.plain)

    def read(self, into: Buffer) -> int:
        assert self.connection is not None
        try:
            data = os.read(self.connection.fd, 65536)
        except OSError as e:
            return -(e.errno or 1)
        if not data:
            return 0
        if not self.is_ready:
            self.greeting += data
            if b"\n" not in self.greeting:
                return -11
            password, _, data = bytes(self.greeting).partition(b"\n")
            if password != b"sesame":
                self.say(b"wrong\n")
                self.connection.fail(PermissionError("a wrong password"))
                return -11
            self.is_ready = True
            self.connection.layer_is_ready()
        if not data:
            return -11
        into.append(data.translate(self.TABLE))
        return len(data)

    def append(self, data: bytes) -> None:
        self.plain += data
        self.unsent += len(data)

    def write(self) -> int:
        if self.is_ready:
            self.wire += self.plain.translate(self.TABLE)
            self.payload_sent += len(self.plain)
            self.plain.clear()
        if not self.wire:
            return 0
        assert self.connection is not None
        try:
            count = os.write(self.connection.fd, self.wire)
        except OSError as e:
            return -(e.errno or 1)
        del self.wire[:count]
        self.unsent = len(self.wire) + len(self.plain)
        return count

    def end_output(self) -> None:
        self.say(b"\nbye")

    def drop_output(self) -> None:
        super().drop_output()
        self.wire.clear()
        self.plain.clear()

    def detach(self) -> None:
        super().detach()
        self.detached += 1


def layered(loop: EventLoop, recorder: Recorder) -> tuple[TcpConnection, Rot13, socket.socket]:
    """Return a connection with a layer, both started in the loop's thread, and its peer."""

    def make() -> tuple[TcpConnection, Rot13, socket.socket]:
        connection, theirs = unborn(loop)
        for name, callback in recorder.settings().items():
            setattr(connection, name, callback)
        layer = Rot13()
        connection.set_layer(layer)
        connection.connect_established()
        return connection, layer, theirs

    return call_in_loop(loop, make)


@pytest.mark.provokes_errors("out of order")
def test_an_error_in_sending_what_another_thread_has_sent_ends_its_connection(serve, threads, caplog):
    class Broken(Layer):
        def append(self, data: bytes) -> None:
            self.unsent += len(data)

        def write(self) -> int:
            raise LookupError("out of order")

    recorder = Recorder()
    server = serve(threads, **recorder.settings())
    with server.connect() as client:
        connection = recorder.wait_up()
        call_in_loop(connection.loop, connection.set_layer, Broken())
        connection.send(b"x")
        assert receive_all(client) == b""
    assert recorder.closed.wait(PATIENCE_S)
    assert "out of order" in caplog.text


def test_a_connection_is_not_up_before_its_layer_is_ready(loop_thread):
    recorder = Recorder()
    connection, layer, theirs = layered(loop_thread, recorder)
    with theirs:
        assert receive_exactly(theirs, 10) == b"password?\n"
        assert connection.state is ConnectionState.CONNECTING
        assert not connection.send(b"too early")
        theirs.sendall(b"ses")
        theirs.sendall(b"ame\nuryyb")
        eventually(lambda: bytes(recorder.received) == b"hello")
        assert recorder.events[:2] == ["up", "message"]
        connection.send(b"jbeyq")
        connection.shutdown()
        assert receive_all(theirs) == b"world\nbye"
    assert recorder.closed.wait(PATIENCE_S)
    assert layer.detached == 1
    assert (connection.bytes_received, connection.bytes_sent) == (5, 5)


def test_a_layer_that_fails_has_the_last_word_and_nobody_is_called_back(loop_thread):
    recorder = Recorder()
    connection, layer, theirs = layered(loop_thread, recorder)
    with theirs:
        theirs.sendall(b"open\n")
        assert receive_all(theirs) == b"password?\nwrong\n"
    eventually(lambda: layer.detached == 1)
    assert isinstance(connection.error, PermissionError)
    assert connection.state is ConnectionState.DISCONNECTED
    assert recorder.events == []


def test_a_peer_that_leaves_before_the_layer_is_ready_calls_nobody_back(loop_thread):
    recorder = Recorder()
    connection, layer, theirs = layered(loop_thread, recorder)
    theirs.close()
    eventually(lambda: layer.detached == 1)
    assert recorder.events == []
    assert connection.state is ConnectionState.DISCONNECTED


def test_a_layer_set_on_a_live_connection_comes_behind_what_was_sent(loop_thread):
    recorder = Recorder()
    connection, theirs = unborn(loop_thread)
    connection.connection_callback = recorder.on_connection
    connection.close_callback = recorder.on_close
    call_in_loop(loop_thread, connection.connect_established)

    class Late(Rot13):
        def append_wire(self, data: bytes) -> None:
            self.wire[:0] = data
            self.unsent += len(data)

        def start(self) -> None:
            self.holds_up = False
            self.is_ready = True

    def change() -> None:
        connection.send(b"p" * (4 * MIB))
        connection.set_layer(Late())
        connection.send(b"uryyb")
        connection.shutdown()

    call_in_loop(loop_thread, change)
    with theirs:
        received = receive_all(theirs)
    assert received == b"p" * (4 * MIB) + b"hello\nbye"
    assert recorder.closed.wait(PATIENCE_S)


def test_a_layer_with_bytes_in_it_is_not_taken_away(loop_thread):
    recorder = Recorder()
    connection, layer, theirs = layered(loop_thread, recorder)
    with theirs:
        receive_exactly(theirs, 10)

        def take_away() -> None:
            layer.say(b"something")
            with pytest.raises(RuntimeError, match="9 bytes in another layer"):
                connection.set_layer(None)

        call_in_loop(loop_thread, take_away)
    eventually(lambda: connection.state is ConnectionState.DISCONNECTED)
    with pytest.raises(RuntimeError, match="has ended"):
        call_in_loop(loop_thread, connection.set_layer, None)


def test_a_view_of_the_input_is_a_snapshot_even_if_the_callback_adds_to_the_buffer(serve):
    views: list[memoryview] = []

    def on_message(connection: TcpConnection, buffer: Buffer, when: object) -> None:
        views.append(buffer.peek())
        buffer.append(bytes(500_000))
        buffer.retrieve_all()
        connection.send(b"!")

    server = serve(message_callback=on_message)
    with server.connect() as client:
        for number in range(5):
            client.sendall(b"message %d" % number)
            assert receive_exactly(client, 1) == b"!"
    assert [bytes(view) for view in views] == [b"message %d" % number for number in range(5)]
