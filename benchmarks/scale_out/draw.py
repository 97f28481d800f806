"""The simulated figures as a plot, PNG and SVG."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from matplotlib.axes import Axes

__all__ = ["draw"]

NAME: Final = "scale-out"
# By what a line's name contains, the first that does: marker, line and colour.
STYLES: Final = {
    "min_size=10": ("o-", "#b5b5b5"),
    "4 servers, pools": ("s--", "#2f6fbb"),
    "4 servers, proxy": ("^--", "#d0782f"),
    "alone, shed_after": ("D:", "#2f6fbb"),
    "shed_after": ("v-", "#3a8f4d"),
    "proxy": ("^-", "#d0782f"),
    "pools": ("s-", "#2f6fbb"),
}


def draw(report: Mapping[str, Any], folder: Path) -> list[str]:
    """
    Draw both parts of *report*, what `simulate` returned, side by side.

    Returns:
        The names of the files in *folder*; none where matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return []
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams |= {"svg.hashsalt": NAME, "svg.fonttype": "none"}  # the same figures give the same small file
    canvas = Figure(figsize=(14, 4.2), layout="constrained")
    machines, pools, in_time = canvas.subplots(1, 3)
    _lines(machines, report["more_machines"], "in_time_per_second")
    offered = next(iter(report["more_machines"].values()))
    machines.plot(
        [row["size"] for row in offered],
        [row["offered_per_second"] for row in offered],
        ":",
        color="#555555",
        label="callers that come",
    )
    machines.set_title("machines are added: 8 processes each, max_size=10", fontsize=9)
    machines.set_xlabel("machines", fontsize=8)
    machines.set_ylabel("served in time, a second", fontsize=8)
    for place, figure, text in (
        (pools, "answered_per_second", "served, in time or not, a second"),
        (in_time, "in_time_per_second", "served in time, a second"),
    ):
        _lines(place, report["larger_pools"], figure)
        place.set_title("pools are made larger: 10,000 callers a second", fontsize=9)
        place.set_xlabel("max_size, of 256 processes", fontsize=8)
        place.set_ylabel(text, fontsize=8)
        place.set_ylim(bottom=0)
    for place in (machines, pools, in_time):
        place.tick_params(labelsize=8)
        place.legend(fontsize=8)
    for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None})):
        canvas.savefig((folder / NAME).with_suffix(suffix), dpi=100, metadata=metadata)
    return [f"{NAME}.png", f"{NAME}.svg"]


def _lines(place: Axes, lines: Mapping[str, Any], figure: str) -> None:
    for name, rows in lines.items():
        style, colour = next(look for part, look in STYLES.items() if part in name)
        place.plot(
            [row["size"] for row in rows], [row[figure] for row in rows], style, color=colour, label=name, markersize=4
        )
