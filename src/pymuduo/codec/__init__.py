"""Messages on a stream of bytes: what stands between a connection and the program."""

from pymuduo.codec.base import Codec, ProtocolError
from pymuduo.codec.command import CommandCodec
from pymuduo.codec.fixed_length import FixedLengthCodec
from pymuduo.codec.length_header import LengthHeaderCodec
from pymuduo.codec.line import LineCodec
from pymuduo.codec.netstring import NetstringCodec
from pymuduo.codec.resp import RespCodec
from pymuduo.codec.varint import VarintCodec

__all__ = [
    "Codec",
    "CommandCodec",
    "FixedLengthCodec",
    "LengthHeaderCodec",
    "LineCodec",
    "NetstringCodec",
    "ProtocolError",
    "RespCodec",
    "VarintCodec",
]
