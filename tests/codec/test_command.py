"""CommandCodec: lines of words, and the block of bytes behind some of them."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import receive_exactly
from pymuduo import Buffer, TcpConnection
from pymuduo.codec import CommandCodec, ProtocolError

BLOCKS = {b"set": 4, b"MSG": -1}
NAMES = st.sampled_from([b"get", b"quit", b"x"])
WORD = st.text("abc019-", min_size=1, max_size=5).map(str.encode)


def with_size(block: bytes) -> list[bytes]:
    """Return a command with a block."""
    return [b"set", b"k", b"0", b"0", b"%d" % len(block), block]


COMMANDS = (
    st.builds(lambda name, words: [name, *words], NAMES, st.lists(WORD, max_size=4))
    | st.builds(with_size, st.binary(max_size=30) | st.sampled_from([b"\r\n", b"get\r\n\r\n"]))
    | st.builds(lambda words, block: [b"MSG", *words, b"%d" % len(block), block], st.lists(WORD), st.binary(max_size=9))
)


def decoded(stream: bytes, cuts: list[int], codec: CommandCodec) -> tuple[list[list[bytes]], str]:
    """Return the commands of a stream that arrives in pieces, and how it ended."""
    buffer, received = Buffer(), []
    places = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    for begin, end in itertools.pairwise(places):
        buffer.append(stream[begin:end])
        try:
            received += codec.decode(buffer)
            codec.decode(buffer)  # what stands at the front now is incomplete, or refused
        except ProtocolError as e:
            return received, str(e)
        assert len(buffer) <= codec.max_line_bytes + codec.max_bytes + 4
    return received, ""


@given(commands=st.lists(COMMANDS, max_size=8), cuts=st.lists(st.integers(0, 400), max_size=20))
def test_any_split_of_a_stream_gives_the_same_commands(commands, cuts):
    codec = CommandCodec(blocks=BLOCKS)
    assert decoded(codec.encode_all(commands), cuts, codec) == (commands, "")


@given(
    parts=st.lists(
        st.binary(max_size=8)
        | st.sampled_from(
            [b"set k 0 0 3\r\n", b"abc\r\n", b"\r\n", b"\n", b"MSG 2\n", b"set k 0 0 99\r\n", b"x" * 25, b" a b  c"]
        ),
        max_size=14,
    ),
    cuts=st.lists(st.integers(0, 100), max_size=20),
)
def test_any_split_of_any_input_gives_the_same_commands_and_the_same_error(parts, cuts):
    stream = b"".join(parts)

    def codec() -> CommandCodec:
        return CommandCodec(blocks=BLOCKS, max_line_bytes=30, max_words=6, max_bytes=40)

    whole = decoded(stream, [], codec())
    assert decoded(stream, cuts, codec()) == whole
    assert decoded(stream, list(range(len(stream))), codec()) == whole


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_line_is_its_words_however_many_blanks_stand_between_them(end):
    assert CommandCodec(blocks={}).decode(Buffer(b"get  a b %b %bx\r y%b" % (end, end, end))) == [
        [b"get", b"a", b"b"],
        [],
        [b"x\r", b"y"],
    ]


def test_a_block_is_the_last_item_and_may_hold_anything():
    buffer = Buffer(b"set k 0 0 7\r\na\r\n\0b\n \r\nMSG a.b 9 0\r\n\r\nget k\r\nset k 0 0 3\r\nab")
    assert CommandCodec(blocks=BLOCKS).decode(buffer) == [
        [b"set", b"k", b"0", b"0", b"7", b"a\r\n\0b\n "],
        [b"MSG", b"a.b", b"9", b"0", b""],
        [b"get", b"k"],
    ]
    assert bytes(buffer.peek()) == b"set k 0 0 3\r\nab"


@pytest.mark.parametrize(
    "line", [b"set k 0 0", b"set k 0 0 x", b"set k 0 0 -1", b"set k 0 0 1234567890123456789", b"set", b"MSG"]
)
def test_a_command_that_tells_no_size_comes_without_a_block(line):
    assert CommandCodec(blocks=BLOCKS).decode(Buffer(line + b"\r\nget k\r\n")) == [line.split(), [b"get", b"k"]]


def test_a_block_that_does_not_end_where_it_should_is_taken_away():
    buffer = Buffer(b"set k 0 0 3\r\nabcdefget k\r\n")
    assert CommandCodec(blocks=BLOCKS).decode(buffer) == [[b"set", b"k", b"0", b"0", b"3"], [b"fget", b"k"]]


@pytest.mark.parametrize(
    ("stream", "error"),
    [
        (b"x" * 31, "a line of more than 30 bytes"),
        (b"x" * 31 + b"\r\n", "a line of more than 30 bytes"),
        (b"set k 0 0 41\r\n", "a block of 41 bytes, where 40 are allowed"),
    ],
)
def test_what_is_too_long_is_refused_after_what_came_before(stream, error):
    codec = CommandCodec(blocks=BLOCKS, max_line_bytes=30, max_bytes=40)
    buffer = Buffer(b"get k\r\n" + stream)
    assert codec.decode(buffer) == [[b"get", b"k"]]
    with pytest.raises(ProtocolError) as caught:
        codec.decode(buffer)
    assert str(caught.value) == error


def test_a_line_of_more_words_than_allowed_is_refused_after_what_came_before():
    codec = CommandCodec(blocks=BLOCKS, max_words=6)
    buffer = Buffer(b" get  a b c d  e \r\nset k 0 0 1 x\r\ny\r\nget a b c d e f\r\n")
    assert codec.decode(buffer) == [
        [b"get", b"a", b"b", b"c", b"d", b"e"],
        [b"set", b"k", b"0", b"0", b"1", b"x", b"y"],
    ]
    with pytest.raises(ProtocolError, match="a line of more than 6 words"):
        codec.decode(buffer)
    assert codec.encode([b"set", b"k", b"0", b"0", b"1", b"x"]) == b"set k 0 0 1\r\nx\r\n"
    with pytest.raises(ValueError, match="at most 6 words, got 7"):
        codec.encode([b"get", *b"abcdef".hex(" ").encode().split()])


def test_what_is_just_short_enough_is_taken():
    codec = CommandCodec(blocks=BLOCKS, max_line_bytes=30, max_bytes=40)
    buffer = Buffer(b"x" * 30 + b"\r")
    assert codec.decode(buffer) == []
    buffer.append(b"\nset k 0 0 40\r\n" + bytes(40) + b"\r\n")
    assert codec.decode(buffer) == [[b"x" * 30], [b"set", b"k", b"0", b"0", b"40", bytes(40)]]


@pytest.mark.parametrize(
    "words",
    [
        [],
        [b""],
        [b"get", b""],
        [b"get", b"a b"],
        [b"get", b"a\nb"],
        [b"get", b"a\r"],
        [b"set", b"k", b"0", b"0", b"4", b"abc"],
        [b"set", b"k", b"0", b"0", b"x"],
        [b"set"],
        [b"x" * 31],
        [b"MSG", b"41", bytes(41)],
    ],
)
def test_what_would_not_arrive_as_it_is_is_not_sent(words):
    with pytest.raises(ValueError):
        CommandCodec(blocks=BLOCKS, max_line_bytes=30, max_bytes=40).encode(words)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="can't be its own name"):
        CommandCodec(blocks={b"set": 0})
    with pytest.raises(ValueError, match="max_line_bytes must be positive, got 0"):
        CommandCodec(blocks={}, max_line_bytes=0)
    with pytest.raises(ValueError, match="max_words must be positive, got 0"):
        CommandCodec(blocks={}, max_words=0)


def test_a_server_answers_commands(serve):
    store: dict[bytes, bytes] = {}

    def on_command(connection: TcpConnection, words: list[bytes], receive_time: object) -> None:
        if words[0] == b"set":
            store[words[1]] = words[-1]
            connection.send(b"STORED\r\n")
        else:
            codec.send(connection, [b"MSG", b"%d" % len(store[words[1]]), store[words[1]]])

    codec = CommandCodec(on_command, blocks=BLOCKS)
    server = serve(message_callback=codec.on_message)
    with server.connect() as client:
        client.sendall(b"set k 0 0 3\r\na\nb\r\nget k\r\n")
        answer = b"STORED\r\nMSG 3\r\na\nb\r\n"
        assert receive_exactly(client, len(answer)) == answer
