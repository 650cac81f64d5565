"""Protobuf messages in the frames of muduo: its programs, and those in other languages that speak to them.

Two formats. ``ProtobufCodec`` carries the name of the message's type, so any type may follow any other on a
connection, and a ``ProtobufDispatcher`` sorts them out. ``ProtobufCodecLite`` carries messages of one type behind a
tag, which is what muduo's RPC does.

It takes the package ``protobuf``, which ``pip install 'pymuduo[protobuf]'`` brings along. For streams that hold nothing
but messages behind their lengths, as protobuf itself writes them, ``VarintCodec`` is the one, and it takes nothing.
"""

from __future__ import annotations

import enum
import zlib
from typing import TYPE_CHECKING, Any, Generic, TypeVar

try:
    from google.protobuf import descriptor_pool, message_factory
    from google.protobuf.message import DecodeError, EncodeError, Message
except ImportError as e:
    raise ImportError("pymuduo.codec.protobuf needs the package protobuf: pip install 'pymuduo[protobuf]'") from e

from pymuduo import _sys
from pymuduo.codec.base import Codec, ProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pymuduo.buffer import Buffer
    from pymuduo.callbacks import AnyBatchCallback, AnyMessageCallback
    from pymuduo.tcp_connection import TcpConnection
    from pymuduo.timestamp import Timestamp

__all__ = ["ProtobufCodec", "ProtobufCodecLite", "ProtobufDispatcher", "ProtobufError", "ProtobufErrorKind"]

M = TypeVar("M", bound=Message)

_WIDTH = 4  # of every integer in a frame
_SMALL_BYTES = 4096  # a frame of this size is taken together with others, which is worth a copy more


class ProtobufErrorKind(enum.Enum):
    """What is wrong with a frame. muduo: ``ErrorCode``, with the same names."""

    INVALID_LENGTH = "InvalidLength"
    CHECKSUM_ERROR = "CheckSumError"
    INVALID_NAME_LENGTH = "InvalidNameLen"
    UNKNOWN_MESSAGE_TYPE = "UnknownMessageType"
    PARSE_ERROR = "ParseError"


class ProtobufError(ProtocolError):
    """The peer sent a frame that is none, or holds none of our messages.

    Attributes:
        kind: what is wrong with it, a ``ProtobufErrorKind``.
    """

    def __init__(self, kind: ProtobufErrorKind, text: str) -> None:
        super().__init__(f"{kind.value}: {text}")
        self.kind = kind


class _FrameCodec(Codec):
    """What the two have in common: a length, something, and a checksum of it; all integers in network byte order."""

    __slots__ = ("_min_bytes",)

    def __init__(
        self,
        message_callback: AnyMessageCallback | None,
        batch_callback: AnyBatchCallback | None,
        min_bytes: int,
        max_bytes: int,
    ) -> None:
        Codec.__init__(self, message_callback, batch_callback=batch_callback, max_bytes=min(max_bytes, 0x7FFFFFFF))
        if self.max_bytes < min_bytes:
            raise ValueError(f"{type(self).__name__}: no frame is shorter than {min_bytes} bytes, got {max_bytes}")
        self._min_bytes = min_bytes

    def decode(self, buffer: Buffer) -> list[Any]:
        messages: list[Any] = []
        try:
            self._take_small(buffer, messages)
            while self._take_large(buffer, messages):
                self._take_small(buffer, messages)
        except ProtobufError:
            if not messages:
                raise  # else those before it come first; the next call finds it where it was
        return messages

    def _take_small(self, buffer: Buffer, messages: list[Any]) -> None:
        frames = buffer.take_prefixed(_WIDTH, min(self.max_bytes, _SMALL_BYTES))
        for at, frame in enumerate(frames):
            try:
                messages.append(self._parse(frame))
            except ProtobufError:
                buffer.prepend(_sys.join_prefixed(frames[at:], _WIDTH, self.max_bytes, True))
                raise

    def _take_large(self, buffer: Buffer, messages: list[Any]) -> bool:
        """Take one frame, looking at it where it lies; False if it is not all there."""
        if len(buffer) < _WIDTH:
            return False
        size = buffer.peek_int32()
        if not self._min_bytes <= size <= self.max_bytes:
            raise self._invalid_length(size)
        if size > len(buffer) - _WIDTH:
            return False
        with buffer.peek(_WIDTH + size) as content, content[_WIDTH:] as frame:
            messages.append(self._parse(frame))
        buffer.retrieve(_WIDTH + size)
        return True

    def encode_all(self, payloads: Iterable[Message]) -> bytes:
        """Return many messages, each in its frame, in one piece. Raises as ``encode`` does."""
        return b"".join([part for payload in payloads for part in self._parts(payload)])

    def _parts(self, payload: Any) -> tuple[bytes, ...]:
        """Return what a frame is made of, in order."""
        raise NotImplementedError

    def _frame(self, head: bytes, message: Message) -> tuple[bytes, ...]:
        try:
            data = message.SerializeToString()
        except EncodeError as e:
            raise ValueError(str(e)) from e
        size = len(head) + len(data) + _WIDTH
        if size > self.max_bytes:
            raise ValueError(f"a frame has at most {self.max_bytes} bytes, got {size}")
        checksum = zlib.adler32(data, zlib.adler32(head))
        return size.to_bytes(_WIDTH, "big"), head, data, checksum.to_bytes(_WIDTH, "big")

    def _parse(self, frame: bytes | memoryview) -> Message:
        """Return the message in a frame, which comes without its length; ProtobufError if there is none."""
        if len(frame) < self._min_bytes:
            raise self._invalid_length(len(frame))
        # No slice of it gets a name: the traceback of an error would keep the buffer's memory.
        if frame[-_WIDTH:] != zlib.adler32(frame[:-_WIDTH]).to_bytes(_WIDTH, "big"):
            raise ProtobufError(ProtobufErrorKind.CHECKSUM_ERROR, f"in a frame of {len(frame)} bytes")
        message_type, begin = self._find_type(frame)
        try:
            message = message_type.FromString(frame[begin:-_WIDTH])  # type: ignore[arg-type]  # takes both
        except (DecodeError, ValueError) as e:  # protobuf's plain-Python body lets a UnicodeDecodeError out
            raise ProtobufError(ProtobufErrorKind.PARSE_ERROR, f"no {message_type.DESCRIPTOR.full_name}: {e}") from None
        if not message.IsInitialized():
            text = f"a {message_type.DESCRIPTOR.full_name} without all of its required fields"
            raise ProtobufError(ProtobufErrorKind.PARSE_ERROR, text)
        return message

    def _find_type(self, frame: bytes | memoryview) -> tuple[type[Message], int]:
        """Return the class of the message in a frame, and where it begins; it ends before the checksum."""
        raise NotImplementedError

    def _invalid_length(self, length: int) -> ProtobufError:
        wanted = f"{self._min_bytes} to {self.max_bytes} are allowed"
        return ProtobufError(ProtobufErrorKind.INVALID_LENGTH, f"a frame of {length} bytes, where {wanted}")


class ProtobufCodec(_FrameCodec):
    """Protobuf messages of any type behind the name of their type.

    A frame is its length without itself (32 bits, as all integers here, in network byte order), the length of the
    name, the name with a zero byte behind it, the message, and the Adler-32 checksum of all after the first length.

    A message arrives as an object of its class, which is looked for in protobuf's default descriptor pool: there is
    every class of the generated modules (``…_pb2``) that the program has imported.

    Args:
        max_bytes: the longest frame allowed, without its length; a longer one is refused with its length, so no peer
            can make a buffer grow past this. 64 MiB as in muduo; take less where strangers connect.
        callbacks: see ``Codec``; a message is a ``google.protobuf.message.Message``.

    Raises:
        ValueError: *max_bytes* allows no frame at all; or see ``Codec``.

    What breaks the rules is a ``ProtobufError``: an impossible length, a wrong checksum, an unknown type, or bytes
    that are no such message, for example because a required field is missing. (A string of proto2 that is no UTF-8 does
    not: protobuf lets it pass, and gives the program ``bytes`` for it.)

    muduo: ``ProtobufCodec`` in ``examples/protobuf/codec``.
    """

    __slots__ = ("_heads", "_types")

    def __init__(
        self,
        message_callback: Callable[[TcpConnection, Message, Timestamp], object] | None = None,
        *,
        batch_callback: Callable[[TcpConnection, list[Message], Timestamp], object] | None = None,
        max_bytes: int = 64 * 1024 * 1024,
    ) -> None:
        super().__init__(message_callback, batch_callback, 2 * _WIDTH + 2, max_bytes)
        # What was found out once of a class; no peer can make these grow beyond the classes that there are.
        self._types: dict[bytes, type[Message]] = {}
        self._heads: dict[type[Message], bytes] = {}

    def decode(self, buffer: Buffer) -> list[Message]:
        """Take every complete message; ProtobufError if there is none, and the first frame is wrong."""
        return super().decode(buffer)

    def encode(self, payload: Message) -> bytes:
        """Return the message in its frame.

        Raises:
            TypeError: it is no protobuf message.
            ValueError: it is too long, or a required field is missing.
        """
        return b"".join(self._parts(payload))

    def _parts(self, payload: Message) -> tuple[bytes, ...]:
        head = self._heads.get(type(payload))
        if head is None:
            if not isinstance(payload, Message):
                raise TypeError(f"a protobuf message is required, got {type(payload).__name__}")
            name = payload.DESCRIPTOR.full_name.encode() + b"\0"
            head = self._heads[type(payload)] = len(name).to_bytes(_WIDTH, "big") + name
        return self._frame(head, payload)

    def _find_type(self, frame: bytes | memoryview) -> tuple[type[Message], int]:
        name_bytes = int.from_bytes(frame[:_WIDTH], "big", signed=True)
        if not 2 <= name_bytes <= len(frame) - 2 * _WIDTH:
            text = f"a name of {name_bytes} bytes in a frame of {len(frame)}"
            raise ProtobufError(ProtobufErrorKind.INVALID_NAME_LENGTH, text)
        end = _WIDTH + name_bytes
        name = bytes(frame[_WIDTH : end - 1])  # muduo does not look at the byte behind it either
        return self._types.get(name) or self._look_up(name), end

    def _look_up(self, name: bytes) -> type[Message]:
        try:
            text = name.decode("ascii")
            descriptor = descriptor_pool.Default().FindMessageTypeByName(text)
            if descriptor.full_name != text:  # each other name that it is found by would stay in the table
                raise KeyError(text)
        except (KeyError, UnicodeDecodeError):
            raise ProtobufError(ProtobufErrorKind.UNKNOWN_MESSAGE_TYPE, f"{name[:80]!r}") from None
        found = message_factory.GetMessageClass(descriptor)
        self._types[name] = found
        return found


class ProtobufCodecLite(_FrameCodec, Generic[M]):
    """Protobuf messages of one type behind a tag.

    A frame is its length without itself (32 bits, in network byte order), the tag, the message, and the Adler-32
    checksum of tag and message (32 bits).

    Args:
        message_type: the class of the messages.
        tag: bytes that every frame begins with, for example ``b"RPC0"``; may be empty.
        max_bytes: as of ``ProtobufCodec``.
        callbacks: see ``Codec``; a message is of *message_type*.

    Raises:
        TypeError: *message_type* is no class of messages, or *tag* is not bytes.
        ValueError: *max_bytes* allows no frame at all; or see ``Codec``.

    What breaks the rules is a ``ProtobufError``, as with ``ProtobufCodec``; another tag is an unknown type.

    muduo: ``ProtobufCodecLiteT``.
    """

    __slots__ = ("message_type", "tag")

    def __init__(
        self,
        message_type: type[M],
        tag: bytes,
        message_callback: Callable[[TcpConnection, M, Timestamp], object] | None = None,
        *,
        batch_callback: Callable[[TcpConnection, list[M], Timestamp], object] | None = None,
        max_bytes: int = 64 * 1024 * 1024,
    ) -> None:
        if not _is_message_type(message_type) or not isinstance(tag, bytes):
            raise TypeError(
                f"a class of protobuf messages and a tag of bytes are required, got {message_type!r}, {tag!r}"
            )
        super().__init__(message_callback, batch_callback, len(tag) + _WIDTH, max_bytes)
        self.message_type = message_type
        self.tag = tag

    def decode(self, buffer: Buffer) -> list[M]:
        """Take every complete message; ProtobufError if there is none, and the first frame is wrong."""
        return super().decode(buffer)

    def encode(self, payload: M) -> bytes:
        """Return the message in its frame.

        Raises:
            TypeError: it is of another type, and would be taken for one of this type.
            ValueError: it is too long, or a required field is missing.
        """
        return b"".join(self._parts(payload))

    def _parts(self, payload: M) -> tuple[bytes, ...]:
        if not isinstance(payload, self.message_type):
            raise TypeError(f"a {self.message_type.__name__} is required, got {type(payload).__name__}")
        return self._frame(self.tag, payload)

    def _find_type(self, frame: bytes | memoryview) -> tuple[type[Message], int]:
        if frame[: len(self.tag)] != self.tag:
            got = bytes(frame[: len(self.tag)])
            raise ProtobufError(ProtobufErrorKind.UNKNOWN_MESSAGE_TYPE, f"the tag {got!r:.80}, not {self.tag!r:.80}")
        return self.message_type, len(self.tag)


class ProtobufDispatcher:
    """Calls the function that is registered for a message's class. Its ``on_message`` is a codec's message callback.

    Args:
        default_callback: ``(connection, message, receive_time)`` for messages of all other classes. Any class that
            the program knows may arrive, so it has to say what becomes of the peer.

    Register all callbacks before the codec is in use; then any number of loops may use a dispatcher at the same time.

    muduo: ``ProtobufDispatcher`` in ``examples/protobuf/codec``.
    """

    __slots__ = ("_callbacks", "_default_callback")

    def __init__(self, default_callback: Callable[[TcpConnection, Message, Timestamp], object]) -> None:
        self._default_callback: Callable[[TcpConnection, Any, Timestamp], object] = default_callback
        self._callbacks: dict[type[Message], Callable[[TcpConnection, Any, Timestamp], object]] = {}

    def register(self, message_type: type[M], callback: Callable[[TcpConnection, M, Timestamp], object]) -> None:
        """Call ``callback(connection, message, receive_time)`` for messages of this class, which take one callback.

        Raises:
            TypeError: *message_type* is no class of messages.

        muduo: ``registerMessageCallback``.
        """
        if not _is_message_type(message_type):
            raise TypeError(f"a class of protobuf messages is required, got {message_type!r}")
        self._callbacks[message_type] = callback

    def on_message(self, connection: TcpConnection, message: Message, receive_time: Timestamp) -> None:
        """Pass a message on. muduo: ``onProtobufMessage``."""
        self._callbacks.get(type(message), self._default_callback)(connection, message, receive_time)


def _is_message_type(thing: object) -> bool:
    return isinstance(thing, type) and issubclass(thing, Message)
