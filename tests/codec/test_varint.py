"""VarintCodec: lengths as protobuf writes them, and as its parsers read them. Splits and limits: ``test_codec.py``."""

from __future__ import annotations

import io
import sys

import pytest
from google.protobuf import proto
from google.protobuf.message import DecodeError
from google.protobuf.struct_pb2 import ListValue, Value
from hypothesis import given
from hypothesis import strategies as st

from pymuduo import Buffer
from pymuduo.codec import ProtocolError, VarintCodec


@pytest.mark.parametrize(
    ("length", "header"),
    [
        (0, b"\x00"),
        (1, b"\x01"),
        (127, b"\x7f"),
        (128, b"\x80\x01"),
        (300, b"\xac\x02"),
        (16383, b"\xff\x7f"),
        (16384, b"\x80\x80\x01"),
        (2097151, b"\xff\xff\x7f"),
        (2097152, b"\x80\x80\x80\x01"),
    ],
)
def test_a_length_has_seven_bits_in_a_byte(length, header):
    codec = VarintCodec(max_bytes=1 << 22)
    message = bytes(length)
    assert codec.encode(message) == header + message
    assert codec.encode_all([message, b"x"]) == header + message + b"\x01x"
    assert codec.decode(Buffer(header + message + header)) == ([message, b""] if length == 0 else [message])


@pytest.mark.parametrize("padding", range(9))
def test_a_length_that_is_longer_than_it_needs_to_be_is_understood(padding):
    header = b"\x83" + b"\x80" * padding + b"\x00"
    codec = VarintCodec(max_bytes=3)
    buffer = Buffer()
    messages: list[bytes] = []
    for byte in header + b"abc":
        assert not messages
        buffer.append(bytes([byte]))
        messages += codec.decode(buffer)
    assert messages == [b"abc"]


@pytest.mark.parametrize(
    ("header", "why"),
    [
        (b"\x80" * 9 + b"\x01", "more than 63 bits"),  # 2 ** 63
        (b"\x80" * 9 + b"\x02", "more than 63 bits"),  # does not fit into 64 bits
        (b"\x80" * 10, "more than 63 bits"),
        (b"\xff" * 10, "more than 100 bytes"),
        (b"\x65", "more than 100 bytes"),
        (b"\xe5", "more than 100 bytes"),
        (b"\x80\x01", "more than 100 bytes"),
        (b"\x80" * 8 + b"\x01", "more than 100 bytes"),
    ],
)
def test_a_length_that_is_none_or_beyond_the_limit_is_refused_at_once(header, why):
    codec = VarintCodec(max_bytes=100)
    with pytest.raises(ProtocolError, match=why):
        codec.decode(Buffer(header))
    buffer = Buffer(b"\x02ok" + header)
    assert codec.decode(buffer) == [b"ok"]
    with pytest.raises(ProtocolError, match=why):
        codec.decode(buffer)


@pytest.mark.parametrize("limit", [sys.maxsize, 1 << 70])
def test_a_limit_as_large_as_can_be_is_no_limit(limit):
    codec = VarintCodec(max_bytes=limit)
    assert codec.max_bytes == sys.maxsize
    assert codec.decode(Buffer(b"\xff" * 8 + b"\x7f")) == []
    assert codec.decode(Buffer(b"\xff" * 8 + b"\xff")) == []
    assert codec.decode(Buffer(b"\xff" * 8 + b"\xff\x00")) == []
    with pytest.raises(ProtocolError, match="more than 63 bits"):
        codec.decode(Buffer(b"\xff" * 9 + b"\x01"))


def test_a_message_beyond_the_limit_is_not_sent():
    codec = VarintCodec(max_bytes=100)
    for send in (codec.encode, lambda message: codec.encode_all([b"", message])):
        with pytest.raises(ValueError, match="at most 100 bytes, got 101"):
            send(bytes(101))


def values(*texts: str) -> list[ListValue]:
    return [ListValue(values=[Value(string_value=text) for text in texts[:count]]) for count in range(len(texts) + 1)]


def test_streams_that_protobuf_writes_are_read_and_the_other_way_round():
    messages = values("short", "x" * 200, "y" * 20_000)
    written = io.BytesIO()
    for message in messages:
        proto.serialize_length_prefixed(message, written)
    codec = VarintCodec()
    assert [ListValue.FromString(data) for data in codec.decode(Buffer(written.getvalue()))] == messages
    stream = io.BytesIO(codec.encode_all([message.SerializeToString() for message in messages]))
    assert stream.getvalue() == written.getvalue()
    assert [proto.parse_length_prefixed(ListValue, stream) for _ in messages] == messages


@given(padding=st.integers(0, 12), text=st.text(max_size=30))
def test_it_takes_the_padded_lengths_that_protobuf_takes(padding, text):
    data = ListValue(values=[Value(string_value=text)]).SerializeToString()
    stream = bytes([len(data) | 0x80]) + b"\x80" * padding + b"\0" + data
    try:
        expected = [proto.parse_length_prefixed(ListValue, io.BytesIO(stream))]
    except DecodeError:
        expected = []
    codec = VarintCodec()
    try:
        found = [ListValue.FromString(data) for data in codec.decode(Buffer(stream))]
    except ProtocolError:
        found = []
    assert found == expected
