"""How the findings are shown, on a terminal, in a log and as JSON."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from loopaware_pool.cli.demo_show import format_ratio, make_table

if TYPE_CHECKING:
    from rich.table import Table

    from benchmarks.lab import Finding

__all__ = ["as_json", "make_tables_of", "verdict"]

PACKAGES = ("loopaware-pool", "asyncpg", "psycopg", "psycopg-pool", "uvloop")


def make_tables_of(loop: str, findings: list[Finding]) -> list[Table]:
    """Make a table for each peer."""
    peers = dict.fromkeys(finding.peer for finding in findings)
    return [_make_table(loop, peer, [finding for finding in findings if finding.peer == peer]) for peer in peers]


def _make_table(loop: str, peer: str, findings: list[Finding]) -> Table:
    table = make_table(f"on {loop}", peer, "ours", f"ours / {peer}", "target", "")
    for finding in findings:
        table.add_row(
            finding.name,
            _figure(finding.theirs.median, finding.unit),
            _figure(finding.ours.median, finding.unit),
            format_ratio(finding.ratio),
            _target(finding),
            _mark(finding),
        )
    return table


def _figure(value: float, unit: str) -> str:
    digits = 0 if value >= 1000 else 1
    return f"{value:,.{digits}f} {unit}"


def _target(finding: Finding) -> str:
    if finding.target is None:
        return ""
    return f"{finding.target}{'' if finding.ideal is None else f' {finding.ideal:.0f} {finding.unit}'}"


def _mark(finding: Finding) -> str:
    return {None: "", True: "[green]met[/green]", False: "[red]missed[/red]"}[finding.is_met]


def verdict(findings: list[Finding]) -> str:
    """Tell how many targets are met."""
    marks = [finding.is_met for finding in findings if finding.target is not None]
    return f"{sum(map(bool, marks))} of {len(marks)} targets met."


def as_json(
    server: str, findings: dict[str, list[Finding]], *, rounds: int, is_quick: bool, load: float
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
        "versions": {name: version(name) for name in PACKAGES},
        "load_average_before": load,
        "rounds": rounds,
        "is_quick": is_quick,
        "loops": {loop: [{**asdict(one), "is_met": one.is_met} for one in found] for loop, found in findings.items()},
    }
