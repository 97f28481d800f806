"""How heats are shown, on a terminal, in a log and as JSON."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from loopaware_pool.cli.demo.show import format_ratio, make_table
from loopaware_pool.cli.measure import Spread

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.table import Table

    from benchmarks.lab import Heat

__all__ = ["as_json", "goals_table", "heat_table"]

PACKAGES = ("loopaware-pool", "asyncpg", "psycopg", "psycopg-pool", "sqlalchemy", "psqlpy", "uvloop")


def heat_table(heat: Heat) -> Table:
    """One row a contender: medians of its figures, and the first figure relative to the first contender's."""
    first = next(iter(heat.rounds))
    figures = list(dict.fromkeys(figure for rounds in heat.rounds.values() for figure in rounds[0]))
    overall = list(heat.overall.get(first, ()))
    table = make_table("", *figures, *overall, f"{figures[0]} / {first}")
    for name, rounds in heat.rounds.items():
        medians = [_number(Spread.of(heat.values(name, one)).median) if one in rounds[0] else "" for one in figures]
        of_all = [_number(heat.overall[name][one]) for one in overall]
        is_comparable = name != first and all(heat.values(first, figures[0]))
        ratio = format_ratio(heat.ratio(name, first, figures[0])) if is_comparable else ""
        table.add_row(name, *medians, *of_all, ratio)
    return table


def _number(value: float) -> str:
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


def goals_table(loop: str, heats: Sequence[Heat]) -> Table | None:
    """One row a goal; None where there is none."""
    table = make_table(f"goals, {loop}", "reached", "goal", "")
    for number, column in enumerate(table.columns):
        column.no_wrap = number > 0
    for heat in heats:
        for goal in heat.goals:
            reached = heat.reached(goal)
            if reached is None:
                continue
            against = "" if goal.peer is None else f" / {goal.peer}"
            table.add_row(
                f"{heat.title}: {goal.figure}, {goal.ours}{against}",
                _number(reached.median) if goal.peer is None else format_ratio(reached),
                goal.text,
                "[green]met[/green]" if goal.is_met(reached.median) else "[red]missed[/red]",
            )
    return table if table.row_count else None


def as_json(
    server: str,
    heats: Mapping[str, Sequence[Heat]],
    *,
    rounds: int,
    effort: float,
    load: float,
    heap: str | None = None,
) -> dict[str, Any]:
    """Put together what was measured, and on what."""
    return {
        "server": server,
        "python": platform.python_version(),
        "machine": {
            "system": platform.system(),
            "architecture": platform.machine(),
            "cpus": len(os.sched_getaffinity(0)),
        },
        "versions": {name: _version(name) for name in PACKAGES},
        "load_average_before": load,
        "heap": heap,
        "rounds": rounds,
        "effort": effort,
        "loops": {loop: [_heat_as_json(heat) for heat in several] for loop, several in heats.items()},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _heat_as_json(heat: Heat) -> dict[str, Any]:
    goals = []
    for goal in heat.goals:
        reached = heat.reached(goal)
        if reached is not None:
            goals.append({**asdict(goal), "reached": asdict(reached), "is_met": goal.is_met(reached.median)})
    return {
        "title": heat.title,
        "rounds": {name: list(figures) for name, figures in heat.rounds.items()},
        "overall": dict(heat.overall),
        "goals": goals,
        "note": heat.note,
    }
