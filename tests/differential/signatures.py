"""The public surface of the drivers, as their signatures tell it: a method that is new is drawn, too."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import asyncpg
import psycopg
import psycopg_pool
from asyncpg import cursor, prepared_stmt, transaction

from differential import values

if TYPE_CHECKING:
    from random import Random

__all__ = ["LEFT_OUT", "RETURNS", "Surface", "options_of", "surface_of"]

# What programs do not call, and why.
LEFT_OUT = {
    "connect": "makes a connection that no pool knows of",
    "worker": "psycopg_pool's inside",
    "run_task": "psycopg_pool's inside",
    "schedule_task": "psycopg_pool's inside",
    "wait": "drives a generator of psycopg's inside; the pool's is called by `write.py`",
}
# What is returned that has methods of its own, by the name of the method.
RETURNS = {
    "transaction": "transaction",
    "prepare": "statement",
    "cursor": "cursor",
    "execute": "cursor",
    "pipeline": "context",
    "notifies": "iterator",
    "stream": "iterator",
    "results": "iterator",
    "copy": "context",
    "connection": "lease",
}
_CLASSES: dict[str, dict[str, Any]] = {
    "asyncpg": {
        "pool": asyncpg.Pool,
        "connection": asyncpg.Connection,
        "transaction": transaction.Transaction,
        "statement": prepared_stmt.PreparedStatement,
        "cursor": cursor.Cursor,
    },
    "psycopg": {
        "pool": psycopg_pool.AsyncConnectionPool,
        "connection": psycopg.AsyncConnection,
        "transaction": psycopg.AsyncTransaction,
        "cursor": psycopg.AsyncCursor,
    },
}
_CLASSES["psycopg null"] = _CLASSES["psycopg"] | {"pool": psycopg_pool.AsyncNullConnectionPool}


@dataclass(frozen=True)
class Surface:
    """
    What can be done with a kind of thing.

    Attributes:
        methods: Public methods, with their signatures.
        attributes: Public properties.
    """

    methods: dict[str, inspect.Signature]
    attributes: tuple[str, ...]
    queries: tuple[tuple[str, list[Any]], ...]

    def draw_call(self, rng: Random, name: str) -> dict[str, Any]:
        """Draw arguments, as JSON, by the names of the parameters."""
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        query, bound = self._draw_query(rng)
        for parameter in self._parameters(name):
            if parameter.name in ("query", "command", "statement"):
                args.append(query if name != "copy" else values.draw_value(rng, "copy_statement"))
            elif parameter.name in ("params", "params_seq", "args"):
                _add_bound(args, parameter, bound)
            elif parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            else:
                self._add(rng, parameter, args, kwargs)
        return {"name": name, "args": args, "kwargs": kwargs}

    def _parameters(self, name: str) -> list[inspect.Parameter]:
        return [one for one in self.methods[name].parameters.values() if one.name not in ("self", "conn", "connection")]

    def _draw_query(self, rng: Random) -> tuple[str, list[Any]]:
        if rng.random() < 0.3:
            return rng.choice(self.queries)
        return rng.choice(values.STATEMENTS), []

    @staticmethod
    def _add(rng: Random, parameter: inspect.Parameter, args: list[Any], kwargs: dict[str, Any]) -> None:
        if parameter.default is not parameter.empty and rng.random() < 0.75:
            return
        value = values.draw_value(rng, parameter.name)
        if parameter.kind is parameter.KEYWORD_ONLY or parameter.default is not parameter.empty:
            kwargs[parameter.name] = value
        else:
            args.append(value)


def _add_bound(args: list[Any], parameter: inspect.Parameter, bound: list[Any]) -> None:
    if parameter.kind is parameter.VAR_POSITIONAL:
        args.extend(bound)
    elif parameter.name == "params":
        if bound:
            args.append(bound)
    else:
        args.append([bound, bound])


def surface_of(kind: str, of: str) -> Surface:
    """The surface of the *of* (as "pool", "connection") of a kind of pool; an empty one if it has none."""
    queries = values.ASYNCPG_QUERIES if kind == "asyncpg" else values.PSYCOPG_QUERIES
    found = _CLASSES[kind].get(of)
    if found is None:
        return Surface({}, (), queries)
    methods, attributes = {}, []
    for name, member in inspect.getmembers(found):
        if name.startswith("_") or name in LEFT_OUT or isinstance(member, type):
            continue
        if inspect.isroutine(member) and not inspect.ismemberdescriptor(member):
            methods[name] = inspect.signature(member)
        else:
            attributes.append(name)
    return Surface(methods, tuple(attributes), queries)


def options_of(kind: str) -> dict[str, inspect.Parameter]:
    """The options of a kind of pool."""
    make = asyncpg.create_pool if kind == "asyncpg" else _CLASSES[kind]["pool"]
    return dict(inspect.signature(make).parameters)
