"""FixedLengthCodec: so many bytes are a message."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import receive_exactly
from pymuduo import Buffer, TcpConnection
from pymuduo.codec import FixedLengthCodec


@given(
    size=st.integers(1, 20),
    stream=st.binary(max_size=300),
    cuts=st.lists(st.integers(0, 300), max_size=20),
)
def test_any_split_of_any_stream_gives_the_same_messages_and_holds_less_than_one(size, stream, cuts):
    codec = FixedLengthCodec(message_bytes=size)
    buffer, received = Buffer(), []
    places = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    for begin, end in itertools.pairwise(places):
        buffer.append(stream[begin:end])
        received += codec.decode(buffer)
        assert len(buffer) < size
    assert received == [stream[at : at + size] for at in range(0, len(stream) - size + 1, size)]
    assert codec.encode_all(received) + bytes(buffer) == stream


def test_a_message_travels_as_it_is():
    codec = FixedLengthCodec(message_bytes=3)
    assert codec.encode(b"abc") == b"abc"
    assert codec.encode_all([b"abc", bytearray(b"def"), memoryview(b"ghi")]) == b"abcdefghi"
    assert codec.encode_all([]) == b""
    assert codec.message_bytes == codec.max_bytes == 3


@pytest.mark.parametrize("payload", [b"", b"ab", b"abcd"])
def test_a_message_of_another_length_is_refused(payload):
    codec = FixedLengthCodec(message_bytes=3)
    with pytest.raises(ValueError, match=f"a message has 3 bytes, got {len(payload)}"):
        codec.encode(payload)
    with pytest.raises(ValueError, match="a message has 3 bytes"):
        codec.encode_all([b"abc", payload])


def test_text_is_no_payload():
    with pytest.raises(TypeError):
        FixedLengthCodec(message_bytes=4).encode("text")  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [0, -1])
def test_a_message_has_a_byte_or_more(size):
    with pytest.raises(ValueError, match=f"message_bytes must be positive, got {size}"):
        FixedLengthCodec(message_bytes=size)


def test_messages_arrive_on_a_connection_and_answers_leave(serve):
    def on_records(connection: TcpConnection, records: list[bytes], receive_time: object) -> None:
        codec.send_all(connection, [record[::-1] for record in records])

    codec = FixedLengthCodec(batch_callback=on_records, message_bytes=4)
    server = serve(message_callback=codec.on_message)
    with server.connect() as client:
        client.sendall(b"abcdefghij")
        assert receive_exactly(client, 8) == b"dcbahgfe"
        client.sendall(b"kl")
        assert receive_exactly(client, 4) == b"lkji"
