"""Every system call that the library makes may fail, at any moment: nothing is lost, doubled or leaked by it.

A fixed scenario is played once without a fault, to count the calls, and then once for every call and every error, with
that one call failing. A fault that the kernel may produce on a healthy connection (interrupted, would block, cut short,
short of memory for now) must not be noticed by the peers at all. One that ends a connection may end it: the peer then
has the beginning of what it should have, and nothing else. In either case the loop lives, and no descriptor is left.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import selectors
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import PATIENCE_S, eventually

HERE = Path(__file__).parent
MUCH = bytes(random.Random(1).randbytes(300_000))
LITTLE = b"one line, more or less\n" * 40
SHORT = 0  # no error: the call does one byte of its work
POLLS = os.environ.get("PYMUDUO_POLLER") == "poll"  # then nothing calls epoll

# What may happen to a call, and whether the peers may notice: a connection ended, or never begun.
HARMLESS = {
    "read": (errno.EINTR, errno.EAGAIN, SHORT),
    "write": (errno.EINTR, errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, SHORT),
    "counter_read": (errno.EINTR, errno.EAGAIN),
    "accept": (errno.EINTR, errno.EAGAIN, errno.ECONNABORTED, errno.EPROTO, errno.ENOBUFS, errno.ENOMEM),
    "poll" if POLLS else "epoll_wait": (errno.EINTR,),
    "getsockname": (errno.ENOBUFS,),
}
HARMFUL = {
    "read": (errno.ECONNRESET, errno.ETIMEDOUT, errno.ENOMEM),
    "write": (errno.ECONNRESET, errno.EPIPE, errno.ETIMEDOUT),
    "accept": (errno.EMFILE, errno.ENFILE),
    **({} if POLLS else {"epoll_ctl": (errno.ENOMEM, errno.ENOSPC)}),
}
CASES = [
    pytest.param(kind, number, is_harmless, id=f"{kind}-{errno.errorcode.get(number, 'SHORT')}")
    for is_harmless, table in ((True, HARMLESS), (False, HARMFUL))
    for kind, numbers in table.items()
    for number in numbers
]


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the library that is preloaded, compiled now."""
    library = tmp_path_factory.mktemp("native") / "faults.so"
    compiler = shlex.split(os.environ.get("CC", "gcc"))
    source = HERE.parent / "native" / "faults.c"
    command = [*compiler, "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", str(library), str(source)]
    subprocess.run([*command, "-ldl"], check=True, capture_output=True, timeout=PATIENCE_S)
    return library


class FaultyServer:
    """``faulty_server.py`` as a process, and what it is told."""

    def __init__(self, faults: Path, threads: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "faulty_server.py"), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "LD_PRELOAD": str(faults)},
        )
        begin = self.hear()
        self.port = begin["port"]
        self.descriptors = begin["descriptors"]

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            assert self.process.stderr is not None
            raise AssertionError(f"the server has ended: {self.process.stderr.read()}")
        told: dict[str, Any] = json.loads(line)
        return told

    def tell(self, *order: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return self.hear()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)

    def is_clean(self) -> bool:
        state = self.tell("state")
        return bool(state["connections"] == 0 and state["descriptors"] <= self.descriptors)

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            assert self.process.wait(PATIENCE_S) == 0
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            for stream in (self.process.stdout, self.process.stderr):
                assert stream is not None
                stream.close()


@pytest.fixture(params=[0, 2], ids=["one-loop", "three-loops"])
def server(request: pytest.FixtureRequest, faults: Path) -> Iterator[FaultyServer]:
    server = FaultyServer(faults, request.param)
    yield server
    server.end()


def talk(server: FaultyServer) -> list[tuple[bytes, bytes]]:
    """Play the scenario; return for each connection what it should have received, and what it did."""
    heard = []
    with server.connect() as one, server.connect() as other:
        heard += [exchange([(one, LITTLE), (other, MUCH)])]
        server.tell("send", "to all")
        heard += [exchange([(one, b""), (other, b"")], [b"to all", b"to all"])]
        for client in (one, other):
            end_output(client)
        heard += [exchange([(one, b""), (other, b"")], [b"", b""])]
    with server.connect() as client:
        end_with_fin = exchange([(client, MUCH)], ends_output=True)
    expected_one, expected_other = LITTLE + b"to all", MUCH + b"to all"
    one_heard = b"".join(part[0] for part in heard)
    other_heard = b"".join(part[1] for part in heard)
    return [(expected_one, one_heard), (expected_other, other_heard), (MUCH, end_with_fin[0])]


def end_output(client: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the connection may have been reset already
        client.shutdown(socket.SHUT_WR)


def exchange(
    talks: list[tuple[socket.socket, bytes]], expected: list[bytes] | None = None, ends_output: bool = False
) -> list[bytes]:
    """Send on several connections and receive what is expected (what was sent) on each, or until it ends."""
    expected = [data for _, data in talks] if expected is None else expected
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
                        wants_end = ends_output or not expected[index]
                        if not chunk or (len(received[index]) >= len(expected[index]) and not wants_end):
                            selector.unregister(client)
                except BlockingIOError:
                    continue
                except OSError:
                    selector.unregister(client)
    return [bytes(part) for part in received]


def check(server: FaultyServer, outcome: list[tuple[bytes, bytes]], is_harmless: bool, what: str) -> None:
    for expected, heard in outcome:
        if is_harmless:
            assert heard == expected, f"{what}: {len(heard)} of {len(expected)} bytes"
        else:
            assert expected.startswith(heard), f"{what}: {len(heard)} bytes, wrong ones"
    eventually(server.is_clean, f"{what}: something is left")
    with server.connect() as client:
        assert exchange([(client, LITTLE)]) == [LITTLE], f"{what}: the server no longer serves"
    eventually(server.is_clean, f"{what}: something is left")


def steps(calls: int) -> list[int]:
    """Every call, or of very many the first and the last ones and some between."""
    if calls <= 40:
        return list(range(1, calls + 1))
    return [*range(1, 21), *random.Random(calls).sample(range(21, calls - 9), 10), *range(calls - 9, calls + 1)]


@pytest.mark.parametrize(("kind", "number", "is_harmless"), CASES)
def test_whichever_call_fails_nothing_is_lost_doubled_or_leaked(server, kind, number, is_harmless):
    server.tell("arm", kind, 0, 0, 0, 0, 1)
    check(server, talk(server), is_harmless=True, what="no fault")
    calls = server.tell("disarm")["calls"]
    if kind not in {"getsockname", "counter_read"}:
        assert calls > 0
    for which in steps(calls):
        what = f"{kind} number {which} of {calls}: {errno.errorcode.get(number, 'cut short')}"
        server.tell("arm", kind, which, 0, 0, number, 1)
        outcome = talk(server)
        server.tell("disarm")
        check(server, outcome, is_harmless, what)
    assert server.tell("state")["errors"] == []


@pytest.mark.parametrize(("kind", "number", "is_harmless"), CASES)
def test_calls_that_fail_at_random_lose_double_and_leak_nothing(faults, kind, number, is_harmless):
    server = FaultyServer(faults, 1)
    try:
        for seed in range(1, 6):
            server.tell("arm", kind, 0, 3, seed, number, 7)
            outcome = talk(server)
            server.tell("disarm")
            check(server, outcome, is_harmless, f"{kind} at random, seed {seed}")
    finally:
        server.end()


@pytest.mark.parametrize("kind", ["eventfd", "timerfd", *([] if POLLS else ["epoll_create", "epoll_ctl"])])
def test_a_loop_that_can_not_be_made_says_so_and_leaves_nothing(server, kind):
    server.tell("arm", kind, 1, 0, 0, errno.EMFILE, 0)
    error = server.tell("new loop")["error"]
    server.tell("disarm")
    assert os.strerror(errno.EMFILE) in error or kind.split("_")[0] in error
    assert server.tell("new loop")["error"] == ""
    eventually(server.is_clean)
