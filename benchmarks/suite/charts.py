"""Pictures of a run, as SVG: one a workload, and an overview of the ratios to uvloop. They need matplotlib."""

from __future__ import annotations

import importlib
import importlib.util
import statistics
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from suite.inprocess import ProgramOutcome
from suite.report import BASES, OURS, advantage, is_ours, is_paced, ratios
from suite.runner import Outcome

OVERVIEW = "overview.svg"
_OUR_COLOUR, _THEIR_COLOUR, _RAW_COLOUR = "#1b6ca8", "#9aa5b1", "#d0a24c"
_ROW_INCHES, _WIDTH_INCHES, _MARGIN_INCHES = 0.36, 8.0, 1.2


class ChartsAbsentError(Exception):
    """matplotlib is not installed."""


def draw(outcomes: dict[str, Outcome], programs: Iterable[ProgramOutcome], folder: Path, origin: str) -> list[Path]:
    """Write the charts into *folder* and return their paths; *origin* stands below each.

    Raises:
        ChartsAbsentError: see there.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ChartsAbsentError("matplotlib is not installed: no charts")
    matplotlib = importlib.import_module("matplotlib")
    matplotlib.use("svg")
    # The same figures make the same file.
    matplotlib.rcParams.update({"svg.hashsalt": "pymuduo", "svg.fonttype": "none", "font.size": 9})
    folder.mkdir(parents=True, exist_ok=True)
    paths = [_draw_overview(outcomes.values(), programs, folder / OVERVIEW, origin)]
    for name, outcome in outcomes.items():
        if outcome.figures and not is_paced(outcome):
            paths.append(_draw_workload(outcome, folder / f"{name}.svg", origin))
    return paths


def _draw_workload(outcome: Outcome, path: Path, origin: str) -> Path:
    names = sorted(outcome.figures, key=outcome.median_rate)
    rates = [[figures.messages_per_s for figures in outcome.figures[name]] for name in names]
    figure, axes = _canvas(len(names), f"{outcome.workload.title}\nmessages/s")
    _bars(axes, names, rates, [_colour(name) for name in names], "{:,.0f}", start=0)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    return _save(figure, path, origin)


def _draw_overview(outcomes: Iterable[Outcome], programs: Iterable[ProgramOutcome], path: Path, origin: str) -> Path:
    rows: list[tuple[str, list[float]]] = []
    for outcome in outcomes:
        for peer in outcome.figures:
            if is_ours(peer) and not is_paced(outcome) and (values := ratios(outcome, peer, BASES[0])):
                _, _, form = peer.partition(", ")
                rows.append((outcome.workload.title + (f" ({form})" if form else ""), values))
    for done in programs:
        for measure in done.program.measures:
            if measure.headline and (values := advantage(done, measure)):
                rows.append((measure.headline, values))
    rows.reverse()  # the first is at the top
    figure, axes = _canvas(len(rows), f"{OURS} against {BASES[0]}: times as good")
    names, values_of_rows = [_wrapped(name) for name, _ in rows], [values for _, values in rows]
    colours = [_OUR_COLOUR if statistics.median(values) >= 1 else _THEIR_COLOUR for values in values_of_rows]
    _bars(axes, names, values_of_rows, colours, "{:.2f} ×", start=1)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g} ×")
    axes.axvline(1.0, color="black", linewidth=0.8)
    return _save(figure, path, origin)


def _canvas(rows: int, title: str) -> tuple[Any, Any]:
    pyplot = importlib.import_module("matplotlib.pyplot")
    size = (_WIDTH_INCHES, _MARGIN_INCHES + _ROW_INCHES * max(rows, 1))
    figure, axes = pyplot.subplots(figsize=size, layout="constrained")
    figure.suptitle(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _bars(
    axes: Any, names: Sequence[str], rows: Sequence[Sequence[float]], colours: Sequence[str], form: str, *, start: float
) -> None:
    """Draw a row of *rows* as a bar from *start* to its median, with its lowest and highest."""
    middles = [statistics.median(values) for values in rows]
    places = range(len(names))
    axes.barh(places, [middle - start for middle in middles], left=start, color=colours)
    for place, middle, values in zip(places, middles, rows, strict=True):
        axes.plot([min(values), max(values)], [place, place], color="black", linewidth=0.9, marker="|", markersize=5)
        axes.annotate(
            form.format(middle),
            (max(*values, start), place),
            (6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.set_yticks(places, names, fontsize=8)
    axes.margins(x=0.12)


def _colour(peer: str) -> str:
    if is_ours(peer):
        return _OUR_COLOUR
    return _RAW_COLOUR if peer == BASES[1] else _THEIR_COLOUR


def _wrapped(text: str, width: int = 60) -> str:
    return textwrap.fill(text, width)


def _save(figure: Any, path: Path, origin: str) -> Path:
    figure.supxlabel(_wrapped(f"Median, lowest and highest of the rounds. {origin}", 130), fontsize=7, color="#555555")
    figure.savefig(path, metadata={"Date": None})
    importlib.import_module("matplotlib.pyplot").close(figure)
    return path
