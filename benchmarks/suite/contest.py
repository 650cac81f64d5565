"""What ``redis_bench.py`` and ``memcached_bench.py`` share: whole servers side by side, also ones that are not ours.

Each round gives every server a turn as a fresh process, pinned to one processor with all its threads, and the generator
another. A figure is the median over the rounds with the lowest and the highest; ratios are taken round by round.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from suite import report
from suite.build import ROOT

_START_LIMIT_S, _STOP_LIMIT_S = 10.0, 10.0
_BUSY = 0.9  # of the time: above it, the generator may be what was measured

Rounds = dict[str, list["Figure"]]
"""The figures of each server, one a round."""


@dataclass(frozen=True)
class Contender:
    """A server program.

    Attributes:
        command: what starts it, without its port. port_option: what that stands behind.
        module: the Python module that it needs; not there, the server is left out, as one is whose program is missing.
    """

    command: tuple[str, ...]
    port_option: str = "--port"
    module: str | None = None

    @property
    def is_installed(self) -> bool:
        """Whether it can run here."""
        has_module = self.module is None or importlib.util.find_spec(self.module) is not None
        return has_module and shutil.which(self.command[0]) is not None


@dataclass(frozen=True)
class Figure:
    """What one turn gave: the rate, the server's processor time a request, and how busy the generator was."""

    requests_per_s: float
    cpu_us: float
    generator_busy: float


def example(name: str) -> Contender:
    """Return the example server in that folder."""
    return Contender((sys.executable, str(ROOT.parent / "examples" / name / "server.py")))


def peer(module: str, mode: str, loop: str = "uvloop") -> Contender:
    """Return a mode of an asyncio server below ``peers/``."""
    return Contender((sys.executable, "-m", f"peers.{module}", "--loop", loop, "--mode", mode), module=loop)


def parser(description: str | None, contenders: Collection[str]) -> argparse.ArgumentParser:
    """Return a parser of the options that both programs have."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    made.add_argument("--pipeline", type=int, default=16, help="requests that a client sends at once (%(default)s)")
    made.add_argument("--connections", type=int, default=50, help="(%(default)s)")
    made.add_argument("--server", action="append", choices=list(contenders), help="may be repeated (all)")
    return made


def parse(parser: argparse.ArgumentParser, contenders: Mapping[str, Contender]) -> argparse.Namespace:
    """Parse the command line, and say which servers are left out because they are not installed."""
    options = parser.parse_args()
    if min(options.rounds, options.pipeline, options.connections) < 1:
        parser.error("--rounds, --pipeline and --connections must be 1 at least")
    asked = options.server or list(contenders)
    options.server = [name for name in asked if contenders[name].is_installed]
    for name in asked:
        if name not in options.server:
            print(f"{name} is left out: {contenders[name].module or contenders[name].command[0]} is not installed")
    return options


@contextlib.contextmanager
def pinned(cpu: int | None) -> Iterator[None]:
    """Let what is started within the block, and all its threads, run on one processor only."""
    before = os.sched_getaffinity(0)
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def running(contender: Contender, greeting: tuple[bytes, bytes], cpu: int | None) -> Iterator[tuple[int, int]]:
    """Run a server for the length of a block, which gets its process id and port.

    Args:
        greeting: a request and its answer, by which a server shows that it is ready.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with pinned(cpu):
        process = subprocess.Popen(
            [*contender.command, contender.port_option, str(port)],
            env=os.environ | {"PYTHONPATH": path},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    try:
        _wait_until_ready(process, port, greeting)
        yield process.pid, port
        if process.poll() is not None:
            sys.exit(f"it has died with status {process.returncode}: {' '.join(contender.command)}")
    finally:
        process.terminate()
        try:
            process.wait(_STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, greeting: tuple[bytes, bytes]) -> None:
    deadline = time.monotonic() + _START_LIMIT_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=_START_LIMIT_S) as sock:
                sock.sendall(greeting[0])
                if sock.recv(64) == greeting[1]:
                    return
        except OSError:
            time.sleep(0.02)
    sys.exit(f"it did not start: {process.args!r}")


def cpu_s(pid: int) -> float:
    """Return the processor time that a process has taken, all its threads together; exact to the nanosecond."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def document(program: str, load: str, rounds: int, tables: Mapping[str, Rounds], bases: Sequence[str]) -> str:
    """Return all results as Markdown, with what they depend on: a part of ``docs/design/performance.md``.

    Args:
        program: which has measured. load: in words. tables: the figures of each kind of request.
        bases: the servers that all are compared with.
    """
    facts = report.machine()
    kept = "".join(f"- {key}: {facts[key]}\n" for key in ("cpu", "kernel", "python", "pymuduo", "uvloop"))
    origin = f"Measured on {time.strftime('%Y-%m-%d')} with `{program}`: {load}, {report.rounds_of(rounds)}."
    return "\n\n".join([origin, kept.rstrip("\n"), *[_table(kind, of_it, bases) for kind, of_it in tables.items()]])


def _table(kind: str, figures: Rounds, bases: Sequence[str]) -> str:
    bases = [base for base in bases if figures.get(base)]
    columns = ["server", "requests/s (min–max)", *[f"× {base}" for base in bases]]
    columns += ["CPU µs/request (min–max)", *[f"CPU × {base}" for base in bases]]
    rows = [columns, ["---"] * len(columns)]
    remarks = []
    for name, rounds in figures.items():
        row = [name, report.spread([figure.requests_per_s for figure in rounds], "{:,.0f}")]
        row += [_ratio([(f.requests_per_s, b.requests_per_s) for f, b in _pairs(rounds, figures[s])]) for s in bases]
        row += [report.spread([figure.cpu_us for figure in rounds], "{:.2f}")]
        row += [_ratio([(f.cpu_us, b.cpu_us) for f, b in _pairs(rounds, figures[base])]) for base in bases]
        rows.append(row)
        busy = statistics.median(figure.generator_busy for figure in rounds)
        if busy > _BUSY:
            remarks.append(f"- {name}: the generator was busy for {busy:.0%} of the time: the rate is a lower bound.")
    return "\n\n".join([f"### {kind}", report.markdown(rows), *(["\n".join(remarks)] if remarks else [])])


def _pairs(rounds: list[Figure], base: list[Figure]) -> list[tuple[Figure, Figure]]:
    return list(zip(rounds, base, strict=True))


def _ratio(pairs: list[tuple[float, float]]) -> str:
    known = [one / other for one, other in pairs if other]
    return report.spread(known, "{:.2f}") if known else "–"
