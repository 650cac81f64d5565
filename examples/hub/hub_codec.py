r"""The hub's protocol: ``sub TOPIC``, ``unsub TOPIC``, and ``pub TOPIC`` with a second line that is the content.

What it teaches: a codec of one's own. Deriving from ``Codec`` takes two functions, ``decode`` and ``encode``; batches,
cutting off who breaks the rules, and sending come with the base. All complete lines are taken at once, and the one that
still waits for its second line is put back, so the codec has nothing to remember between two reads.

Lines end in ``\r\n``, both ways, as in muduo's hub, whose clients can talk to ours. A topic may hold anything but that,
blanks as well, and so may a content, which may also be empty. What a subscriber is sent is a ``pub`` as it was sent to
the hub.
"""

from __future__ import annotations

from typing import NamedTuple

from pymuduo import Buffer
from pymuduo.codec import Codec, ProtocolError

MAX_TOPIC_BYTES = 256
MAX_CONTENT_BYTES = 65_536
_COMMANDS = (b"pub", b"sub", b"unsub")
_END = b"\r\n"


class HubMessage(NamedTuple):
    """What goes over the wire, one way or the other; only a ``pub`` has a content."""

    command: bytes
    topic: bytes
    content: bytes = b""


class HubCodec(Codec):
    """Cuts the stream into ``HubMessage``s. What is no command, or too long, ends the connection."""

    __slots__ = ()

    def decode(self, buffer: Buffer) -> list[HubMessage]:
        """Take every complete message; ProtocolError if the first one breaks the rules."""
        messages: list[HubMessage] = []
        put_back = None
        lines = iter(buffer.take_delimited(_END, MAX_CONTENT_BYTES))
        for line in lines:
            command, _, topic = line.partition(b" ")
            is_right = command in _COMMANDS and 1 <= len(topic) <= MAX_TOPIC_BYTES
            if not is_right and not messages:
                raise ProtocolError(f"no command of the hub: {line[:40]!r}")
            content = next(lines, None) if command == b"pub" else b""
            if not is_right or content is None:
                put_back = line  # what came before a wrong one counts; then that is the first
                break
            messages.append(HubMessage(command, topic, content))
        if not messages and len(buffer) >= MAX_CONTENT_BYTES + len(_END):
            raise ProtocolError(f"a line of more than {MAX_CONTENT_BYTES} bytes")
        if put_back is not None:
            buffer.prepend(put_back + _END)
        return messages

    def encode(self, payload: HubMessage) -> bytes:
        """Return a message as it travels.

        Raises:
            ValueError: it is too long, has no topic, or holds a line end.
        """
        command, topic, content = payload
        if not 1 <= len(topic) <= MAX_TOPIC_BYTES or _END in topic:
            raise ValueError(f"a topic has 1 to {MAX_TOPIC_BYTES} bytes and no line end, got {topic[:40]!r}")
        if len(content) > MAX_CONTENT_BYTES or _END in content:
            raise ValueError(f"a content has at most {MAX_CONTENT_BYTES} bytes and no line end, got {content[:40]!r}")
        return b"%b %b\r\n%b\r\n" % payload if command == b"pub" else b"%b %b\r\n" % (command, topic)
