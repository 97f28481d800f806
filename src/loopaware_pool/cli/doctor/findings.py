"""What doctor says of a fact, and how bad it is."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

__all__ = ["Finding", "Severity"]


class Severity(IntEnum):
    """How bad it is; the worse, the larger."""

    OK = 0
    NOTE = 1  # good to know
    WARNING = 2  # it may fail: under load, after a while, or in silence
    PROBLEM = 3  # it will fail

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check came to."""

    code: str  # which check
    severity: Severity
    title: str  # what is so, in one line
    evidence: str  # what was seen that says so
    remedy: str = ""  # what to do; empty if nothing needs to be done
