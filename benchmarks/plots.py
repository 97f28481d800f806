"""`python -m benchmarks.plots FIGURES.json FOLDER`: the figures as plots, PNG and SVG."""

from __future__ import annotations

import importlib.util
import json
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from benchmarks.contenders import ASYNCPG, OURS, OURS_PSYCOPG, OURS_WHEN_DIRTY, PSQLPY, PSYCOPG_POOL, SQLALCHEMY
from benchmarks.lab import CPU, P99, SPEED, label

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes

__all__ = ["draw"]

# By name: a median, and how far the lowest and the highest are from it.
Bars: TypeAlias = "dict[str, tuple[float, float, float]]"

# Name of the file -> how the titles of its heats begin, the figure, and what is right of it.
PLOTS: dict[str, tuple[str, str]] = {
    "queries": ("SELECT 1 through asyncpg", SPEED),
    "queries-cpu": ("SELECT 1 through asyncpg", CPU),
    "queries-p99": ("SELECT 1 through asyncpg", P99),
    "psycopg": ("SELECT 1 through psycopg", SPEED),
    "psycopg-cpu": ("SELECT 1 through psycopg", CPU),
    "article": ("the article's workload", SPEED),
    "round-trip": ("SELECT 1 over 2.5 ms", "p50 ms"),
    "spike": ("spike", "all done ms"),
    "cold-burst": ("cold burst", "all done ms"),
    "fairness": ("100 tasks", "longest wait / ideal"),
    "waiters": ("waiting callers", "CPU us/acquire"),
    "overload": ("overload", "goodput %"),
}
# For a first look: the figure and the tasks of each panel, and who is shown.
OVERVIEW: tuple[tuple[str, int], ...] = ((SPEED, 10), (P99, 50))
OVERVIEW_LOOP = "asyncio"
OVERVIEW_CONTENDERS = (ASYNCPG, OURS, OURS_WHEN_DIRTY, PSYCOPG_POOL, OURS_PSYCOPG, SQLALCHEMY, PSQLPY)
OURS_COLOUR, OTHERS_COLOUR = "#2f6fbb", "#b5b5b5"


def draw(report: Mapping[str, Any], folder: Path) -> list[str]:
    """
    Draw what *report* has the figures for.

    Args:
        report: What `figures.json` holds.
        folder: Where the files go.

    Returns:
        Their names; none where matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return []
    written = []
    for name, (title, figure) in PLOTS.items():
        panels = [
            (f"{heat['title']} ({loop})", _medians(heat, figure))
            for loop, heats in report["loops"].items()
            for heat in heats
            if heat["title"].startswith(title)
        ]
        panels = [(text, bars) for text, bars in panels if bars]
        if panels:
            written += _draw([(text, bars, figure) for text, bars in panels], folder / name)
    return written + _draw_overview(report, folder / "overview")


def _draw_overview(report: Mapping[str, Any], path: Path) -> list[str]:
    """Draw the pools of both drivers side by side; nothing where they were not measured."""
    panels = []
    for figure, tasks in OVERVIEW:
        bars = {
            name: bar
            for heat in report["loops"].get(OVERVIEW_LOOP, ())
            if heat["title"].startswith("SELECT 1 through") and heat["title"].endswith(f", {label(tasks)}")
            for name, bar in _medians(heat, figure).items()
        }
        shown = {one.name: bars[one.name] for one in OVERVIEW_CONTENDERS if one.name in bars}
        if shown:
            panels.append((f"SELECT 1, {label(tasks)} on 10 connections", shown, figure))
    return _draw(panels, path) if panels else []


def _medians(heat: Mapping[str, Any], figure: str) -> Bars:
    """By contender: the median, and how far the lowest and the highest are from it."""
    bars: Bars = {}
    for contender, rounds in heat["rounds"].items():
        values = [one[figure] for one in rounds if figure in one]
        if contender in heat["overall"] and figure in heat["overall"][contender]:
            values = [heat["overall"][contender][figure]]
        if values:
            median = statistics.median(values)
            bars[contender] = (median, median - min(values), max(values) - median)
    return bars


def _draw(panels: Sequence[tuple[str, Bars, str]], path: Path) -> list[str]:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams |= {"svg.hashsalt": path.name, "svg.fonttype": "none"}  # the same figures give the same small file
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    height = sum(max(len(bars) for _, bars, _ in panels[row * columns : (row + 1) * columns]) for row in range(rows))
    canvas = Figure(figsize=(6 * columns, 0.32 * height + 0.9 * rows), layout="constrained")
    axes = canvas.subplots(rows, columns, squeeze=False).flat
    for place, (title, bars, figure) in zip(axes, panels, strict=False):
        _draw_bars(place, title, bars, figure)
    for place in list(axes)[len(panels) :]:
        place.set_visible(False)
    for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None})):
        canvas.savefig(path.with_suffix(suffix), dpi=100, metadata=metadata)
    return [f"{path.name}.png", f"{path.name}.svg"]


def _draw_bars(place: Axes, title: str, bars: Bars, figure: str) -> None:
    names = list(bars)[::-1]
    values = [bars[name] for name in names]
    place.barh(
        names,
        [median for median, _, _ in values],
        xerr=[[low for _, low, _ in values], [high for _, _, high in values]],
        color=[OURS_COLOUR if name.startswith("ours") else OTHERS_COLOUR for name in names],
        error_kw={"linewidth": 0.8, "ecolor": "#555555"},
    )
    place.set_title(title, fontsize=9)
    place.set_xlabel(f"{figure}; median and range of the rounds", fontsize=8)
    place.tick_params(labelsize=8)


if __name__ == "__main__":
    print(*draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])), sep="\n")
