"""`python -m benchmarks.plots FIGURES.json FOLDER`: the figures as plots, PNG and SVG."""

from __future__ import annotations

import importlib.util
import json
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.lab import CPU, P99, SPEED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes

__all__ = ["draw"]

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
            written += _draw(panels, figure, folder / name)
    return written


def _medians(heat: Mapping[str, Any], figure: str) -> dict[str, tuple[float, float, float]]:
    """By contender: the median, and how far the lowest and the highest are from it."""
    bars = {}
    for contender, rounds in heat["rounds"].items():
        values = [one[figure] for one in rounds if figure in one]
        if contender in heat["overall"] and figure in heat["overall"][contender]:
            values = [heat["overall"][contender][figure]]
        if values:
            median = statistics.median(values)
            bars[contender] = (median, median - min(values), max(values) - median)
    return bars


def _draw(panels: Sequence[tuple[str, Mapping[str, tuple[float, float, float]]]], figure: str, path: Path) -> list[str]:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams |= {"svg.hashsalt": path.name, "svg.fonttype": "none"}  # the same figures give the same small file
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    height = sum(max(len(bars) for _, bars in panels[row * columns : (row + 1) * columns]) for row in range(rows))
    canvas = Figure(figsize=(6 * columns, 0.32 * height + 0.9 * rows), layout="constrained")
    axes = canvas.subplots(rows, columns, squeeze=False).flat
    for place, (title, bars) in zip(axes, panels, strict=False):
        _draw_bars(place, title, bars, figure)
    for place in list(axes)[len(panels) :]:
        place.set_visible(False)
    for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None})):
        canvas.savefig(path.with_suffix(suffix), dpi=100, metadata=metadata)
    return [f"{path.name}.png", f"{path.name}.svg"]


def _draw_bars(place: Axes, title: str, bars: Mapping[str, tuple[float, float, float]], figure: str) -> None:
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
