"""What SOCKS peers say to one another, version 4, 4a and 5: bytes in, values out, and no connection anywhere.

What it teaches: keeping a wire format apart from what moves it. Each function is given the bytes so far and returns
what it has understood and how many bytes that took, or None if more are needed; so each can be tried by hand.

The formats are those of the SOCKS 4 and 4A memos, of RFC 1928, and of RFC 1929 for names and passwords.
"""

from __future__ import annotations

import enum
import errno
import ipaddress
import socket
import struct
from typing import NamedTuple

from pymuduo import InetAddress

MAX_MESSAGE_BYTES = 8 + 256 + 256  # the longest: version 4a's request, each of its two texts with a zero behind it

CONNECT = 1
NO_PASSWORD, PASSWORD, NO_METHOD = 0x00, 0x02, 0xFF
_IPV4, _NAME, _IPV6 = 1, 3, 4
_HEAD4 = struct.Struct("!BBH4s")
_GRANTED4, _REFUSED4 = 90, 91


class Reply(enum.IntEnum):
    """What version 5 answers; version 4 knows yes and no."""

    SUCCEEDED = 0
    GENERAL_FAILURE = 1
    NOT_ALLOWED = 2
    NETWORK_UNREACHABLE = 3
    HOST_UNREACHABLE = 4
    CONNECTION_REFUSED = 5
    TTL_EXPIRED = 6
    COMMAND_NOT_SUPPORTED = 7
    ADDRESS_TYPE_NOT_SUPPORTED = 8


class SocksError(Exception):
    """The peer is turned away: with a reply, or without one if it does not speak SOCKS."""

    def __init__(self, message: str, last_words: bytes = b"") -> None:
        super().__init__(message)
        self.last_words = last_words


class Request(NamedTuple):
    """Where to go, and in which version the answer is expected."""

    version: int
    command: int
    target: InetAddress | tuple[str, int]


def parse_methods(data: bytes) -> tuple[bytes, int] | None:
    """Take version 5's greeting: the methods of authentication that the client knows."""
    if len(data) < 2 or len(data) < 2 + data[1]:
        return None
    end = 2 + data[1]
    return data[2:end], end


def parse_password(data: bytes) -> tuple[tuple[bytes, bytes], int] | None:
    """Take RFC 1929's name and password."""
    if data[0] != 1:
        raise SocksError("version 1 of name and password is expected")
    if len(data) < 2 or len(data) < 3 + data[1]:
        return None
    name_end = 2 + data[1]
    end = name_end + 1 + data[name_end]
    if len(data) < end:
        return None
    return (data[2:name_end], data[name_end + 1 : end]), end


def parse_request4(data: bytes) -> tuple[Request, int] | None:
    """Take the request of version 4, or 4a if its address is 0.0.0.x: then a name comes behind the user's."""
    user_end = data.find(0, _HEAD4.size)
    if user_end < 0:
        return None
    _, command, port, ip = _HEAD4.unpack_from(data)
    if ip[:3] != bytes(3) or ip[3] == 0:
        return Request(4, command, InetAddress(socket.inet_ntoa(ip), port)), user_end + 1
    name_end = data.find(0, user_end + 1)
    if name_end < 0:
        return None
    return Request(4, command, (_host(data[user_end + 1 : name_end], 4), port)), name_end + 1


def parse_request5(data: bytes) -> tuple[Request, int] | None:
    """Take the request of version 5."""
    if data[0] != 5:
        raise SocksError("version 5 is expected to go on")
    if len(data) < 5:
        return None
    kind = data[3]
    begin = 5 if kind == _NAME else 4
    if kind not in (_IPV4, _NAME, _IPV6):
        raise SocksError(f"address type {kind}", encode_reply(5, Reply.ADDRESS_TYPE_NOT_SUPPORTED))
    end = begin + {_IPV4: 4, _NAME: data[4], _IPV6: 16}[kind]
    if len(data) < end + 2:
        return None
    port = int.from_bytes(data[end : end + 2], "big")
    host = data[begin:end]
    if kind == _NAME:
        return Request(5, data[1], (_host(host, 5), port)), end + 2
    return Request(5, data[1], InetAddress(str(ipaddress.ip_address(host)), port)), end + 2


def encode_reply(version: int, reply: Reply, bound: InetAddress | None = None) -> bytes:
    """Return the answer to a request; *bound* is our end of the connection on."""
    if version == 4:
        return _HEAD4.pack(0, _REFUSED4 if reply else _GRANTED4, 0, bytes(4))
    bound = bound or InetAddress.any(0)
    kind = _IPV4 if bound.family == socket.AF_INET else _IPV6
    ip = ipaddress.ip_address(bound.ip.partition("%")[0]).packed
    return bytes([5, reply, 0, kind]) + ip + bound.port.to_bytes(2, "big")


def reply_to(error: Exception) -> Reply:
    """Return the reply that comes closest to why there is no connection on."""
    if isinstance(error, socket.gaierror):
        return Reply.HOST_UNREACHABLE  # there is no such name
    if isinstance(error, TimeoutError):
        return Reply.TTL_EXPIRED
    if isinstance(error, ConnectionRefusedError):
        return Reply.CONNECTION_REFUSED
    number = error.errno if isinstance(error, OSError) else None
    replies = {errno.ENETUNREACH: Reply.NETWORK_UNREACHABLE, errno.EHOSTUNREACH: Reply.HOST_UNREACHABLE}
    return replies.get(number or 0, Reply.GENERAL_FAILURE)


def _host(name: bytes, version: int) -> str:
    """Return a name as the resolver takes it; an international one comes in its ASCII form."""
    try:
        if not name.decode("ascii").encode("idna"):  # which looks at the lengths of its labels
            raise UnicodeError
    except UnicodeError:
        raise SocksError(f"no host name: {name!r}", encode_reply(version, Reply.HOST_UNREACHABLE)) from None
    return name.decode("ascii")
