"""Compares the memcached example with the same on uvloop, and with memcached itself (one worker thread).

The load is that of ``c/commandgen.c``: connections that send pipelined requests of fixed bytes, and check every byte of
the answers. Each round gives every server a turn as a fresh process, pinned to one processor with all its threads, and
the generator another; the figures are medians over the rounds, with the lowest and the highest, and the ratios are
taken round by round. Processor time is that of all threads of the server, from /proc.

    python benchmarks/memcached_bench.py                     get and set of 32 bytes, 16 pipelined, 50 connections
    python benchmarks/memcached_bench.py --pipeline 1 --size 1000 --rounds 9

uvloop's servers know get and set only, and forget nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from suite.build import ROOT, BuildError, c_program
from suite.runner import Pinning

_MEMCACHED = shutil.which("memcached")
_UVLOOP = (sys.executable, "-m", "peers.uvloop_memcached", "--loop", "uvloop", "--mode")
SERVERS: dict[str, tuple[str, ...]] = {
    "pymuduo": (sys.executable, str(ROOT.parent / "examples" / "memcached" / "server.py")),
    "uvloop": (*_UVLOOP, "protocol"),
    "uvloop, joined by hand": (*_UVLOOP, "protocol-joined"),
    "memcached": (_MEMCACHED or "memcached", "-l", "127.0.0.1", "-U", "0", "-t", "1", "-u", "nobody"),
}
_BASE = "uvloop"
_START_LIMIT_S, _STOP_LIMIT_S, _MARGIN_S = 10.0, 10.0, 60.0
_BATCHES = 64
_OUTSIDE = 1_000_000  # keys of one length


class Load(NamedTuple):
    """Files of requests and of the answers to them, in batches."""

    requests: Path
    answers: Path


class Figure(NamedTuple):
    """What one turn gave: the rate, the server's processor time, and how busy the generator was."""

    requests_per_s: float
    cpu_us: float
    generator_busy: float


def make_loads(folder: Path, pipeline: int, size: int) -> dict[str, Load]:
    """Write the loads: ``set`` stores all the keys that ``get`` asks for."""
    keys = [b"key:%d" % (_OUTSIDE + i) for i in range(_BATCHES * pipeline)]
    values = [(b"%d/" % i * size)[:size] for i in range(len(keys))]
    pairs = list(zip(keys, values, strict=True))
    contents = {
        "set": ([b"set %b 0 0 %d\r\n%b\r\n" % (key, size, value) for key, value in pairs], [b"STORED\r\n"] * len(keys)),
        "get": (
            [b"get %b\r\n" % key for key in keys],
            [b"VALUE %b 0 %d\r\n%b\r\nEND\r\n" % (key, size, value) for key, value in pairs],
        ),
    }
    loads = {}
    for name, (requests, answers) in contents.items():
        loads[name] = load = Load(folder / f"{name}.requests", folder / f"{name}.answers")
        load.requests.write_bytes(b"".join(requests))
        load.answers.write_bytes(b"".join(answers))
    return loads


@contextlib.contextmanager
def running(name: str, cpu: int | None) -> Iterator[tuple[int, int]]:
    """Run a server for the length of a block, which gets its process id and port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    before = os.sched_getaffinity(0)
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})  # all threads that it will have inherit that
    try:
        process = subprocess.Popen(
            [*SERVERS[name], "-p" if name == "memcached" else "--port", str(port)],
            env=os.environ | {"PYTHONPATH": path},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    finally:
        os.sched_setaffinity(0, before)
    try:
        _wait_until_ready(name, process, port)
        yield process.pid, port
        if process.poll() is not None:
            sys.exit(f"memcached_bench: {name} has died with status {process.returncode}")
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
                sock.sendall(b"get a\r\n")
                if sock.recv(64) == b"END\r\n":
                    return
        except OSError:
            time.sleep(0.02)
    sys.exit(f"memcached_bench: {name} did not start")


def cpu_s(pid: int) -> float:
    """Return the processor time that a process has taken, all its threads together; exact to the nanosecond."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def drive(port: int, pid: int, load: Load, options: argparse.Namespace, cpu: int | None) -> Figure:
    """Put a server under load."""
    command = [str(c_program("commandgen")), "--port", str(port), "--connections", str(options.connections)]
    command += ["--requests", str(load.requests), "--answers", str(load.answers), "--batches", str(_BATCHES)]
    command += ["--duration", str(options.duration), "--warmup", str(options.warmup)]
    command += [] if cpu is None else ["--cpu", str(cpu)]
    before = cpu_s(pid)
    limit_s = options.duration + options.warmup + _MARGIN_S
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
    if done.returncode != 0:
        sys.exit(f"memcached_bench: the generator ended with status {done.returncode}: {done.stderr.strip()}")
    told = json.loads(done.stdout)
    requests = told["batches"] * options.pipeline
    rate = told["batches_per_s"] * options.pipeline
    return Figure(rate, (cpu_s(pid) - before) / requests * 1e6, told["busy"])


def measure(options: argparse.Namespace, loads: dict[str, Load]) -> dict[str, dict[str, list[Figure]]]:
    """Return the figures of each load, one a round, of each server."""
    pinning = Pinning.best()
    figures: dict[str, dict[str, list[Figure]]] = {load: {name: [] for name in options.servers} for load in loads}
    for _ in range(options.rounds):
        for name in options.servers:
            with running(name, pinning.server) as (pid, port):
                for kind, load in loads.items():
                    figures[kind][name].append(drive(port, pid, load, options, pinning.load))
    return figures


def table(kind: str, figures: dict[str, list[Figure]]) -> str:
    """Return the figures of a load as a table in Markdown."""
    lines = [
        f"### {kind}",
        "",
        f"| server | requests/s | lowest – highest | × {_BASE} | CPU µs/request | {_BASE}'s CPU ÷ its | generator |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    base = figures.get(_BASE)
    for name, rounds in figures.items():
        rates = [figure.requests_per_s for figure in rounds]
        ratio = cpu_ratio = "–"
        if base:
            pairs = list(zip(rounds, base, strict=True))
            ratio = f"{statistics.median(f.requests_per_s / b.requests_per_s for f, b in pairs):.2f}"
            cpu_ratio = f"{statistics.median(b.cpu_us / f.cpu_us for f, b in pairs):.2f}"
        cpu = statistics.median(figure.cpu_us for figure in rounds)
        busy = statistics.median(figure.generator_busy for figure in rounds)
        spread = f"{min(rates):,.0f} – {max(rates):,.0f}"
        rate = statistics.median(rates)
        lines.append(f"| {name} | {rate:,.0f} | {spread} | {ratio} | {cpu:.2f} | {cpu_ratio} | {busy:.0%} busy |")
    return "\n".join(lines)


def main() -> None:
    """Measure what the command line asks for, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--duration", type=float, default=1.0, metavar="S", help="measured, a turn (%(default)s)")
    parser.add_argument("--warmup", type=float, default=0.2, metavar="S", help="before that (%(default)s)")
    parser.add_argument("--pipeline", type=int, default=16, help="requests that a client sends at once (%(default)s)")
    parser.add_argument("--connections", type=int, default=50, help="(%(default)s)")
    parser.add_argument("--size", type=int, default=32, help="bytes of a value (%(default)s)")
    parser.add_argument(
        "--servers", type=lambda text: text.split(";"), default=list(SERVERS), help="apart by ';' (all)"
    )
    options = parser.parse_args()
    if _MEMCACHED is None and "memcached" in options.servers:
        options.servers.remove("memcached")
        print("memcached is not installed: left out")
    began = time.monotonic()
    try:
        c_program("commandgen")
    except BuildError as e:
        sys.exit(f"memcached_bench: {e}")
    with tempfile.TemporaryDirectory() as folder:
        loads = make_loads(Path(folder), options.pipeline, options.size)
        figures = measure(options, loads)
    what = f"{options.size} bytes, {options.pipeline} requests pipelined, {options.connections} connections"
    print(f"{what}, {options.rounds} rounds of {options.duration:g} s\n")
    print("\n\n".join([table(kind, rounds) for kind, rounds in figures.items()]))
    print(f"\nelapsed: {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
