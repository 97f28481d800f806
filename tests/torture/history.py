"""
What is to happen in one round, decided by a seed alone.

A history is plain data: it can be written down, replayed, and shortened. Times in it are milliseconds. Which caller a
cancellation hits is a number; who that is depends on who is there at that moment.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["History", "Step", "segments", "write"]

Step = dict[str, Any]
LEASE_KINDS = (
    "query",
    "query",
    "slow",
    "transaction",
    "rolled back",
    "error",
    "state",
    "left open",
    "given up",
    "closed",
)
# Those with which the next lease starts from an ordinary session on any pool.
PLAIN_KINDS = ("query", "query", "slow", "transaction", "rolled back", "error", "given up")
ENDS = ("close", "close under way", "cancelled close", "terminate")


@dataclass(frozen=True)
class History:
    """
    One round.

    Attributes:
        options: The pool's: `max_size`, `min_size`, and `session_reset` of ours.
        steps: What happens, in order; the names are those of `storm.Storm`'s methods.
        end: How the pool is closed.
    """

    options: dict[str, Any]
    steps: tuple[Step, ...]
    end: str

    def without(self, begin: int, end: int) -> History:
        """Leave out some steps."""
        return replace(self, steps=self.steps[:begin] + self.steps[end:])


def _lease(rng: random.Random, kinds: tuple[str, ...]) -> Step:
    return {
        "do": "lease",
        "kind": rng.choice(kinds),
        "queries": rng.randint(1, 3),
        "pause": rng.choice([0, 0, 0, 1, 5]),
        "timeout": rng.choice([None, None, None, 10_000, 1, 5, 20]),
        "times": rng.choice([1, 1, 2, 3, 6]),
    }


def _cancel(rng: random.Random) -> Step:
    return {"do": "cancel", "victim": rng.randrange(100), "times": rng.choice([1, 1, 2]), "apart": rng.choice([0, 1])}


def _thread(rng: random.Random) -> Step:
    return {
        "do": "thread",
        "leases": rng.randint(1, 4),
        "queries": rng.randint(1, 3),
        "end": rng.choice(["polite", "abrupt"]),
    }


# What may happen, how often as against the rest, who offers it, and whether it is a fault.
_EVENTS: list[tuple[str, int, str, bool, Callable[[random.Random], Step]]] = [
    ("cancel", 14, "any", False, _cancel),
    (
        "hand_off",
        8,
        "any",
        False,
        lambda rng: {"do": "hand_off", "waiting": rng.randint(1, 3), "times": rng.choice([1, 2])},
    ),
    ("pause", 12, "any", False, lambda rng: {"do": "pause", "ms": rng.choice([0, 0, 1, 3, 10])}),
    ("settle", 3, "any", False, lambda rng: {"do": "settle"}),
    (
        "kill",
        4,
        "any",
        True,
        lambda rng: {"do": "kill", "count": rng.choice([1, 1, 2, 99]), "which": rng.choice(["idle", "active", "any"])},
    ),
    ("cut", 3, "any", True, lambda rng: {"do": "cut", "count": rng.choice([1, 2])}),
    ("expire", 2, "ours", False, lambda rng: {"do": "expire"}),
    ("suspend", 2, "ours", False, lambda rng: {"do": "suspend", "ms": rng.choice([1, 5, 20])}),
    ("thread", 2, "ours", False, _thread),
    ("fork", 1, "ours", False, lambda rng: {"do": "fork", "leases": rng.randint(1, 3)}),
    ("end_loop", 2, "ours", False, lambda rng: {"do": "end_loop", "how": rng.choice(["polite", "polite", "abrupt"])}),
    ("resize", 2, "psycopg", False, lambda rng: {"do": "resize", "max_size": rng.randint(1, 5)}),
    ("drain", 1, "psycopg", False, lambda rng: {"do": "drain"}),
    ("check", 1, "psycopg", False, lambda rng: {"do": "check"}),
]


def write(seed: int, number: int, abilities: frozenset[str]) -> History:
    """
    Decide what happens in round *number* of *seed*.

    Args:
        seed: Any number.
        number: Which round.
        abilities: What the pool offers: "any"; "close under way" if it can be closed while it is used; "ours" and
            "psycopg" for what only those have.
    """
    rng = random.Random(f"{seed}/{number}")
    has_faults = rng.random() < 0.5
    max_size = rng.randint(1, 5)
    options = {
        "max_size": max_size,
        "min_size": rng.randint(0, min(2, max_size)),
        "session_reset": rng.choice(["auto", "confirmed", "awaited", "when_dirty"]),
    }
    events = [event for event in _EVENTS if event[2] in abilities and (has_faults or not event[3])]
    kinds = LEASE_KINDS if "ours" in abilities else PLAIN_KINDS
    steps = []
    for _ in range(rng.randint(20, 60)):
        if rng.random() < 0.45:
            steps.append(_lease(rng, kinds))
        else:
            (event,) = rng.choices(events, [event[1] for event in events])
            steps.append(event[4](rng))
    ends = ENDS if "close under way" in abilities else ENDS[:1]
    return History(options, tuple(steps), rng.choice(ends))


def segments(history: History) -> list[tuple[list[Step], str]]:
    """Divide the steps by the loops they happen on: those of each loop, and how it ends."""
    found: list[tuple[list[Step], str]] = []
    current: list[Step] = []
    for step in history.steps:
        if step["do"] == "end_loop":
            found.append((current, step["how"]))
            current = []
        else:
            current.append(step)
    return [*found, (current, "polite")]
