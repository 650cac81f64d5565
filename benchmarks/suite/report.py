"""What is told of a run: the machine, a Markdown table a workload, and every figure as JSON."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import statistics
import subprocess
import sysconfig
from dataclasses import asdict
from pathlib import Path
from typing import Any

from suite.build import compiler
from suite.load import Figures
from suite.runner import Outcome

BASES = ("uvloop", "raw C epoll")
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
    for module in ("pymuduo", "uvloop"):
        facts[module] = _version(module)
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
        row = [name, _spread([f.messages_per_s for f in rounds], "{:,.0f}")]
        row += [_ratio(rounds, outcome.figures[base]) for base in bases]
        row += [_cpu_ratio(rounds, outcome.figures[base]) for base in bases]
        row += [_middle([f.user_us_per_message for f in rounds]), _middle([f.system_us_per_message for f in rounds])]
        row += [_middle([f.latency_us[p] for f in rounds], "{:,.0f}") for p in ("p50", "p99", "p99.9")]
        rows.append(row)
    for word, reasons in (("absent", outcome.absent), ("FAILED", outcome.failed)):
        for name, reason in reasons.items():
            rows.append([name, f"{word}: {reason.replace('|', '/').replace(chr(10), ' ')}", *[""] * (len(columns) - 2)])
    text = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"### {outcome.workload.title} ({outcome.rounds} rounds)\n\n{text}\n{_remarks(outcome)}"


def as_json(outcome: Outcome) -> dict[str, Any]:
    """Return all figures of all rounds."""
    return asdict(outcome)


def _remarks(outcome: Outcome) -> str:
    remarks = []
    for name, rounds in outcome.figures.items():
        if "--rate" not in outcome.workload.options and any(map(_is_limited_by_generator, rounds)):
            remarks.append(f"{name}: in some round the load generator was busier than the server: a lower bound.")
        waited = sorted(f.waited for f in rounds)
        if waited[-1] > _WAITED:
            remarks.append(
                f"{name}: other programs kept it from its processor {_spread(waited, '{:.0%}')} of the time."
            )
        if unsent := sum(f.unsent for f in rounds):
            remarks.append(f"{name}: {unsent:,} messages were due but could not be sent in time.")
    return "".join(f"\n- {remark}" for remark in remarks) + ("\n" if remarks else "")


def _is_limited_by_generator(figures: Figures) -> bool:
    return figures.generator_busy > _BUSY and (figures.server_busy is None or figures.server_busy < _BUSY)


def _spread(values: list[float], form: str) -> str:
    low, middle, high = (form.format(v) for v in (min(values), statistics.median(values), max(values)))
    return middle if len(values) == 1 else f"{middle} ({low}–{high})"


def _ratio(rounds: list[Figures], base: list[Figures]) -> str:
    pairs = zip(rounds, base, strict=True)
    return _spread([a.messages_per_s / b.messages_per_s for a, b in pairs], "{:.2f}")


def _cpu_ratio(rounds: list[Figures], base: list[Figures]) -> str:
    pairs = [(a.cpu_us_per_message, b.cpu_us_per_message) for a, b in zip(rounds, base, strict=True)]
    return _middle([a / b for a, b in pairs if a is not None and b])


def _middle(values: list[float | None] | list[float], form: str = "{:.2f}") -> str:
    known = [value for value in values if value is not None]
    return form.format(statistics.median(known)) if known else _NONE


def _version(module: str) -> str:
    if importlib.util.find_spec(module) is None:
        return "absent"
    imported = importlib.import_module(module)
    if module == "pymuduo":
        return f"{imported.__version__}, {'compiled' if imported.COMPILED else 'pure Python'}"
    return importlib.metadata.version(module)


def _compiler_version() -> str:
    try:
        command = [*compiler(), "--version"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "absent"
    return done.stdout.partition("\n")[0]
