"""Protobuf codecs: byte for byte muduo's frames, and nothing but a ProtocolError for what is none."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import ListValue, Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp as ProtobufTimestamp
from hypothesis import given
from hypothesis import strategies as st

from conftest import PATIENCE_S, receive_all, receive_exactly
from protobuf_messages import (
    ANSWER,
    ANSWER_FRAME,
    EMPTY,
    EMPTY_FRAME,
    QUERY,
    QUERY_FRAME,
    RPC,
    RPC_FRAME,
    Answer,
    Empty,
    Query,
    Rpc,
    adler32,
    behind_length,
    named_frame,
    tagged_frame,
)
from pymuduo import Buffer, TcpConnection
from pymuduo.codec import Codec, VarintCodec
from pymuduo.codec.protobuf import (
    ProtobufCodec,
    ProtobufCodecLite,
    ProtobufDispatcher,
    ProtobufError,
    ProtobufErrorKind,
)

LIMIT = 200
CODECS: dict[str, Callable[..., Codec]] = {
    "named": ProtobufCodec,
    "tagged": lambda *a, **k: ProtobufCodecLite(ListValue, b"TAG", *a, **k),
    "bare": lambda *a, **k: ProtobufCodecLite(ListValue, b"", *a, **k),
}


def refusal(codec: Codec, stream: bytes) -> tuple[ProtobufErrorKind, str]:
    """Return how and why a stream is refused."""
    with pytest.raises(ProtobufError) as caught:
        codec.decode(Buffer(stream))
    assert str(caught.value).startswith(f"{caught.value.kind.value}: ")
    return caught.value.kind, str(caught.value)


def list_value(*texts: str) -> ListValue:
    return ListValue(values=[Value(string_value=text) for text in texts])


# --- frames ---


@pytest.mark.parametrize(
    ("message", "frame"), [(QUERY, QUERY_FRAME), (ANSWER, ANSWER_FRAME), (EMPTY, EMPTY_FRAME)], ids=lambda _: ""
)
def test_the_frames_of_muduos_query_example(message, frame):
    codec = ProtobufCodec()
    assert codec.encode(message) == frame
    assert codec.decode(Buffer(frame)) == [message]


def test_the_frame_of_muduos_rpc():
    codec = ProtobufCodecLite(Rpc, b"RPC0")
    assert codec.encode(RPC) == RPC_FRAME
    buffer = Buffer(RPC_FRAME * 2 + RPC_FRAME[:-1])
    assert codec.decode(buffer) == [RPC, RPC]
    assert bytes(buffer) == RPC_FRAME[:-1]


def test_frames_made_by_hand_are_those_of_the_codecs():
    message = list_value("a", "ö" * 50)
    data = message.SerializeToString()
    assert ProtobufCodec().encode(message) == named_frame(b"google.protobuf.ListValue", data)
    assert ProtobufCodecLite(ListValue, b"XYZ").encode(message) == tagged_frame(b"XYZ", data)


def test_a_message_arrives_as_an_object_of_its_generated_class():
    message = ProtobufTimestamp(seconds=1)
    codec = ProtobufCodec()
    (found,) = codec.decode(Buffer(codec.encode(message)))
    assert type(found) is ProtobufTimestamp


@pytest.mark.parametrize("kind", CODECS)
@given(
    texts=st.lists(st.lists(st.text(max_size=8), max_size=4), max_size=6),
    cuts=st.lists(st.integers(0, 600), max_size=20),
)
def test_any_split_of_a_stream_gives_the_same_messages(kind, texts, cuts):
    codec = CODECS[kind](max_bytes=400)
    messages = [list_value(*words) for words in texts]
    stream = codec.encode_all(messages)
    assert stream == b"".join(map(codec.encode, messages))
    buffer, received = Buffer(), []
    places = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    for begin, end in itertools.pairwise(places):
        buffer.append(stream[begin:end])
        received += codec.decode(buffer)
    assert received == messages
    assert len(buffer) == 0


def framed(body: bytes) -> bytes:
    """Return a frame of which length and checksum are right."""
    return behind_length(body + adler32(body))


# --- refusals ---


@pytest.mark.parametrize("length", [0, 1, 9, LIMIT + 1, 1 << 30, -1, -(1 << 31)])
def test_an_impossible_length_is_refused_at_once(length):
    kind, text = refusal(ProtobufCodec(max_bytes=LIMIT), length.to_bytes(4, "big", signed=True))
    assert kind is ProtobufErrorKind.INVALID_LENGTH
    assert text == f"InvalidLength: a frame of {length} bytes, where 10 to 200 are allowed"


@pytest.mark.parametrize(("tag", "least"), [(b"", 4), (b"RPC0", 8)])
def test_a_tagged_frame_has_at_least_a_tag_and_a_checksum(tag, least):
    codec = ProtobufCodecLite(Empty, tag, max_bytes=LIMIT)
    assert codec.decode(Buffer(tagged_frame(tag, b""))) == [EMPTY]
    for length in (least - 1, LIMIT + 1):
        assert refusal(codec, length.to_bytes(4, "big"))[0] is ProtobufErrorKind.INVALID_LENGTH
    assert codec.decode(Buffer(least.to_bytes(4, "big"))) == []


def test_a_frame_with_a_byte_that_has_changed_is_refused():
    for codec, frame in ((ProtobufCodec(), QUERY_FRAME), (ProtobufCodecLite(Rpc, b"RPC0"), RPC_FRAME)):
        for at in range(4, len(frame)):
            changed = bytearray(frame)
            changed[at] ^= 1
            assert refusal(codec, bytes(changed))[0] is ProtobufErrorKind.CHECKSUM_ERROR


@pytest.mark.parametrize("claimed", [0, 1, 13, 100, -1, -(1 << 31), (1 << 31) - 1])
def test_a_name_that_has_no_room_is_refused(claimed):
    body = claimed.to_bytes(4, "big", signed=True) + b"muduo.Empty\0"
    kind, text = refusal(ProtobufCodec(), framed(body))
    assert kind is ProtobufErrorKind.INVALID_NAME_LENGTH
    assert f"a name of {claimed} bytes" in text


@pytest.mark.parametrize(
    "name",
    [
        b"muduo.Empt",
        b"Muduo.Empty",
        b"muduo.Query.id",
        b"google.protobuf.NullValue",  # is no message
        b".muduo.Empty",
        b"muduo.Empty\0junk",
        b"muduo.Empty ",
        b"\xff\xfe",
        "müduo".encode(),
        b"\0",
    ],
)
def test_a_type_that_nobody_knows_is_refused_and_not_remembered(name):
    codec = ProtobufCodec()
    for _ in range(2):
        kind, text = refusal(codec, named_frame(name, b""))
        assert kind is ProtobufErrorKind.UNKNOWN_MESSAGE_TYPE
        assert repr(name) in text
    assert codec._types == {}


def test_a_long_name_is_not_repeated_in_full():
    assert len(refusal(ProtobufCodec(), named_frame(b"x" * 5000, b""))[1]) < 150
    codec = ProtobufCodecLite(Rpc, b"t" * 5000)
    assert len(refusal(codec, tagged_frame(b"u" * 5000, b""))[1]) < 250


def test_another_tag_is_an_unknown_type():
    kind, text = refusal(ProtobufCodecLite(Rpc, b"RPC0"), tagged_frame(b"RPC1", RPC.SerializeToString()))
    assert kind is ProtobufErrorKind.UNKNOWN_MESSAGE_TYPE
    assert "the tag b'RPC1', not b'RPC0'" in text


@pytest.mark.parametrize(
    "data",
    [
        b"\xff",  # half a number
        b"\x12\x05abc",  # a string of five bytes, of which three are there
        b"\x0c",  # the end of a group that has not begun
        b"\x00\x00",  # a field 0
        b"\x08\x01",  # without the questioner
        b"",
    ],
)
def test_data_that_are_no_such_message_are_refused(data):
    for codec, frame in (
        (ProtobufCodec(), named_frame(b"muduo.Query", data)),
        (ProtobufCodecLite(Query, b"Q"), tagged_frame(b"Q", data)),
    ):
        kind, text = refusal(codec, frame)
        assert kind is ProtobufErrorKind.PARSE_ERROR
        assert "muduo.Query" in text


def test_text_that_is_no_utf_8_is_refused_where_protobuf_says_so():
    data = b"\x0a\x04\x1a\x02\xff\xfe"
    assert refusal(ProtobufCodecLite(ListValue, b""), tagged_frame(b"", data))[0] is ProtobufErrorKind.PARSE_ERROR


def test_messages_that_are_nested_too_deeply_are_refused():
    data, length = b"", VarintCodec()
    for _ in range(3000):
        data = b"\x0a" + length.encode(b"\x32" + length.encode(data))  # a list of a list
    assert refusal(ProtobufCodecLite(ListValue, b""), tagged_frame(b"", data))[0] is ProtobufErrorKind.PARSE_ERROR


def test_what_came_before_a_bad_frame_is_returned_first_and_nothing_is_lost():
    codec = ProtobufCodec()
    rest = named_frame(b"no.such", b"") + EMPTY_FRAME * 3 + QUERY_FRAME[:7]
    buffer = Buffer(QUERY_FRAME + ANSWER_FRAME + rest)
    assert codec.decode(buffer) == [QUERY, ANSWER]
    assert bytes(buffer) == rest
    for _ in range(2):
        with pytest.raises(ProtobufError, match=r"UnknownMessageType: b'no\.such'"):
            codec.decode(buffer)
        assert bytes(buffer) == rest


# --- sending ---


@pytest.mark.parametrize("codec", [ProtobufCodec(), ProtobufCodecLite(Query, b"Q")], ids=["named", "tagged"])
def test_a_message_without_a_required_field_is_not_sent(codec):
    with pytest.raises(ValueError, match="questioner"):
        codec.encode(Query(id=1))


def test_a_frame_beyond_the_limit_is_not_sent():
    size = len(QUERY_FRAME) - 4
    assert ProtobufCodec(max_bytes=size).encode(QUERY) == QUERY_FRAME
    with pytest.raises(ValueError, match=f"a frame has at most {size - 1} bytes, got {size}"):
        ProtobufCodec(max_bytes=size - 1).encode(QUERY)
    with pytest.raises(ValueError, match="a frame has at most 18 bytes, got 19"):
        ProtobufCodecLite(Rpc, b"RPC0", max_bytes=18).encode(RPC)


def test_what_is_no_such_message_is_not_sent():
    for payload in ("text", b"bytes", None, Query):
        with pytest.raises(TypeError, match="a protobuf message is required"):
            ProtobufCodec().encode(payload)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a Query is required, got Empty"):
        ProtobufCodecLite(Query, b"Q").encode(EMPTY)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="not both"):
        ProtobufCodec(print, batch_callback=print)
    with pytest.raises(ValueError, match="no frame is shorter than 10 bytes, got 9"):
        ProtobufCodec(max_bytes=9)
    with pytest.raises(ValueError, match="no frame is shorter than 8 bytes, got 7"):
        ProtobufCodecLite(Rpc, b"RPC0", max_bytes=7)
    for message_type, tag in ((Rpc, "RPC0"), (RPC, b"RPC0"), (int, b"RPC0")):
        with pytest.raises(TypeError, match="a class of protobuf messages and a tag of bytes are required"):
            ProtobufCodecLite(message_type, tag)  # type: ignore[arg-type]
    assert ProtobufCodec().max_bytes == 64 * 1024 * 1024
    assert ProtobufCodec(max_bytes=1 << 40).max_bytes == (1 << 31) - 1


# --- on a connection ---


@pytest.mark.parametrize("threads", [0, 2])
def test_a_dispatcher_calls_the_function_for_a_messages_class(serve, threads):
    def on_query(connection: TcpConnection, query: Any, receive_time: object) -> None:
        codec.send(connection, Answer(id=query.id, questioner=query.questioner, answerer="me"))

    def on_empty(connection: TcpConnection, empty: Any, receive_time: object) -> None:
        codec.send_all(connection, [empty, empty])

    def on_other(connection: TcpConnection, message: Message, receive_time: object) -> None:
        codec.send(connection, list_value(message.DESCRIPTOR.full_name))

    dispatcher = ProtobufDispatcher(on_other)
    dispatcher.register(Query, print)
    dispatcher.register(Query, on_query)  # takes the place of the other one
    dispatcher.register(Empty, on_empty)
    codec = ProtobufCodec(dispatcher.on_message)
    server = serve(threads, message_callback=codec.on_message)
    for number in range(4):
        with server.connect() as client:
            query = Query(id=number, questioner="me")
            client.sendall(codec.encode_all([query, Struct(), EMPTY]))
            answers = [Answer(id=number, questioner="me", answerer="me"), list_value("google.protobuf.Struct")]
            expected = codec.encode_all([*answers, EMPTY, EMPTY])
            assert receive_exactly(client, len(expected)) == expected


def test_only_classes_of_messages_can_be_registered():
    dispatcher = ProtobufDispatcher(print)
    for thing in (QUERY, "muduo.Query", Query.DESCRIPTOR, int):
        with pytest.raises(TypeError, match="a class of protobuf messages is required"):
            dispatcher.register(thing, print)  # type: ignore[arg-type]


def test_a_batch_is_all_that_a_read_has_completed(serve):
    def on_calls(connection: TcpConnection, calls: list[Any], receive_time: object) -> None:
        codec.send_all(connection, [Rpc(type=2, id=call.id) for call in calls])

    codec = ProtobufCodecLite(Rpc, b"RPC0", batch_callback=on_calls)
    server = serve(message_callback=codec.on_message)
    with server.connect() as client:
        client.sendall(codec.encode_all([Rpc(type=1, id=number) for number in range(100)]))
        expected = codec.encode_all([Rpc(type=2, id=number) for number in range(100)])
        assert receive_exactly(client, len(expected)) == expected


def test_a_peer_that_breaks_the_rules_is_answered_what_came_before_and_cut_off(serve, caplog):
    codec = ProtobufCodec(lambda connection, message, _: codec.send(connection, message))
    server = serve(message_callback=codec.on_message)
    with server.connect() as client:
        client.sendall(QUERY_FRAME + EMPTY_FRAME[:-1] + b"\0" + QUERY_FRAME)
        assert receive_all(client) == QUERY_FRAME
    assert "CheckSumError: in a frame of 20 bytes" in caplog.text
    assert "cut off" in caplog.text


def test_an_error_callback_hears_what_kind_it_is(serve):
    errors: list[Any] = []
    down = threading.Event()
    codec = ProtobufCodecLite(Rpc, b"RPC0")
    codec.error_callback = lambda connection, error: errors.append(error)
    server = serve(close_callback=lambda connection: down.set(), message_callback=codec.on_message)
    with server.connect() as client:
        client.sendall(tagged_frame(b"RPC9", b""))
        assert receive_all(client) == b""
        assert down.wait(PATIENCE_S)
    assert [error.kind for error in errors] == [ProtobufErrorKind.UNKNOWN_MESSAGE_TYPE]


# --- the package protobuf ---


def run(program: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", program]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def test_the_other_codecs_do_without_protobuf():
    done = run("import sys, pymuduo, pymuduo.codec; sys.exit('google.protobuf' in sys.modules)")
    assert done.returncode == 0, done.stderr


def test_without_protobuf_the_import_says_what_to_install():
    done = run("import sys; sys.modules['google.protobuf'] = None; import pymuduo.codec.protobuf")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "ImportError: pymuduo.codec.protobuf needs the package protobuf: pip install 'pymuduo[protobuf]'"
    )
