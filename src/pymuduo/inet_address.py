"""An IPv4 or IPv6 address with a port. Immutable: any thread may hold it."""

from __future__ import annotations

import socket
from typing import Any

_MAX_PORT = 65535


class InetAddress:
    """Where a TCP socket is: an IP address in numbers, and a port.

    Args:
        host: an IPv4 or IPv6 address in numbers; a link-local one may carry its interface (``fe80::1%eth0``).
            Names are not looked up here, because that may take seconds: see ``resolve``.
        port: 0 to 65535; 0 asks the kernel for a free one when a server binds.

    Raises:
        ValueError: *host* is no numeric address, or *port* is out of range.
        TypeError: *host* is no str, or *port* is no int.

    muduo: ``InetAddress``.
    """

    __slots__ = ("ip", "port", "scope_id")

    def __init__(self, host: str, port: int) -> None:
        if not isinstance(host, str):
            raise TypeError(f"InetAddress host must be a str, got {host!r}")
        _check_port(port)
        number, percent, interface = host.partition("%")
        family = socket.AF_INET6 if ":" in number else socket.AF_INET
        try:
            # There and back: the kernel's spelling, so that equal addresses are equal strings.
            self.ip = socket.inet_ntop(family, socket.inet_pton(family, number))
        except (OSError, ValueError):
            raise ValueError(
                f"InetAddress host must be a numeric IPv4 or IPv6 address, got {host!r} "
                "(InetAddress.resolve looks names up)"
            ) from None
        self.port = port
        self.scope_id = 0
        if percent:
            if family == socket.AF_INET:
                raise ValueError(f"InetAddress: an IPv4 address has no interface, got {host!r}")
            self.scope_id = _scope_id(host, interface)

    @staticmethod
    def any(port: int, *, ipv6: bool = False) -> InetAddress:
        """Return the address that stands for every interface of this machine (with *ipv6*: IPv4's as well)."""
        return InetAddress("::" if ipv6 else "0.0.0.0", port)

    @staticmethod
    def loopback(port: int, *, ipv6: bool = False) -> InetAddress:
        """Return the address that only this machine can reach."""
        return InetAddress("::1" if ipv6 else "127.0.0.1", port)

    @staticmethod
    def resolve(host: str, port: int = 0, *, family: int = socket.AF_UNSPEC) -> list[InetAddress]:
        """Look *host* up, the best address first; blocks for as long as the system's resolver does.

        Call it before the loop runs or in a thread of your own, never in a callback.

        Args:
            family: ``socket.AF_INET`` or ``socket.AF_INET6`` to get one kind only.

        Raises:
            OSError: the name has no address, or the resolver can't be reached (``socket.gaierror``).
            ValueError: *port* is out of range.
        """
        _check_port(port)
        found: list[InetAddress] = []
        try:
            answers = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
        except UnicodeError as e:
            raise socket.gaierror(socket.EAI_NONAME, f"{host!r} is no host name: {e}") from None
        for _, _, _, _, where in answers:
            scope = where[3] if len(where) > 3 else 0
            address = from_kernel((str(where[0]).partition("%")[0], int(where[1]), int(scope)))
            if address not in found:
                found.append(address)
        return found

    @staticmethod
    def parse(text: str) -> InetAddress:
        """Return the address that ``host:port`` names: ``10.0.0.1:80``, ``[::1]:80``, ``example.org:80``.

        A name is looked up, which blocks as ``resolve`` does, and its best address taken. It suits ``argparse`` as
        the type of an option.

        Raises:
            ValueError: there is no port, it is out of range, or the name has no address.
        """
        host, colon, port = text.rpartition(":")
        if not colon or not host or not port.isdecimal() or (":" in host and host[0] + host[-1] != "[]"):
            raise ValueError(f"InetAddress.parse: host:port is required, got {text!r}")
        try:
            return InetAddress.resolve(host.strip("[]"), int(port))[0]
        except OSError as e:
            raise ValueError(f"InetAddress.parse: {text!r}: {e}") from e

    @property
    def family(self) -> int:
        """``socket.AF_INET`` or ``socket.AF_INET6``."""
        return socket.AF_INET6 if ":" in self.ip else socket.AF_INET

    @property
    def ip_port(self) -> str:
        """``1.2.3.4:80`` or ``[::1]:80``; muduo: ``toIpPort``."""
        return f"[{self.ip}]:{self.port}" if ":" in self.ip else f"{self.ip}:{self.port}"

    @property
    def is_any(self) -> bool:
        """Whether it stands for every interface (``0.0.0.0`` or ``::``)."""
        return self.ip in ("0.0.0.0", "::")

    @property
    def sockaddr(self) -> tuple[Any, ...]:
        """Return what the ``socket`` module takes for this address."""
        return (self.ip, self.port, 0, self.scope_id) if ":" in self.ip else (self.ip, self.port)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, InetAddress)
            and self.port == other.port
            and self.ip == other.ip
            and self.scope_id == other.scope_id
        )

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash((self.ip, self.port, self.scope_id))

    def __str__(self) -> str:
        return self.ip_port

    def __repr__(self) -> str:
        scope = f"%{self.scope_id}" if self.scope_id else ""
        return f"InetAddress({self.ip + scope!r}, {self.port})"


def from_kernel(address: tuple[str, int, int]) -> InetAddress:
    """Return the address of ``(ip, port, scope id)`` as the kernel gave it: nothing is left to check."""
    made = InetAddress.__new__(InetAddress)
    made.ip = address[0]
    made.port = address[1]
    made.scope_id = address[2]
    return made


def _check_port(port: int) -> None:
    """Refuse what is no port, naming it."""
    if not isinstance(port, int) or isinstance(port, bool):
        raise TypeError(f"InetAddress port must be an int, got {port!r}")
    if not 0 <= port <= _MAX_PORT:
        raise ValueError(f"InetAddress port must be 0..{_MAX_PORT}, got {port}")


def _scope_id(host: str, interface: str) -> int:
    """Return the number of an interface given by name or by number."""
    if interface.isdecimal() and int(interface) < 1 << 32:
        return int(interface)
    try:
        return socket.if_nametoindex(interface)
    except (OSError, ValueError):
        raise ValueError(f"InetAddress: no interface {interface!r} on this machine, got {host!r}") from None
