"""Messages that begin with their length."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Literal

from pymuduo import _sys
from pymuduo.codec.base import Codec, ProtocolError, as_bytes, list_of_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pymuduo.buffer import Buffer
    from pymuduo.callbacks import BatchCallback, BytesCallback, BytesLike

_WIDTHS = (1, 2, 4, 8)


class LengthHeaderCodec(Codec):
    """Messages behind a header that holds their length: an unsigned integer that does not count itself.

    Args:
        header_bytes: 1, 2, 4 or 8.
        byte_order: ``"big"`` (network order) or ``"little"``.
        max_bytes: the longest message allowed, without its header; a longer one is refused as soon as its header
            is there, so no peer can make a buffer grow past this. At most what the header can say.
        callbacks: see ``Codec``.

    Raises:
        ValueError: the header is of another width or order; or see ``Codec``.

    muduo: ``LengthHeaderCodec`` in its chat example.
    """

    __slots__ = ("_is_big", "header_bytes")

    def __init__(
        self,
        message_callback: BytesCallback | None = None,
        *,
        batch_callback: BatchCallback | None = None,
        header_bytes: int = 4,
        byte_order: Literal["big", "little"] = "big",
        max_bytes: int = 1024 * 1024,
    ) -> None:
        if header_bytes not in _WIDTHS:
            raise ValueError(f"LengthHeaderCodec: header_bytes must be 1, 2, 4 or 8, got {header_bytes}")
        if byte_order not in ("big", "little"):
            raise ValueError(f"LengthHeaderCodec: byte_order must be 'big' or 'little', got {byte_order!r}")
        max_bytes = min(max_bytes, (1 << (8 * header_bytes)) - 1, sys.maxsize)
        Codec.__init__(self, message_callback, batch_callback=batch_callback, max_bytes=max_bytes)
        self.header_bytes = header_bytes
        self._is_big = byte_order == "big"

    @property
    def byte_order(self) -> str:
        """``"big"`` or ``"little"``."""
        return "big" if self._is_big else "little"

    def decode(self, buffer: Buffer) -> list[bytes]:
        """Take every complete message; ProtocolError if the first one announces more bytes than are allowed."""
        messages = buffer.take_prefixed(self.header_bytes, self.max_bytes, self._is_big)
        if not messages and len(buffer) >= self.header_bytes:
            announced = int.from_bytes(buffer.peek(self.header_bytes), self.byte_order)  # type: ignore[arg-type]
            if announced > self.max_bytes:
                raise ProtocolError(f"a message of {announced} bytes, where {self.max_bytes} are allowed")
        return messages

    def encode(self, payload: BytesLike) -> bytes:
        """Return the message behind its header; ValueError if it is too long."""
        return _sys.prefixed(as_bytes(payload), self.header_bytes, self.max_bytes, self._is_big)

    def encode_all(self, payloads: Iterable[BytesLike]) -> bytes:
        """Return many messages, each behind its header, in one piece; ValueError if one is too long."""
        return _sys.join_prefixed(list_of_bytes(payloads), self.header_bytes, self.max_bytes, self._is_big)
