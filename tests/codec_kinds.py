"""Every codec, with what a test has to know of it to ask the same of all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import BytesValue
from hypothesis import strategies as st

from protobuf_messages import adler32, behind_length, named_frame, tagged_frame
from pymuduo.codec import (
    Codec,
    CommandCodec,
    FixedLengthCodec,
    LengthHeaderCodec,
    LineCodec,
    NetstringCodec,
    RespCodec,
    VarintCodec,
)
from pymuduo.codec.protobuf import ProtobufCodec, ProtobufCodecLite

_BYTES_VALUE = b"google.protobuf.BytesValue"


class Kind(NamedTuple):
    """A codec and its messages.

    Attributes:
        make: makes one; takes the callbacks and ``max_bytes``, and what else the class takes.
        wrap: returns the message that carries some bytes.
        opening: returns how a message begins that has as many bytes as are allowed.
        overhead: bytes that may be held beyond ``max_bytes``.
        refused: bytes that break the rules if no more than a hundred are allowed; empty if nothing does.
        pieces: what streams are made of in which something is right and something wrong.
    """

    make: Callable[..., Codec]
    wrap: Callable[[bytes], Any]
    opening: Callable[[int], bytes]
    overhead: int
    refused: bytes
    pieces: st.SearchStrategy[bytes]


def plain(message: Any) -> object:
    """Return a message as a value that is equal to that of another just if they are the same, NaN or not."""
    if isinstance(message, Message):
        return message.DESCRIPTOR.full_name, message.SerializeToString(deterministic=True)
    return message


def _as_it_is(payload: bytes) -> bytes:
    return payload


def _wrapped(payload: bytes) -> BytesValue:
    return BytesValue(value=payload)


def _framed(body: bytes) -> bytes:
    """Return a frame of protobuf's codecs of which length and checksum are right."""
    return behind_length(body + adler32(body))


def _some(*pieces: bytes) -> st.SearchStrategy[bytes]:
    return st.binary(max_size=8) | st.sampled_from(pieces)


def _lines(delimiter: bytes) -> Kind:
    return Kind(
        lambda *a, **k: LineCodec(*a, delimiter=delimiter, **k),
        _as_it_is,
        lambda limit: b"",
        len(delimiter) - 1,
        b"x" * 200,
        _some(delimiter, delimiter[:1], b"one" + delimiter, b"x" * 39, b"x" * 40, b"x" * 41),
    )


def _lengths(width: int, byte_order: Any) -> Kind:
    def header(length: int) -> bytes:
        return min(length, (1 << 8 * width) - 1).to_bytes(width, byte_order)

    return Kind(
        lambda *a, **k: LengthHeaderCodec(*a, header_bytes=width, byte_order=byte_order, **k),
        _as_it_is,
        header,
        width,
        b"\xff" * width,
        _some(header(0), header(3) + b"abc", header(3), header(40) + bytes(40), header(41), b"\xff" * width),
    )


def _frames(make: Callable[..., Codec], head: bytes) -> Kind:
    return Kind(
        make,
        _wrapped,
        lambda limit: limit.to_bytes(4, "big") + head,
        4,
        b"\xff" * 4,
        st.binary(max_size=8)
        | st.binary(max_size=30).map(_framed)
        | st.binary(max_size=20).map(lambda data: tagged_frame(b"TAG", data))
        | st.tuples(st.sampled_from([_BYTES_VALUE, b"muduo.Query", b"x"]), st.binary(max_size=20)).map(
            lambda pair: named_frame(*pair)
        ),
    )


KINDS: dict[str, Kind] = {
    "line": _lines(b"\n"),
    "crlf": _lines(b"\r\n"),
    "bordered": _lines(b"aba"),
    **{f"length{8 * width}{order}": _lengths(width, order) for width in (1, 2, 4, 8) for order in ("big", "little")},
    "netstring": Kind(
        NetstringCodec,
        _as_it_is,
        lambda limit: b"%d:" % limit,
        8,
        b"x",
        _some(b"0:,", b"3:abc,", b"3:abcd", b"40:" + bytes(40) + b",", b"41", b"03", b",", b":"),
    ),
    "varint": Kind(
        VarintCodec,
        _as_it_is,
        lambda limit: VarintCodec(max_bytes=limit).encode(bytes(limit))[:-limit],
        10,
        b"\xff" * 10,
        _some(b"\0", b"\3abc", b"\x83\x80\0abc", b"\x28" + bytes(40), b"\x29", b"\x80" * 9, b"\xff" * 9),
    ),
    "fixed": Kind(
        lambda *a, max_bytes, **k: FixedLengthCodec(*a, message_bytes=max_bytes, **k),
        _as_it_is,
        lambda limit: b"",
        0,
        b"",
        _some(bytes(39), bytes(40), bytes(41)),
    ),
    "resp": Kind(
        RespCodec,
        lambda payload: [b"SET", payload],
        lambda limit: b"*1\r\n$%d\r\n" % (limit - 50),
        24,
        b"*x",
        _some(
            b"*1\r\n",
            b"*2\r\n",
            b"$3\r\nabc\r\n",
            b"$0\r\n\r\n",
            b"*0\r\n",
            b"*-1\r\n",
            b"$-1\r\n",
            b"PING a\r\n",
            b'"',
            b"\r\n",
            b"$3\r\nabcd",
            b"$30\r\n",
            b"*7\r\n",
        ),
    ),
    "command": Kind(
        lambda *a, max_line_bytes=60, **k: CommandCodec(
            *a, blocks={b"set": 1, b"MSG": -1}, max_line_bytes=max_line_bytes, **k
        ),
        lambda payload: [b"set", b"%d" % len(payload), payload],
        lambda limit: b"set %d\r\n" % limit,
        60 + 4,
        b"x" * 200,
        _some(
            b"set 3 x\r\n",
            b"abc\r\n",
            b"abcd\r\n",
            b"\r\n",
            b"\n",
            b"MSG 2\n",
            b"set 41\r\n",
            b"set 40\r\n",
            b" ",
            b"x" * 45,
        ),
    ),
    "named": _frames(ProtobufCodec, named_frame(_BYTES_VALUE, b"")[4:-4]),
    "tagged": _frames(lambda *a, **k: ProtobufCodecLite(BytesValue, b"TAG", *a, **k), b"TAG"),
    "bare": _frames(lambda *a, **k: ProtobufCodecLite(BytesValue, b"", *a, **k), b""),
}
