"""Places for clients to connect to that are not servers: nobody, black holes, names that a test resolves itself."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from pathlib import Path

from conftest import PATIENCE_S
from pymuduo import InetAddress
from pymuduo.resolver import Resolver


def address_of(sock: socket.socket) -> InetAddress:
    """Return where a socket is bound."""
    return InetAddress(*sock.getsockname()[:2])


def nobody(kind: int = socket.SOCK_STREAM, *, ipv6: bool = False) -> InetAddress:
    """Return an address that nobody listens on, and nobody will by chance: the kernel gives its port to no one."""
    first_given = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.SystemRandom().randrange(10_000, max(first_given, 20_000))
        address = InetAddress.loopback(port, ipv6=ipv6)
        with socket.socket(address.family, kind) as sock, contextlib.suppress(OSError):  # it is taken
            sock.bind(address.sockaddr)
            return address


def listener(stack: contextlib.ExitStack, port: int = 0, *, ipv6: bool = False, backlog: int = 128) -> socket.socket:
    """Return a listening socket; the kernel connects whoever comes, whether or not somebody accepts."""
    address = InetAddress.loopback(port, ipv6=ipv6)
    sock = stack.enter_context(socket.socket(address.family))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(address.sockaddr)
    sock.listen(backlog)
    sock.settimeout(PATIENCE_S)
    return sock


class BlackHoles:
    """Makes addresses at which nobody answers: a listener's queue is full, and the kernel drops what comes then."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._listeners: dict[InetAddress, socket.socket] = {}

    def __call__(self, *, ipv6: bool = False) -> InetAddress:
        sock = listener(self._stack, ipv6=ipv6, backlog=0)
        sock.setblocking(False)
        for _ in range(4):
            client = self._stack.enter_context(socket.socket(sock.family))
            client.setblocking(False)
            client.connect_ex(sock.getsockname())
        self._listeners[address_of(sock)] = sock
        return address_of(sock)

    def accept_all(self, address: InetAddress) -> None:
        """Make room in the queue."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self._listeners[address].accept()[0].close()


class FakeResolver(Resolver):
    """Answers with what it was given; without addresses, a look-up takes until ``end`` is called."""

    def __init__(self, *addresses: InetAddress) -> None:
        super().__init__()
        self.addresses = list(addresses)
        self.asked = 0
        self._gate = threading.Event()

    def look_up(self, host: str, port: int, family: int) -> list[InetAddress]:
        """Answer the same whatever the name."""
        self.asked += 1
        if not self.addresses:
            assert self._gate.wait(PATIENCE_S)
        return self.addresses

    def end(self) -> None:
        """Let the look-ups that are held go on, and end the threads."""
        self._gate.set()
        self.close()
