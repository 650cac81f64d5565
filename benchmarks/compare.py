"""Compares pymuduo with raw C, uvloop and asyncio, in interleaved rounds.

The server runs on one processor and the load generator on another. A figure is the median over the rounds, with the
lowest and the highest; a ratio is taken round by round, and its median told, so that it holds while the speed of the
machine drifts. Compare ratios; absolute figures belong to a machine. The server's processor time a message is the
steadiest figure of all, and holds even on a busy machine, where throughput means little (a remark below the table
says so); the kernel counts it in ticks of 10 ms and divides it into user and system by sampling.

    python benchmarks/compare.py                                  every workload, five rounds
    python benchmarks/compare.py --workload echo64 --rounds 9 --json results.json
    python benchmarks/compare.py --quick                          one short round: does everything work?
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from suite import report, runner
from suite.build import BuildError, c_program
from suite.servers import PEERS
from suite.workloads import WORKLOADS


def main() -> None:
    """Measure what the command line asks for; status 1 if a peer failed."""
    options = _parse()
    peers = [peer for peer in PEERS if not options.peer or peer.name in options.peer]
    pinning = runner.Pinning.best()
    facts = report.machine()
    print("\n".join(f"- {key}: {value}" for key, value in facts.items()))
    if pinning.server is None:
        print("- one processor only: server and load generator share it, so no figure here is worth much")
    print(flush=True)
    try:
        c_program("loadgen")
    except BuildError as e:
        sys.exit(f"compare: {e}")

    outcomes = {}
    for name in options.workload or WORKLOADS:
        outcomes[name] = runner.run(
            WORKLOADS[name],
            peers,
            rounds=options.rounds,
            duration_s=options.duration,
            warmup_s=options.warmup,
            pinning=pinning,
            progress=_show_progress,
        )
        _show_progress("")
        print(report.table(outcomes[name]), flush=True)
    if options.json is not None:
        results = {name: report.as_json(outcome) for name, outcome in outcomes.items()}
        options.json.write_text(json.dumps({"machine": facts, "workloads": results}, indent=1) + "\n")
    if any(outcome.failed for outcome in outcomes.values()):
        sys.exit(1)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", action="append", choices=WORKLOADS, help="may be repeated (all)")
    parser.add_argument("--peer", action="append", choices=[peer.name for peer in PEERS], help="may be repeated (all)")
    parser.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--duration", type=float, default=2.0, metavar="S", help="measured, a turn (%(default)s)")
    parser.add_argument("--warmup", type=float, default=0.5, metavar="S", help="before that (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="one round of half a second: a check, not a measurement")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure of every round there")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.duration, options.warmup = 1, 0.5, 0.1
    if options.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {options.rounds}")
    return options


def _show_progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
