"""Messages behind their length as a varint: protobuf's delimited streams."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from pymuduo import _sys
from pymuduo.codec.base import Codec, ProtocolError, as_bytes, list_of_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pymuduo.buffer import Buffer
    from pymuduo.callbacks import BatchCallback, BytesCallback, BytesLike

_BYTES = [bytes([value]) for value in range(256)]


class VarintCodec(Codec):
    """Messages behind their length in base 128: seven bits in a byte, the low ones first, and the eighth for "more".

    So a short message has one byte in front of it. Protobuf writes streams of messages in this form
    (``writeDelimitedTo``, ``SerializeDelimitedToOstream``, ``serialize_length_prefixed``), and many protocols do.

    A length may be longer than it needs to be, up to ten bytes with some at its end that add nothing, because
    protobuf's parsers allow that. One of more than 63 bits is refused, where some of them cut it off.

    Args:
        max_bytes: the longest message allowed, without its length; a longer one is refused with the byte of the
            length that says so, so no peer can make a buffer grow past this.
        callbacks: see ``Codec``.
    """

    __slots__ = ()

    def __init__(
        self,
        message_callback: BytesCallback | None = None,
        *,
        batch_callback: BatchCallback | None = None,
        max_bytes: int = 1024 * 1024,
    ) -> None:
        Codec.__init__(self, message_callback, batch_callback=batch_callback, max_bytes=min(max_bytes, sys.maxsize))

    def decode(self, buffer: Buffer) -> list[bytes]:
        """Take every complete message; ProtocolError if the first one is too long, or has no length that fits."""
        messages: list[bytes] = []
        data, begin, end, limit = buffer._data, buffer._begin, buffer._end, self.max_bytes
        violation = ""
        while begin < end:
            at, length, shift, byte = begin, 0, 0, 0x80
            while at < end and shift < 63 and byte >= 0x80 and length <= limit:
                byte = data[at]
                length += (byte & 0x7F) << shift
                shift += 7
                at += 1
            if length > limit:
                violation = f"a message of more than {limit} bytes"
                break
            if byte >= 0x80:
                if at == end:
                    break
                if data[at] != 0:  # a tenth byte
                    violation = "a length of more than 63 bits"
                    break
                at += 1
            if length > end - at:
                break
            messages.append(_sys.load(data, at, length))
            begin = at + length
        if messages:
            buffer.retrieve(begin - buffer._begin)
        elif violation:
            raise ProtocolError(violation)
        return messages

    def encode(self, payload: BytesLike) -> bytes:
        """Return the message behind its length; ValueError if it is too long."""
        message = as_bytes(payload)
        return self._header(message) + message

    def encode_all(self, payloads: Iterable[BytesLike]) -> bytes:
        """Return many messages, each behind its length, in one piece; ValueError if one is too long."""
        parts: list[bytes] = []
        for message in list_of_bytes(payloads):
            parts += (self._header(message), message)
        return b"".join(parts)

    def _header(self, message: bytes) -> bytes:
        length = len(message)
        if length > self.max_bytes:
            raise ValueError(f"a message has at most {self.max_bytes} bytes, got {length}")
        header = b""
        while length >= 0x80:
            header += _BYTES[length & 0x7F | 0x80]
            length >>= 7
        return header + _BYTES[length]
