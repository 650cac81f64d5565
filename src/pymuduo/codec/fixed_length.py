"""Messages that all have the same length."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pymuduo.codec.base import Codec, as_bytes, list_of_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pymuduo.buffer import Buffer
    from pymuduo.callbacks import BatchCallback, BytesCallback, BytesLike


class FixedLengthCodec(Codec):
    """Messages of *message_bytes* each, one behind the other with nothing between them: records, samples, blocks.

    No bytes break the rules: any stream is so many messages, and less than one that waits for its end.

    Args:
        message_bytes: the length of every message, one or more; ``max_bytes`` is the same number.
        callbacks: see ``Codec``.

    Raises:
        ValueError: *message_bytes* is not positive; or see ``Codec``.
    """

    __slots__ = ()

    def __init__(
        self,
        message_callback: BytesCallback | None = None,
        *,
        batch_callback: BatchCallback | None = None,
        message_bytes: int,
    ) -> None:
        if message_bytes < 1:
            raise ValueError(f"FixedLengthCodec: message_bytes must be positive, got {message_bytes}")
        Codec.__init__(self, message_callback, batch_callback=batch_callback, max_bytes=message_bytes)

    @property
    def message_bytes(self) -> int:
        """The length of every message."""
        return self.max_bytes

    def decode(self, buffer: Buffer) -> list[bytes]:
        """Take every complete message."""
        size = self.max_bytes
        return [buffer.retrieve_as_bytes(size) for _ in range(len(buffer) // size)]

    def encode(self, payload: BytesLike) -> bytes:
        """Return the message as it is; ValueError if it has another length."""
        message = as_bytes(payload)
        if len(message) != self.max_bytes:
            raise ValueError(f"a message has {self.max_bytes} bytes, got {len(message)}")
        return message

    def encode_all(self, payloads: Iterable[BytesLike]) -> bytes:
        """Return many messages in one piece; ValueError if one has another length."""
        messages = list_of_bytes(payloads)
        for message in messages:
            self.encode(message)
        return b"".join(messages)
