"""Runs programs on both sides, and says which differences are real: those that come each time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from differential.compare import differences
from differential.intended import Row, explain
from differential.stage import HASTY, PATIENT, perform

if TYPE_CHECKING:
    from differential.compare import Difference
    from differential.control import Control
    from differential.program import Program
    from differential.stage import Pace

__all__ = ["Judge"]

_CONFIRMATIONS = 2


class Judge:
    """
    Compares.

    Args:
        control: A session of its own at the server.

    Attributes:
        met: How often each intended difference was met, by its key.
        programs: How many programs were compared.
        told: Signatures of differences that are known well enough.
    """

    def __init__(self, control: Control) -> None:
        self._control = control
        self.met: dict[str, int] = {}
        self.programs = 0
        self.told: set[tuple[Any, ...]] = set()

    def all_of(self, program: Program) -> list[Difference]:
        """Look once, patiently; everything that differs, intended or not."""
        return self._compared(program, PATIENT)

    def examine(self, program: Program, first: Pace = HASTY) -> Difference | None:
        """
        Look for the first difference of a program that nothing explains, first at this pace.

        None if there is none, or not each time, or if one of its signature is in `told`.
        """
        self.programs += 1
        if self.glance(program, first) in self.told | {None}:
            return None
        signatures = set()
        for _ in range(_CONFIRMATIONS):
            found = self._first(program, PATIENT)
            if found is None:
                return None
            signatures.add(found.signature)
        return found if len(signatures) == 1 else None

    def keys(self, program: Program, pace: Pace = PATIENT) -> set[str]:
        """The rows that a program shows."""
        met, self.met = self.met, {}
        self._first(program, pace)
        met, self.met = self.met, met
        return set(met)

    def glance(self, program: Program, pace: Pace = HASTY) -> tuple[Any, ...] | None:
        """Look once; the signature of the difference."""
        found = self._first(program, pace)
        return None if found is None else found.signature

    def _first(self, program: Program, pace: Pace) -> Difference | None:
        return self._unexplained(self._compared(program, pace))

    def _compared(self, program: Program, pace: Pace) -> list[Difference]:
        pace = pace if pace is HASTY else pace.stretched(self._control.slowness())
        upstream = perform(program, "upstream", self._control, pace)
        ours = perform(program, "ours", self._control, pace)
        return differences(program, upstream, ours)

    def _unexplained(self, found: list[Difference]) -> Difference | None:
        for difference in found:
            row = explain(difference) or _parted_by(difference, found)
            if row is None:
                return difference
            self.met[row.key] = self.met.get(row.key, 0) + 1
            if row.parts_ways:
                return None
        return None


def _parted_by(difference: Difference, found: list[Difference]) -> Row | None:
    """A row of something else that came to be known of the same step at the same time, and is why."""
    same = [one for one in found if (one.known, one.number) == (difference.known, difference.number)]
    rows = [explain(other) for other in same]
    return next((row for row in rows if row is not None and row.parts_ways), None)
