"""IdleTimeouts: who is closed, when not before, and what watching costs."""

from __future__ import annotations

import contextlib
import gc
import logging
import socket
import threading
import time
import weakref

import pytest

from certificates import NAME, client_context, server_context
from conftest import PATIENCE_S, ServerThread, call_in_loop, eventually, receive_all, receive_exactly
from pymuduo import Buffer, EventLoop, InetAddress, TcpConnection, Timestamp
from pymuduo.idle_timeouts import IdleKind, IdleTimeouts

T = 0.05  # short enough for a test, and long against what a message takes
ATTEMPTS = 50


class Ended:
    """The connections of a server, as they come, and why they ended."""

    def __init__(self) -> None:
        self.up: list[TcpConnection] = []
        self.down: list[TcpConnection] = []

    def on_connection(self, connection: TcpConnection) -> None:
        (self.up if connection.connected else self.down).append(connection)

    def errors(self) -> list[str]:
        assert all(type(connection.error) is TimeoutError for connection in self.down)
        return [str(connection.error) for connection in self.down]


def echo(connection: TcpConnection, buffer: Buffer, receive_time: Timestamp) -> None:
    connection.send(buffer)


def echo_lines(connection: TcpConnection, buffer: Buffer, receive_time: Timestamp) -> None:
    while (end := buffer.find(b"\n")) >= 0:
        connection.send(buffer.retrieve_as_bytes(end + 1))


def first_of(connections: list[TcpConnection]) -> TcpConnection:
    eventually(lambda: connections)
    return connections[0]


def wait_for_end(sock: socket.socket) -> None:
    with contextlib.suppress(ConnectionResetError):
        receive_all(sock)


def talk(sock: socket.socket, seconds: float) -> float:
    """Send a byte, and receive it back, again and again; return the longest pause between two."""
    longest = 0.0
    end = last = time.monotonic()
    end += seconds
    while last < end:
        sock.sendall(b"x")
        receive_exactly(sock, 1)
        now = time.monotonic()
        longest, last = max(longest, now - last), now
    return longest


def let_time_out(server: ServerThread, times: int = 3) -> None:
    """Wait until some connections of another server have come, idled and been closed, one after another."""
    for _ in range(times):
        with server.connect() as other:
            wait_for_end(other)


# --- each kind ---


@pytest.mark.parametrize("threads", [0, 2])
def test_who_sends_nothing_is_closed_but_not_before_the_time(serve, threads):
    ended = Ended()
    server = serve(threads, idle_timeouts=IdleTimeouts(read_s=T), connection_callback=ended.on_connection)
    begin = time.monotonic()
    with contextlib.ExitStack() as stack:
        for client in [stack.enter_context(server.connect()) for _ in range(4)]:
            wait_for_end(client)
            assert time.monotonic() - begin >= T
    eventually(lambda: len(ended.down) == 4)
    assert ended.errors() == [f"nothing received for {T:g} s"] * 4


def test_the_time_begins_again_with_every_message(serve):
    server = serve(0, idle_timeouts=IdleTimeouts(read_s=T), message_callback=echo)
    for _ in range(ATTEMPTS):
        with server.connect() as client:
            try:
                longest = talk(client, 6 * T)
            except (AssertionError, OSError):
                longest = T  # closed; only a machine that was held up may have done that
            if longest < T / 2:
                last = time.monotonic()
                wait_for_end(client)
                assert time.monotonic() - last >= T - longest
                return
    raise AssertionError("closed every time, though it talked")


def test_who_is_sent_nothing_gets_heart_beats(serve):
    def beat(connection: TcpConnection, kind: IdleKind) -> None:
        assert kind is IdleKind.WRITE
        connection.send(b"ping\n")

    server = serve(0, idle_timeouts=IdleTimeouts(write_s=T, callback=beat))
    begin = time.monotonic()
    with server.connect() as client:
        assert receive_exactly(client, 15) == b"ping\n" * 3
        assert time.monotonic() - begin >= 3 * T


def test_what_is_received_does_not_put_off_a_heart_beat(serve):
    server = serve(0, idle_timeouts=IdleTimeouts(write_s=T, callback=lambda c, kind: c.send(b"p")))
    with server.connect() as client:
        client.setblocking(False)
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            client.send(b"x")
            with contextlib.suppress(BlockingIOError):
                assert client.recv(1) == b"p"
                return
            time.sleep(T / 20)
    raise AssertionError("no heart-beat")


@pytest.mark.parametrize("direction", ["received", "sent"])
def test_traffic_in_either_direction_is_enough_for_both(serve, direction):
    ended = Ended()
    server = serve(0, idle_timeouts=IdleTimeouts(both_s=4 * T), connection_callback=ended.on_connection)
    for _ in range(ATTEMPTS):
        with server.connect() as client:
            connection = first_of(ended.up)
            end = time.monotonic() + 12 * T
            longest, last = 0.0, time.monotonic()
            while last < end:
                with contextlib.suppress(OSError):
                    if direction == "received":
                        client.sendall(b"x")
                    else:
                        connection.send(b"x")
                        client.recv(1)
                time.sleep(T / 10)
                now = time.monotonic()
                longest, last = max(longest, now - last), now
            if longest < 2 * T:
                assert not ended.down
                wait_for_end(client)
                eventually(lambda: ended.down)
                assert ended.errors() == [f"nothing received or sent for {4 * T:g} s"]
                return
            wait_for_end(client)
            eventually(lambda: ended.down)
            ended.up.clear()
            ended.down.clear()
    raise AssertionError("the machine was held up every time")


def test_who_does_not_read_is_closed_though_it_sends(serve):
    ended = Ended()

    def flood(connection: TcpConnection) -> None:
        ended.on_connection(connection)
        if connection.connected:
            connection.send(bytes(16 << 20))

    server = serve(0, idle_timeouts=IdleTimeouts(stall_s=T), connection_callback=flood)
    with server.connect() as client:
        deadline = time.monotonic() + PATIENCE_S
        with contextlib.suppress(OSError):
            while time.monotonic() < deadline:
                client.sendall(b"x")
                time.sleep(T / 20)
        eventually(lambda: ended.down)
    assert ended.errors() == [f"output has waited without moving: the peer does not read for {T:g} s"]


def test_a_stall_needs_output_that_waits(serve):
    ended = Ended()
    stalls = IdleTimeouts(stall_s=T)
    server = serve(0, idle_timeouts=stalls, connection_callback=ended.on_connection)
    others = serve(0, idle_timeouts=IdleTimeouts(read_s=T))
    with server.connect() as client:
        connection = first_of(ended.up)
        connection.send(b"read at once")
        assert receive_exactly(client, 12) == b"read at once"
        let_time_out(others)
        assert not ended.down


def test_a_byte_now_and_then_does_not_help_a_message_that_is_never_complete(serve):
    ended = Ended()
    server = serve(
        0,
        idle_timeouts=IdleTimeouts(message_s=T),
        message_callback=echo_lines,
        connection_callback=ended.on_connection,
    )
    with server.connect() as client:
        begin = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() < begin + PATIENCE_S:
                client.sendall(b"x")
                time.sleep(T / 20)
        eventually(lambda: ended.down)
        assert time.monotonic() - begin >= T
    assert ended.errors() == [f"a message has begun and is still incomplete for {T:g} s"]


def test_who_sends_whole_messages_or_none_is_let_alone_by_message_s(serve):
    ended = Ended()
    server = serve(
        0,
        idle_timeouts=IdleTimeouts(message_s=T),
        message_callback=echo_lines,
        connection_callback=ended.on_connection,
    )
    others = serve(0, idle_timeouts=IdleTimeouts(read_s=T))
    with server.connect() as silent, server.connect() as client:
        for _ in range(3):
            client.sendall(b"hello\n")
            assert receive_exactly(client, 6) == b"hello\n"
            let_time_out(others, 1)
        assert not ended.down
        silent.sendall(b"x\n")
        assert receive_exactly(silent, 2) == b"x\n"


def test_several_times_at_once_each_for_itself(serve):
    kinds: list[IdleKind] = []
    server = serve(0, idle_timeouts=IdleTimeouts(read_s=T, write_s=T, both_s=T, callback=lambda c, k: kinds.append(k)))
    with server.connect():
        eventually(lambda: set(kinds) == {IdleKind.READ, IdleKind.WRITE, IdleKind.BOTH})


# --- when we are to blame ourselves ---


@pytest.mark.parametrize(("times", "said"), [({"read_s": T}, b""), ({"message_s": T}, b"x")])
def test_time_in_which_reading_is_stopped_does_not_count(serve, times, said):
    ended = Ended()
    timeouts = IdleTimeouts(**times)

    def on_connection(connection: TcpConnection) -> None:
        ended.on_connection(connection)
        if not said:
            connection.stop_read()

    def stop(connection: TcpConnection, buffer: Buffer, receive_time: Timestamp) -> None:
        connection.stop_read()

    server = serve(0, idle_timeouts=timeouts, message_callback=stop, connection_callback=on_connection)
    others = serve(0, idle_timeouts=IdleTimeouts(read_s=T))
    with server.connect() as client:
        client.sendall(said)
        connection = first_of(ended.up)
        eventually(lambda: not connection.is_reading)
        let_time_out(others)
        assert not ended.down
        connection.start_read()
        eventually(lambda: ended.down)
    assert len(ended.errors()) == 1


def test_a_peer_that_does_not_leave_after_our_goodbye_is_closed(serve):
    ended = Ended()
    server = serve(0, idle_timeouts=IdleTimeouts(read_s=T), connection_callback=ended.on_connection)
    with server.connect() as client:
        connection = first_of(ended.up)
        connection.shutdown()
        connection.stop_read()
        assert client.recv(1) == b""
        eventually(lambda: ended.down)
    assert len(ended.errors()) == 1


# --- with TLS, whose records say nothing before they are complete ---


@pytest.mark.parametrize("times", [{"read_s": T}, {"both_s": T}], ids=["read_s", "both_s"])
def test_a_tls_peer_whose_record_trickles_in_and_is_never_complete_is_closed(serve, times):
    ended = Ended()
    server = serve(
        0,
        ssl_context=server_context(),
        idle_timeouts=IdleTimeouts(**times),
        connection_callback=ended.on_connection,
    )
    with server.connect() as sock:
        tls = client_context().wrap_socket(sock, server_hostname=NAME)
        with socket.socket(fileno=tls.detach()) as raw:
            raw.sendall(b"\x17\x03\x03\x40\x00")  # the head of one of 16 KiB

            def trickle() -> list[TcpConnection]:
                with contextlib.suppress(ConnectionError):
                    raw.sendall(b"x")
                return ended.down

            eventually(trickle)
    assert len(ended.errors()) == 1


def test_a_message_that_trickles_in_record_by_record_is_closed(serve):
    ended = Ended()
    server = serve(
        0,
        ssl_context=server_context(),
        idle_timeouts=IdleTimeouts(message_s=T),
        message_callback=echo_lines,
        connection_callback=ended.on_connection,
    )
    with server.connect() as sock, client_context().wrap_socket(sock, server_hostname=NAME) as tls:

        def trickle() -> list[TcpConnection]:
            with contextlib.suppress(OSError):
                tls.sendall(b"x")
            return ended.down

        eventually(trickle)
    assert len(ended.errors()) == 1


# --- callbacks ---


def test_a_callback_decides_and_may_do_the_usual(serve):
    ended = Ended()
    seen: list[int] = []

    def decide(connection: TcpConnection, kind: IdleKind) -> None:
        seen.append(threading.get_ident())
        if len(seen) == 3:
            timeouts.end(connection, kind)

    timeouts = IdleTimeouts(read_s=T, callback=decide)
    server = serve(1, idle_timeouts=timeouts, connection_callback=ended.on_connection)
    with server.connect() as client:
        wait_for_end(client)
    eventually(lambda: ended.down)
    assert ended.errors() == [f"nothing received for {T:g} s"]
    assert seen == [ended.down[0].loop.thread_id or seen[0]] * 3


@pytest.mark.provokes_errors("bad decision")
def test_a_callback_that_raises_closes_its_connection_and_no_other(serve, caplog):
    ended = Ended()

    def decide(connection: TcpConnection, kind: IdleKind) -> None:
        if connection is ended.up[0]:
            raise ValueError("bad decision")

    server = serve(0, idle_timeouts=IdleTimeouts(read_s=T, callback=decide), connection_callback=ended.on_connection)
    with server.connect() as first, server.connect() as second:
        wait_for_end(first)
        second.sendall(b"x")
        eventually(lambda: ended.down)
        assert ended.down == [ended.up[0]]
    assert "bad decision" in caplog.text


def test_the_log_says_who_was_closed_and_why(serve, caplog):
    caplog.set_level(logging.INFO, "pymuduo")
    server = serve(0, idle_timeouts=IdleTimeouts(read_s=T))
    with server.connect() as client:
        wait_for_end(client)
    lines = [r.getMessage() for r in caplog.records if "nothing received" in r.getMessage()]
    assert lines == [f"test-127.0.0.1:{server.port}#1: nothing received for {T:g} s"]


# --- what it costs ---


def test_a_connection_that_has_ended_is_not_kept(serve):
    timeouts = IdleTimeouts(read_s=3600)
    known: list[weakref.ref[TcpConnection]] = []
    server = serve(1, idle_timeouts=timeouts, connection_callback=lambda c: known.append(weakref.ref(c)))
    with server.connect():
        eventually(lambda: known)

    def is_gone() -> bool:
        gc.collect()
        return known[0]() is None

    eventually(is_gone, "the time-outs keep the connection")


def test_wheels_and_timers_end_with_the_last_connection(serve):
    timeouts = IdleTimeouts(read_s=T, both_s=2 * T)
    counts: list[tuple[int, int]] = []

    def on_connection(connection: TcpConnection) -> None:
        if connection.connected:
            counts.append((len(timeouts), connection.loop.timer_count))

    server = serve(0, idle_timeouts=timeouts, connection_callback=on_connection)
    for _ in range(2):
        with server.connect() as client:
            wait_for_end(client)
        assert counts.pop() == (1, 2)
        eventually(lambda: len(timeouts) == 0)
        eventually(lambda: call_in_loop(server.loop, lambda: server.loop.timer_count) == 0)


def test_wheels_end_with_their_loop():
    timeouts = IdleTimeouts(read_s=3600)
    with EventLoop() as loop:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        address = InetAddress.loopback(1)
        connection = TcpConnection(loop, "c", ours.detach(), address, address)
        connection.connect_established()
        timeouts.watch(connection)
        assert len(timeouts) == 1
    assert len(timeouts) == 0
    theirs.close()


# --- what is refused ---


def test_times_must_be_given_and_above_0():
    with pytest.raises(ValueError, match="no time is given"):
        IdleTimeouts()
    for seconds in (0, -1.5, float("nan")):
        with pytest.raises(ValueError, match="stall_s must be above 0 seconds"):
            IdleTimeouts(stall_s=seconds)


def test_only_the_connections_own_thread_may_have_it_watched(serve):
    ups: list[TcpConnection] = []
    server = serve(0, connection_callback=ups.append)
    with server.connect():
        connection = first_of(ups)
        with pytest.raises(RuntimeError, match="belongs to thread"):
            IdleTimeouts(read_s=1).watch(connection)


def test_repr_tells_the_times():
    assert repr(IdleTimeouts(read_s=60, message_s=2.5)) == "<IdleTimeouts read_s=60, message_s=2.5>"
