r"""The frames of a multiplexed link: a byte of length, two bytes of connection id, and that many bytes.

What it teaches: a codec whose message is a pair. What one connection of many said, and which one, travel together;
``encode`` cuts what is too long for one frame into several, so nobody else thinks about 255 bytes.

The id is little-endian; 0 is the link itself, and what it says is a command. The format, and the three commands, are
those of muduo's multiplexer and demux::

    CONN 5 FROM 10.0.0.1:4711 IS UP\r\n      multiplexer: a client has come, and is number 5
    CONN 5 FROM 10.0.0.1:4711 IS DOWN\r\n    multiplexer: it has left
    DISCONNECT 5\r\n                         demultiplexer: what served number 5 has left
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from pymuduo import Buffer
from pymuduo.codec import Codec

MAX_ID = 65_535
COMMAND_ID = 0
MAX_DATA_BYTES = 255
_HEADER = struct.Struct("<BH")


class Frame(NamedTuple):
    """What connection number *id* has said."""

    id: int
    data: bytes


class MuxCodec(Codec):
    """Cuts the stream into ``Frame``s. Every stream is one, so there is no error; empty frames say nothing."""

    __slots__ = ()

    def decode(self, buffer: Buffer) -> list[Frame]:
        """Take every complete frame."""
        frames: list[Frame] = []
        view = buffer.peek()
        at, end = 0, len(view)
        while end - at >= _HEADER.size:
            count, number = _HEADER.unpack_from(view, at)
            begin = at + _HEADER.size
            if end - begin < count:
                break
            at = begin + count
            frames.append(Frame(number, bytes(view[begin:at])))
        buffer.retrieve(at)
        return frames

    def encode(self, payload: Frame) -> bytes:
        """Return as many frames as the data needs; none for no data.

        Raises:
            ValueError: the id is out of range, or a command is too long for one frame.
        """
        number, data = payload
        if not 0 <= number <= MAX_ID:
            raise ValueError(f"an id is 0 to {MAX_ID}, got {number}")
        if number == COMMAND_ID and len(data) > MAX_DATA_BYTES:
            raise ValueError(f"a command has at most {MAX_DATA_BYTES} bytes, got {len(data)}")
        pieces = []
        for begin in range(0, len(data), MAX_DATA_BYTES):
            piece = data[begin : begin + MAX_DATA_BYTES]
            pieces += [_HEADER.pack(len(piece), number), piece]
        return b"".join(pieces)
