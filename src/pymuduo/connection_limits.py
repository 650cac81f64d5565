"""Decides who may come in: how many connections, how many from one address, how fast.

Pure policy: it counts and answers, and touches neither sockets nor loops. One object may serve several loops and
servers, so a lock is around every count; it is held for some hundred nanoseconds, once for each connection that comes
or goes.

How fast is a token bucket: it holds ``accept_burst`` tokens at most, gains ``accept_rate`` a second, and each newcomer
takes one. Who finds none left is served all the same, but the acceptor then pauses until there is one: newcomers wait
in the kernel's queue, which costs nothing, and are refused by the kernel when that is full.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from typing import TYPE_CHECKING, TypeAlias

from pymuduo.inet_address import InetAddress

if TYPE_CHECKING:
    from collections.abc import Callable

    from pymuduo.callbacks import Address

_log = logging.getLogger("pymuduo.connection_limits")

_REPORT_INTERVAL_S = 1.0
_IPV6_BITS = 128
_IPV4_MAPPED = bytes(10) + b"\xff\xff"
_UNIX = "unix"
_Key: TypeAlias = "str | tuple[int, int]"


class ConnectionLimits:
    """How many connections a server takes, from whom, and how fast (``TcpServer.limits``).

    From any thread. Behind a load balancer that sends PROXY headers, addresses are those of the clients.

    Args:
        max_connections: at a time. None here and below: no limit.
        max_per_address: connections at a time from one address. All Unix sockets count as one address.
        accept_rate: newcomers a second, refused ones included. Nobody is refused for it: they wait in the kernel.
        accept_burst: how many may come at once after a quiet time; as many as in one second unless given.
        ipv6_prefix: IPv6 addresses that are equal in so many bits count as one: a customer commonly has a /64.
            Link-local ones count one by one, and IPv4 addresses mapped into IPv6 as IPv4.
        clock: monotonic seconds.

    Attributes:
        max_connections, max_per_address: may be changed at any time; who is in stays in.
        connections: admitted and not released.
        refused_total: refused so far. refused_per_address: those of them refused because of ``max_per_address``.

    Raises:
        ValueError: a number makes no sense.

    muduo: ``examples/maxconnection``.
    """

    __slots__ = (
        "_accept_burst",
        "_accept_rate",
        "_clock",
        "_filled_at",
        "_host_bits",
        "_lock",
        "_per_address",
        "_reports",
        "_tokens",
        "connections",
        "max_connections",
        "max_per_address",
        "refused_per_address",
        "refused_total",
    )

    def __init__(
        self,
        *,
        max_connections: int | None = None,
        max_per_address: int | None = None,
        accept_rate: float | None = None,
        accept_burst: int | None = None,
        ipv6_prefix: int = 64,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        for name, most in (("max_connections", max_connections), ("max_per_address", max_per_address)):
            if most is not None and most < 0:
                raise ValueError(f"ConnectionLimits: {name} must be 0 or more, got {most}")
        if accept_rate is not None and not accept_rate > 0:
            raise ValueError(f"ConnectionLimits: accept_rate must be above 0 a second, got {accept_rate}")
        if accept_burst is not None and (accept_rate is None or accept_burst < 1):
            raise ValueError(f"ConnectionLimits: accept_burst must be 1 or more, beside a rate, got {accept_burst}")
        if not 1 <= ipv6_prefix <= _IPV6_BITS:
            raise ValueError(f"ConnectionLimits: ipv6_prefix must be 1 to {_IPV6_BITS} bits, got {ipv6_prefix}")
        self.max_connections = max_connections
        self.max_per_address = max_per_address
        self.connections = 0
        self.refused_total = 0
        self.refused_per_address = 0
        self._accept_rate = accept_rate
        self._accept_burst = max(1.0, float(accept_burst or accept_rate or 1))
        self._host_bits = _IPV6_BITS - ipv6_prefix
        self._clock = clock
        self._tokens = self._accept_burst
        self._filled_at = clock()
        self._lock = threading.Lock()
        self._per_address: dict[_Key, int] = {}  # no zeros: nobody is remembered after the last has left
        self._reports: dict[str, _Report] = {}  # by server

    def admit(self, address: Address) -> str | None:
        """Count a connection from *address* in, to be given back by ``release``; or return why it is refused."""
        key = self._key_of(address)
        with self._lock:
            most = self.max_connections
            if most is not None and self.connections >= most:
                self.refused_total += 1
                return f"{self.connections} connections, max_connections is {most}"
            most = self.max_per_address
            of_this_one = self._per_address.get(key, 0)
            if most is not None and of_this_one >= most:
                self.refused_total += 1
                self.refused_per_address += 1
                return f"{of_this_one} connections from there, max_per_address is {most}"
            self.connections += 1
            self._per_address[key] = of_this_one + 1
            return None

    def release(self, address: Address) -> None:
        """Count out a connection that was admitted. One too many is harmless."""
        key = self._key_of(address)
        with self._lock:
            of_this_one = self._per_address.get(key, 0)
            if of_this_one == 0:
                return
            self.connections -= 1
            if of_this_one == 1:
                del self._per_address[key]
            else:
                self._per_address[key] = of_this_one - 1

    def connections_from(self, address: Address) -> int:
        """Return how many connections are in from *address*, and from those that count as the same."""
        return self._per_address.get(self._key_of(address), 0)

    def delay_s(self) -> float:
        """Take note that somebody has been accepted; return for how many seconds to accept nobody else."""
        rate = self._accept_rate
        if rate is None:
            return 0.0
        with self._lock:
            now = self._clock()
            self._tokens = min(self._accept_burst, self._tokens + (now - self._filled_at) * rate) - 1.0
            self._filled_at = now
            return max(0.0, (1.0 - self._tokens) / rate)

    def report(self, server_name: str, address: Address, reason: str) -> None:
        """Log a refusal, at most once a second for each server; the others are counted in the next line."""
        with self._lock:
            report = self._reports.setdefault(server_name, _Report())
            now = self._clock()
            if now < report.next_at:
                report.left_out += 1
                return
            report.next_at = now + _REPORT_INTERVAL_S
            left_out, report.left_out = report.left_out, 0
        others = f" ({left_out} more refused since the last such line)" if left_out else ""
        _log.warning("%s: refused %s: %s%s", server_name, address, reason, others)

    def _key_of(self, address: Address) -> _Key:
        """Return what all addresses that count as one have in common."""
        if not isinstance(address, InetAddress):
            return _UNIX
        if ":" not in address.ip:
            return address.ip
        packed = socket.inet_pton(socket.AF_INET6, address.ip)
        if packed.startswith(_IPV4_MAPPED):
            return socket.inet_ntop(socket.AF_INET, packed[len(_IPV4_MAPPED) :])
        number = int.from_bytes(packed, "big")
        if packed[0] == 0xFE and packed[1] & 0xC0 == 0x80:  # link-local: each host of the network is another one
            return number, address.scope_id
        return number >> self._host_bits, -1

    def __repr__(self) -> str:
        return f"<ConnectionLimits {self.connections} connections, {self.refused_total} refused>"


class _Report:
    """When a server's next line may be logged, and how many refusals have had none."""

    __slots__ = ("left_out", "next_at")

    def __init__(self) -> None:
        self.next_at = -float("inf")
        self.left_out = 0
