"""Compares the Redis example with the same on uvloop, and with Redis itself, by Redis's own ``redis-benchmark``.

Prints tables in Markdown; ``suite/contest.py`` says how the figures come about. ``redis-benchmark`` looks at no reply;
that the servers give the same ones is a matter of the tests.

    python benchmarks/redis_bench.py                              SET and GET, 16 pipelined, five rounds
    python benchmarks/redis_bench.py --pipeline 1 --requests 100000 --test ping_mbulk --test incr

uvloop's servers know GET, SET and PING only, and stay away from other tests.
"""

from __future__ import annotations

import argparse
import csv
import resource
import shutil
import subprocess
import sys
import time

from suite import contest
from suite.contest import Contender, Figure, Rounds
from suite.runner import Pinning

_CLIENT = shutil.which("redis-benchmark")
SERVERS = {
    "pymuduo": contest.example("redis"),
    "uvloop": contest.peer("uvloop_redis", "protocol"),
    "uvloop, joined by hand": contest.peer("uvloop_redis", "protocol-joined"),
    "streams on uvloop": contest.peer("uvloop_redis", "streams"),
    "redis": Contender(("redis-server", "--bind", "127.0.0.1", "--save", "", "--appendonly", "no")),
}
_BASES = ("uvloop", "redis")
_GREETING = b"PING\r\n", b"+PONG\r\n"
_KNOWN_TO_ALL = {"ping_inline", "ping_mbulk", "ping", "set", "get"}
_RUN_LIMIT_S = 300.0


def drive(port: int, pid: int, test: str, requests: int, options: argparse.Namespace, cpu: int | None) -> Figure:
    """Put a server under load."""
    command = [_CLIENT or "redis-benchmark", "-p", str(port), "-t", test, "-n", str(requests)]
    command += ["-c", str(options.connections), "-P", str(options.pipeline), "--csv"]
    before_s, generator_before_s, began = contest.cpu_s(pid), _children_cpu_s(), time.monotonic()
    with contest.pinned(cpu):
        done = subprocess.run(command, capture_output=True, text=True, timeout=_RUN_LIMIT_S, check=True)
    took_s = time.monotonic() - began
    rows = [row for row in csv.reader(done.stdout.splitlines()) if len(row) > 1 and row[0] != "test"]
    if not rows:
        sys.exit(f"redis_bench: redis-benchmark said nothing of {test}: {done.stdout}{done.stderr}")
    return Figure(
        requests_per_s=float(rows[-1][1]),
        cpu_us=(contest.cpu_s(pid) - before_s) / requests * 1e6,
        generator_busy=(_children_cpu_s() - generator_before_s) / took_s,
    )


def _children_cpu_s() -> float:
    """Return the processor time of all children that have ended; in a turn that is the generator."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(options: argparse.Namespace) -> dict[str, Rounds]:
    """Return the figures of each test."""
    pinning = Pinning.best()
    figures: dict[str, Rounds] = {test: {} for test in options.test}
    for _ in range(options.rounds):
        for name in options.server:
            contender = SERVERS[name]
            with contest.running(contender, _GREETING, pinning.server) as (pid, port):
                for test in options.test:
                    if contender.module is None or test in _KNOWN_TO_ALL:
                        drive(port, pid, test, max(options.requests // 20, 1), options, pinning.load)
                        figure = drive(port, pid, test, options.requests, options, pinning.load)
                        figures[test].setdefault(name, []).append(figure)
    return figures


def main() -> None:
    """Measure what the command line asks for, and print it."""
    parser = contest.parser(__doc__, SERVERS)
    parser.add_argument("--requests", type=int, default=500_000, help="a turn of a test (%(default)s)")
    parser.add_argument("--test", action="append", help="of redis-benchmark's; may be repeated (set, get)")
    options = contest.parse(parser, SERVERS)
    options.test = options.test or ["set", "get"]
    if _CLIENT is None:
        sys.exit("redis_bench: redis-benchmark is not installed")
    began = time.monotonic()
    load = f"{options.connections} connections, {options.pipeline} requests pipelined, {options.requests:,} a turn"
    figures = measure(options)
    print(contest.document("redis_bench.py", load, options.rounds, figures, _BASES))
    print(f"\nelapsed: {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
