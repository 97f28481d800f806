"""What a program is: a pool's options, its callbacks, and steps; all of it can be written as JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

__all__ = ["Program"]

Step = dict[str, Any]


@dataclass(frozen=True)
class Program:
    """
    A program that runs alike on two pools.

    Attributes:
        kind: "asyncpg", "psycopg" or "psycopg null": which pool.
        loop: "asyncio" or "uvloop".
        options: The pool's, by name. Values that JSON has not are written as `{"$": ...}`, see `values.py`.
        callbacks: By the pool's name for them: what each does, see `stage.Callback`.
        steps: What happens, one after the other; see `stage.Stage`. After a "hurried" step the next comes as soon as it
            has ended, after one "together" with the next at once; after others there is time for what goes on behind.
    """

    kind: str
    loop: str
    options: dict[str, Any]
    callbacks: dict[str, dict[str, Any]]
    steps: tuple[Step, ...]

    @classmethod
    def read(cls, text: str) -> Program:
        """The reverse of `str()`."""
        parts = json.loads(text)
        return cls(**parts | {"steps": tuple(parts["steps"])})

    def task(self, number: int) -> int | None:
        """The task that does a step; -1 is the opening. None if the script itself does it."""
        step = {"do": "open", "task": 0} if number < 0 else self.steps[number]
        return None if step["do"] == "cancel" else step.get("task")

    def without(self, begin: int, end: int) -> Program:
        """The same program, less some steps."""
        return replace(self, steps=self.steps[:begin] + self.steps[end:])

    def __str__(self) -> str:
        parts = [("kind", self.kind), ("loop", self.loop), ("options", self.options), ("callbacks", self.callbacks)]
        head = ",\n".join(f'"{name}": {json.dumps(part)}' for name, part in parts)
        steps = ",\n".join(f"  {json.dumps(step)}" for step in self.steps)
        return f'{{{head},\n"steps": [\n{steps}\n]}}'
