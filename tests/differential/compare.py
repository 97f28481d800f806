"""What differs between two transcripts of a program."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from differential.stage import SKIPPED, Transcript

if TYPE_CHECKING:
    from differential.program import Program

__all__ = ["Difference", "Runs", "differences"]

# What came of a step is told before what else could be seen then.
_FIRST = ("made", "still busy", "at once", "outcome")


@dataclass(frozen=True)
class Runs:
    """Both runs of a program."""

    upstream: Transcript
    ours: Transcript


@dataclass(frozen=True)
class Difference:
    """
    One.

    Attributes:
        program: The program that shows it.
        number: The step; -1 is the opening, one behind the last the end.
        what: What differs: "outcome", "counts", "callbacks" and so on; "still busy" if a later step of the same task
            had to be skipped on one side, because this one had not ended.
        upstream: What the driver's own pool did; None for nothing.
        ours: What this project's did.
        known: The step in which it came to be known.
        runs: All that both did.
    """

    program: Program
    number: int
    what: str
    upstream: Any
    ours: Any
    known: int
    runs: Runs = field(repr=False, compare=False)

    @property
    def step(self) -> dict[str, Any]:
        """What the program did there."""
        steps = self.program.steps
        return steps[self.number] if 0 <= self.number < len(steps) else {"do": "open" if self.number < 0 else "end"}

    @property
    def signature(self) -> tuple[Any, ...]:
        """Alike for differences that are likely of one cause: what shrinking must keep."""
        step = self.step
        return (self.what, step["do"], step.get("name"), _shape(self.upstream), _shape(self.ours))

    def __str__(self) -> str:
        return f"step {self.number} {self.step}: {self.what}\n  upstream: {self.upstream}\n  ours:     {self.ours}"


def _shape(told: Any) -> Any:
    if isinstance(told, dict):
        return told.get("raised") or tuple(sorted(map(str, told)))
    return told if told in ("skipped", "pending", "hangs", "closed", None) else type(told).__name__


def differences(program: Program, upstream: Transcript, ours: Transcript) -> list[Difference]:
    """All of them, in the order in which they came to be known."""
    found, runs = [], Runs(upstream, ours)
    for key in upstream.entries.keys() | ours.entries.keys():
        theirs, own = upstream.entries.get(key), ours.entries.get(key)
        if not (_is_soon(theirs, own) if key[1] == "ended after" else _is_alike(theirs, own)):
            known = min(side.known[key] for side in (upstream, ours) if key in side.known)
            found += _parts(_cause(Difference(program, *key, theirs, own, known, runs)))
    found.sort(key=lambda one: (one.known, one.what not in _FIRST, one.number, one.what))
    return list(takewhile(lambda one: not _is_chance(one), found))


def _is_chance(difference: Difference) -> bool:
    """Whether a statement of a lease that allows its statements one millisecond has taken longer on one side."""
    steps = difference.program.steps[: max(0, difference.number)]
    has_a_millisecond = any("statement_timeout = '1ms'" in str(step.get("args")) for step in steps)
    told = (difference.upstream, difference.ours)
    is_late = [isinstance(one, dict) and "due to statement timeout" in one.get("message", "") for one in told]
    return has_a_millisecond and difference.step.get("on") not in ("pool", "lease") and is_late[0] != is_late[1]


def _parts(difference: Difference) -> list[Difference]:
    """Each kind of callback for itself, as each may have its reason."""
    if difference.what != "callbacks":
        return [difference]
    sides = (difference.upstream or [], difference.ours or [])
    names = sorted({name for told in sides for name, _ in told})
    parts = [[[one for one in told if one[0] == name] for told in sides] for name in names]
    return [replace(difference, upstream=theirs, ours=own) for theirs, own in parts if theirs != own]


def _cause(difference: Difference) -> Difference:
    """The same; where only one side could do a step, that the other's task was still busy with an earlier one."""
    step, number, runs = difference.step, difference.number, difference.runs
    if difference.what != "at once" or SKIPPED not in (difference.upstream, difference.ours) or "task" not in step:
        return difference
    for earlier in range(number - 1, -2, -1):
        told = [run.is_busy(earlier, number) for run in (runs.upstream, runs.ours)]
        if difference.program.task(earlier) == step["task"] and told[0] != told[1]:
            return Difference(difference.program, earlier, "still busy", *told, number, runs)
    return difference


def _is_soon(theirs: int | None, own: int | None) -> bool:
    """Whether what was waited for came at about the same time: on a busy machine it may be seen one step later."""
    return theirs is not None and own is not None and abs(theirs - own) <= 1


def _is_alike(theirs: Any, own: Any) -> bool:
    """Whether they say the same; errors of our own classes have messages of their own, which are longer."""
    if isinstance(theirs, dict) and isinstance(own, dict) and "is" in own:
        return theirs.get("raised") in own["is"]
    return theirs == own
