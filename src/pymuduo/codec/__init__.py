"""Messages on a stream of bytes: what stands between a connection and the program."""

from pymuduo.codec.base import Codec, ProtocolError
from pymuduo.codec.length_header import LengthHeaderCodec
from pymuduo.codec.line import LineCodec

__all__ = ["Codec", "LengthHeaderCodec", "LineCodec", "ProtocolError"]
