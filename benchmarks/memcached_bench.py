"""Compares the memcached example with the same on uvloop, and with memcached itself (one worker thread).

The load is that of ``c/commandgen.c``: connections that send pipelined requests of fixed bytes, and check every byte of
the answers. Prints tables in Markdown; ``suite/contest.py`` says how the figures come about.

    python benchmarks/memcached_bench.py                     get and set of 32 bytes, 16 pipelined, 50 connections
    python benchmarks/memcached_bench.py --pipeline 1 --size 1000 --rounds 9

uvloop's servers know get and set only, and forget nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from suite import contest
from suite.build import BuildError, c_program
from suite.contest import Contender, Figure, Rounds
from suite.runner import Pinning

_USER = ("-u", "nobody") if os.getuid() == 0 else ()
SERVERS = {
    "pymuduo": contest.example("memcached"),
    "uvloop": contest.peer("uvloop_memcached", "protocol"),
    "uvloop, joined by hand": contest.peer("uvloop_memcached", "protocol-joined"),
    "memcached": Contender(("memcached", "-l", "127.0.0.1", "-U", "0", "-t", "1", *_USER), port_option="-p"),
}
_BASES = ("uvloop", "memcached")
_GREETING = b"get a\r\n", b"END\r\n"
_MARGIN_S = 60.0
_BATCHES = 64
_OUTSIDE = 1_000_000  # keys of one length


class Load(NamedTuple):
    """Files of requests and of the answers to them, in batches."""

    requests: Path
    answers: Path


def make_loads(folder: Path, pipeline: int, size: int) -> dict[str, Load]:
    """Write the loads; ``get`` asks for what ``set`` has stored."""
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


def store_all(port: int, load: Load) -> None:
    """Do what *load* asks for once, however short a turn is: ``get`` finds everything."""
    requests, answers = load.requests.read_bytes(), load.answers.read_bytes()
    with socket.create_connection(("127.0.0.1", port), timeout=_MARGIN_S) as sock:
        sock.sendall(requests)
        with sock.makefile("rb") as received:
            if received.read(len(answers)) != answers:
                sys.exit("memcached_bench: the values were not stored")


def drive(port: int, pid: int, load: Load, options: argparse.Namespace, cpu: int | None) -> Figure:
    """Put a server under load."""
    command = [str(c_program("commandgen")), "--port", str(port), "--connections", str(options.connections)]
    command += ["--requests", str(load.requests), "--answers", str(load.answers), "--batches", str(_BATCHES)]
    command += ["--duration", str(options.duration), "--warmup", str(options.warmup)]
    command += [] if cpu is None else ["--cpu", str(cpu)]
    before_s = contest.cpu_s(pid)
    limit_s = options.duration + options.warmup + _MARGIN_S
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
    if done.returncode != 0:
        sys.exit(f"memcached_bench: the generator ended with status {done.returncode}: {done.stderr.strip()}")
    told = json.loads(done.stdout)
    return Figure(
        requests_per_s=told["batches_per_s"] * options.pipeline,
        cpu_us=(contest.cpu_s(pid) - before_s) / (told["batches"] * options.pipeline) * 1e6,
        generator_busy=told["busy"],
    )


def measure(options: argparse.Namespace, loads: dict[str, Load]) -> dict[str, Rounds]:
    """Return the figures of each load."""
    pinning = Pinning.best()
    figures: dict[str, Rounds] = {load: {name: [] for name in options.server} for load in loads}
    for _ in range(options.rounds):
        for name in options.server:
            with contest.running(SERVERS[name], _GREETING, pinning.server) as (pid, port):
                store_all(port, loads["set"])
                for kind, load in loads.items():
                    figures[kind][name].append(drive(port, pid, load, options, pinning.load))
    return figures


def main() -> None:
    """Measure what the command line asks for, and print it."""
    parser = contest.parser(__doc__, SERVERS)
    parser.add_argument("--duration", type=float, default=1.0, metavar="S", help="measured, a turn (%(default)s)")
    parser.add_argument("--warmup", type=float, default=0.2, metavar="S", help="before that (%(default)s)")
    parser.add_argument("--size", type=int, default=32, help="bytes of a value (%(default)s)")
    options = contest.parse(parser, SERVERS)
    began = time.monotonic()
    try:
        c_program("commandgen")
    except BuildError as e:
        sys.exit(f"memcached_bench: {e}")
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(options, make_loads(Path(folder), options.pipeline, options.size))
    load = f"values of {options.size} bytes, {options.connections} connections, {options.pipeline} requests pipelined"
    load += f", {options.duration:g} s a turn"
    print(contest.document("memcached_bench.py", load, options.rounds, figures, _BASES))
    print(f"\nelapsed: {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
