"""Codecs: any split of any stream gives the same messages, and nothing makes them hold more than their limit."""

from __future__ import annotations

import itertools
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codec_kinds import KINDS
from conftest import PATIENCE_S, ServerThread, call_in_loop, receive_all, receive_exactly
from pymuduo import Buffer, InetAddress, TcpConnection, TcpServer, Timestamp
from pymuduo.codec import Codec, LengthHeaderCodec, LineCodec, ProtocolError

# Those that carry any bytes of any length.
CODECS = {
    name: KINDS[name].make
    for name in KINDS
    if name.startswith(("line", "crlf", "bordered", "length", "netstring", "varint"))
}


@pytest.fixture(params=CODECS)
def make(request: pytest.FixtureRequest) -> Callable[..., Codec]:
    """Return a maker of each kind of codec."""
    return CODECS[request.param]


def carried(codec: Codec, messages: Iterable[bytes]) -> list[bytes]:
    """Return those of *messages* that the codec can carry."""
    able = []
    for message in messages:
        try:
            codec.encode(message)
        except ValueError:
            continue
        able.append(message)
    return able


# --- values ---


@pytest.mark.parametrize("kind", CODECS)
@given(
    messages=st.lists(st.binary(max_size=40) | st.text("ab\r\n", max_size=6).map(str.encode), max_size=12),
    cuts=st.lists(st.integers(0, 600), max_size=20),
)
def test_any_split_of_a_stream_gives_the_same_messages(kind, messages, cuts):
    codec = CODECS[kind](max_bytes=40)
    messages = carried(codec, messages)
    stream = codec.encode_all(messages)
    assert stream == b"".join(map(codec.encode, messages))
    buffer, received = Buffer(), []
    places = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    for begin, end in itertools.pairwise(places):
        buffer.append(stream[begin:end])
        received += codec.decode(buffer)
    assert received == messages
    assert len(buffer) == 0


@given(lines=st.lists(st.text("ab\r\n", max_size=5).map(str.encode), max_size=5))
@pytest.mark.parametrize("kind", ["line", "crlf", "bordered"])
def test_lines_are_encoded_together_just_when_each_of_them_can_be(kind, lines):
    codec = CODECS[kind](max_bytes=4)
    try:
        each = b"".join(map(codec.encode, lines))
    except ValueError:
        with pytest.raises(ValueError, match="a message"):
            codec.encode_all(lines)
    else:
        assert codec.encode_all(lines) == each
        buffer = Buffer(each)
        assert codec.decode(buffer) == lines


def test_a_line_ends_in_its_delimiter():
    buffer = Buffer(b"one\ntwo\r\n\nthr")
    assert LineCodec().decode(buffer) == [b"one", b"two\r", b""]
    assert bytes(buffer) == b"thr"
    assert LineCodec(delimiter=b"\r\n").encode(b"x\n") == b"x\n\r\n"


@pytest.mark.parametrize(
    ("width", "order", "header"),
    [
        (1, "big", b"\x03"),
        (2, "big", b"\0\x03"),
        (2, "little", b"\x03\0"),
        (4, "big", b"\0\0\0\x03"),
        (8, "big", bytes(7) + b"\x03"),
        (8, "little", b"\x03" + bytes(7)),
    ],
)
def test_a_length_header_has_its_width_and_order(width, order, header):
    codec = LengthHeaderCodec(header_bytes=width, byte_order=order)
    assert codec.encode(b"abc") == header + b"abc"
    assert codec.decode(Buffer(header + b"abc" + header)) == [b"abc"]
    assert codec.header_bytes == width
    assert codec.byte_order == order


def test_a_header_says_no_more_than_it_can():
    assert LengthHeaderCodec(header_bytes=1).max_bytes == 255
    assert LengthHeaderCodec(header_bytes=2, max_bytes=100).max_bytes == 100
    with pytest.raises(ValueError, match="at most 255 bytes, got 256"):
        LengthHeaderCodec(header_bytes=1).encode(bytes(256))


@pytest.mark.parametrize("announced", [1 << 63, (1 << 64) - 1, 1 << 31, 101])
def test_a_length_beyond_the_limit_is_refused_with_the_header(announced):
    codec = LengthHeaderCodec(header_bytes=8, max_bytes=100)
    with pytest.raises(ProtocolError, match=f"a message of {announced} bytes"):
        codec.decode(Buffer(announced.to_bytes(8, "big")))


def test_what_came_before_a_violation_is_returned_first():
    codec = LineCodec(max_bytes=5)
    buffer = Buffer(b"12345\nab\n123456\nx\n")
    assert codec.decode(buffer) == [b"12345", b"ab"]
    with pytest.raises(ProtocolError, match="more than 5 bytes"):
        codec.decode(buffer)


def test_a_line_that_never_ends_is_refused_at_its_limit():
    codec = LineCodec(max_bytes=5, delimiter=b"\r\n")
    buffer = Buffer(b"12345\r")
    assert codec.decode(buffer) == []
    buffer.append(b"6")
    with pytest.raises(ProtocolError):
        codec.decode(buffer)


def test_other_bytes_like_payloads_are_encoded(make):
    codec = make()
    for payload in (bytearray(b"xyz"), memoryview(b"xyz")):
        assert codec.encode(payload) == codec.encode(b"xyz")
        assert codec.encode_all(iter([payload, b"1"])) == codec.encode_all([b"xyz", b"1"])


def test_text_is_no_payload(make):
    with pytest.raises(TypeError):
        make().encode("text")


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="not both"):
        LineCodec(print, batch_callback=print)
    with pytest.raises(ValueError, match="max_bytes must be positive, got 0"):
        LengthHeaderCodec(max_bytes=0)
    with pytest.raises(ValueError, match="delimiter"):
        LineCodec(delimiter=b"")
    with pytest.raises(ValueError, match="header_bytes must be 1, 2, 4 or 8, got 3"):
        LengthHeaderCodec(header_bytes=3)
    with pytest.raises(ValueError, match="byte_order must be 'big' or 'little', got 'middle'"):
        LengthHeaderCodec(byte_order="middle")  # type: ignore[arg-type]


# --- on a connection ---


def test_messages_arrive_one_by_one_and_answers_leave_together(serve, make):
    times = []

    def echo(connection: TcpConnection, message: bytes, receive_time: object) -> None:
        times.append(receive_time)
        assert codec.send(connection, message[::-1])

    codec = make(echo)
    server = serve(message_callback=codec.on_message)
    with server.connect() as client:
        stream = codec.encode_all([b"abc", b"", b"xyz"])
        client.sendall(stream)
        answer = codec.encode_all([b"cba", b"", b"zyx"])
        assert receive_exactly(client, len(answer)) == answer
    assert len(times) == 3


def test_a_batch_is_all_that_a_read_has_completed(serve, make):
    batches: list[list[bytes]] = []

    def echo(connection: TcpConnection, messages: list[bytes], receive_time: object) -> None:
        batches.append(messages)
        assert codec.send_all(connection, messages)

    codec = make(batch_callback=echo)
    server = serve(message_callback=codec.on_message)
    messages = [str(i).encode() for i in range(100)]
    with server.connect() as client:
        client.sendall(codec.encode_all(messages))
        expected = codec.encode_all(messages)
        assert receive_exactly(client, len(expected)) == expected
    assert [message for batch in batches for message in batch] == messages
    assert all(batches)


def test_a_codec_serves_many_connections_on_many_loops(serve):
    codec = LengthHeaderCodec(lambda connection, message, _: codec.send(connection, message))
    server = serve(2, message_callback=codec.on_message)
    clients = [server.connect() for _ in range(8)]
    for number, client in enumerate(clients):
        client.sendall(codec.encode(b"first half") + codec.encode(bytes([number]) * 1000)[:500])
    for number, client in enumerate(clients):
        client.sendall(codec.encode(bytes([number]) * 1000)[500:])
        expected = codec.encode_all([b"first half", bytes([number]) * 1000])
        assert receive_exactly(client, len(expected)) == expected
        client.close()


def test_a_peer_that_breaks_the_rules_is_answered_what_came_before_logged_and_cut_off(serve, caplog):
    received, down = [], threading.Event()

    def on_connection(connection: TcpConnection) -> None:
        if not connection.connected:
            down.set()

    codec = LengthHeaderCodec(lambda connection, message, _: received.append(message), max_bytes=10)
    server = serve(connection_callback=on_connection, message_callback=codec.on_message)
    with server.connect() as client:
        client.sendall(codec.encode(b"good") + struct.pack(">I", 11) + bytes(11) + codec.encode(b"never"))
        assert down.wait(PATIENCE_S)
    assert received == [b"good"]
    assert "a message of 11 bytes, where 10 are allowed" in caplog.text


def test_an_error_callback_takes_the_place_of_the_log_line(serve, caplog):
    errors, down = [], threading.Event()
    codec = LineCodec(max_bytes=3)
    codec.error_callback = lambda connection, error: errors.append(error)
    server = serve(close_callback=lambda connection: down.set(), message_callback=codec.on_message)
    with server.connect() as client:
        client.sendall(b"1234")
        assert down.wait(PATIENCE_S)
    assert [str(error) for error in errors] == ["a line of more than 3 bytes"]
    assert isinstance(errors[0], ProtocolError)
    assert "cut off" not in caplog.text


def test_a_codec_that_knows_a_way_back_into_step_goes_on(serve):
    class LenientLineCodec(LineCodec):
        """Skips a line that is too long."""

        def recover(self, connection: TcpConnection, buffer: Buffer, error: ProtocolError) -> bool:
            self.send(connection, b"no")
            self.skip(connection, buffer)
            return True

        def skip(self, connection: TcpConnection, buffer: Buffer) -> None:
            end = buffer.find(b"\n")
            buffer.retrieve(end + 1 if end >= 0 else len(buffer))
            connection.message_callback = self.on_message if end >= 0 else self.skip_more

        def skip_more(self, connection: TcpConnection, buffer: Buffer, receive_time: Timestamp) -> None:
            self.skip(connection, buffer)
            self.on_message(connection, buffer, receive_time)

    codec = LenientLineCodec(lambda connection, line, _: codec.send(connection, line), max_bytes=5)
    server = serve(message_callback=codec.on_message)
    with server.connect() as client:
        client.sendall(b"one\n" + b"x" * 9 + b"\ntwo\n" + b"y" * 9)
        assert receive_exactly(client, 14) == b"one\nno\ntwo\nno\n"
        client.sendall(b"y" * 9 + b"\nthree\n")
        assert receive_exactly(client, 6) == b"three\n"


@pytest.mark.provokes_errors("RuntimeError: no")
def test_a_callback_that_raises_ends_the_connection_and_no_more_messages_come(serve, caplog):
    received = []

    def fail(connection: TcpConnection, message: bytes, receive_time: object) -> None:
        received.append(message)
        codec.send(connection, message)
        if message == b"2":
            raise RuntimeError("no")

    codec = LineCodec(fail)
    server = serve(message_callback=codec.on_message)
    with server.connect() as client:
        client.sendall(b"1\n2\n3\n")
        assert receive_all(client) == b"1\n2\n"
    assert received == [b"1", b"2"]
    assert "RuntimeError: no" in caplog.text


def test_with_an_exception_handler_the_messages_behind_a_failure_are_delivered(serve):
    reported = []

    def on_line(connection: TcpConnection, line: bytes, receive_time: object) -> None:
        if line == b"2":
            raise RuntimeError("no")
        codec.send(connection, line)

    def on_connection(connection: TcpConnection) -> None:
        connection.loop.exception_handler = lambda exception, source: reported.append((str(exception), source))

    codec = LineCodec(on_line)
    server = serve(connection_callback=on_connection, message_callback=codec.on_message)
    with server.connect() as client:
        client.sendall(b"1\n2\n3\n")
        assert receive_exactly(client, 4) == b"1\n3\n"
        assert [what for what, _ in reported] == ["no"]
        assert isinstance(reported[0][1], TcpConnection)


def test_an_interrupt_in_a_callback_loses_no_message(loop):
    received = []

    def on_line(connection: TcpConnection, line: bytes, receive_time: object) -> None:
        received.append(line)
        if line == b"2":
            raise KeyboardInterrupt
        if line == b"5":
            loop.quit()

    codec = LineCodec(on_line)
    server = TcpServer(loop, InetAddress.loopback(0), "lines")
    server.message_callback = codec.on_message
    server.start()
    with socket.create_connection((server.address.ip, server.address.port), timeout=PATIENCE_S) as client:
        client.sendall(b"1\n2\n3\n4\nhal")
        with pytest.raises(KeyboardInterrupt):
            loop.run()
        client.sendall(b"f\n5\n")
        loop.run()
    assert received == [b"1", b"2", b"3", b"4", b"half", b"5"]


# --- on a connection that is not read ---


class Stopper:
    """Hears lines, and stops reading at each of some."""

    def __init__(self, *stops: bytes) -> None:
        self.received: list[bytes] = []
        self.errors: list[ProtocolError] = []
        self.connections: list[TcpConnection] = []
        self.down = threading.Event()
        self.codec = LineCodec(self.on_line, max_bytes=5)
        self.codec.error_callback = lambda connection, error: self.errors.append(error)
        self._stops = stops

    def on_line(self, connection: TcpConnection, line: bytes, receive_time: object) -> None:
        self.received.append(line)
        self.codec.send(connection, line)
        if line in self._stops:
            connection.stop_read()

    def on_connection(self, connection: TcpConnection) -> None:
        if connection.connected:
            self.connections.append(connection)
        else:
            self.down.set()

    def serve(self, serve: Callable[..., ServerThread]) -> ServerThread:
        return serve(connection_callback=self.on_connection, message_callback=self.codec.on_message)

    def go_on(self, server: ServerThread) -> None:
        """Start reading, and wait until the loop has seen to it."""
        self.connections[0].start_read()
        for _ in range(3):
            call_in_loop(server.loop, lambda: None)


def test_no_message_comes_between_stop_read_and_start_read(serve):
    stopper = Stopper(b"1", b"3")
    server = stopper.serve(serve)
    with server.connect() as client:
        client.sendall(b"1\n2\n3\n4\nhal")
        assert receive_exactly(client, 2) == b"1\n"
        client.sendall(b"f\n5\n")
        assert stopper.received == [b"1"]
        stopper.go_on(server)
        assert stopper.received == [b"1", b"2", b"3"]
        stopper.connections[0].start_read()
        assert receive_exactly(client, 13) == b"2\n3\n4\nhalf\n5\n"
    assert stopper.received == [b"1", b"2", b"3", b"4", b"half", b"5"]


def test_what_breaks_the_rules_behind_a_message_that_waits_waits_as_well(serve):
    stopper = Stopper(b"1", b"2")
    server = stopper.serve(serve)
    with server.connect() as client:
        client.sendall(b"1\n2\n123456")
        assert receive_exactly(client, 2) == b"1\n"
        for expected in ([b"1"], [b"1", b"2"]):
            assert stopper.received == expected
            assert stopper.errors == []
            stopper.go_on(server)
        assert receive_all(client) == b"2\n"
        assert stopper.down.wait(PATIENCE_S)
    assert stopper.connections[0].error is stopper.errors[0]


def test_the_peers_fin_waits_behind_the_messages_that_wait(serve):
    stopper = Stopper(b"1", b"2")
    server = stopper.serve(serve)
    with server.connect() as client:
        client.sendall(b"1\n2\n3\n")
        client.shutdown(socket.SHUT_WR)
        assert receive_exactly(client, 2) == b"1\n"
        stopper.go_on(server)
        assert receive_exactly(client, 2) == b"2\n"
        assert not stopper.down.is_set()
        stopper.go_on(server)
        assert receive_all(client) == b"3\n"
    assert stopper.received == [b"1", b"2", b"3"]


def test_messages_that_wait_are_dropped_with_their_connection(serve):
    stopper = Stopper(b"1")
    server = stopper.serve(serve)
    with server.connect() as client:
        client.sendall(b"1\n2\n")
        assert receive_exactly(client, 2) == b"1\n"
        stopper.connections[0].force_close()
        stopper.connections[0].start_read()
        assert receive_all(client) == b""
    assert stopper.received == [b"1"]


def test_a_batch_is_the_last_one_until_start_read(serve):
    batches: list[list[bytes]] = []
    connections: list[TcpConnection] = []

    def on_batch(connection: TcpConnection, lines: list[bytes], receive_time: object) -> None:
        connections.append(connection)
        batches.append(lines)
        codec.send_all(connection, lines)
        connection.stop_read()

    codec = LineCodec(batch_callback=on_batch, max_bytes=5)
    server = serve(message_callback=codec.on_message)
    with server.connect() as client:
        client.sendall(b"1\n2\n123456")
        assert receive_exactly(client, 4) == b"1\n2\n"
        call_in_loop(server.loop, lambda: None)
        assert connections[0].error is None
        connections[0].start_read()
        assert receive_all(client) == b""
    assert batches == [[b"1", b"2"]]
    assert isinstance(connections[0].error, ProtocolError)


def test_whoever_stops_at_every_message_gets_them_all_in_order_and_then_the_end(serve):
    lines = [b"%d" % number for number in range(300)]
    stopper = Stopper(*lines)
    server = stopper.serve(serve)
    with server.connect() as client:
        for line in lines:
            client.sendall(line + b"\n")
        client.shutdown(socket.SHUT_WR)
        for line in lines:
            assert receive_exactly(client, len(line) + 1) == line + b"\n"
            stopper.connections[0].start_read()
        assert receive_all(client) == b""
    assert stopper.received == lines


def test_reading_stopped_and_started_in_a_callback_holds_nothing_up(serve):
    def on_line(connection: TcpConnection, line: bytes, receive_time: object) -> None:
        connection.stop_read()
        codec.send(connection, line)
        connection.start_read()

    codec = LineCodec(on_line)
    server = serve(message_callback=codec.on_message)
    with server.connect() as client:
        client.sendall(b"1\n2\nhal")
        assert receive_exactly(client, 4) == b"1\n2\n"
        client.sendall(b"f\n")
        assert receive_exactly(client, 5) == b"half\n"


def test_an_interrupt_in_a_callback_that_stops_reading_loses_no_message(loop):
    received = []

    def on_line(connection: TcpConnection, line: bytes, receive_time: object) -> None:
        received.append(line)
        if line == b"1":
            connection.stop_read()
            loop.queue_in_loop(connection.start_read)
            raise KeyboardInterrupt
        if line == b"3":
            loop.quit()

    codec = LineCodec(on_line)
    server = TcpServer(loop, InetAddress.loopback(0), "lines")
    server.message_callback = codec.on_message
    server.start()
    with socket.create_connection((server.address.ip, server.address.port), timeout=PATIENCE_S) as client:
        client.sendall(b"1\n2\n3\n")
        with pytest.raises(KeyboardInterrupt):
            loop.run()
        assert received == [b"1"]
        loop.run()
    assert received == [b"1", b"2", b"3"]


@pytest.mark.parametrize("end", ["force_close", "fail"])
def test_no_message_comes_after_the_one_that_ends_the_connection(serve, end):
    received = []

    def on_line(connection: TcpConnection, line: bytes, receive_time: object) -> None:
        received.append(line)
        if end == "force_close":
            connection.force_close()
        else:
            connection.fail(PermissionError("no more"))
        connection.start_read()

    codec = LineCodec(on_line)
    server = serve(message_callback=codec.on_message)
    with server.connect() as client:
        client.sendall(b"1\n2\n3\n")
        assert receive_all(client) == b""
    assert received == [b"1"]


def test_no_message_comes_after_another_connections_callback_has_closed_it(loop):
    """Both have sent something when the loop polls; the one that is served first closes the other."""
    connections: list[TcpConnection] = []
    received = []

    def on_connection(connection: TcpConnection) -> None:
        if connection.connected:
            connections.append(connection)
        if len(connections) == 2:
            loop.quit()

    def on_line(connection: TcpConnection, line: bytes, receive_time: object) -> None:
        received.append(line)
        for other in connections:
            if other is not connection:
                other.force_close()
        loop.quit()

    codec = LineCodec(on_line)
    server = TcpServer(loop, InetAddress.loopback(0), "lines")
    server.connection_callback = on_connection
    server.message_callback = codec.on_message
    server.start()
    address = (server.address.ip, server.address.port)
    with socket.create_connection(address) as one, socket.create_connection(address) as other:
        loop.run()
        one.sendall(b"one\n")
        other.sendall(b"other\n")
        loop.run()
    assert len(received) == 1


def test_a_limit_as_large_as_can_be_is_no_limit():
    assert LineCodec(max_bytes=sys.maxsize).decode(Buffer(b"half a li")) == []
    assert LengthHeaderCodec(max_bytes=sys.maxsize).decode(Buffer(b"\0\0\0\1")) == []


def test_messages_nobody_wants_are_dropped(serve):
    codec = LineCodec()
    server = serve(message_callback=codec.on_message)
    with server.connect() as client:
        client.sendall(b"1\n2\n3")
        client.shutdown(socket.SHUT_WR)
        assert receive_all(client) == b""


def test_sending_on_a_closed_connection_is_false(serve):
    connections: list[TcpConnection] = []
    down = threading.Event()
    codec = LineCodec()
    server = serve(connection_callback=connections.append, close_callback=lambda connection: down.set())
    server.connect().close()
    assert down.wait(PATIENCE_S)
    assert codec.send(connections[0], b"x") is False
    assert codec.send_all(connections[0], [b"x", b"y"]) is False


def test_a_codec_of_ones_own_needs_two_methods(serve):
    class Pairs(Codec):
        """Two bytes make a message."""

        def decode(self, buffer: Buffer) -> list[bytes]:
            return [buffer.retrieve_as_bytes(2) for _ in range(len(buffer) // 2)]

        def encode(self, payload: bytes) -> bytes:
            return payload

    codec = Pairs(lambda connection, message, _: codec.send_all(connection, [message, b"-"]))
    server = serve(message_callback=codec.on_message)
    with server.connect() as client:
        client.sendall(b"abcde")
        assert receive_exactly(client, 6) == b"ab-cd-"
