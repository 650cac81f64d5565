"""RespCodec: requests of the Redis protocol, as arrays and as lines, however they are cut."""

from __future__ import annotations

import itertools
import socket

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from conftest import receive_all
from pymuduo import Buffer, TcpConnection
from pymuduo.codec import ProtocolError, RespCodec

WORDS = st.lists(st.binary(max_size=12), min_size=1, max_size=5)
LIMIT = 200


def decoded(stream: bytes, cuts: list[int], codec: RespCodec) -> tuple[list[list[bytes]], str]:
    """Return the requests of a stream that arrives in pieces, and how it ended."""
    buffer, received = Buffer(), []
    places = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    for begin, end in itertools.pairwise(places):
        buffer.append(stream[begin:end])
        try:
            while requests := codec.decode(buffer):
                received += requests
        except ProtocolError as e:
            return received, str(e)
        assert len(buffer) <= codec.max_bytes + 24
    return received, ""


@given(requests=st.lists(WORDS, max_size=8), cuts=st.lists(st.integers(0, 400), max_size=20))
def test_any_split_of_a_stream_gives_the_same_requests(requests, cuts):
    codec = RespCodec()
    assert decoded(codec.encode_all(requests), cuts, codec) == (requests, "")


@given(
    parts=st.lists(
        st.binary(max_size=8)
        | st.sampled_from(
            [b"*1\r\n", b"*2\r\n", b"$3\r\nabc\r\n", b"$0\r\n\r\n", b"*-1\r\n", b"PING a\r\n", b'"', b"\r\n"]
        ),
        max_size=14,
    ),
    cuts=st.lists(st.integers(0, 100), max_size=20),
)
@example(parts=[b"*1\r\n", b"$-1\r\n"], cuts=[])
@example(parts=[b"*1\r\n", b"$3\r\nabcd\r\n"], cuts=[])
@example(parts=[b"*1000\r\n"], cuts=[])
@example(parts=[b"*1\r\n", b"$190\r\n"], cuts=[])
def test_any_split_of_any_input_gives_the_same_requests_and_the_same_error(parts, cuts):
    stream = b"".join(parts)
    whole = decoded(stream, [], RespCodec(max_bytes=LIMIT))
    assert decoded(stream, cuts, RespCodec(max_bytes=LIMIT)) == whole
    assert decoded(stream, list(range(len(stream))), RespCodec(max_bytes=LIMIT)) == whole


def test_an_array_of_bulk_strings_is_a_list_of_words():
    buffer = Buffer(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$7\r\na\r\nb c\0\r\n*1\r\n$4\r\nPI")
    assert RespCodec().decode(buffer) == [[b"SET", b"k", b"a\r\nb c\0"]]
    assert bytes(buffer.peek()) == b"*1\r\n$4\r\nPI"


def test_empty_requests_are_no_messages():
    buffer = Buffer(b"*0\r\n*-1\r\n\r\n  \r\n*1\r\n$4\r\nPING\r\n")
    assert RespCodec().decode(buffer) == [[b"PING"]]
    assert len(buffer) == 0


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"PING\r\n", [b"PING"]),
        (b"  set  k\tv \n", [b"set", b"k", b"v"]),
        (b'set k "a b\\r\\n\\x00\\"\\q"\r\n', [b"set", b"k", b'a b\r\n\0"q']),
        (b"set k 'a \\'b\\' \\n'\r\n", [b"set", b"k", b"a 'b' \\n"]),
        (b"set k \"\" ''\r\n", [b"set", b"k", b"", b""]),
        (b'set k a"b c"\r\n', [b"set", b"k", b"ab c"]),
    ],
)
def test_a_line_is_a_request_for_people(line, words):
    assert RespCodec().decode(Buffer(line)) == [words]


def test_lines_and_arrays_take_turns():
    stream = b"PING\r\n*1\r\n$4\r\nPONG\r\nECHO a\r\n*2\r\n$1\r\nx\r\n$0\r\n\r\n"
    assert RespCodec().decode(Buffer(stream)) == [[b"PING"], [b"PONG"], [b"ECHO", b"a"], [b"x", b""]]


@pytest.mark.parametrize(
    ("stream", "error"),
    [
        (b"*x\r\n", "invalid multibulk length"),
        (b"*1x", "invalid multibulk length"),
        (b"*12345678901234567890", "invalid multibulk length"),
        (b"*34\r\n", "invalid multibulk length"),  # 34 words take 204 bytes at least
        (b"*1\r\nPING\r\n", "expected '$', got 'P'"),
        (b"*1\r\n\xff", "expected '$', got 'ÿ'"),
        (b"*1\r\n$-1\r\n", "invalid bulk length"),
        (b"*1\r\n$\r\n", "invalid bulk length"),
        (b"*1\r\n$200\r\n", "invalid bulk length"),
        (b"*2\r\n$100\r\n" + bytes(100) + b"\r\n$90\r\n", "invalid bulk length"),
        (b"*1\r\n$3\r\nabcd\r\n", "a bulk string longer than it said"),
        (b'set k "a\r\n', "unbalanced quotes in request"),
        (b"set k 'a\\'\r\n", "unbalanced quotes in request"),
        (b'set k "a"b\r\n', "unbalanced quotes in request"),
        (b"x" * 201, "too big inline request"),
    ],
)
def test_what_breaks_the_rules_is_refused_after_what_came_before(stream, error):
    codec = RespCodec(max_bytes=LIMIT)
    buffer = Buffer(b"*1\r\n$1\r\na\r\n" + stream)
    assert codec.decode(buffer) == [[b"a"]]
    with pytest.raises(ProtocolError) as caught:
        codec.decode(buffer)
    assert str(caught.value) == error


def test_a_request_without_words_or_over_the_limit_is_not_sent():
    codec = RespCodec(max_bytes=20)
    with pytest.raises(ValueError, match="one word or more"):
        codec.encode([])
    assert len(codec.encode([b"abcdefghi"])) == 19
    with pytest.raises(ValueError, match="at most 20 bytes, got 21"):
        codec.encode([b"abcdefghij"])
    assert RespCodec().encode([bytearray(b"GET"), memoryview(b"k")]) == b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n"


def test_a_request_of_more_words_than_allowed_is_refused_with_its_first_line():
    codec = RespCodec(max_words=3)
    assert codec.decode(Buffer(codec.encode([b"a", b"b", b"c"]))) == [[b"a", b"b", b"c"]]
    with pytest.raises(ValueError, match="3 at most, got 4"):
        codec.encode([b"a", b"b", b"c", b"d"])
    with pytest.raises(ProtocolError, match="invalid multibulk length"):
        codec.decode(Buffer(b"*4\r\n"))
    with pytest.raises(ValueError, match="max_words must be positive, got 0"):
        RespCodec(max_words=0)


def test_a_server_gets_a_pipeline_as_one_list_and_tells_who_breaks_the_rules_why(serve):
    def on_requests(connection: TcpConnection, requests: list[list[bytes]], receive_time: object) -> None:
        connection.send(b"".join(b"+%b\r\n" % request[-1] for request in requests))

    def on_error(connection: TcpConnection, error: ProtocolError) -> None:
        connection.send(b"-ERR Protocol error: %b\r\n" % str(error).encode())

    codec = RespCodec(batch_callback=on_requests)
    codec.error_callback = on_error
    server = serve(message_callback=codec.on_message)
    with server.connect() as client:
        client.sendall(codec.encode_all([[b"ECHO", b"%d" % number] for number in range(3)]) + b"*1\r\nno")
        client.shutdown(socket.SHUT_WR)
        assert receive_all(client) == b"+0\r\n+1\r\n+2\r\n-ERR Protocol error: expected '$', got 'n'\r\n"
