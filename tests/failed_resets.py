"""A lease that leaves an open door behind, and the next one that must not go through it."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

import helpers
from loopaware_pool.asyncpg import create_pool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from loopaware_pool.asyncpg import Pool

    Work = Callable[[asyncpg.Connection], Awaitable[Any]]

__all__ = [
    "MODES",
    "OPEN_THE_DOOR",
    "REPORTED",
    "RESET_AND_WAY",
    "SETTINGS",
    "UNCONDITIONAL",
    "WAYS",
    "both_ways",
    "by_trigger",
    "client_side",
    "driver_errors",
    "one_connection",
    "openly",
    "server_side",
    "succeed",
    "with_and_without_a_waiter",
]

MODES = ["pipelined", "when_dirty", "confirmed", "awaited"]
# Those that reset a session after a lease whose text tells nothing.
UNCONDITIONAL = ["pipelined", "confirmed", "awaited"]
# Nothing in its text says what it does.
OPEN_THE_DOOR = "INSERT INTO public.door VALUES ($1)"
REPORTED = (
    "application_name",
    "client_encoding",
    "DateStyle",
    "default_transaction_read_only",
    "IntervalStyle",
    "is_superuser",
    "scram_iterations",
    "search_path",
    "session_authorization",
    "standard_conforming_strings",
    "TimeZone",
)
SETTINGS = {
    "application_name": "somebody",
    "client_encoding": "WIN1252",
    "DateStyle": "German, DMY",
    "default_transaction_read_only": "on",
    "IntervalStyle": "iso_8601",
    "search_path": "evil",
    "standard_conforming_strings": "off",
    "TimeZone": "Asia/Tokyo",
    "role": "low",
    "statement_timeout": "12345",
    "app.tenant": "attacker",
}


@asynccontextmanager
async def one_connection(dsn: str, session_reset: Any, **options: Any) -> AsyncIterator[Pool]:
    """A pool of one connection, which is there already."""
    async with create_pool(dsn, min_size=0, max_size=1, session_reset=session_reset, **options) as pool:
        await pool.fetchval("SELECT 1")
        yield pool


@contextlib.contextmanager
def driver_errors() -> Iterator[None]:
    """A caller may hear of a connection that is gone, of its own timeout, or of a reset that it has waited for."""
    with contextlib.suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
        yield


async def openly(con: asyncpg.Connection, *statements: str) -> None:
    """Leave something by statements whose text says so."""
    for statement in statements:
        await con.execute(statement)


async def by_trigger(con: asyncpg.Connection, *statements: str) -> None:
    """Leave something by statements whose text says nothing of it."""
    for statement in statements:
        orders = statement.replace("SELECT", "PERFORM", 1) if statement.startswith("SELECT") else statement
        await con.execute(OPEN_THE_DOOR, f"DO $do$ BEGIN {orders}; END $do$")


WAYS = [openly, by_trigger]
both_ways = pytest.mark.parametrize("leave", WAYS)
# With "when_dirty", what a text does not tell and the server does not report stays, as is documented.
RESET_AND_WAY = [(mode, leave) for mode in MODES for leave in WAYS if mode in UNCONDITIONAL or leave is openly]
with_and_without_a_waiter = pytest.mark.parametrize("waits", [True, False], ids=["waiter", "no-waiter"])


async def succeed(pool: Pool, first: Work, then: Work, *, waits: bool) -> Any:
    """Lease for *first*, and at once, or by a caller that has queued meanwhile, for *then*."""

    async def second() -> Any:
        async with pool.acquire() as con:
            return await then(con)

    task = None
    with driver_errors():
        async with pool.acquire() as con:
            if waits:
                task = asyncio.create_task(second())
                await helpers.spin(2)
            await first(con)
    return await (task or asyncio.create_task(second()))


def client_side(con: asyncpg.Connection) -> tuple[Any, ...]:
    """What asyncpg shows of a session without asking the server."""
    raw = getattr(con, "_con", con)
    settings = raw.get_settings()
    kinds = (raw._listeners, raw._log_listeners, raw._query_loggers, raw._termination_listeners)
    return (
        {name: getattr(settings, name, None) for name in REPORTED},
        settings.get_text_codec().name,
        [len(callbacks) for callbacks in kinds],
        raw.is_in_transaction(),
    )


async def server_side(con: asyncpg.Connection) -> tuple[Any, ...]:
    """What the server shows of a session."""
    row = await con.fetchrow("""
        SELECT (SELECT array_agg(name || '=' || setting ORDER BY name) FROM pg_settings
                WHERE source = 'session' AND name NOT LIKE 'transaction%'),
               current_user::text, session_user::text, nullif(current_setting('app.tenant', true), ''),
               (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
               (SELECT count(*) FROM pg_cursors WHERE is_holdable),
               (SELECT count(*) FROM pg_listening_channels()),
               json_typeof('[1]'::json), '[1]'::json
    """)
    return tuple(row)
