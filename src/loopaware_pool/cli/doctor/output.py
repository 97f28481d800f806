"""Findings, written for people, in colour on a terminal where rich is installed, and as JSON."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from loopaware_pool.cli.doctor.findings import Severity
from loopaware_pool.cli.output import in_one_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from loopaware_pool.cli.doctor.facts import Facts
    from loopaware_pool.cli.doctor.findings import Finding

__all__ = ["as_json", "show"]

_COLOURS: Final = {
    Severity.PROBLEM: "bold red",
    Severity.WARNING: "bold yellow",
    Severity.NOTE: "cyan",
    Severity.OK: "green",
}
_INDENT: Final = 2 + max(len(severity.name) for severity in Severity)


def as_json(facts: Facts, findings: Sequence[Finding]) -> str:
    """Write an object with what was found where, and a list of findings."""
    host = facts.host
    versions = {"Python": host.python, **host.versions, "libpq": host.libpq, "PostgreSQL": facts.server.version}
    rows = [asdict(finding) | {"severity": str(finding.severity)} for finding in findings]
    return json.dumps({"versions": versions, "plan": asdict(facts.plan), "findings": rows}, indent=2)


def show(server: str, facts: Facts, findings: Sequence[Finding]) -> None:
    """Print the findings, the worst first, each with its evidence and remedy; what is well takes one line."""
    lines = [(label, in_one_line(text), colour) for label, text, colour in _lines(server, facts, findings)]
    if not _show_in_colour(lines):
        print("\n".join(f"{label:<{_INDENT}}{text}".rstrip() for label, text, _ in lines))


def _show_in_colour(lines: Sequence[tuple[str, str, str]]) -> bool:
    """Print the lines wrapped to the width of the terminal, if there is one, and rich; tell whether that was so."""
    try:
        from rich.table import Table
        from rich.text import Text

        from loopaware_pool.cli.console import VisibleConsole
    except ModuleNotFoundError:
        return False
    console = VisibleConsole()
    if not console.is_terminal:
        return False
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for label, text, colour in lines:
        table.add_row(Text(label, colour), Text(text))
    console.print(table)
    return True


def _lines(server: str, facts: Facts, findings: Sequence[Finding]) -> Iterator[tuple[str, str, str]]:
    """Label, text and the label's colour of each line."""
    yield "server", server, "bold"
    yield "plan", f"{facts.plan} = {facts.plan.wanted} connections", "bold"
    yield "", "", ""
    for finding in sorted(findings, key=lambda each: -each.severity):
        colour = _COLOURS[finding.severity]
        if finding.severity is Severity.OK:
            yield "ok", f"{finding.code}: {finding.title} ({finding.evidence})", colour
            continue
        yield str(finding.severity), f"{finding.code}: {finding.title}", colour
        yield "", f"evidence: {finding.evidence}", ""
        if finding.remedy:
            yield "", f"remedy:   {finding.remedy}", ""
    numbers = Counter(finding.severity for finding in findings)
    yield "", "", ""
    yield "total", ", ".join(f"{severity} {numbers[severity]}" for severity in reversed(Severity)), "bold"
