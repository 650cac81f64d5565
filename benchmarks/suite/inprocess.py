"""What is measured inside a process: the programs below ``programs/``, run for each peer in interleaved rounds.

Each turn is a fresh process that prints one JSON object: its figures, or why it can't run here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

from suite.build import ROOT
from suite.runner import Pinning

_LIMIT_S = 180


@dataclass(frozen=True)
class Measure:
    """One figure of a program.

    Attributes:
        key: in what the program prints. title: in tables, with its unit.
        more_is_better: of a rate; less is of a price.
        headline: what it is called in summaries, where it stands for its program; empty: it is not there.
    """

    key: str
    title: str
    more_is_better: bool = True
    headline: str = ""


@dataclass(frozen=True)
class Program:
    """One of the programs.

    Attributes:
        title: in words, for the report. module: below ``programs``.
        peers: who can run it; the first row of the table is the first of them.
        options: of the program. quick: options that make it short.
        processors: the options that take a processor each; none: it has threads that may run anywhere.
        most_rounds: for figures that hardly differ from round to round, because most are counted, not timed.
    """

    title: str
    module: str
    measures: tuple[Measure, ...]
    peers: tuple[str, ...] = ("pymuduo", "uvloop", "asyncio")
    options: tuple[str, ...] = ()
    quick: tuple[str, ...] = ()
    processors: tuple[str, ...] = ()
    most_rounds: int | None = None


@dataclass
class ProgramOutcome:
    """One program's results; ``figures`` has one entry a round for each peer that went through all of them."""

    program: Program
    rounds: int
    figures: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


class ProgramFailedError(Exception):
    """A program found a wrong result, died, or did not end."""


class ProgramAbsentError(Exception):
    """A program can't run here for this peer; the message says why."""


def run(
    program: Program,
    peers: Collection[str],
    *,
    rounds: int,
    pinning: Pinning,
    is_quick: bool = False,
    progress: Callable[[str], object] = lambda text: None,
) -> ProgramOutcome:
    """Run *program* for each of its peers that is one of *peers*, *rounds* times in turn."""
    rounds = min(rounds, program.most_rounds or rounds)
    outcome = ProgramOutcome(program, rounds)
    for number in range(1, rounds + 1):
        for peer in program.peers:
            if peer not in peers or peer in outcome.absent or peer in outcome.failed:
                continue
            progress(f"round {number}/{rounds}: {program.module}, {peer}")
            try:
                figures = _turn(program, peer, pinning, is_quick)
                outcome.figures.setdefault(peer, []).append(figures)
            except ProgramAbsentError as e:
                outcome.absent[peer] = str(e)
            except ProgramFailedError as e:
                outcome.failed[peer] = f"round {number}: {e}"
                outcome.figures.pop(peer, None)
    return outcome


def _turn(program: Program, peer: str, pinning: Pinning, is_quick: bool) -> dict[str, float]:
    command = [sys.executable, "-m", f"programs.{program.module}", "--peer", peer, "--json", *program.options]
    command += program.quick if is_quick else ()
    for option, processor in zip(program.processors, (pinning.server, pinning.load), strict=False):
        command += [] if processor is None else [option, str(processor)]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    try:
        done = subprocess.run(
            command,
            env=os.environ | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ProgramFailedError(f"it did not end within {_LIMIT_S} s") from None
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["nothing said"])[-1]
        raise ProgramFailedError(f"status {done.returncode}: {last}")
    told = json.loads(done.stdout)
    if "absent" in told:
        raise ProgramAbsentError(told["absent"])
    figures: dict[str, float] = told["figures"]
    return figures


def source(program: Program) -> Path:
    """Return the program's file."""
    return ROOT / "programs" / f"{program.module}.py"


def _rate(key: str, what: str, unit: str, headline: str = "") -> tuple[Measure, Measure]:
    rate = Measure(f"{key}_per_s", f"{what} a second", headline=headline)
    return rate, Measure(f"{key}_cpu_us", f"CPU µs {unit}", more_is_better=False)


def _game(sessions: int, headline: str = "") -> tuple[Measure, Measure]:
    name, key = f"{sessions} session{'s' if sessions > 1 else ''}", f"sessions_{sessions}"
    rate = Measure(f"{key}_mib_per_s", f"{name}: MiB a second", headline=headline)
    return rate, Measure(f"{key}_cpu_us_per_mib", f"{name}: CPU µs a MiB, both sides", more_is_better=False)


PROGRAMS = {
    "calls": Program(
        "calls from other threads into a loop",
        "calls",
        (
            *_rate(
                "burst",
                "calls by one thread",
                "a call by one thread",
                "calls into a loop from another thread, a second",
            ),
            *_rate("four_threads", "calls by four threads", "a call by four threads"),
        ),
        quick=("--calls", "20000"),
    ),
    "cross_send": Program(
        "sends of 64 B from another thread to one connection",
        "cross_send",
        _rate("sends", "sends", "a send", "sends of 64 B from another thread, a second"),
        quick=("--sends", "20000"),
    ),
    "timers": Program(
        "timers: 200,000 set and cancelled at once; 200,000 set, cancelled at random, expiring",
        "timers",
        (
            *_rate(
                "add_cancel", "set and cancelled at once", "to set and cancel one", "timers set and cancelled, a second"
            ),
            *_rate("add", "set while others wait", "to set one"),
            *_rate("cancel", "cancelled at random", "to cancel one"),
            *_rate("expire", "expired", "to expire one", "timers expiring, a second"),
        ),
        options=("--timers", "200000"),
        quick=("--timers", "20000", "--pairs", "20000"),
        processors=("--cpu",),
    ),
    "timers1m": Program(
        "timers: a million waiting",
        "timers",
        (
            *_rate("add", "set", "to set one", "timers set while up to a million wait, a second"),
            Measure(
                "timer_bytes", "bytes of memory each", more_is_better=False, headline="memory of a waiting timer, bytes"
            ),
        ),
        peers=("pymuduo", "uvloop"),
        options=("--only-add",),
        quick=("--timers", "50000"),
        processors=("--cpu",),
    ),
    "events": Program(
        "event dispatch: 10 tokens hopping through 100 pairs of sockets",
        "events",
        _rate("events", "events", "an event", "events dispatched, a second"),
        peers=("raw C epoll", "pymuduo", "uvloop", "asyncio"),
        quick=("--rounds", "2"),
        processors=("--cpu",),
    ),
    "pingpong": Program(
        "ping-pong, blocks of 16 KiB, client and server of the same kind",
        "pingpong",
        (*_game(1), *_game(10), *_game(100, "ping-pong of 16 KiB, 100 sessions, MiB a second")),
        options=("--seconds", "0.4"),
        quick=("--seconds", "0.1", "--warmup", "0.02", "--sessions", "100"),
        processors=("--server-cpu", "--cpu"),
    ),
    "idle": Program(
        "user memory of an idle connection",
        "idle",
        (
            Measure("malloc_bytes", "all allocations, bytes", False, "user memory of an idle connection, bytes"),
            Measure("heap_bytes", "seen by tracemalloc, bytes", more_is_better=False),
            Measure("resident_bytes", "growth of the process, bytes", more_is_better=False),
            Measure("connections", "connections measured"),
        ),
        quick=("--connections", "1000"),
        most_rounds=1,
    ),
    "instructions": Program(
        "user-space instructions for an echo of 64 B on one connection",
        "instructions",
        (Measure("instructions", "instructions", False, "user-space instructions for an echo of 64 B"),),
        peers=("raw C epoll", "pymuduo", "uvloop"),
        quick=("--messages", "500"),
        most_rounds=2,
    ),
}
