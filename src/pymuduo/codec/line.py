"""Messages that end in a delimiter: lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pymuduo import _sys
from pymuduo.codec.base import Codec, ProtocolError, as_bytes, list_of_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pymuduo.buffer import Buffer
    from pymuduo.callbacks import BatchCallback, BytesCallback, BytesLike


class LineCodec(Codec):
    r"""Messages that end in *delimiter*, which is taken off what comes in and put behind what goes out.

    Args:
        delimiter: one byte or more; ``b"\r\n"`` for most text protocols of the internet.
        max_bytes: the longest line allowed, without its delimiter.
        callbacks: see ``Codec``.

    Raises:
        ValueError: the delimiter is empty; or see ``Codec``.
    """

    __slots__ = ("delimiter",)

    def __init__(
        self,
        message_callback: BytesCallback | None = None,
        *,
        batch_callback: BatchCallback | None = None,
        delimiter: bytes = b"\n",
        max_bytes: int = 65536,
    ) -> None:
        Codec.__init__(self, message_callback, batch_callback=batch_callback, max_bytes=max_bytes)
        if not isinstance(delimiter, bytes) or not delimiter:
            raise ValueError(f"LineCodec: the delimiter must be one byte or more, got {delimiter!r}")
        self.delimiter = delimiter

    def decode(self, buffer: Buffer) -> list[bytes]:
        """Take every complete line; ProtocolError if the first one is too long, complete or not."""
        lines = buffer.take_delimited(self.delimiter, self.max_bytes)
        if not lines and len(buffer) - len(self.delimiter) >= self.max_bytes:
            raise ProtocolError(f"a line of more than {self.max_bytes} bytes")
        return lines

    def encode(self, payload: BytesLike) -> bytes:
        """Return the line with its delimiter.

        Raises:
            ValueError: it is too long, or holds the delimiter and would arrive as two.
        """
        return _sys.delimited(as_bytes(payload), self.delimiter, self.max_bytes)

    def encode_all(self, payloads: Iterable[BytesLike]) -> bytes:
        """Return many lines in one piece. Raises ValueError as ``encode`` does."""
        return _sys.join_delimited(list_of_bytes(payloads), self.delimiter, self.max_bytes)
