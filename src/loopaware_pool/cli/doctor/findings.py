"""What doctor says of a fact, and how bad it is."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

__all__ = ["Finding", "Severity"]


class Severity(IntEnum):
    """How bad it is; the worse, the larger."""

    OK = 0
    """As it should be."""

    NOTE = 1
    """Good to know."""

    WARNING = 2
    """It may fail, under load, after a while, or in silence."""

    PROBLEM = 3
    """It will fail."""

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Finding:
    """
    What one check came to.

    Attributes:
        code: Which check; docs/doctor.md lists them.
        severity: How bad it is.
        title: What is so, in one line.
        evidence: What was seen that says so.
        remedy: What to do; empty if nothing needs to be done.
    """

    code: str
    severity: Severity
    title: str
    evidence: str
    remedy: str = ""
