"""Writes random programs, by seed."""

from __future__ import annotations

from functools import cache
from random import Random
from typing import TYPE_CHECKING, Any

from differential import values
from differential.program import Program
from differential.signatures import RETURNS, Surface, options_of, surface_of
from differential.stage import TASKS

if TYPE_CHECKING:
    from differential.program import Step

__all__ = ["write"]

_SLOTS = 3
_INF = values.INFINITY
# Often ordinary, so that programs get somewhere; sometimes at an edge.
_OPTIONS: dict[str, dict[str, list[Any]]] = {
    "asyncpg": {
        "max_queries": [50000, 1, 2, 3, 0, _INF, True],
        "max_inactive_connection_lifetime": [300.0, 0, 0.05, _INF, True, None, -1],
        "init_size": [None, 0, 1, 2, 3],
        "connection_class": [{"$": "connection class"}, {"$": "object"}],
        "record_class": [{"$": "record class"}, {"$": "object"}],
        "command_timeout": [None, 0.2, 60, 0, -1, True],
        "statement_cache_size": [0, 1, 100, -1],
        "max_cached_statement_lifetime": [0, 0.05, 300],
        "user": ["lowly"],
    },
    "psycopg": {
        "timeout": [0.2, 2.0, 0, _INF, True],
        "max_waiting": [0, 1, 2, -1],
        "max_lifetime": [3600.0, 0, 0.05, _INF, -1, True],
        "max_idle": [600.0, 0, 0.05, _INF, -1, True],
        "reconnect_timeout": [300.0, 0, 0.1, _INF],
        "num_workers": [1, 3, 0],
        "close_returns": [True, False],
        "open": [True, None],
        "name": ["named", ""],
        "kwargs": [{"autocommit": True}, {"prepare_threshold": 0}, {"row_factory": {"$": "dict row"}}],
        "connection_class": [{"$": "psycopg connection"}],
    },
}
_CALLBACKS: dict[str, dict[str, list[str]]] = {
    "asyncpg": {
        "add": ["add_query_logger", "add_termination_listener", "add_log_listener"],
        "init": ["add", "run"],
        "setup": ["run"],
        "reset": ["run"],
        "connect": ["run", "add"],
    },
    "psycopg": {
        "add": ["add_notice_handler", "add_notify_handler"],
        "configure": ["add", "run", "await"],
        "check": ["run", "await"],
        "reset": ["run", "await"],
    },
}
# What `init` may do to a session, for good. No callback takes a lock, as others of the pool would wait for it.
_SET_UP = [one for one in values.STATEMENTS if one.startswith(("SET ", "SELECT 42", "LISTEN", "CREATE TEMP"))]
_ON_RETURN = [one for one in values.STATEMENTS[:40] if "lock" not in one]


def write(seed: int, number: int, kind: str) -> Program:
    """
    Write a program.

    Args:
        seed: Decides, together with *number*, everything.
        number: Which program of that seed.
        kind: Of pool; see `sides.KINDS`.
    """
    return _Writer(Random(f"{seed}/{number}/{kind}"), kind).write()


class _Writer:
    def __init__(self, rng: Random, kind: str) -> None:
        self._rng, self._kind = rng, kind
        self._flavour = kind.partition(" ")[0]
        self._is_null = kind.endswith("null")
        # What is likely there; a step that finds nothing is skipped, on both sides.
        self._held: list[str] = []
        self._made: list[str] = []

    def write(self) -> Program:
        rng = self._rng
        options = self._options()
        steps = tuple(step for _ in range(rng.randint(4, 20)) for step in self._next())
        return Program(self._kind, rng.choice(["asyncio", "asyncio", "uvloop"]), options, self._callbacks(), steps)

    def _options(self) -> dict[str, Any]:
        rng, table = self._rng, _OPTIONS[self._flavour]
        options: dict[str, Any] = {"min_size": rng.choice([0, 0, 1, 2]), "max_size": rng.choice([1, 1, 2, 3])}
        if rng.random() < 0.95:
            options["min_size"] = 0 if self._is_null else min(options["min_size"], options["max_size"])
        if self._flavour == "psycopg":
            options["open"] = False
        known = {"min_size", "max_size", "conninfo", "dsn", "loop", "connect_kwargs", "reconnect_failed"}
        known |= set(_CALLBACKS[self._flavour])
        candidates = sorted((set(options_of(self._kind)) | set(table)) - known)
        for name in rng.sample(candidates, rng.choice([0, 0, 1, 1, 2])):
            choices = table.get(name, values.EDGES)
            options[name] = choices[0] if rng.random() < 0.2 else rng.choice(choices)
        return options

    def _callbacks(self) -> dict[str, dict[str, Any]]:
        rng, table = self._rng, _CALLBACKS[self._flavour]
        names = [name for name in table if name != "add"]
        chosen = rng.sample(names, rng.choice([0, 0, 0, 1, 1, 2]))
        return {name: self._behaviour(table[name], table["add"]) for name in chosen}

    def _behaviour(self, can: list[str], add: list[str]) -> dict[str, Any]:
        rng = self._rng
        does: dict[str, Any] = {}
        if "run" in can and rng.random() < 0.6:
            does["run"] = [rng.choice(_SET_UP if "add" in can else _ON_RETURN)]
        if "await" in can and rng.random() < 0.8:
            does["await"] = ["commit"]
        if "add" in can and rng.random() < 0.5:
            does["add"] = [rng.choice(add)]
        if rng.random() < 0.25:
            does |= {"raises": sorted(rng.sample(range(1, 6), rng.choice([1, 2]))), "error": self._error()}
        return does

    def _error(self) -> str:
        return self._rng.choice(["user", "user", "timeout", "os", "cancelled"])

    # ---- steps ----

    def _next(self) -> list[Step]:
        """A step, or several callers at once."""
        if self._rng.random() >= 0.05:
            return [self._step()]
        callers = [self._acquire() | {"task": task, "together": True} for task in range(self._rng.randint(2, TASKS))]
        return [*callers[:-1], {name: part for name, part in callers[-1].items() if name != "together"}]

    def _step(self) -> Step:
        rng = self._rng
        draws = [self._acquire, self._pool, self._disturb]
        weights = [22, 8, 8] if self._held else [60, 10, 5]
        if self._held:
            draws += [self._release, self._statement, self._connection]
            weights += [18, 22, 18]
        if self._made:
            draws.append(self._thing)
            weights.append(14)
        step = rng.choices(draws, weights)[0]()
        if rng.random() < 0.25:
            step["hurried"] = True
        return step

    def _task(self) -> int:
        return self._rng.randrange(TASKS)

    def _free_slot(self) -> str:
        slots = [f"c{number}" for number in range(_SLOTS)]
        slot = self._rng.choice([slot for slot in slots if slot not in self._held] or slots)
        if slot not in self._held:
            self._held.append(slot)
        return slot

    def _slot(self) -> str:
        return self._rng.choice(self._held or ["c0"])

    def _acquire(self) -> Step:
        rng = self._rng
        name = "acquire" if self._flavour == "asyncpg" else "getconn"
        call = self._surface("pool").draw_call(rng, name)
        probe = rng.choice(["asked", "asked", "outside", "none"])
        return {"task": self._task(), "do": "call", "on": "pool", **call, "keep": self._free_slot(), "probe": probe}

    def _release(self) -> Step:
        name = "release" if self._flavour == "asyncpg" else "putconn"
        call = self._surface("pool").draw_call(self._rng, name)
        slot = self._slot()
        call["args"] = [{"$": "thing", "name": slot}]
        if slot in self._held and self._rng.random() < 0.9:
            self._held.remove(slot)
        return {"task": self._task(), "do": "call", "on": "pool", **call}

    def _statement(self) -> Step:
        query = self._rng.choice(values.STATEMENTS)
        return {
            "task": self._task(),
            "do": "call",
            "on": self._slot(),
            "name": "execute",
            "args": [query],
            "kwargs": {},
        }

    def _connection(self) -> Step:
        return self._use(self._slot(), "connection")

    def _use(self, on: str, of: str) -> Step:
        rng, surface = self._rng, self._surface(of)
        if surface.attributes and rng.random() < 0.15:
            return {"task": self._task(), "do": "get", "on": on, "name": rng.choice(surface.attributes)}
        name = rng.choice(sorted(surface.methods))
        step: Step = {"task": self._task(), "do": "call", "on": on, **surface.draw_call(rng, name)}
        if name in RETURNS:
            step["keep"] = RETURNS[name]
            step["lazily"] = rng.random() < 0.3
            self._made.append(RETURNS[name])
        return step

    def _thing(self) -> Step:
        """Something with a thing that a step before may have made."""
        rng = self._rng
        of = rng.choice(self._made)
        if of in ("transaction", "context", "lease") and rng.random() < 0.8:
            return self._block(of)
        if of in ("iterator", "cursor") and rng.random() < 0.5:
            return {"task": self._task(), "do": rng.choice(["next", "next", "aclose", "iterate"]), "on": of}
        if not self._surface(of).methods:
            return self._connection()
        return self._use(of, of)

    def _block(self, of: str) -> Step:
        step: Step = {"task": self._task(), "do": self._rng.choice(["enter", "enter", "exit"]), "on": of}
        if step["do"] == "exit":
            step["error"] = self._rng.random() < 0.3
        elif of == "lease":
            step |= {"keep": self._free_slot(), "probe": "asked"}
        else:
            step["keep"] = "entered"
        return step

    def _pool(self) -> Step:
        rng, surface = self._rng, self._surface("pool")
        names = set(surface.methods)
        ending = {"close", "terminate"}
        name = rng.choice(sorted(ending & names)) if rng.random() < 0.08 else rng.choice(sorted(names - ending))
        step: Step = {"task": self._task(), "do": "call", "on": "pool", **surface.draw_call(rng, name)}
        if name in ("release", "putconn", "check_connection"):
            step["args"] = [{"$": "thing", "name": self._slot()}]
        if name in ("acquire", "connection"):
            step |= {"keep": "lease", "lazily": True}
            self._made.append("lease")
        if name == "getconn":
            step |= {"keep": self._free_slot(), "probe": "asked"}
        return step

    def _disturb(self) -> Step:
        rng = self._rng
        kind = rng.choice(["cancel", "cancel", "kill", "kill idle", "sleep"])
        if kind == "cancel":
            return {"do": "cancel", "task": self._task()}
        if kind == "sleep":
            return {"do": "sleep", "seconds": rng.choice([0.02, 0.12])}
        return {"do": "kill", "on": self._slot()} if kind == "kill" else {"do": "kill"}

    def _surface(self, of: str) -> Surface:
        return _surface(self._kind, of)


_surface = cache(surface_of)
