"""The benchmarks of whole examples: those they are compared with give the same answers, and the programs run."""

from __future__ import annotations

import importlib.util
import re
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from conftest import PATIENCE_S, installed, receive_all
from programs import EXAMPLES, Program, running

sys.path.append(str(EXAMPLES.parent / "benchmarks"))
from suite import contest
from suite.build import ROOT, compiler

BINARY = bytes(range(256))


def array(*words: bytes) -> bytes:
    """Return a request of Redis."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


REDIS = [
    b"PING\r\n" + array(b"PING") + array(b"ping"),
    array(b"GET", b"none") + array(b"SET", b"a", b"1") + array(b"GET", b"a") + b"GET a\r\n",
    array(b"SET", b"b", b"") + array(b"GET", b"b") + array(b"set", b"b", BINARY) + array(b"get", b"b"),
    b"".join(array(b"SET", b"key-%d" % i, b"%d" % i * i) for i in range(200)),
    b"".join(array(b"GET", b"key-%d" % i) for i in range(250)),
    array(b"SET", b"c", b"\r\n$5\r\n" * 30_000) + array(b"GET", b"c"),
]
MEMCACHED = [
    b"get none\r\nset a 0 0 1\r\n1\r\nget a\r\nget a none a\r\n",
    b"set b 7 0 0\r\n\r\nget b\r\nset b 4294967295 100 256\r\n%b\r\nget b\r\n" % BINARY,
    b"set d 0 0 1 noreply\r\n2\r\nget d\r\nset d 0 0 1\r\nabc\r\nget d\r\nnonsense\r\n\r\nget\r\n",
    b"".join(b"set key-%d 0 0 %d\r\n%b\r\n" % (i, i, b"x" * i) for i in range(200)),
    b"".join(b"get key-%d\r\n" % i for i in range(250)),
    b"set c 0 0 200000\r\n%b\r\nget c\r\n" % (b"get a\r\n.\r\n" * 20_000),
]


def ask(port: int, requests: bytes, piece_bytes: int) -> bytes:
    """Return all that is answered to requests which come in pieces."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(0, len(requests), piece_bytes):
            peer.sendall(requests[at : at + piece_bytes])
        peer.shutdown(socket.SHUT_WR)
        return receive_all(peer)


@pytest.fixture(scope="module")
def redis() -> Iterator[Program]:
    with running("redis/server.py") as server:
        yield server


@pytest.fixture(scope="module")
def memcached() -> Iterator[Program]:
    with running("memcached/server.py") as server:
        yield server


def assert_same_answers(ours: Program, module: str, mode: str, loop: str, requests: list[bytes]) -> None:
    if importlib.util.find_spec(loop) is None:
        pytest.skip(f"{loop} is not installed")
    greeting = (b"PING\r\n", b"+PONG\r\n") if "redis" in module else (b"get x\r\n", b"END\r\n")
    with contest.running(contest.peer(module, mode, loop), greeting, None) as (_, port):
        for request in requests:
            for piece_bytes in (len(request), 8191, max(len(request) // 50, 7)):
                assert ask(port, request, piece_bytes) == ask(ours.port, request, len(request))


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("mode", ["protocol", "protocol-joined", "streams"])
def test_the_other_redis_answers_as_the_example_does(redis: Program, mode: str, loop: str) -> None:
    assert_same_answers(redis, "uvloop_redis", mode, loop, REDIS)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("mode", ["protocol", "protocol-joined"])
def test_the_other_memcached_answers_as_the_example_does(memcached: Program, mode: str, loop: str) -> None:
    assert_same_answers(memcached, "uvloop_memcached", mode, loop, MEMCACHED)


def assert_measures(program: str, *arguments: str, kinds: set[str], original: str) -> None:
    """Run a benchmark, and look whether it has a table of each kind of request with every server that is there."""
    command = [sys.executable, str(ROOT / program), "--rounds", "1", "--connections", "2", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    servers = ["pymuduo", original]
    if importlib.util.find_spec("uvloop") is None:
        assert "uvloop is left out: uvloop is not installed" in done.stdout
    else:
        servers.append("uvloop")
    _, *tables = done.stdout.split("### ")
    assert {table.partition("\n")[0] for table in tables} == kinds
    for table in tables:
        rows = dict(re.findall(r"^\| ([^|]+) \| ([\d,]+) \|", table, re.MULTILINE))
        assert rows.keys() >= set(servers)
        assert all(int(rate.replace(",", "")) > 0 for rate in rows.values())


@pytest.mark.timeout(600)
def test_the_redis_benchmark_measures_every_server_that_is_there() -> None:
    installed("redis-benchmark")
    installed("redis-server")
    assert_measures("redis_bench.py", "--requests", "5000", "--pipeline", "4", kinds={"set", "get"}, original="redis")


@pytest.mark.timeout(600)
def test_the_memcached_benchmark_measures_every_server_that_is_there() -> None:
    installed("memcached")
    installed(compiler()[0])
    times = ("--duration", "0.5", "--warmup", "0")  # enough for an answer, however busy the machine
    assert_measures("memcached_bench.py", *times, "--pipeline", "4", kinds={"set", "get"}, original="memcached")


@pytest.mark.timeout(600)
def test_the_benchmark_of_several_loops_measures_each_number_of_loops() -> None:
    installed(compiler()[0])
    command = [sys.executable, str(ROOT / "loops_bench.py"), "--rounds", "1", "--duration", "0.3", "--loops", "1", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    rows = dict(re.findall(r"^\| (\w+ loops?) \| ([\d,]+) \|", done.stdout, re.MULTILINE))
    assert rows.keys() == {"one loop", "3 loops"}
    assert all(int(rate.replace(",", "")) > 0 for rate in rows.values())
