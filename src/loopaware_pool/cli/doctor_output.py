"""Findings, written for people, in colour where rich is installed, and as JSON."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from loopaware_pool.cli.doctor_findings import Severity

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from loopaware_pool.cli.doctor_facts import Facts
    from loopaware_pool.cli.doctor_findings import Finding

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
    lines = [*_lines(server, facts, findings)]
    try:
        from rich.console import Console
        from rich.text import Text
    except ModuleNotFoundError:
        print("\n".join(f"{label:<{_INDENT}}{text}".rstrip() for label, text, _ in lines))
        return
    console = Console(highlight=False, soft_wrap=True)
    for label, text, colour in lines:
        console.print(Text.assemble((f"{label:<{_INDENT}}", colour), text))


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
