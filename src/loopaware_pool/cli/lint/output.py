"""Findings, written for people, for GitHub's annotations, and as JSON."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Final

from loopaware_pool.cli.output import in_one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from loopaware_pool.cli.lint.rules import Finding

__all__ = ["FORMATS", "as_github", "as_json", "as_text"]


def as_text(findings: Sequence[Finding], files: int) -> str:
    """Write a line for each finding, and one for all."""
    lines = [in_one_line(f"{each.path}:{each.line}:{each.column}: {each.code} {each.message}") for each in findings]
    looked_at = f"{files} file{'' if files == 1 else 's'}"
    if not findings:
        return f"Nothing found in {looked_at}."
    codes = ", ".join(f"{code}: {number}" for code, number in sorted(Counter(each.code for each in findings).items()))
    return "\n".join([*lines, f"Found {len(findings)} in {looked_at} ({codes})."])


def as_github(findings: Sequence[Finding], files: int) -> str:
    """Write a workflow command for each finding: GitHub shows it at its line."""
    del files
    return "\n".join(
        f"::error file={_property(each.path)},line={each.line},endLine={each.last_line},col={each.column},"
        f"title={_property(each.code)}::{_data(each.message)}"
        for each in findings
    )


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def as_json(findings: Sequence[Finding], files: int) -> str:
    """Write an object with the number of files and a list of findings."""
    rows = [
        {"path": f.path, "line": f.line, "column": f.column, "code": f.code, "message": f.message} for f in findings
    ]
    return json.dumps({"files": files, "findings": rows}, indent=2)


FORMATS: Final[dict[str, Callable[[Sequence[Finding], int], str]]] = {
    "text": as_text,
    "github": as_github,
    "json": as_json,
}
