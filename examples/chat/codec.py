"""Messages on a stream of bytes: four bytes of length, then as many bytes of message.

What it teaches: TCP has no messages. What one end sends in one piece may arrive in three, or three in one, so a
receiver takes from its buffer what is complete and leaves the rest for the next time. The codec stands between the
connection and the program: give ``on_message`` to a client as its message callback, and whole messages come out.

The length is a big-endian signed integer, as in muduo's chat, whose clients can talk to our servers. A length out of
bounds means that the peer speaks something else, or means harm; there is no way back into step, so it is cut off.

This is all that there is to a codec, to be read once; ``client.py`` uses it. The servers use one that the library has
ready, in compiled code, for the same bytes: ``LengthHeaderCodec(callback, header_bytes=4, max_bytes=65_536)``.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable

from pymuduo import Buffer, TcpConnection, Timestamp

HEADER_BYTES = 4
MAX_MESSAGE_BYTES = 65_536


class ChatCodec:
    """Cuts the stream into messages; each goes to ``callback(connection, message, receive_time)`` in the loop."""

    def __init__(self, callback: Callable[[TcpConnection, bytes, Timestamp], object]) -> None:
        self._callback = callback

    def on_message(self, connection: TcpConnection, buffer: Buffer, receive_time: Timestamp) -> None:
        """Take every complete message from the buffer; a connection's message callback."""
        while len(buffer) >= HEADER_BYTES:
            length = buffer.peek_int32()
            if not 0 <= length <= MAX_MESSAGE_BYTES:
                logging.error("%s: a message of %d bytes announced; cut off", connection.name, length)
                buffer.retrieve_all()
                connection.force_close()
                return
            if len(buffer) < HEADER_BYTES + length:
                return
            buffer.retrieve(HEADER_BYTES)
            self._callback(connection, buffer.retrieve_as_bytes(length), receive_time)


def encode(message: bytes) -> bytes:
    """Return the message as it travels. Do it once, and send the same bytes to everybody.

    Raises:
        ValueError: the message is too long to travel.
    """
    if len(message) > MAX_MESSAGE_BYTES:
        raise ValueError(f"a message has at most {MAX_MESSAGE_BYTES} bytes, got {len(message)}")
    return struct.pack(">i", len(message)) + message
