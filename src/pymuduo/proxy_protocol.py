"""The PROXY protocol, versions 1 and 2: a load balancer says for whom it connects.

The first bytes of a relayed connection name the client's address and the one it connected to. Whoever may send them
may claim to be anybody; so they are taken from peers that ``ProxyProtocol.trusted`` names, and from nobody else.

``parse_proxy_header`` and ``encode_proxy_header`` are pure functions, for any thread. ``ProxyLayer`` stands before a
connection until its header is there, belongs to the connection's loop, and then gets out of the way. It looks at what
has arrived (``MSG_PEEK``) and takes the header's bytes only, so that whatever comes next finds the socket as if there
had been no header: a TLS handshake in the same segment is still in the kernel. What it has seen of an unfinished
header it does take, or a level-triggered poller would report the same bytes for ever.

The specification is HAProxy's doc/proxy-protocol.txt.
"""

from __future__ import annotations

import enum
import errno
import ipaddress
import os
import re
import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any

from pymuduo.inet_address import InetAddress
from pymuduo.layer import Layer

if TYPE_CHECKING:
    from pymuduo.buffer import Buffer
    from pymuduo.callbacks import Address, BytesLike
    from pymuduo.tcp_connection import TcpConnection
    from pymuduo.timer_queue import Timer
    from pymuduo.unix_address import UnixAddress

_EAGAIN = errno.EAGAIN

_MAX_LINE = 107  # the longest line of version 1, its CRLF included
_KINDS = _LINE_TCP4, _LINE_TCP6, _UNKNOWN = b"PROXY TCP4 ", b"PROXY TCP6 ", b"PROXY UNKNOWN"
_NOT_IN_LINE = {_LINE_TCP4: re.compile(rb"[^0-9. ]"), _LINE_TCP6: re.compile(rb"[^0-9A-Fa-f:. ]")}
_PORT = re.compile(rb"0|[1-9][0-9]{0,4}")

_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_START = struct.Struct("!12sBBH")
_LOCAL, _PROXY = 0x20, 0x21  # the version's bits included
_UNSPEC, _TCP4, _TCP6, _UNIX = 0x00, 0x11, 0x21, 0x31
_ADDRESSES = {
    _UNSPEC: struct.Struct(""),
    _TCP4: struct.Struct("!4s4sHH"),
    _TCP6: struct.Struct("!16s16sHH"),
    _UNIX: struct.Struct("108s108s"),
}
_TLV = struct.Struct("!BH")
_SSL = struct.Struct("!BI")
_MAX_UNIQUE_ID = 128
_MIN_MAX_BYTES = _START.size + _ADDRESSES[_UNIX].size
_MAX_MAX_BYTES = _START.size + 0xFFFF
_DEFAULT_MAX_BYTES = 4096


class ProxyProtocolError(ValueError):
    """The peer may not send a PROXY header, or what it sent is none; the message says why."""


class ProxyTlv(enum.IntEnum):
    """What the specification names among the type-length-value fields of version 2; the rest is applications'."""

    ALPN = 0x01
    AUTHORITY = 0x02
    CRC32C = 0x03
    NOOP = 0x04
    UNIQUE_ID = 0x05
    SSL = 0x20
    SSL_VERSION = 0x21
    SSL_CN = 0x22
    SSL_CIPHER = 0x23
    SSL_SIG_ALG = 0x24
    SSL_KEY_ALG = 0x25
    NETNS = 0x30


@dataclass(frozen=True, slots=True)
class ProxySsl:
    """What a load balancer tells of the TLS connection that it has ended (``PP2_TYPE_SSL``).

    Attributes:
        flags: 1: the client used TLS; 2: it gave a certificate on this connection; 4: in this TLS session.
        verify: what checking that certificate came to, 0 for "good"; says nothing if there was none.
        tlvs: the fields inside, ``(type, value)``.
    """

    flags: int
    verify: int
    tlvs: tuple[tuple[int, bytes], ...] = ()

    @property
    def is_tls(self) -> bool:
        """Whether the client talked TLS to the load balancer."""
        return bool(self.flags & 1)

    @property
    def client_is_verified(self) -> bool:
        """Whether the client gave a certificate, and the load balancer found it good."""
        return bool(self.flags & 6) and self.verify == 0

    @property
    def version(self) -> str | None:
        """``TLSv1.3``, or None if it is not told."""
        return _text(self.tlvs, ProxyTlv.SSL_VERSION)

    @property
    def common_name(self) -> str | None:
        """The CN of the client's certificate; look at ``client_is_verified`` before you believe it."""
        return _text(self.tlvs, ProxyTlv.SSL_CN)

    @property
    def cipher(self) -> str | None:
        """The name of the cipher, or None."""
        return _text(self.tlvs, ProxyTlv.SSL_CIPHER)


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """What a PROXY header says. Immutable: any thread may hold it.

    Attributes:
        version: 1 or 2.
        is_local: the proxy connects on its own account, as for a health check: the real addresses count.
        source: whose connection is relayed; None if it is not told. destination: where to, as the client sees it.
        tlvs: version 2's further fields, ``(type, value)`` in the order sent, without padding. Empty for a local one.
    """

    version: int
    is_local: bool = False
    source: Address | None = None
    destination: Address | None = None
    tlvs: tuple[tuple[int, bytes], ...] = ()

    def tlv(self, kind: int) -> bytes | None:
        """Return the value of the first field of a type (see ``ProxyTlv``), None if there is none."""
        return _first(self.tlvs, kind)

    @property
    def alpn(self) -> bytes | None:
        """The protocol that the client and the load balancer agreed on, as ``b"h2"``."""
        return self.tlv(ProxyTlv.ALPN)

    @property
    def authority(self) -> str | None:
        """The host name that the client asked for: TLS's SNI."""
        return _text(self.tlvs, ProxyTlv.AUTHORITY)

    @property
    def unique_id(self) -> bytes | None:
        """What the load balancer calls the connection in its own log."""
        return self.tlv(ProxyTlv.UNIQUE_ID)

    @property
    def netns(self) -> str | None:
        """The network name space that the client came from."""
        return _text(self.tlvs, ProxyTlv.NETNS)

    @property
    def ssl(self) -> ProxySsl | None:
        """What is told of the client's TLS connection."""
        value = self.tlv(ProxyTlv.SSL)
        return None if value is None else _ssl(value)


# --- the wire: reading -----------------------------------------------------------------------------------------


def parse_proxy_header(data: BytesLike, *, max_bytes: int = _DEFAULT_MAX_BYTES) -> tuple[ProxyHeader, int] | None:
    """Return the header that *data* begins with and its length in bytes, or None if more is needed to tell.

    Args:
        max_bytes: the longest header of version 2 to accept. (Version 1 has 107 bytes at most.)

    Raises:
        ProxyProtocolError: *data* is not the beginning of a header; raised as soon as that is certain.
    """
    head = bytes(memoryview(data).cast("B")[: max(max_bytes, _MAX_LINE)])
    if _SIGNATURE.startswith(head[: len(_SIGNATURE)]):
        return _parse_binary(head, max_bytes)
    if any(kind.startswith(head[: len(kind)]) for kind in _KINDS):
        return _parse_line(head[:_MAX_LINE])
    raise ProxyProtocolError(f"no PROXY header begins with {head[:20]!r}")


def _parse_line(head: bytes) -> tuple[ProxyHeader, int] | None:
    """Version 1: ``PROXY TCP4 192.0.2.1 198.51.100.1 56324 443`` and CRLF."""
    line, end, _ = head.partition(b"\r\n")
    # A lone CR or LF ends nothing, and nothing may hide behind it. The CR at the end may be half of the CRLF.
    if b"\n" in line or b"\r" in line[: None if end else -1]:
        raise ProxyProtocolError(f"a PROXY line ends in CR and LF, got {line!r}")
    kind = next(kind for kind in _KINDS if kind.startswith(line[: len(kind)]))
    if kind == _UNKNOWN and line[len(kind) : len(kind) + 1] not in (b"", b" ", b"\r"):
        raise ProxyProtocolError(f"TCP4, TCP6 or UNKNOWN is expected in a PROXY line, got {line!r}")
    if kind in _NOT_IN_LINE and (wrong := _NOT_IN_LINE[kind].search(line.removesuffix(b"\r"), len(kind))):
        raise ProxyProtocolError(f"no address or port has {wrong[0]!r} in it, got {line!r}")
    if not end:
        if len(head) == _MAX_LINE:
            raise ProxyProtocolError(f"a PROXY line has at most {_MAX_LINE} bytes, got {head!r} and more")
        return None
    size = len(line) + 2
    if kind == _UNKNOWN:
        return ProxyHeader(1), size  # what else it says is to be ignored
    fields = line.split(b" ")
    if len(fields) != 6:
        raise ProxyProtocolError(f"two addresses and two ports are expected in a PROXY line, got {line!r}")
    source = _line_address(fields[2], fields[4], kind)
    destination = _line_address(fields[3], fields[5], kind)
    return ProxyHeader(1, False, source, destination), size


def _line_address(ip: bytes, port: bytes, kind: bytes) -> InetAddress:
    if not _PORT.fullmatch(port) or int(port) > 0xFFFF:
        raise ProxyProtocolError(f"a port is 0 to 65535 without leading zeros, got {port!r} in a PROXY line")
    try:
        address = InetAddress(ip.decode(), int(port))
    except ValueError:
        address = None
    # Not every system's inet_pton refuses leading zeros in IPv4; IPv6 may be spelled in many ways.
    if address is None or (address.ip.encode() != ip if kind == _LINE_TCP4 else address.family != socket.AF_INET6):
        raise ProxyProtocolError(f"an IPv{kind[9:10].decode()} address is expected in a PROXY line, got {ip!r}")
    return address


def _parse_binary(head: bytes, max_bytes: int) -> tuple[ProxyHeader, int] | None:
    """Version 2: a signature, command, family and length, then addresses and TLVs."""
    if len(head) > 12 and head[12] not in (_LOCAL, _PROXY):
        raise ProxyProtocolError(f"version 2 and command 0 or 1 are expected in a PROXY header, got {head[12]:#04x}")
    # For a local connection the family and everything behind are to be ignored.
    is_local = len(head) > 12 and head[12] == _LOCAL
    if len(head) > 13 and not is_local and head[13] not in _ADDRESSES:
        if head[13] & 0xF == 2:
            raise ProxyProtocolError(f"the PROXY header is one for datagrams ({head[13]:#04x}), this is a stream")
        raise ProxyProtocolError(f"the PROXY header is of unknown family and protocol {head[13]:#04x}")
    if len(head) < _START.size:
        return None
    family = _UNSPEC if is_local else head[13]
    addresses = _ADDRESSES[family]
    size = _START.size + int.from_bytes(head[14:16], "big")
    if size < _START.size + addresses.size:
        raise ProxyProtocolError(f"a PROXY header of family {family:#04x} with no room for its addresses: {size} bytes")
    if size > max_bytes:
        raise ProxyProtocolError(f"a PROXY header of {size} bytes, at most {max_bytes} are accepted")
    if len(head) < size:
        return None
    if is_local:
        return ProxyHeader(2, True), size
    source, destination = _unpack_addresses(family, addresses.unpack_from(head, _START.size))
    tlvs = _parse_tlvs(head[:size], _START.size + addresses.size)
    return ProxyHeader(2, False, source, destination, tlvs), size


def _unpack_addresses(family: int, parts: tuple[Any, ...]) -> tuple[Address | None, Address | None]:
    if family == _UNSPEC:
        return None, None
    if family == _UNIX:
        return _unpack_unix(parts[0]), _unpack_unix(parts[1])
    ip = socket.AF_INET if family == _TCP4 else socket.AF_INET6
    return (
        InetAddress(socket.inet_ntop(ip, parts[0]), parts[2]),
        InetAddress(socket.inet_ntop(ip, parts[1]), parts[3]),
    )


def _parse_tlvs(header: bytes, begin: int) -> tuple[tuple[int, bytes], ...]:
    tlvs = []
    checksum_at = 0
    for kind, at, value in _split_tlvs(header, begin):
        if kind == ProxyTlv.NOOP:
            continue
        if kind == ProxyTlv.CRC32C:
            if checksum_at or len(value) != 4:
                raise ProxyProtocolError("the PROXY header's checksum is not one, of 4 bytes")
            checksum_at = at
        elif kind == ProxyTlv.SSL:
            _ssl(value)
        elif kind == ProxyTlv.UNIQUE_ID and len(value) > _MAX_UNIQUE_ID:
            raise ProxyProtocolError(f"a unique id has at most {_MAX_UNIQUE_ID} bytes, got {len(value)}")
        elif kind in _TEXTS:
            _decode(kind, value)
        tlvs.append((kind, value))
    if checksum_at and _checksum(header, checksum_at) != header[checksum_at : checksum_at + 4]:
        raise ProxyProtocolError("the PROXY header's checksum does not match: it was damaged on its way")
    return tuple(tlvs)


def _split_tlvs(data: bytes, begin: int) -> Iterator[tuple[int, int, bytes]]:
    """Yield type, place and value of each field of ``data[begin:]``."""
    while begin < len(data):
        if len(data) - begin < _TLV.size:
            raise ProxyProtocolError(f"{len(data) - begin} bytes are left over behind the PROXY header's last field")
        kind, size = _TLV.unpack_from(data, begin)
        begin += _TLV.size
        if size > len(data) - begin:
            raise ProxyProtocolError(f"field {kind:#04x} of {size} bytes ends behind the PROXY header")
        yield kind, begin, data[begin : begin + size]
        begin += size


def _ssl(value: bytes) -> ProxySsl:
    if len(value) < _SSL.size:
        raise ProxyProtocolError(f"a PROXY header's TLS field has {_SSL.size} bytes at least, got {len(value)}")
    flags, verify = _SSL.unpack_from(value)
    tlvs = tuple((kind, inner) for kind, _, inner in _split_tlvs(value, _SSL.size))
    for kind, inner in tlvs:
        if kind in _SSL_TEXTS:
            _decode(kind, inner)
    return ProxySsl(flags, verify, tlvs)


def _first(tlvs: tuple[tuple[int, bytes], ...], wanted: int) -> bytes | None:
    return next((value for kind, value in tlvs if kind == wanted), None)


def _text(tlvs: tuple[tuple[int, bytes], ...], kind: ProxyTlv) -> str | None:
    value = _first(tlvs, kind)
    return None if value is None else _decode(kind, value)


_TEXTS = {ProxyTlv.AUTHORITY: "utf-8", ProxyTlv.NETNS: "ascii"}
_SSL_TEXTS = {
    ProxyTlv.SSL_VERSION: "ascii",
    ProxyTlv.SSL_CN: "utf-8",
    ProxyTlv.SSL_CIPHER: "ascii",
    ProxyTlv.SSL_SIG_ALG: "ascii",
    ProxyTlv.SSL_KEY_ALG: "ascii",
}


def _decode(kind: int, value: bytes) -> str:
    name = ProxyTlv(kind)
    try:
        return value.decode(_TEXTS.get(name) or _SSL_TEXTS[name])
    except UnicodeDecodeError as e:
        raise ProxyProtocolError(f"a PROXY header's {name.name} is not {e.encoding}: {value!r}") from None


def _unpack_unix(field: bytes) -> UnixAddress | None:
    """Return the address in a field of 108 bytes; None for a socket that has no name."""
    from pymuduo.unix_address import UnixAddress  # noqa: PLC0415

    # The field does not tell how long an abstract name is: zeros at the end are taken for padding.
    name = field.partition(b"\0")[0] if field[0] else field[1:].rstrip(b"\0")
    if not name:
        return None
    try:
        return UnixAddress(os.fsdecode(name)) if field[0] else UnixAddress.abstract(name)
    except ValueError as e:
        raise ProxyProtocolError(f"no Unix address in a PROXY header: {e}") from None


# --- the wire: writing -----------------------------------------------------------------------------------------


def encode_proxy_header(
    source: Address | None,
    destination: Address | None,
    *,
    version: int = 2,
    tlvs: Iterable[tuple[int, bytes]] = (),
    is_local: bool = False,
) -> bytes:
    """Return the header to send first on a connection that is made for somebody else.

    Args:
        source: whose connection is relayed. destination: where it was made to. Two addresses of one kind; if either
            is None the header says "unknown", as version 1 does of Unix addresses.
        version: 2, or 1, which every receiver knows.
        tlvs: fields of version 2, ``(type, value)``. For ``ProxyTlv.CRC32C`` the right value is filled in.
        is_local: the connection is the proxy's own, a health check: without addresses and fields, version 2.

    Raises:
        ValueError: what is to be said can't be.
    """
    fields = list(tlvs)
    if version not in (1, 2):
        raise ValueError(f"a PROXY header is of version 1 or 2, got {version!r}")
    if is_local and (version == 1 or fields or source is not None or destination is not None):
        raise ValueError("a local PROXY header is of version 2 and has neither addresses nor fields")
    if version == 1:
        if fields:
            raise ValueError("a PROXY header of version 1 has no fields")
        return _encode_line(source, destination)
    family, addresses = _pack_addresses(source, destination)
    body = bytearray(addresses)
    checksum_at = 0
    for kind, value in fields:
        if not 0 <= kind <= 0xFF or len(value) > 0xFFFF:
            raise ValueError(f"a field has a type of 0 to 255 and at most 65535 bytes, got {kind}, {len(value)}")
        if kind == ProxyTlv.CRC32C:
            if checksum_at:
                raise ValueError("a PROXY header has one checksum")
            checksum_at = _START.size + len(body) + _TLV.size
            body += _TLV.pack(kind, 4) + bytes(4)
        else:
            body += _TLV.pack(kind, len(value)) + value
    if len(body) > 0xFFFF:
        raise ValueError(f"a PROXY header has at most {0xFFFF} bytes of addresses and fields, got {len(body)}")
    header = bytearray(_START.pack(_SIGNATURE, _LOCAL if is_local else _PROXY, family, len(body)) + body)
    if checksum_at:
        header[checksum_at : checksum_at + 4] = _checksum(header, checksum_at)
    return bytes(header)


def _encode_line(source: Address | None, destination: Address | None) -> bytes:
    if not isinstance(source, InetAddress) or not isinstance(destination, InetAddress):
        return b"PROXY UNKNOWN\r\n"
    _check_same_family(source, destination)
    kind = "TCP6" if source.family == socket.AF_INET6 else "TCP4"
    return f"PROXY {kind} {source.ip} {destination.ip} {source.port} {destination.port}\r\n".encode()


def _pack_addresses(source: Address | None, destination: Address | None) -> tuple[int, bytes]:
    if source is None or destination is None:
        return _UNSPEC, b""
    if isinstance(source, InetAddress) and isinstance(destination, InetAddress):
        _check_same_family(source, destination)
        family = _TCP6 if source.family == socket.AF_INET6 else _TCP4
        ips = (socket.inet_pton(address.family, address.ip) for address in (source, destination))
        return family, _ADDRESSES[family].pack(*ips, source.port, destination.port)
    if isinstance(source, InetAddress) or isinstance(destination, InetAddress):
        raise ValueError(f"a PROXY header has two addresses of one kind, got {source} and {destination}")
    return _UNIX, _ADDRESSES[_UNIX].pack(_pack_unix(source), _pack_unix(destination))


def _pack_unix(address: UnixAddress) -> bytes:
    return os.fsencode(address.sockaddr)


def _check_same_family(source: InetAddress, destination: InetAddress) -> None:
    if source.family != destination.family:
        raise ValueError(f"a PROXY header has two addresses of one family, got {source} and {destination}")


def _make_crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        remainder = byte
        for _ in range(8):
            remainder = remainder >> 1 ^ (0x82F63B78 if remainder & 1 else 0)  # Castagnoli's, bits reversed
        table.append(remainder)
    return tuple(table)


_CRC_TABLE = _make_crc_table()


def crc32c(data: BytesLike) -> int:
    """Return the CRC-32C (Castagnoli) of *data*, as RFC 4960 has it."""
    table = _CRC_TABLE
    remainder = 0xFFFFFFFF
    for byte in memoryview(data).cast("B"):
        remainder = remainder >> 8 ^ table[(remainder ^ byte) & 0xFF]
    return remainder ^ 0xFFFFFFFF


def _checksum(header: bytes | bytearray, at: int) -> bytes:
    """Return the checksum of a header in which the place of the checksum, *at*, counts as zeros."""
    return crc32c(header[:at] + bytes(4) + header[at + 4 :]).to_bytes(4, "big")


# --- who may send it, and the layer that takes it ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ProxyProtocol:
    """Who may say for whom a connection is made, and how long that may take: give it to ``TcpServer.proxy_protocol``.

    Immutable: any number of servers and loops may share it.

    Args:
        trusted: networks of load balancers (``"10.0.0.0/8"``, ``"2001:db8::5"``), and ``"unix"`` for Unix sockets. An
            IPv4 network is also that of IPv4 peers who come in over IPv6 (``::ffff:10.0.0.1``).
        allow_direct: peers who are not trusted are served as they are; a header from them is payload like any other.
            Otherwise they are refused.
        timeout_s: how long a header may take. At least 3 s, to survive one lost segment.
        max_bytes: the longest header to accept, 232 to 65551.

    Raises:
        ValueError: *trusted* is empty or holds what is no network; a number is out of range.
        TypeError: *trusted* is one str.
    """

    trusted: Iterable[str]
    _: KW_ONLY
    allow_direct: bool = False
    timeout_s: float = 5.0
    max_bytes: int = _DEFAULT_MAX_BYTES
    _networks: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.trusted, str):
            raise TypeError(f"ProxyProtocol: trusted is a list of networks, got the str {self.trusted!r}")
        trusted = tuple(self.trusted)
        if not trusted:
            raise ValueError("ProxyProtocol: nobody is trusted, so no header would ever be read")
        if not self.timeout_s > 0:
            raise ValueError(f"ProxyProtocol: timeout_s must be more than 0, got {self.timeout_s}")
        if not _MIN_MAX_BYTES <= self.max_bytes <= _MAX_MAX_BYTES:
            raise ValueError(
                f"ProxyProtocol: max_bytes must be {_MIN_MAX_BYTES}..{_MAX_MAX_BYTES}, got {self.max_bytes}"
            )
        object.__setattr__(self, "trusted", trusted)
        object.__setattr__(self, "_networks", tuple(_network(name) for name in trusted if name != "unix"))

    def is_trusted(self, address: Address) -> bool:
        """Whether a peer at *address* may send a header; from any thread."""
        if not isinstance(address, InetAddress):
            return "unix" in self.trusted
        ip = ipaddress.ip_address(address.ip)
        if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        return any(ip in network for network in self._networks)


def _network(name: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        network = ipaddress.ip_network(name)
    except ValueError as e:
        raise ValueError(f"ProxyProtocol: a network in numbers or 'unix' can be trusted: {e}") from None
    first = network.network_address
    if isinstance(first, ipaddress.IPv6Address) and first.ipv4_mapped is not None and network.prefixlen >= 96:
        return ipaddress.IPv4Network((first.ipv4_mapped, network.prefixlen - 96))
    return network


class ProxyLayer(Layer):
    """Keeps a connection from coming up before its PROXY header is there, and then lets the next layer go on.

    Args:
        config: who may send one, and how.
        next_layer: what follows on the wire, as TLS; None: payload.
    """

    __slots__ = ("_config", "_failed", "_held", "_next_layer", "_timer")

    _config: ProxyProtocol
    _next_layer: Layer | None
    _held: bytes
    _timer: Timer | None
    _failed: bool

    def __init__(self, config: ProxyProtocol, next_layer: Layer | None = None) -> None:
        super().__init__()
        self.holds_up = True
        self._config = config
        self._next_layer = next_layer
        self._held = b""  # the beginning of the header, no longer in the kernel
        self._timer = None
        self._failed = False

    def start(self) -> None:
        """Wait for the header if the peer is one to be believed."""
        connection = self.connection
        assert connection is not None
        if self._config.is_trusted(connection.peer_address):
            self._timer = connection.loop.run_after(self._config.timeout_s, self._time_out)
        elif self._config.allow_direct:
            self._give_way(connection)
        else:
            self._fail(ProxyProtocolError(f"{connection.peer_address} is no trusted proxy"))

    def read(self, into: Buffer) -> int:
        """Take what has come of the header, and nothing behind it; there is never payload."""
        connection = self.connection
        if connection is None or self._failed:
            return -_EAGAIN
        try:
            header = self._take_header(connection.fd)
        except BlockingIOError:
            return -_EAGAIN
        except EOFError:
            connection.note_error(
                ProxyProtocolError(f"the peer left before its PROXY header was complete ({len(self._held)} bytes)")
            )
            return 0
        except OSError as e:
            return -(e.errno or _EAGAIN)
        except ProxyProtocolError as e:
            self._fail(e)
            return -_EAGAIN
        if header is not None:
            connection.take_proxy_header(header)
            self._give_way(connection)
        return -_EAGAIN

    def detach(self) -> None:
        """Let go of the connection, of the timer and of the layer that would have been next."""
        super().detach()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._held = b""
        self._next_layer = None

    def _take_header(self, fd: int) -> ProxyHeader | None:
        """Read on; the header if it is complete, else None.

        OSError as the socket has it, EOFError at the end of the stream.
        """
        borrowed = socket.socket(socket.AF_INET, socket.SOCK_STREAM, fileno=fd)  # of whatever family: unused here
        try:
            borrowed.settimeout(0)  # a default time-out of the program's must not make it wait
            seen = borrowed.recv(self._config.max_bytes - len(self._held), socket.MSG_PEEK)
            if not seen:
                raise EOFError
            found = parse_proxy_header(self._held + seen, max_bytes=self._config.max_bytes)
            wanted = len(seen) if found is None else found[1] - len(self._held)
            taken = borrowed.recv(wanted)
        finally:
            borrowed.detach()
        self._held += taken
        return found[0] if found is not None and len(taken) == wanted else None

    def _give_way(self, connection: TcpConnection) -> None:
        next_layer = self._next_layer
        connection.set_layer(next_layer)
        if next_layer is None:
            connection.layer_is_ready()

    def _time_out(self) -> None:
        self._timer = None
        self._fail(TimeoutError(f"no PROXY header within {self._config.timeout_s:g} s"))

    def _fail(self, error: Exception) -> None:
        self._failed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.connection is not None:
            self.connection.fail(error)
