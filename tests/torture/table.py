"""The report for people: a table of what storms came to, and what else was counted."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from torture.tally import PROMISES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["as_markdown"]

SURVIVED = {
    "rounds": "rounds, each with a seed of its own",
    "leases": "leases",
    "cancellations": "cancellations",
    "hand_offs": "callers cancelled as they were handed a connection",
    "faults": "sessions killed and sockets cut",
    "loop_ends": "loops that ended",
    "threads": "of these in other threads",
    "forks": "forks",
}
# What only this project's pools claim to survive.
OURS_ONLY = {"threads", "forks"}
NOT_ASKED = "-"


def as_markdown(report: dict[str, Any]) -> str:
    """
    Lay out a report.

    Args:
        report: What `report.json` holds.

    Returns:
        Markdown, with a line break at its end.
    """
    storms = report["storms"]
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    seeds = ", ".join(map(str, report["seeds"]))
    return "\n".join(
        [
            f"Python {report['python']}, {versions}.",
            f"Storms for {report['minutes_of_each']:g} minutes on each kind of pool, seeds {seeds}.",
            "",
            _row("", storms),
            _row("---", ("---:" for _ in storms)),
            *(_row(what, _counts(storms, name)) for name, what in SURVIVED.items()),
            *(_row(f"**{what}**", _numbers(storms, name)) for name, what in _promises(storms)),
            _row("**processes that hung or died**", (str(stormed["hung"]) for stormed in storms.values())),
            "",
            *_rest(report),
            "",
        ]
    )


def _row(head: str, cells: Iterable[str]) -> str:
    return f"| {' | '.join([head, *cells])} |"


def _counts(storms: dict[str, Any], name: str) -> Iterable[str]:
    for kind, stormed in storms.items():
        is_asked = name not in OURS_ONLY or kind.startswith("ours")
        yield f"{stormed['tally'][name]:,}" if is_asked else NOT_ASKED


def _promises(storms: dict[str, Any]) -> Iterable[tuple[Callable[[Any], int], str]]:
    for name, what in PROMISES.items():
        yield (lambda stormed, name=name: stormed["tally"]["broken"][name]), what


def _numbers(storms: dict[str, Any], read: Callable[[Any], int]) -> Iterable[str]:
    return (f"{read(stormed):,}" for stormed in storms.values())


def _rest(report: dict[str, Any]) -> list[str]:
    orders, fuzzed = report["interleavings"], report["fuzzing"]
    return [
        f"* {orders['interleavings']:,} interleavings of {orders['scenarios']} stories; {_verdict(orders)}.",
        f"* {fuzzed['bytes fuzzed']:,} bytes fuzzed into the parser of reset answers, "
        f"{fuzzed['argument combinations tried']:,} combinations of arguments tried; {_verdict(fuzzed)}.",
        *_overload(report["overload"]),
    ]


def _verdict(part: dict[str, Any]) -> str:
    return "not all were as they should be" if part["failure"] else "all were as they should be"


def _overload(figures: dict[str, Any]) -> Iterable[str]:
    for loop, heats in figures["loops"].items():
        for heat in heats:
            shares = []
            for contender, rounds in heat["rounds"].items():
                name, values = next(iter(rounds[0])), [next(iter(one.values())) for one in rounds]
                shares.append(f"{contender} {statistics.median(values):.0f}")
            yield f"* {heat['title']} ({loop}), {name}: {'; '.join(shares)}."
