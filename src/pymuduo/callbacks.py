"""The types of callbacks and of what can be sent, for annotations in user code. muduo: ``Callbacks.h``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from pymuduo.buffer import Buffer
    from pymuduo.codec.base import ProtocolError
    from pymuduo.event_loop import EventLoop
    from pymuduo.inet_address import InetAddress
    from pymuduo.tcp_client import TcpClient
    from pymuduo.tcp_connection import TcpConnection
    from pymuduo.timestamp import Timestamp
    from pymuduo.unix_address import UnixAddress

Address: TypeAlias = "InetAddress | UnixAddress"
Target: TypeAlias = "Address | tuple[str, int]"  # where a client connects to: a host's name is looked up
BytesLike: TypeAlias = bytes | bytearray | memoryview
ConnectionCallback: TypeAlias = Callable[["TcpConnection"], object]
MessageCallback: TypeAlias = Callable[["TcpConnection", "Buffer", "Timestamp"], object]
BytesCallback: TypeAlias = Callable[["TcpConnection", bytes, "Timestamp"], object]
BatchCallback: TypeAlias = Callable[["TcpConnection", list[bytes], "Timestamp"], object]
WordsCallback: TypeAlias = Callable[["TcpConnection", list[bytes], "Timestamp"], object]
WordsBatchCallback: TypeAlias = Callable[["TcpConnection", list[list[bytes]], "Timestamp"], object]
AnyMessageCallback: TypeAlias = Callable[["TcpConnection", Any, "Timestamp"], object]
AnyBatchCallback: TypeAlias = Callable[["TcpConnection", Any, "Timestamp"], object]
ProtocolErrorCallback: TypeAlias = Callable[["TcpConnection", "ProtocolError"], object]
WriteCompleteCallback: TypeAlias = Callable[["TcpConnection"], object]
HighWaterMarkCallback: TypeAlias = Callable[["TcpConnection", int], object]
LowWaterMarkCallback: TypeAlias = Callable[["TcpConnection"], object]
PeerShutdownCallback: TypeAlias = Callable[["TcpConnection"], object]
ConnectFailedCallback: TypeAlias = Callable[["TcpClient", Exception], object]
CloseCallback: TypeAlias = Callable[["TcpConnection"], object]
HandshakeFailedCallback: TypeAlias = Callable[["TcpConnection", Exception], object]
ThreadInitCallback: TypeAlias = Callable[["EventLoop"], object]
ExceptionHandler: TypeAlias = Callable[[BaseException, object], object]
Functor: TypeAlias = Callable[..., Any]
