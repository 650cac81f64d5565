"""The other side of the soak: three threads that do to its servers what peers do, one thing after another.

    python tests/stress/churn.py DESCRIPTION

DESCRIPTION is JSON: ``ports`` by the servers' names, ``unix`` (a path), ``trusted`` (whose certificates are), ``file``
(what one of the servers sends), ``seconds``, ``seed``. Whatever goes otherwise than it has to is unexpected: a
connection that is refused, a wait that ends in a time-out, an answer that is not what was asked for. Those who
misbehave may be cut off, and go to servers of their own, which are strict. What was done is printed as JSON.
"""

from __future__ import annotations

import contextlib
import json
import random
import socket
import ssl
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from certificates import NAME
from conftest import PATIENCE_S

_THREADS = 3
_HELD = 10  # connections of a thread that nobody reads from


class Churn(threading.Thread):
    """Does every deed once, and then one after another, chosen at random.

    Attributes:
        connected: how many connections to each server. deeds: how often each was done.
        unexpected: what went wrong, and how often.
    """

    def __init__(self, number: int, description: dict[str, Any], deadline: float) -> None:
        super().__init__(daemon=True)
        self.random = random.Random(description["seed"] * _THREADS + number)
        self.ports: dict[str, int] = description["ports"]
        self.path: str = description["unix"]
        self.file = Path(description["file"]).read_bytes()
        self.deadline = deadline
        self.context = ssl.create_default_context(cafile=description["trusted"])
        self.session: ssl.SSLSession | None = None
        self.held: list[socket.socket] = []
        self.connected: Counter[str] = Counter()
        self.deeds: Counter[str] = Counter()
        self.unexpected: Counter[str] = Counter()

    def run(self) -> None:
        deeds: list[Callable[[], None]] = [self.echo, self.talk_tls, self.talk_unix, self.upgrade]
        deeds += [self.come_by_balancer, self.fetch, self.leave_while_fetching, self.half_close, self.come_and_go]
        deeds += [self.reset, self.do_not_read, self.spoil_handshake, self.spoil_header]
        self.random.shuffle(deeds)
        to_do = deeds[:]
        while to_do or time.monotonic() < self.deadline:
            deed = to_do.pop() if to_do else self.random.choice(deeds)
            try:
                deed()
            except Exception as e:
                self.unexpected[f"{deed.__name__}: {e!r}"] += 1
            self.deeds[deed.__name__] += 1
        for sock in self.held:
            sock.close()

    def connect(self, name: str) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.ports[name]), timeout=PATIENCE_S)
        self.connected[name] += 1
        return sock

    # --- who behaves: every byte is answered ---

    def exchange(self, sock: socket.socket) -> None:
        for _ in range(self.random.randint(1, 10)):
            data = self.random.randbytes(self.random.choice((1, 100, 5000, 30_000)))
            sock.sendall(data)
            expect(sock, data)

    def echo(self) -> None:
        with self.connect("plain") as sock:
            self.exchange(sock)

    def talk_tls(self) -> None:
        with self.context.wrap_socket(self.connect("tls"), server_hostname=NAME, session=self.session) as sock:
            self.exchange(sock)
            self.session = sock.session
            if self.random.random() < 0.5:
                sock.unwrap().close()

    def talk_unix(self) -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(PATIENCE_S)
            sock.connect(self.path)
            self.connected["unix"] += 1
            self.exchange(sock)

    def upgrade(self) -> None:
        with self.connect("upgrade") as plain:
            plain.sendall(b"STARTTLS\n")
            expect(plain, b"go\n")
            with self.context.wrap_socket(plain, server_hostname=NAME) as sock:
                self.exchange(sock)

    def come_by_balancer(self) -> None:
        with self.connect("proxy") as sock:
            sock.sendall(b"PROXY TCP4 192.0.2.1 192.0.2.2 1234 80\r\n")
            self.exchange(sock)

    def fetch(self) -> None:
        with self.connect("file") as sock:
            sock.sendall(b"get\n")
            expect(sock, self.file)

    def half_close(self) -> None:
        with self.connect("plain") as sock:
            data = self.random.randbytes(self.random.randint(1, 50_000))
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            expect(sock, data)
            expect_end(sock)

    def come_and_go(self) -> None:
        for _ in range(20):
            self.connect("plain").close()

    # --- who does not: the connection may end at any moment ---

    def leave_while_fetching(self) -> None:
        with self.connect("file") as sock:
            sock.sendall(b"get\n")
            expect(sock, self.file[: self.random.randint(1, 100_000)])

    def reset(self) -> None:
        with self.connect(self.random.choice(("strict", "strict tls"))) as sock:
            sock.sendall(b"x" * 1000)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def do_not_read(self) -> None:
        sock = self.connect("strict")
        self.held.append(sock)
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError, ConnectionError):
            for _ in range(200):
                sock.send(bytes(65536))
        if self.random.random() < 0.5 or len(self.held) > _HELD:
            self.held.pop(0).close()

    def spoil_handshake(self) -> None:
        with self.connect("strict tls") as sock, contextlib.suppress(ConnectionError):
            sock.sendall(self.random.choice((b"GET / HTTP/1.0\r\n\r\n", b"\x16\x03\x01", bytes(300))))
            if self.random.random() < 0.2:
                expect_end(sock)

    def spoil_header(self) -> None:
        with self.connect("proxy") as sock, contextlib.suppress(ConnectionError):
            sock.sendall(self.random.choice((b"PROXY TCP4 nobody\r\n", b"GET / HTTP/1.0\r\n\r\n", bytes(300))))
            expect_end(sock)


def expect(sock: socket.socket, data: bytes) -> None:
    """Receive *data*, and nothing else."""
    received = 0
    while received < len(data):
        chunk = sock.recv(min(len(data) - received, 65536))
        if not chunk:
            raise ConnectionError(f"the stream ended after {received} of {len(data)} bytes")
        if chunk != data[received : received + len(chunk)]:
            raise ValueError(f"something else came among bytes {received} to {received + len(chunk)}")
        received += len(chunk)


def expect_end(sock: socket.socket) -> None:
    """Receive until the end, which may come after an alert."""
    while sock.recv(65536):
        pass


def main() -> None:
    """Do it for as long as the description says."""
    description = json.loads(sys.argv[1])
    deadline = time.monotonic() + description["seconds"]
    threads = [Churn(number, description, deadline) for number in range(_THREADS)]
    for thread in threads:
        thread.start()
    unexpected: Counter[str] = Counter()
    for thread in threads:
        thread.join(deadline + 3 * PATIENCE_S - time.monotonic())
        if thread.is_alive():
            unexpected[f"a thread that has done {dict(thread.deeds)} has not ended"] += 1
    done = {
        "deeds": sum((thread.deeds for thread in threads), Counter[str]()),
        "connected": sum((thread.connected for thread in threads), Counter[str]()),
        "unexpected": sum((thread.unexpected for thread in threads), unexpected),
    }
    print(json.dumps(done))


if __name__ == "__main__":
    main()
