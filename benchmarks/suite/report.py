"""What is told of a run: the machine, Markdown tables, the blocks of the documentation, and every figure as JSON."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import platform
import statistics
import subprocess
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from suite.build import compiler
from suite.inprocess import Measure, ProgramOutcome
from suite.load import Figures
from suite.runner import Outcome

BASES = ("uvloop", "raw C epoll")
OURS = "pymuduo"
MARKER = "<!-- figures -->"
_VERSIONS = ("pymuduo", "uvloop", "rloop", "zuvloop", "gevent", "twisted", "tornado")
_BUSY = 0.9  # of the time: a generator above it with a server below it was what was measured
_WAITED = 0.05  # of the time: above it, other programs were measured too
_NONE = "–"


def machine() -> dict[str, str]:
    """Return what the figures depend on, in words."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    facts = {
        "cpu": f"{models[0] if models else platform.machine()} × {len(models) or 1}",
        "kernel": platform.release(),
        "python": f"{platform.python_version()}{'' if has_gil() else ', free-threaded'}",
        "C compiler": _compiler_version(),
    }
    facts |= {module: _version(module) for module in _VERSIONS}
    return facts


def has_gil() -> bool:
    """Whether threads of this interpreter take turns."""
    return not sysconfig.get_config_var("Py_GIL_DISABLED")


def table(outcome: Outcome) -> str:
    """Return one workload's medians as Markdown, and remarks on what limits them."""
    bases = [base for base in BASES if base in outcome.figures]
    columns = ["server", "messages/s (min–max)", *(f"× {base}" for base in bases)]
    columns += [f"CPU/msg × {base}" for base in bases]
    columns += ["user µs/msg", "system µs/msg", "p50 µs", "p99 µs", "p99.9 µs"]
    rows = [columns, ["---"] * len(columns)]
    for name, rounds in outcome.figures.items():
        row = [name, spread([f.messages_per_s for f in rounds], "{:,.0f}")]
        row += [_ratio(rounds, outcome.figures[base]) for base in bases]
        row += [_cpu_ratio(rounds, outcome.figures[base]) for base in bases]
        row += [_middle([f.user_us_per_message for f in rounds]), _middle([f.system_us_per_message for f in rounds])]
        row += [_middle([f.latency_us[p] for f in rounds], "{:,.0f}") for p in ("p50", "p99", "p99.9")]
        rows.append(row)
    for word, reasons in (("absent", outcome.absent), ("FAILED", outcome.failed)):
        for name, reason in reasons.items():
            rows.append([name, f"{word}: {reason.replace('|', '/').replace(chr(10), ' ')}", *[""] * (len(columns) - 2)])
    return f"### {outcome.workload.title} ({rounds_of(outcome.rounds)})\n\n{markdown(rows)}\n{_remarks(outcome)}"


def program_table(outcome: ProgramOutcome) -> str:
    """Return one program's medians as Markdown: a row a figure, a column a peer."""
    peers = [peer for peer in outcome.program.peers if peer in outcome.figures]
    base = BASES[0] if BASES[0] in peers else None
    columns = ["figure", *peers]
    if base is not None:
        columns += [f"{peer} × {base}" for peer in peers if peer != base]
    rows = [columns, ["---"] * len(columns)]
    for measure in outcome.program.measures:
        of_peers = {peer: _values(outcome, peer, measure) for peer in peers}
        if not all(of_peers.values()):
            continue  # a quick run leaves some out
        row = [measure.title, *(spread(values, _form(values)) for values in of_peers.values())]
        if base is not None:
            row += [_pairwise(values, of_peers[base]) for peer, values in of_peers.items() if peer != base]
        rows.append(row)
    parts = [f"### {outcome.program.title} ({rounds_of(outcome.rounds)})"] + ([markdown(rows)] if peers else [])
    reasons = [f"- {name}: absent: {reason}" for name, reason in outcome.absent.items()]
    reasons += [f"- {name}: FAILED: {reason}" for name, reason in outcome.failed.items()]
    return "\n\n".join([*parts, "\n".join(reasons)] if reasons else parts) + "\n"


def markdown(rows: list[list[str]]) -> str:
    """Return a table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def spread(values: list[float], form: str) -> str:
    """Return the median with the lowest and the highest, each as *form* says."""
    low, middle, high = (form.format(v) for v in (min(values), statistics.median(values), max(values)))
    return middle if len(values) == 1 else f"{middle} ({low}–{high})"


def rounds_of(number: int) -> str:
    """Return a number of rounds in words."""
    return "one round" if number == 1 else f"{number} rounds"


def is_ours(peer: str) -> bool:
    """Whether a peer is pymuduo, in one of its forms."""
    return peer.partition(",")[0] == OURS


def is_paced(outcome: Outcome) -> bool:
    """Whether the load generator set the rate, so that throughput says nothing."""
    return "--rate" in outcome.workload.options


def advantage(outcome: ProgramOutcome, measure: Measure) -> list[float]:
    """Return pymuduo's ratios to uvloop, round by round, turned so that more is better; none if either is missing."""
    ours, base = (_values(outcome, peer, measure) for peer in (OURS, BASES[0]))
    if len(ours) != len(base):
        return []
    return [a / b if measure.more_is_better else b / a for a, b in zip(ours, base, strict=True) if a and b]


def ratios(outcome: Outcome, peer: str, base: str) -> list[float]:
    """Return a peer's ratios of throughput to *base*, round by round; none if either is missing."""
    if peer not in outcome.figures or base not in outcome.figures:
        return []
    return _ratios_of(outcome.figures[peer], outcome.figures[base])


def summary(outcomes: Iterable[Outcome], programs: Iterable[ProgramOutcome]) -> str:
    """Return what pymuduo reached, as two short tables: a row a workload, and a row a program."""
    rows = [
        ["work", "messages/s", "× uvloop", "× uvloop, best by hand", "× raw C", "CPU µs/msg", "uvloop's", "raw C's"]
    ]
    rows.append(["---"] * len(rows[0]))
    for outcome in outcomes:
        rows += [_summary_row(outcome, peer) for peer in outcome.figures if is_ours(peer)]
    inside = [["inside one process", OURS, *BASES, f"better than {BASES[0]}"], ["---"] * 5]
    for done in programs:
        for measure in done.program.measures:
            if measure.headline and (better := advantage(done, measure)):
                values = [_values(done, peer, measure) for peer in (OURS, *BASES)]
                middles = [_middle(of_peer, _form(of_peer)) for of_peer in values]
                inside.append([measure.headline, *middles, f"{_middle(better)} ×"])
    return "\n\n".join(markdown(table) for table in (rows, inside) if len(table) > 2)


def document(
    facts: Mapping[str, str], origin: str, outcomes: Iterable[Outcome], programs: Iterable[ProgramOutcome]
) -> str:
    """Return everything as Markdown; *origin* says when and how it was measured."""
    lines = "\n".join(f"- {key}: {value}" for key, value in facts.items())
    tables = [table(outcome) for outcome in outcomes] + [program_table(outcome) for outcome in programs]
    return "\n".join([f"{origin}\n\n{lines}\n", *tables]).rstrip("\n") + "\n"


def put_between_markers(page: Path, text: str) -> None:
    """Replace what stands between the two figure markers of *page*.

    Raises:
        ValueError: the page has not exactly two.
    """
    parts = page.read_text().split(MARKER)
    if len(parts) != 3:
        raise ValueError(f"{page} has {len(parts) - 1} markers {MARKER}; two are required")
    page.write_text(f"{parts[0]}{MARKER}\n{text.strip()}\n{MARKER}{parts[2]}")


def as_json(outcome: Outcome | ProgramOutcome) -> dict[str, Any]:
    """Return all figures of all rounds."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(outcome), default=sorted))  # a set becomes a list
    return plain


def _summary_row(outcome: Outcome, peer: str) -> list[str]:
    figures = outcome.figures
    _, _, form = peer.partition(", ")
    tuned = [name for name in figures if name.startswith(f"{BASES[0]},")]
    best = max(tuned, key=outcome.median_rate, default="")
    row = [outcome.workload.title + (f" ({form})" if form else "")]
    if is_paced(outcome):
        row += [_NONE] * 4
    else:
        row.append(f"{outcome.median_rate(peer):,.0f}")
        row += [_middle(ratios(outcome, peer, base)) for base in (BASES[0], best, BASES[1])]
    for name in (peer, *BASES):
        row.append(_middle([f.cpu_us_per_message for f in figures.get(name, ())]))
    return row


def _values(outcome: ProgramOutcome, peer: str, measure: Measure) -> list[float]:
    return [figures[measure.key] for figures in outcome.figures.get(peer, ()) if measure.key in figures]


def _form(values: list[float]) -> str:
    return "{:,.0f}" if values and min(values) >= 100 else "{:.2f}"


def _pairwise(values: list[float], base: list[float]) -> str:
    return spread([a / b for a, b in zip(values, base, strict=True) if b], "{:.2f}")


def _remarks(outcome: Outcome) -> str:
    remarks = []
    for name, rounds in outcome.figures.items():
        if not is_paced(outcome) and any(map(_is_limited_by_generator, rounds)):
            remarks.append(f"{name}: in some round the load generator was busier than the server: a lower bound.")
        waited = sorted(f.waited for f in rounds)
        if waited[-1] > _WAITED:
            remarks.append(f"{name}: other programs kept it from its processor {spread(waited, '{:.0%}')} of the time.")
        if unsent := sum(f.unsent for f in rounds):
            remarks.append(f"{name}: {unsent:,} messages were due but could not be sent in time.")
    return "".join(f"\n- {remark}" for remark in remarks) + ("\n" if remarks else "")


def _is_limited_by_generator(figures: Figures) -> bool:
    return figures.generator_busy > _BUSY and (figures.server_busy is None or figures.server_busy < _BUSY)


def _ratios_of(rounds: list[Figures], base: list[Figures]) -> list[float]:
    return [a.messages_per_s / b.messages_per_s for a, b in zip(rounds, base, strict=True)]


def _ratio(rounds: list[Figures], base: list[Figures]) -> str:
    return spread(_ratios_of(rounds, base), "{:.2f}")


def _cpu_ratio(rounds: list[Figures], base: list[Figures]) -> str:
    pairs = [(a.cpu_us_per_message, b.cpu_us_per_message) for a, b in zip(rounds, base, strict=True)]
    return _middle([a / b for a, b in pairs if a is not None and b])


def _middle(values: Sequence[float | None], form: str = "{:.2f}") -> str:
    known = [value for value in values if value is not None]
    return form.format(statistics.median(known)) if known else _NONE


def _version(module: str) -> str:
    if importlib.util.find_spec(module) is None:
        return "absent"
    imported = importlib.import_module(module)
    if module == OURS:
        return f"{imported.__version__}, {'compiled' if imported.COMPILED else 'pure Python'}"
    return importlib.metadata.version(module)


def _compiler_version() -> str:
    try:
        command = [*compiler(), "--version"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "absent"
    return done.stdout.partition("\n")[0]
