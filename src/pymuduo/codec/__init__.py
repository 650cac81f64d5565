"""Messages on a stream of bytes: what stands between a connection and the program."""

from pymuduo.codec.base import Codec, ProtocolError
from pymuduo.codec.command import CommandCodec
from pymuduo.codec.length_header import LengthHeaderCodec
from pymuduo.codec.line import LineCodec
from pymuduo.codec.resp import RespCodec

__all__ = ["Codec", "CommandCodec", "LengthHeaderCodec", "LineCodec", "ProtocolError", "RespCodec"]
