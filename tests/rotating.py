"""Pools of all flavours that ask functions what to connect with, by the same few words; and roles that rotate."""

from __future__ import annotations

import itertools
import os
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
from sqlalchemy import text

import running
from failovers import ERRORS
from loopaware_pool.psycopg import AsyncConnectionPool
from loopaware_pool.sqlalchemy import create_async_engine
from servers import dsn_of_role

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

__all__ = ["FLAVOURS", "WAYS", "Account", "Asked", "Client", "ask_by", "refusal"]

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Client:
    """
    An open pool, or an engine.

    Attributes:
        pool: It; the pool of the engine.
        value: Called with a query and *timeout* (seconds): the first value of its first row.
        expire: Has every connection replaced.
    """

    pool: Any
    value: Callable[..., Any]
    expire: Callable[[], Any]

    async def pid(self) -> int:
        return await self.value("SELECT pg_backend_pid()")


@asynccontextmanager
async def _asyncpg(dsn: Any, **options: Any) -> AsyncIterator[Client]:
    async with running.make_pool(dsn, **options) as pool:

        async def value(query: str, timeout: float | None = 20.0) -> Any:
            async with pool.acquire(timeout=timeout) as connection:
                return await connection.fetchval(query)

        yield Client(pool, value, pool.expire_connections)


@asynccontextmanager
async def _psycopg(dsn: Any, **options: Any) -> AsyncIterator[Client]:
    # In autocommit, as a function as `kwargs` may not say so.
    options = {"min_size": 0, "max_size": 2, "open": False, "discard_dead": "always"} | options
    async with AsyncConnectionPool(dsn, **options) as pool:

        async def value(query: str, timeout: float | None = 20.0) -> Any:
            async with pool.connection(timeout=timeout) as connection:
                return (await (await connection.execute(query)).fetchone())[0]

        yield Client(pool, value, pool.drain)


@asynccontextmanager
async def _engine(driver: str, dsn: str, **options: Any) -> AsyncIterator[Client]:
    url = dsn.replace("postgresql://", f"postgresql+{driver}://")
    engine = create_async_engine(url, **{"pool_size": 2, "max_overflow": 0} | options)

    async def value(query: str, timeout: float | None = None) -> Any:
        async with engine.connect() as connection:
            return (await connection.execute(text(query))).scalar()

    try:
        yield Client(engine.pool, value, engine.dispose)
    finally:
        await engine.dispose()


FLAVOURS = {
    "asyncpg": _asyncpg,
    "psycopg": _psycopg,
    "sqlalchemy-asyncpg": lambda dsn, **options: _engine("asyncpg", dsn, **options),
    "sqlalchemy-psycopg": lambda dsn, **options: _engine("psycopg", dsn, **options),
}
# What the argument is called in each flavour: for a password, a connection string, or all arguments.
WAYS = {
    ("asyncpg", "password"): "password",
    ("asyncpg", "dsn"): "dsn",
    ("asyncpg", "all"): "credentials",
    ("psycopg", "password"): 'kwargs["password"]',
    ("psycopg", "dsn"): "conninfo",
    ("psycopg", "all"): "kwargs",
    ("sqlalchemy-asyncpg", "password"): 'connect_args["password"]',
    ("sqlalchemy-asyncpg", "all"): "connect_args",
    ("sqlalchemy-psycopg", "password"): 'connect_args["password"]',
    ("sqlalchemy-psycopg", "all"): "connect_args",
}


def ask_by(flavour: str, way: str, dsn: str, function: Callable[[], Any], **options: Any) -> Any:
    """Open a pool that asks *function* for what is missing in *dsn*."""
    open_pool = FLAVOURS[flavour]
    if way == "dsn":
        return open_pool(function, **options)
    if flavour == "psycopg":
        return open_pool(dsn, kwargs={"password": function} if way == "password" else function, **options)
    if flavour == "asyncpg":
        return open_pool(dsn, **{"password" if way == "password" else "credentials": function}, **options)
    return open_pool(dsn, connect_args={"password": function} if way == "password" else function, **options)


class Account:
    """
    A role that asks for a password, which can be changed.

    Attributes:
        dsn: Where it connects to, without the password.
        password: The one that is valid now.
    """

    def __init__(self, admin_dsn: str) -> None:
        self.admin_dsn = admin_dsn
        self.admin = psycopg.connect(admin_dsn, autocommit=True)
        self.role = f"rotated_{os.getpid()}_{next(_numbers)}"
        self.dsn = dsn_of_role(admin_dsn, self.role)
        self.password = ""
        self.admin.execute(f"CREATE ROLE {self.role} LOGIN")
        self.rotate()

    def rotate(self, lifetime: float | None = None) -> str:
        """Change the password, and return it; it is valid for so many seconds, or for ever."""
        self.password = f"CANARY-{next(_numbers)}"
        span = "infinity" if lifetime is None else f"{lifetime} seconds"
        (until,) = self.admin.execute("SELECT (now() + %s::interval)::text", [span]).fetchone()
        self.admin.execute(f"ALTER ROLE {self.role} PASSWORD '{self.password}' VALID UNTIL '{until}'")
        return self.password

    def answer(self, way: str) -> Any:
        """What a function returns that is asked in that way."""
        if way == "password":
            return self.password
        if way == "dsn":
            return dsn_of_role(self.admin_dsn, self.role, self.password)
        return {"user": self.role, "password": self.password}

    def sessions(self) -> set[int]:
        """The server processes that serve the role."""
        found = self.admin.execute("SELECT pid FROM pg_stat_activity WHERE usename = %s", [self.role])
        return {pid for (pid,) in found.fetchall()}

    def drop(self) -> None:
        """When it is not used any more."""
        running.eventually(lambda: not self.sessions(), "the role is not used any more")
        self.admin.execute(f"DROP ROLE {self.role}")
        self.admin.close()


class Asked:
    """
    A function of a user's, plain or async, and how often it was called.

    Attributes:
        calls: How often.
        answers: What the next calls do: return it, or raise it; after these, `then`.
    """

    def __init__(self, then: Callable[[], Any], *answers: Any) -> None:
        self.calls = 0
        self.answers = list(answers)
        self.then = then

    def plain(self) -> Any:
        self.calls += 1
        answer = self.answers.pop(0) if self.answers else self.then()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    async def awaited(self) -> Any:
        answer = self.plain()
        return await answer if hasattr(answer, "__await__") else answer


async def refusal(client: Any, *says: str, words_of: Callable[[Exception], str] = str) -> Exception:
    """
    What a caller hears when its time is up, as soon as its words have any of *says* in them: the first refusal may take
    longer to come.
    """
    while True:
        try:
            await client.value("SELECT 1", timeout=0.2)
        except ERRORS as error:
            if any(text in words_of(error) for text in says):
                return error
        else:
            raise AssertionError("it was not refused")
