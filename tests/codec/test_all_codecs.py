"""What every codec promises, whatever its messages look like."""

from __future__ import annotations

import itertools
import threading
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codec_kinds import KINDS, plain
from conftest import PATIENCE_S, receive_all
from pymuduo import Buffer, TcpConnection
from pymuduo.codec import Codec, CommandCodec, LineCodec, ProtocolError, RespCodec

LIMIT = 40
FLOODED = 1 << 18  # bytes
MAY_REFUSE = [name for name, kind in KINDS.items() if kind.refused]

# Protobuf makes bytes of a message itself; that is the one copy more.
COPIES_TO_ENCODE = {"fixed": 0, "named": 2, "tagged": 2, "bare": 2}

# What a peer may send without end: how it begins, and what follows again and again.
FLOODS = {name: (name, kind.opening(FLOODED), b"\xff" * 65536) for name, kind in KINDS.items()}
FLOODS["resp of words"] = ("resp", b"*16384\r\n", b"$10\r\n0123456789\r\n" * 4096)
FLOODS["resp of lines"] = ("resp", b"", b"x" * 65536)
FLOODS["command of words"] = ("command", b"", b"abc " * 16384)


# --- values ---


def decoded(codec: Codec, stream: bytes, cuts: list[int], most_held: int) -> tuple[list[object], str]:
    """Return the messages of a stream that arrives in pieces, and how it ended."""
    buffer = Buffer()
    received: list[object] = []
    places = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    for begin, end in itertools.pairwise(places):
        buffer.append(stream[begin:end])
        try:
            while messages := codec.decode(buffer):
                received += map(plain, messages)
        except ProtocolError as e:
            return received, str(e)
        assert len(buffer) <= most_held
    return received, ""


@pytest.mark.parametrize("name", KINDS)
@given(data=st.data(), cuts=st.lists(st.integers(0, 150), max_size=20))
def test_any_split_of_any_input_gives_the_same_messages_and_the_same_error_and_holds_no_more_than_its_limit(
    name, data, cuts
):
    kind = KINDS[name]
    codec = kind.make(max_bytes=LIMIT)
    stream = b"".join(data.draw(st.lists(kind.pieces, max_size=8)))
    most_held = LIMIT + kind.overhead
    whole = decoded(codec, stream, [], most_held)
    assert decoded(codec, stream, cuts, most_held) == whole
    assert decoded(codec, stream, list(range(len(stream))), most_held) == whole


# --- memory ---


def peak_bytes(work: Callable[[], object]) -> int:
    """Return how much more memory was in use at some moment of *work* than before it."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        result = work()
        peak = tracemalloc.get_traced_memory()[1] - before
        del result
    finally:
        tracemalloc.stop()
    return peak


def large(name: str) -> tuple[Codec, int, Any]:
    """Return a codec, the size of a large payload for it, and a message that carries that."""
    size = {"length8big": 200, "length8little": 200, "length16big": 60_000, "length16little": 60_000}.get(name, 1 << 20)
    kind = KINDS[name]
    return kind.make(max_bytes=size if name == "fixed" else 2 * size), size, kind.wrap(bytes(size))


@pytest.mark.parametrize("name", KINDS)
def test_a_payload_is_copied_once_on_its_way_out(name):
    codec, size, message = large(name)
    codec.encode(message)  # what is found out once
    copies = COPIES_TO_ENCODE.get(name, 1)
    assert peak_bytes(lambda: codec.encode(message)) < copies * size + 2000
    assert peak_bytes(lambda: codec.encode_all([message, message])) < max(copies, 1) * 2 * size + 2000


@pytest.mark.parametrize("name", KINDS)
def test_a_payload_is_copied_once_on_its_way_in(name):
    codec, size, message = large(name)
    encoded = codec.encode(message)
    codec.decode(Buffer(encoded))  # what is found out once
    buffer = Buffer(encoded)
    assert peak_bytes(lambda: codec.decode(buffer)) < size + 2000
    assert len(buffer) == 0


@pytest.mark.parametrize("flood", FLOODS)
def test_a_peer_that_announces_the_most_and_never_stops_costs_a_few_times_the_limit(flood):
    name, opening, filler = FLOODS[flood]
    codec = KINDS[name].make(max_bytes=FLOODED, **({"max_line_bytes": FLOODED} if name == "command" else {}))

    def take_it_all() -> None:
        buffer = Buffer()
        buffer.append(opening)
        for _ in range(8 * FLOODED // len(filler)):
            buffer.append(filler)
            try:
                codec.decode(buffer)
            except ProtocolError:
                break

    # A buffer that grows has its old memory and its new one, which is twice as large.
    assert peak_bytes(take_it_all) < 5 * FLOODED


# --- work ---


@pytest.mark.parametrize(
    ("codec", "stream", "at", "byte"),
    [
        (LineCodec(), b"x" * 100, 50, b"\n"),
        (LineCodec(delimiter=b"\r\n"), b"x" * 50 + b"\r" + b"x" * 50, 51, b"\n"),
        (CommandCodec(blocks={}), b"x" * 100, 50, b"\n"),
        (CommandCodec(blocks={b"set": 1}), b"set 9 a b c d\r\nxxxx", 0, b"g"),
        (CommandCodec(blocks={b"set": -1}), b"set a b c d 9\r\nxxxx", 12, b"1"),
        (RespCodec(), b"*3\r\n$1\r\na\r\n$1\r\nb\r\n$9\r\nxxxx", 4, b"?"),
        (RespCodec(), b"GET " * 20, 50, b"\n"),
    ],
)
def test_what_is_incomplete_is_not_looked_through_again_with_every_byte(codec, stream, at, byte):
    """Who looked again would find what is changed here behind its back, and take or refuse something."""
    buffer = Buffer()
    for piece in (stream[: len(stream) // 2], stream[len(stream) // 2 :]):
        buffer.append(piece)
        assert codec.decode(buffer) == []
    memory = buffer.peek().obj
    assert isinstance(memory, bytearray)
    memory[buffer.prependable_bytes + at] = ord(byte)
    buffer.append(b"x")
    assert codec.decode(buffer) == []


# --- on a connection ---


@pytest.mark.parametrize("name", MAY_REFUSE)
def test_what_breaks_the_rules_ends_the_connection_and_is_why(serve, name):
    told: list[ProtocolError] = []
    reasons: list[Exception | None] = []
    down = threading.Event()

    def on_connection(connection: TcpConnection) -> None:
        if not connection.connected:
            reasons.append(connection.error)
            down.set()

    def on_error(connection: TcpConnection, error: ProtocolError) -> None:
        told.append(error)
        connection.send(b"why")

    kind = KINDS[name]
    codec = kind.make(max_bytes=100)
    codec.error_callback = on_error
    server = serve(connection_callback=on_connection, message_callback=codec.on_message)
    with server.connect() as client:
        client.sendall(codec.encode(kind.wrap(b"fine")) + kind.refused)
        assert receive_all(client) == b"why"
        assert down.wait(PATIENCE_S)
    assert reasons == told
    assert isinstance(told[0], ProtocolError)
