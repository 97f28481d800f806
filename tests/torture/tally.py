"""What a storm has seen, and its report."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

__all__ = ["Tally"]

# What must be 0, and under which name it is reported.
PROMISES = {
    "lost": "connections lost",
    "sockets": "sockets left",
    "stale": "stale registrations",
    "wrong": "wrong answers",
    "leaked_state": "sessions with another's state",
    "over": "sessions over max_size",
    "swallowed": "cancellations swallowed",
    "waiters": "callers left waiting",
    "unexplained": "errors without a cause",
    "complaints": "complaints of the loop or the interpreter",
}


@dataclass
class Tally:
    """Counts. Those of `PROMISES` are to stay 0."""

    rounds: int = 0
    steps: int = 0
    leases: int = 0
    queries: int = 0
    cancellations: int = 0
    hand_offs: int = 0
    timeouts: int = 0
    faults: int = 0
    loop_ends: int = 0
    threads: int = 0
    forks: int = 0
    broken: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PROMISES, 0))
    examples: dict[str, str] = field(default_factory=dict)

    def note(self, promise: str, text: str, count: int) -> None:
        """Count a broken promise; the first of its kind is the example."""
        self.broken[promise] += count
        self.examples.setdefault(promise, text)

    def add(self, other: Tally) -> None:
        """Count what another has counted."""
        for name, value in vars(other).items():
            if name == "broken":
                for promise, count in value.items():
                    self.broken[promise] += count
            elif name == "examples":
                self.examples = value | self.examples
            else:
                setattr(self, name, getattr(self, name) + value)

    def is_clean(self) -> bool:
        """Whether every promise was kept."""
        return not any(self.broken.values())

    def as_dict(self) -> dict[str, object]:
        """For machines."""
        return asdict(self)

    def text(self) -> str:
        """For people."""
        counted = [(name.replace("_", " "), value) for name, value in vars(self).items() if isinstance(value, int)]
        promised = [(PROMISES[name], value) for name, value in self.broken.items()]
        lines = [f"{value:>10,}  {name}" for name, value in [*counted, *promised]]
        return "\n".join([*lines, *(f"{PROMISES[name]}, for one: {text}" for name, text in self.examples.items())])
