"""Findings, written for people, in colour on a terminal, and as JSON."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from loopaware_pool.cli.command import say
from loopaware_pool.cli.doctor.findings import Severity
from loopaware_pool.cli.output import in_one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    versions = {**facts.host.versions, "PostgreSQL": facts.server.version}
    rows = [asdict(finding) | {"severity": str(finding.severity)} for finding in findings]
    return json.dumps({"versions": versions, "plan": asdict(facts.plan), "findings": rows}, indent=2)


def show(server: str, facts: Facts, findings: Sequence[Finding]) -> None:
    """Print the findings, the worst first, each with its evidence and remedy; what is well takes one line."""
    _say("server", server, "bold")
    _say("plan", f"{facts.plan} = {facts.plan.wanted} connections", "bold")
    print()
    for finding in sorted(findings, key=lambda each: -each.severity):
        _show_finding(finding)
    numbers = Counter(finding.severity for finding in findings)
    print()
    _say("total", ", ".join(f"{severity} {numbers[severity]}" for severity in reversed(Severity)), "bold")


def _show_finding(finding: Finding) -> None:
    is_fine = finding.severity is Severity.OK
    seen = f" ({finding.evidence})" if is_fine else ""
    _say(str(finding.severity), f"{finding.code}: {finding.title}{seen}", _COLOURS[finding.severity])
    if not is_fine:
        _say("", f"evidence: {finding.evidence}", "")
    if finding.remedy:
        _say("", f"remedy:   {finding.remedy}", "")


def _say(label: str, text: str, style: str) -> None:
    say(in_one_line(f"{label:<{_INDENT}}{text}"), style=style)
