"""The rules of `lint`: what each finds, why it matters, and what to do instead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["ACQUIRES", "CALLS", "LIBRARIES", "LOOP_BOUND_POOLS", "POOLS", "RULES", "Finding", "Rule", "canonical"]


@dataclass(frozen=True, slots=True)
class Rule:
    """
    One thing that is looked for.

    Attributes:
        code: As in a suppression.
        title: What it is, in a few words.
        message: What was found and what to do; `{name}` is what the source calls it.
    """

    code: str
    title: str
    message: str


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """
    A place where a rule is broken.

    Attributes:
        path: The file, as given or found below a folder that was given.
        line: Its line, from 1.
        column: Its column, from 1.
        code: The rule's.
        message: What was found and what to do.
        last_line: The last line of what was found: a suppression may stand there as well.
    """

    path: str
    line: int
    column: int
    code: str
    message: str
    last_line: int = 0


_UNREADABLE = Rule("LAP000", "cannot be read", "{name}")
_CONNECT = Rule(
    "LAP001",
    "connection outside a pool",
    "{name} opens a connection that no pool bounds, reuses or closes: take one from loopaware_pool.create_pool",
)
_POOL = Rule(
    "LAP002",
    "pool bound to one event loop",
    "{name} makes a pool for one event loop: loopaware_pool.create_pool takes the same arguments and serves any",
)
_PSYCOPG_POOL = Rule(
    "LAP003",
    "pool bound to one event loop",
    "{name} makes a pool for one event loop: its namesake in loopaware_pool.psycopg serves any",
)
_PSYCOPG_CONNECT = Rule(
    "LAP004",
    "connection outside a pool",
    "{name} opens a connection that no pool bounds, reuses or closes: "
    "take one from loopaware_pool.psycopg.AsyncConnectionPool",
)
_AIOPG = Rule(
    "LAP005",
    "aiopg",
    "{name} is aiopg's, which binds connections to one event loop: "
    "loopaware_pool.psycopg.AsyncConnectionPool takes its place",
)
_READER = Rule(
    "LAP006",
    "registration that is not removed",
    "{name} watches a driver's socket and nothing here removes it: the next socket of that number will not be "
    "heard of; remove it in a finally, before the connection is closed",
)
_IMPORT_TIME = Rule(
    "LAP007",
    "pool made at import time",
    "{name} is called at import time, for whatever event loop comes first: "
    "call it in the function that runs on the loop, or use loopaware_pool's, which may be made at import time",
)
_ACQUIRE = Rule(
    "LAP008",
    "lease that an error does not give back",
    "what {name} lends is not given back when an error or a cancellation comes between: use `async with`, "
    "or `try` and `finally`",
)
RULES: Final = {
    rule.code: rule
    for rule in (_UNREADABLE, _CONNECT, _POOL, _PSYCOPG_POOL, _PSYCOPG_CONNECT, _AIOPG, _READER, _IMPORT_TIME, _ACQUIRE)
}

CALLS: Final = {
    "asyncpg.connect": _CONNECT.code,
    "asyncpg.create_pool": _POOL.code,
    "asyncpg.Pool": _POOL.code,
    "psycopg_pool.AsyncConnectionPool": _PSYCOPG_POOL.code,
    "psycopg_pool.AsyncNullConnectionPool": _PSYCOPG_POOL.code,
    "psycopg.AsyncConnection.connect": _PSYCOPG_CONNECT.code,
    "aiopg.connect": _AIOPG.code,
    "aiopg.create_pool": _AIOPG.code,
    "aiopg.sa.create_engine": _AIOPG.code,
}
# These belong to a loop from the moment they are made; psycopg_pool's unless they are made with open=False.
LOOP_BOUND_POOLS: Final = frozenset(
    {
        "asyncpg.create_pool",
        "asyncpg.Pool",
        "psycopg_pool.AsyncConnectionPool",
        "psycopg_pool.AsyncNullConnectionPool",
    }
)
# What gives a pool, or is the class of one: ours too, as a lease of theirs can be forgotten as well.
POOLS: Final = frozenset(
    {
        *LOOP_BOUND_POOLS,
        "aiopg.create_pool",
        "aiopg.Pool",
        "loopaware_pool.create_pool",
        "loopaware_pool.asyncpg.create_pool",
        "loopaware_pool.asyncpg.Pool",
        "loopaware_pool.psycopg.AsyncConnectionPool",
        "loopaware_pool.psycopg.AsyncNullConnectionPool",
    }
)
LIBRARIES: Final = frozenset({"asyncpg", "psycopg", "psycopg_pool", "aiopg", "loopaware_pool"})
ACQUIRES: Final = {"acquire": frozenset({"release"}), "getconn": frozenset({"putconn"})}
_HOMES: Final = {
    "asyncpg.pool.create_pool": "asyncpg.create_pool",
    "asyncpg.pool.Pool": "asyncpg.Pool",
    "asyncpg.connection.connect": "asyncpg.connect",
    "psycopg.connection_async.AsyncConnection.connect": "psycopg.AsyncConnection.connect",
    "psycopg_pool.pool_async.AsyncConnectionPool": "psycopg_pool.AsyncConnectionPool",
    "psycopg_pool.null_pool_async.AsyncNullConnectionPool": "psycopg_pool.AsyncNullConnectionPool",
    "aiopg.pool.create_pool": "aiopg.create_pool",
    "aiopg.connection.connect": "aiopg.connect",
    "aiopg.sa.engine.create_engine": "aiopg.sa.create_engine",
}


def canonical(name: str) -> str:
    """Give the public name of what also goes by the name of the module it is made in."""
    return _HOMES.get(name, name)
