"""Compares pymuduo with raw C, uvloop and other peers, in interleaved rounds.

A network workload runs the server on one processor and the load generator on another; a program measures one thing
inside a process. A figure is the median over the rounds, with the lowest and the highest; a ratio is taken round by
round, and its median told, so that it holds while the speed of the machine drifts. Compare ratios; absolute figures
belong to a machine. The server's processor time a message is the steadiest figure of all, and holds even on a busy
machine, where throughput means little (a remark below the table says so).

    python benchmarks/bench.py                                  everything, five rounds, within the time of --budget
    python benchmarks/bench.py --workload echo64 --rounds 9 --duration 2 --json results.json
    python benchmarks/bench.py --workload timers --peer pymuduo --peer uvloop
    python benchmarks/bench.py --record --update-docs           keep the results, and put them into the documentation
    python benchmarks/bench.py --quick                          one short round: does everything work?
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from suite import charts, inprocess, report, runner
from suite.build import ROOT, BuildError, c_program
from suite.inprocess import PROGRAMS, ProgramOutcome
from suite.runner import Outcome
from suite.servers import PEERS, Peer
from suite.workloads import WORKLOADS

_NAMES = (*WORKLOADS, *PROGRAMS)
_PEER_NAMES = tuple(dict.fromkeys([peer.name for peer in PEERS]))
_IN_README = (
    *("echo64", "echo64x1000", "echo16k", "line16", "frame64", "broadcast", "broadcast16", "connect"),
    *("tls64", "tls16k", "tlsline16", "tlsconnect"),
    *("calls", "cross_send", "timers", "idle"),
)
_RESULTS = ROOT / "results"
_README, _PERFORMANCE = ROOT.parent / "README.md", ROOT.parent / "docs" / "design" / "performance.md"


class Suite:
    """A run of what the command line asks for, and its results."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._began = time.monotonic()
        self._pinning = runner.Pinning.best()
        self._peers = _chosen_peers(options)
        # Whoever names peers wants to see them, whatever the load.
        self._kinds = {n: replace(w, is_for_all=True) for n, w in WORKLOADS.items()} if options.peer else WORKLOADS
        names = options.workload or _NAMES
        self._workloads = [name for name in self._kinds if name in names]
        for name in tuple(self._workloads):
            base = self._kinds[name].rate_of
            if base is not None and base not in self._workloads:
                self._workloads.insert(0, base)
        # What gives a rate comes before what is paced by it.
        self._workloads.sort(key=lambda name: self._kinds[name].rate_of is not None)
        self._workloads = [name for name in self._workloads if runner.able(self._kinds[name], self._peers)]
        self._programs = [name for name in PROGRAMS if name in names and self._program_peers(name)]
        self.facts = report.machine()
        self.workloads: dict[str, Outcome] = {}
        self.programs: dict[str, ProgramOutcome] = {}

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began

    @property
    def has_failed(self) -> bool:
        """Whether any peer failed anywhere."""
        outcomes: list[Outcome | ProgramOutcome] = [*self.workloads.values(), *self.programs.values()]
        return any(outcome.failed for outcome in outcomes)

    def run(self) -> None:
        """Measure, and print each table when it is complete.

        Raises:
            BuildError: the load generator can't be compiled.
        """
        print("\n".join(f"- {key}: {value}" for key, value in self.facts.items()))
        if self._pinning.server is None:
            print("- one processor only: server and load generator share it, so no figure here is worth much")
        print(flush=True)
        # The programs first: their sizes are fixed, and the workloads share out the time that is left.
        for name in self._programs:
            self._run_program(name)
        if self._workloads:
            c_program("loadgen")
            self._run_workloads()

    def origin(self) -> str:
        """Return when, with what, and on what this was measured."""
        how = f"`bench.py`, {report.rounds_of(self._options.rounds)}, in {self.elapsed_s:.0f} s"
        return f"Measured on {time.strftime('%Y-%m-%d')} with {how}, on {self.facts['cpu']}."

    def as_json(self) -> dict[str, Any]:
        """Return all figures of all rounds."""
        return {
            "date": time.strftime("%Y-%m-%d"),
            "seconds": round(self.elapsed_s, 1),
            "machine": self.facts,
            "workloads": {name: report.as_json(outcome) for name, outcome in self.workloads.items()},
            "programs": {name: report.as_json(outcome) for name, outcome in self.programs.items()},
        }

    def _program_peers(self, name: str) -> list[str]:
        return [peer.name for peer in self._peers if peer.name in PROGRAMS[name].peers]

    def _run_program(self, name: str) -> None:
        outcome = self.programs[name] = inprocess.run(
            PROGRAMS[name],
            self._program_peers(name),
            rounds=self._options.rounds,
            pinning=self._pinning,
            is_quick=self._options.quick,
            progress=_show_progress,
        )
        _show_progress("")
        print(report.program_table(outcome), flush=True)

    def _run_workloads(self) -> None:
        options = self._options
        planned = {n: len(runner.able(self._kinds[n], self._peers)) * options.rounds for n in self._workloads}
        turns = runner.Turns(
            sum(planned.values()),
            warmup_s=options.warmup,
            duration_s=options.duration,
            budget_s=options.budget - self.elapsed_s,
        )
        for name, count in planned.items():
            began, duration_s = time.monotonic(), turns.duration_s()
            try:
                workload = runner.paced(self._kinds[name], self.workloads)
            except LookupError as e:
                print(f"### {self._kinds[name].title}\n\nleft out: {e}\n", flush=True)
                continue
            outcome = self.workloads[name] = runner.run(
                workload,
                self._peers,
                rounds=options.rounds,
                duration_s=duration_s,
                warmup_s=options.warmup,
                pinning=self._pinning,
                progress=_show_progress,
            )
            turns.note(count, outcome, time.monotonic() - began, duration_s)
            _show_progress("")
            print(report.table(outcome), flush=True)


def record(suite: Suite, *, update_docs: bool) -> None:
    """Write the results and the charts below ``results/``, and if asked for the figures in the documentation."""
    date, origin = time.strftime("%Y-%m-%d"), suite.origin()
    _RESULTS.mkdir(exist_ok=True)
    written = [_RESULTS / f"{date}.json", _RESULTS / f"{date}.md"]
    _write_json(suite, written[0])
    outcomes, programs = list(suite.workloads.values()), list(suite.programs.values())
    full = report.document(suite.facts, origin, outcomes, programs)
    written[1].write_text(f"# Results of {date}\n\n{full}")
    has_charts = True
    try:
        drawn = charts.draw(suite.workloads, programs, _RESULTS / "charts", _caption(suite))
        written += drawn
    except charts.ChartsAbsentError as e:
        has_charts = False
        print(e)
    if update_docs:
        report.put_between_markers(_PERFORMANCE, full)
        picture = (
            f"![pymuduo's ratios to uvloop](benchmarks/results/charts/{charts.OVERVIEW})\n\n" if has_charts else ""
        )
        chosen = [outcome for name, outcome in suite.workloads.items() if name in _IN_README]
        inside = [outcome for name, outcome in suite.programs.items() if name in _IN_README]
        more = "All workloads, all peers and their spread: [performance](docs/design/performance.md)."
        report.put_between_markers(_README, f"{origin}\n\n{picture}{report.summary(chosen, inside)}\n\n{more}")
        written += [_PERFORMANCE, _README]
    print("written:", *(path.relative_to(ROOT.parent) for path in written))


def main() -> None:
    """Measure what the command line asks for; status 1 if a peer failed."""
    options = _parse()
    suite = Suite(options)
    try:
        suite.run()
    except BuildError as e:
        sys.exit(f"bench: {e}")
    if options.json is not None:
        _write_json(suite, options.json)
    if options.record:
        record(suite, update_docs=options.update_docs)
    print(f"elapsed: {suite.elapsed_s:.0f} s")
    if suite.has_failed:
        sys.exit(1)


def _chosen_peers(options: argparse.Namespace) -> list[Peer]:
    if options.peer:
        return [peer for peer in PEERS if peer.name in options.peer]
    if options.quick:
        return [peer for peer in PEERS if peer.is_main]
    return list(PEERS)


def _write_json(suite: Suite, path: Path) -> None:
    path.write_text(json.dumps(suite.as_json(), indent=1) + "\n")


def _caption(suite: Suite) -> str:
    names = ("python", "pymuduo", "uvloop", "cpu", "kernel")
    return time.strftime("%Y-%m-%d") + "; " + "; ".join(f"{name} {suite.facts[name]}" for name in names)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", action="append", choices=_NAMES, help="or program; may be repeated (all)")
    parser.add_argument("--peer", action="append", choices=_PEER_NAMES, help="may be repeated (all)")
    parser.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--duration", type=float, metavar="S", help="measured, a turn of a workload (by --budget)")
    parser.add_argument("--warmup", type=float, default=0.15, metavar="S", help="before that (%(default)s)")
    parser.add_argument("--budget", type=float, default=560.0, metavar="S", help="for everything (%(default)g)")
    parser.add_argument("--quick", action="store_true", help="one very short round of the main peers: a check")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure of every round there")
    parser.add_argument("--record", action="store_true", help="write results/DATE.json, .md, and charts")
    parser.add_argument("--update-docs", action="store_true", help="also write the figures in README.md and docs/")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.duration, options.warmup = 1, 0.1, 0.03
    if options.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {options.rounds}")
    options.record |= options.update_docs
    return options


def _show_progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
