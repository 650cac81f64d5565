"""Compares pymuduo with uvloop, asyncio and a raw C epoll server, in interleaved rounds (A B C A B C …).

Server and load generator run on a processor each. A figure is the median over the rounds; a ratio is taken round
by round, and its median quoted, so that it holds while the machine's speed drifts. CPU time a message is the
server's own, user and system, and hardly moved by noise (the kernel counts in ticks of 10 ms).

    python benchmarks/compare.py                       every workload, five rounds
    python benchmarks/compare.py --workload echo64 --rounds 9 --json results.json
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import platform
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pymuduo
from suite.programs import Peer, measure


@dataclass(frozen=True)
class Workload:
    """One kind of load, and who is put under it."""

    title: str
    options: tuple[str, ...]
    peers: tuple[Peer, ...]


def _python_peers(mode: str) -> tuple[Peer, ...]:
    return (
        Peer("pymuduo", "peers/pymuduo_echo.py", ("--mode", mode), needs="pymuduo"),
        Peer("uvloop", "peers/asyncio_echo.py", ("--mode", mode, "--loop", "uvloop"), needs="uvloop"),
        Peer("asyncio", "peers/asyncio_echo.py", ("--mode", mode)),
    )


RAW_C = Peer("raw C", "echo_epoll")
UVLOOP_JOINED = Peer(
    "uvloop, joined by hand",
    "peers/asyncio_echo.py",
    ("--mode", "line-joined", "--loop", "uvloop"),
    needs="uvloop",
)

WORKLOADS = {
    "echo64": Workload(
        "echo, 64 B, 100 connections, one loop",
        ("--size", "64", "--connections", "100"),
        (*_python_peers("echo"), RAW_C),
    ),
    "echo64x1000": Workload(
        "echo, 64 B, 1,000 connections, one loop",
        ("--size", "64", "--connections", "1000"),
        (*_python_peers("echo"), RAW_C),
    ),
    "echo16k": Workload(
        "echo, 16 KiB, 100 connections, one loop",
        ("--size", "16384", "--connections", "100"),
        (*_python_peers("echo"), RAW_C),
    ),
    "line16": Workload(
        "line echo, 32 B, 16 pipelined, one send a line, 100 connections, one loop",
        ("--mode", "line", "--size", "32", "--depth", "16", "--connections", "100"),
        (*_python_peers("line"), UVLOOP_JOINED, RAW_C),
    ),
}


def run(workload: Workload, rounds: int, duration: float) -> dict[str, Any]:
    """Measure every peer of a workload, in turn, *rounds* times."""
    results: dict[str, list[dict[str, Any]]] = {}
    absent: dict[str, str] = {}
    for peer in workload.peers:
        reason = peer.absence()
        if reason is None:
            results[peer.name] = []
        else:
            absent[peer.name] = reason
    for _ in range(rounds):
        for peer in workload.peers:
            if peer.name in results:
                results[peer.name].append(measure(peer, duration, workload.options))
    return {"title": workload.title, "rounds": rounds, "results": results, "absent": absent}


def ratio(results: dict[str, list[dict[str, Any]]], name: str, base: str) -> str:
    """Return the median of the round-by-round throughput ratios, with the spread."""
    if base not in results:
        return "–"
    pairs = zip(results[name], results[base], strict=True)
    ratios = [a["messages_per_s"] / b["messages_per_s"] for a, b in pairs]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"


def table(outcome: dict[str, Any]) -> str:
    """Return one workload's outcome as a Markdown table."""
    results = outcome["results"]
    lines = [
        f"### {outcome['title']} ({outcome['rounds']} rounds)",
        "",
        "| server | messages/s | × uvloop | × raw C | user µs/msg | system µs/msg | p50 µs | p99 µs |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, rounds in results.items():

        def median(pick: Callable[[dict[str, Any]], float], rounds: list[dict[str, Any]] = rounds) -> float:
            return float(statistics.median(pick(r) for r in rounds))

        lines.append(
            f"| {name} | {median(lambda r: r['messages_per_s']):,.0f} | {ratio(results, name, 'uvloop')} "
            f"| {ratio(results, name, 'raw C')} | {median(lambda r: r['user_us_per_message']):.2f} "
            f"| {median(lambda r: r['system_us_per_message']):.2f} | {median(lambda r: r['latency_us']['p50']):,.0f} "
            f"| {median(lambda r: r['latency_us']['p99']):,.0f} |"
        )
    lines += [f"| {name} | absent: {reason} | | | | | | |" for name, reason in outcome["absent"].items()]
    return "\n".join(lines) + "\n"


def machine() -> dict[str, str]:
    """Return what the figures depend on."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    versions = {"pymuduo": pymuduo.__version__ + (" compiled" if pymuduo.COMPILED else " pure")}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        versions["uvloop"] = importlib.metadata.version("uvloop")
    return {"cpu": model, "kernel": platform.release(), "python": sys.version.split()[0], **versions}


def main() -> None:
    """Parse the command line, measure, print, and write the results down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=WORKLOADS, action="append", help="which (all)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--duration", type=float, default=2.0, help="measured seconds a peer and round (2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round's figures there")
    args = parser.parse_args()
    workloads: dict[str, Any] = {}
    report = {"machine": machine(), "workloads": workloads}
    print("; ".join(f"{key} {value}" for key, value in machine().items()) + "\n", flush=True)
    for name in args.workload or WORKLOADS:
        outcome = run(WORKLOADS[name], args.rounds, args.duration)
        workloads[name] = outcome
        print(table(outcome), flush=True)
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
