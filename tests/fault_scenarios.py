"""What the fault tests play with ``stress/faulty_server.py``: the process, and conversations with it.

A scenario returns, for each stream that it has heard, what should have come and what did. It raises if nothing moves.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import selectors
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from certificates import NAME, client_context
from conftest import PATIENCE_S, eventually

MUCH = bytes(random.Random(1).randbytes(300_000))
LITTLE = b"one line, more or less\n" * 40
DATAGRAMS = 6

Outcome = list[tuple[bytes, bytes]]  # what should have been heard, and what was
Talk = tuple[socket.socket, bytes]  # a connection, and what is sent on it
Counts = dict[str, int]


class FaultyServer:
    """The process, and what it is told.

    Args:
        faults: the library that is preloaded.
        folder: for the process's files; it may hold certificates.
        threads: of each server.

    Attributes:
        descriptors: how many it has when nothing is going on.
        clients_retry: those in the process may have to connect more than once.
    """

    def __init__(self, faults: Path, folder: Path, threads: int) -> None:
        self.folder = folder
        self._log = folder / "log"  # no pipe, which would fill up
        preloaded = f"{os.environ.get('LD_PRELOAD', '')}:{faults}"  # a sanitizer's library comes first
        self._environment = {**os.environ, "LD_PRELOAD": preloaded.lstrip(":")}
        self.clients_retry = True
        self._program = Path(__file__).parent / "stress" / "faulty_server.py"
        self._threads = threads
        (folder / "file").write_bytes(MUCH)
        self.begin()

    def begin(self) -> None:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(self._program), str(self._threads), str(self.folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=self._environment,
            )
        self._ports = self._hear()["ports"]
        self.descriptors = self.tell("state")["descriptors"]

    def end(self) -> None:
        """Let the process end by itself."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            assert self._process.wait(PATIENCE_S) == 0, self.said()
        finally:
            self._bury()

    def _bury(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Begin anew after a test that fails: the next one is to find a server that is whole."""
        try:
            yield
        except BaseException:
            self._bury()
            self.begin()
            raise

    def said(self) -> str:
        """Return the log of the process."""
        return self._log.read_text(errors="replace")

    def tell(self, order: str, *arguments: Any) -> Any:
        """Give an order, and return the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([order, *arguments]) + "\n")
        self._process.stdin.flush()
        return self._hear()

    def _hear(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise AssertionError(f"the server has ended: {self.said()}")
        return json.loads(line)

    def count_datagrams(self) -> Counts:
        counts: Counts = self.tell("datagrams")
        assert counts, "the loop does not answer"
        return counts

    def connect_datagrams(self) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.settimeout(PATIENCE_S)
        sock.connect(("127.0.0.1", self._ports["datagrams"]))
        return sock

    def echoes(self, datagram: bytes) -> bool:
        """Return whether a datagram comes back, all of it and nothing else."""
        with self.connect_datagrams() as client:
            client.send(datagram)
            return client.recv(65536) == datagram

    def connect(self, name: str = "plain") -> socket.socket:
        if name != "files":
            return socket.create_connection(("127.0.0.1", self._ports[name]), timeout=PATIENCE_S)
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(PATIENCE_S)
        sock.connect(str(self.folder / "socket"))
        return sock

    def is_clean(self) -> bool:
        state = self.tell("state")
        return bool(state and state["connections"] == 0 and state["descriptors"] <= self.descriptors)


def talk(server: FaultyServer) -> Outcome:
    """Three peers get back what they send, and what another thread sends to all; they end in both ways."""
    heard = []
    with server.connect() as one, server.connect() as other:
        heard += [exchange([(one, LITTLE), (other, MUCH)])]
        server.tell("send", "to all")
        heard += [exchange([(one, b""), (other, b"")], [b"to all", b"to all"])]
        for client in (one, other):
            end_output(client)
        heard += [exchange([(one, b""), (other, b"")], until_end=True)]
    with server.connect() as client:
        last = exchange([(client, MUCH)], ends_output=True, until_end=True)[0]
    one_heard, other_heard = (b"".join(parts) for parts in zip(*heard, strict=True))
    return [(LITTLE + b"to all", one_heard), (MUCH + b"to all", other_heard), (MUCH, last)]


def talk_in_frames(server: FaultyServer) -> Outcome:
    """The rest of a message comes when its beginning has been read; after the last one the server hangs up."""
    first = frame(LITTLE)
    rest = frame(MUCH[:70_000]) + b"".join(frame(MUCH[at : at + 3000]) for at in range(0, 60_000, 3000)) + frame(b"bye")
    with server.connect("frames") as client:
        heard = exchange([(client, first + rest[:1000])], [first])
        heard += exchange([(client, rest[1000:])], until_end=True)
    return [(first + rest, b"".join(heard))]


def frame(message: bytes) -> bytes:
    return len(message).to_bytes(4, "big") + message


def get_a_file(server: FaultyServer) -> Outcome:
    """On a Unix socket: a file; then the server finds an end of input behind bytes that it does not read yet."""
    with server.connect("files") as client:
        heard = exchange([(client, b"file\n")], [MUCH])
        with contextlib.suppress(ConnectionError):
            client.sendall(b"and more")
        end_output(client)
        server.tell("start_read")
        heard += exchange([(client, b"")], until_end=True)
    return [(MUCH + b"and more", b"".join(heard))]


def talk_in_tls(server: FaultyServer) -> Outcome:
    """One that speaks TLS, and says goodbye."""
    sent = MUCH[:100_000]
    return [(sent, exchange_in_tls(server, "tls", sent, len(sent)))]


def get_a_file_in_tls(server: FaultyServer) -> Outcome:
    """One that gets a file, which is read and encrypted piece by piece."""
    return [(MUCH, exchange_in_tls(server, "tls-files", b"file\n", len(MUCH)))]


def exchange_in_tls(server: FaultyServer, name: str, sent: bytes, size: int) -> bytes:
    """Send, and return so many bytes of what comes back, or as many as come."""
    heard = bytearray()
    try:
        with client_context().wrap_socket(server.connect(name), server_hostname=NAME) as tls:
            tls.sendall(sent)  # the server reads all the time, so this comes to an end
            while len(heard) < size and (chunk := tls.recv(65536)):
                heard += chunk
            with tls.unwrap() as sock:
                sock.recv(1)  # until the server has hung up
    except TimeoutError:
        raise AssertionError("nothing moves any more") from None
    except OSError:  # a reset, or what ssl makes of an end without a goodbye
        pass
    return bytes(heard)


def exchange_datagrams(server: FaultyServer) -> Outcome:
    """Some datagrams, of which each is answered once, and whole, or not at all."""
    sent = [number.to_bytes(2, "big") + MUCH[: number * 700] for number in range(DATAGRAMS)]
    before = server.count_datagrams()
    with server.connect_datagrams() as client:
        for datagram in sent:
            client.send(datagram)

        def answered() -> Counts:
            """Return what was counted since, when it is all that there will be."""
            now = {name: count - before[name] for name, count in server.count_datagrams().items()}
            met_their_ends = now["sent"] + now["dropped"] + now["errors"] >= len(sent) and now["queued"] == 0
            return now if met_their_ends and now["received"] == len(sent) and now["refused"] > 0 else {}

        counts = eventually(answered, "datagrams are not answered any more")
        heard: dict[int, bytes] = {}
        with contextlib.suppress(TimeoutError, BlockingIOError):
            while True:
                if len(heard) == counts["sent"]:
                    client.setblocking(False)  # there is to be no more
                datagram = client.recv(65536)
                number = int.from_bytes(datagram[:2], "big")
                assert number not in heard, f"datagram {number} comes twice"
                assert datagram == sent[number], f"datagram {number} is {len(datagram)} bytes, wrong ones"
                heard[number] = datagram
    assert len(heard) == counts["sent"], f"{len(heard)} datagrams came, {counts}"
    assert list(heard) == sorted(heard), "datagrams change places"
    return [(datagram, heard.get(number, b"")) for number, datagram in enumerate(sent)]


def fetch(server: FaultyServer) -> Outcome:
    """A client in the process, which gets all: at its first attempt, or because it tries until it has."""
    server.tell("fetch", "clients", server.clients_retry)
    return fetched(server)


def fetch_in_tls(server: FaultyServer) -> Outcome:
    """The same with TLS."""
    server.tell("fetch", "tls", server.clients_retry)
    return fetched(server)


def fetched(server: FaultyServer) -> Outcome:
    wrong = server.tell("fetched")
    assert wrong == "", wrong
    return []


SCENARIOS: dict[str, Callable[[FaultyServer], Outcome]] = {
    "talk": talk,
    "frames": talk_in_frames,
    "file": get_a_file,
    "tls": talk_in_tls,
    "tls-file": get_a_file_in_tls,
    "datagrams": exchange_datagrams,
    "client": fetch,
    "tls-client": fetch_in_tls,
}


def end_output(client: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the connection may have been reset already
        client.shutdown(socket.SHUT_WR)


def exchange(
    talks: list[Talk], expected: list[bytes] | None = None, *, ends_output: bool = False, until_end: bool = False
) -> list[bytes]:
    """Send on several connections and receive, on each, as much as is expected (what was sent), or until it ends."""
    sizes = [len(data) for data in expected or [data for _, data in talks]]
    received = [bytearray() for _ in talks]
    with selectors.DefaultSelector() as selector:
        left: dict[int, memoryview] = {}
        for index, (client, data) in enumerate(talks):
            client.setblocking(False)
            left[index] = memoryview(data)
            selector.register(client, selectors.EVENT_READ | (selectors.EVENT_WRITE if data else 0), index)
        while selector.get_map():
            ready = selector.select(PATIENCE_S)
            assert ready, "nothing moves any more"
            for key, events in ready:
                index, client = key.data, talks[key.data][0]
                try:
                    if events & selectors.EVENT_WRITE:
                        left[index] = left[index][client.send(left[index]) :]
                        if not left[index]:
                            selector.modify(client, selectors.EVENT_READ, index)
                            if ends_output:
                                client.shutdown(socket.SHUT_WR)
                    if events & selectors.EVENT_READ:
                        chunk = client.recv(1 << 20)
                        received[index] += chunk
                        if not chunk or (len(received[index]) >= sizes[index] and not until_end):
                            selector.unregister(client)
                except BlockingIOError:
                    continue
                except OSError:
                    selector.unregister(client)
    return [bytes(part) for part in received]
