"""Netstrings: messages behind their length in decimal digits, with a comma at the end."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from pymuduo import _sys
from pymuduo.codec.base import Codec, ProtocolError, as_bytes, list_of_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pymuduo.buffer import Buffer
    from pymuduo.callbacks import BatchCallback, BytesCallback, BytesLike

_ZERO, _NINE, _COLON, _COMMA = b"09:,"
_MOST = sys.maxsize // 16  # a length up to here and one digit more still fit into a machine word


class NetstringCodec(Codec):
    """Messages as Bernstein's netstrings, ``5:hello,``, which SCGI and QMQP use among others.

    The length is in its shortest form: without zeros in front, blanks or a sign. What is not is refused as soon as the
    byte is there that shows it.

    Args:
        max_bytes: the longest message allowed, without its length and the comma; a longer one is refused with the
            digit that says so, so no peer can make a buffer grow past this.
        callbacks: see ``Codec``.
    """

    __slots__ = ()

    def __init__(
        self,
        message_callback: BytesCallback | None = None,
        *,
        batch_callback: BatchCallback | None = None,
        max_bytes: int = 65536,
    ) -> None:
        Codec.__init__(self, message_callback, batch_callback=batch_callback, max_bytes=min(max_bytes, _MOST))

    def decode(self, buffer: Buffer) -> list[bytes]:
        """Take every complete message; ProtocolError if what stands at the front is no netstring, or a longer one."""
        messages: list[bytes] = []
        data, begin, end, limit = buffer._data, buffer._begin, buffer._end, self.max_bytes
        violation = ""
        while begin < end:
            at, length = begin, 0
            while at < end and length <= limit and _ZERO <= data[at] <= _NINE:
                if length == 0 and at > begin:
                    break  # a zero in front of other digits, found below because it is no colon
                length = 10 * length + data[at] - _ZERO
                at += 1
            if length > limit:
                violation = f"a netstring of more than {limit} bytes"
            elif at == end:
                break
            elif data[at] != _COLON or at == begin:
                violation = "a netstring that does not begin with its length"
            elif length >= end - at - 1:
                break
            elif data[at + 1 + length] != _COMMA:
                violation = "a netstring without a comma at its end"
            if violation:
                break
            messages.append(_sys.load(data, at + 1, length))
            begin = at + length + 2
        if messages:
            buffer.retrieve(begin - buffer._begin)
        elif violation:
            raise ProtocolError(violation)
        return messages

    def encode(self, payload: BytesLike) -> bytes:
        """Return the message as a netstring; ValueError if it is too long."""
        message = as_bytes(payload)
        return b"".join([self._header(message), message, b","])

    def encode_all(self, payloads: Iterable[BytesLike]) -> bytes:
        """Return many messages, each as a netstring, in one piece; ValueError if one is too long."""
        parts: list[bytes] = []
        for message in list_of_bytes(payloads):
            parts += (self._header(message), message, b",")
        return b"".join(parts)

    def _header(self, message: bytes) -> bytes:
        if len(message) > self.max_bytes:
            raise ValueError(f"a message has at most {self.max_bytes} bytes, got {len(message)}")
        return b"%d:" % len(message)
