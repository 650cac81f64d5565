"""Compares the Redis example with the same on uvloop, and with Redis itself, by Redis's own ``redis-benchmark``.

Each round gives every server a turn as a fresh process, pinned to one processor, with the client on another; the
figures are medians over the rounds, with the lowest and the highest, and the ratios are taken round by round.

    python benchmarks/redis_bench.py                              SET and GET, 16 pipelined, five rounds
    python benchmarks/redis_bench.py --pipeline 1 --requests 100000 --tests ping_mbulk,set,get,incr

uvloop's servers know GET, SET and PING only, and stay away from other tests.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from suite.runner import Pinning

_HERE = Path(__file__).parent
_REDIS = shutil.which("redis-server")
_CLIENT = shutil.which("redis-benchmark")
_UVLOOP = (sys.executable, str(_HERE / "peers" / "uvloop_redis.py"), "--loop", "uvloop")
SERVERS: dict[str, tuple[str, ...]] = {
    "pymuduo": (sys.executable, str(_HERE.parent / "examples" / "redis" / "server.py")),
    "uvloop": (*_UVLOOP, "--mode", "protocol"),
    "uvloop, joined by hand": (*_UVLOOP, "--mode", "protocol-joined"),
    "streams on uvloop": (*_UVLOOP, "--mode", "streams"),
    "redis": (_REDIS or "redis-server", "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"),
}
_BASE = "uvloop"
_KNOWN_TO_ALL = {"ping_inline", "ping_mbulk", "ping", "set", "get"}
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
_START_LIMIT_S, _STOP_LIMIT_S, _RUN_LIMIT_S = 10.0, 10.0, 300.0


class Figure(NamedTuple):
    """What one turn of one test gave: ``redis-benchmark``'s rate, and the server's processor time."""

    requests_per_s: float
    cpu_us: float


@contextlib.contextmanager
def pinned(cpu: int | None) -> Iterator[None]:
    """Let what is started within the block run on one processor only."""
    before = os.sched_getaffinity(0)
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def running(name: str, cpu: int | None) -> Iterator[tuple[int, int]]:
    """Run a server for the length of a block, which gets its process id and port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    path = os.pathsep.join(filter(None, (str(_HERE), os.environ.get("PYTHONPATH"))))
    with pinned(cpu):
        process = subprocess.Popen(
            [*SERVERS[name], "--port", str(port)],
            env=os.environ | {"PYTHONPATH": path},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    try:
        _wait_until_ready(name, process, port)
        yield process.pid, port
        if process.poll() is not None:
            sys.exit(f"redis_bench: {name} has died with status {process.returncode}")
    finally:
        process.terminate()
        try:
            process.wait(_STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(name: str, process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + _START_LIMIT_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=_START_LIMIT_S) as sock:
                sock.sendall(b"PING\r\n")
                if sock.recv(64) == b"+PONG\r\n":
                    return
        except OSError:
            time.sleep(0.02)
    sys.exit(f"redis_bench: {name} did not start")


def cpu_s(pid: int) -> float:
    """Return the processor time that a process has taken, all its threads together."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_A_SECOND


def drive(port: int, test: str, requests: int, options: argparse.Namespace, cpu: int | None) -> float:
    """Put a server under load, and return how many requests a second it served."""
    size = ("-n", str(requests), "-c", str(options.clients), "-P", str(options.pipeline))
    with pinned(cpu):
        done = subprocess.run(
            [_CLIENT or "redis-benchmark", "-p", str(port), "-t", test, *size, "--csv"],
            capture_output=True,
            text=True,
            timeout=_RUN_LIMIT_S,
            check=True,
        )
    rows = [row for row in csv.reader(done.stdout.splitlines()) if len(row) > 1 and row[0] != "test"]
    if not rows:
        sys.exit(f"redis_bench: redis-benchmark said nothing of {test}: {done.stdout}{done.stderr}")
    return float(rows[-1][1])


def measure(options: argparse.Namespace) -> dict[str, dict[str, list[Figure]]]:
    """Return each test's figures, one a round, of each server."""
    pinning = Pinning.best()
    figures: dict[str, dict[str, list[Figure]]] = defaultdict(lambda: defaultdict(list))
    for _ in range(options.rounds):
        for name in options.servers:
            with running(name, pinning.server) as (pid, port):
                for test in options.tests:
                    if "uvloop" in name and test not in _KNOWN_TO_ALL:
                        continue
                    drive(port, test, max(options.requests // 20, 1), options, pinning.load)
                    before = cpu_s(pid)
                    rate = drive(port, test, options.requests, options, pinning.load)
                    figures[test][name].append(Figure(rate, (cpu_s(pid) - before) / options.requests * 1e6))
    return figures


def table(test: str, figures: dict[str, list[Figure]]) -> str:
    """Return a test's figures as a table in Markdown."""
    lines = [
        f"### {test}",
        "",
        f"| server | requests/s | lowest – highest | × {_BASE} | CPU µs/request | {_BASE}'s CPU ÷ its |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    base = figures.get(_BASE)
    for name, rounds in figures.items():
        rates = [figure.requests_per_s for figure in rounds]
        ratio = cpu_ratio = "–"
        if base:
            pairs = list(zip(rounds, base, strict=True))
            ratio = f"{statistics.median(f.requests_per_s / b.requests_per_s for f, b in pairs):.2f}"
            cpu_ratio = f"{statistics.median(b.cpu_us / f.cpu_us for f, b in pairs if f.cpu_us):.2f}"
        cpu = statistics.median(figure.cpu_us for figure in rounds)
        spread = f"{min(rates):,.0f} – {max(rates):,.0f}"
        lines.append(f"| {name} | {statistics.median(rates):,.0f} | {spread} | {ratio} | {cpu:.2f} | {cpu_ratio} |")
    return "\n".join(lines)


def main() -> None:
    """Measure what the command line asks for, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--requests", type=int, default=500_000, help="a turn of a test (%(default)s)")
    parser.add_argument("--pipeline", type=int, default=16, help="requests that a client sends at once (%(default)s)")
    parser.add_argument("--clients", type=int, default=50, help="connections (%(default)s)")
    parser.add_argument("--tests", type=lambda text: text.split(","), default=["set", "get"], help="(set,get)")
    parser.add_argument(
        "--servers", type=lambda text: text.split(";"), default=list(SERVERS), help="apart by ';' (all)"
    )
    options = parser.parse_args()
    if _REDIS is None and "redis" in options.servers:
        options.servers.remove("redis")
        print("redis-server is not installed: left out")
    if _CLIENT is None:
        sys.exit("redis_bench: redis-benchmark is not installed")
    began = time.monotonic()
    tables = [table(test, figures) for test, figures in measure(options).items()]
    print(f"{options.clients} connections, {options.pipeline} requests pipelined, {options.rounds} rounds\n")
    print("\n\n".join(tables))
    print(f"\nelapsed: {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
