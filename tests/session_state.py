"""What a lease can leave behind in a session, and what a session has that a new one has not."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg

from loopaware_pool.asyncpg import create_pool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from loopaware_pool.asyncpg import Pool

__all__ = [
    "ACCENTED_ROLE",
    "ALWAYS",
    "ODD_ROLE",
    "PLAIN_ROLE",
    "REPORTED",
    "RESETS",
    "SETTINGS",
    "STATE",
    "TREACHEROUS_ROLES",
    "leased_state",
    "one_connection",
    "pristine",
    "quiet_handler",
    "state",
]

PLAIN_ROLE = "dirt_plain"
ODD_ROLE = 'we;ird "role" --'
ACCENTED_ROLE = "rôle"
# Whichever way a server may read the name, it is to be a name.
TREACHEROUS_ROLES = (
    'x"; RESET ROLE; --',
    'x"; SET SESSION AUTHORIZATION postgres; SET ROLE "postgres',
    "it's; \\' '",
    "\\",
    'ends in \\"',
    "U&\\0041",
    "\\+000041 é",
    'é"; RESET ROLE; --',
    "two\nlines; -- /* ",
    "$$; ?%s{}",
    "NONE",
    "\N{SNOWMAN}\N{PILE OF POO}",
)
SETTINGS = "SELECT name, setting FROM pg_settings WHERE source = 'session' AND name <> 'transaction_isolation'"
STATE = f"""
SELECT current_user::text AS who, session_user::text AS authenticated,
       nullif(current_setting('app.tenant', true), '') AS tenant,
       (SELECT array_agg(s.name || '=' || s.setting ORDER BY s.name) FROM ({SETTINGS}) s) AS settings,
       (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()) AS locks,
       (SELECT count(*) FROM pg_cursors WHERE is_holdable) AS cursors,
       (SELECT array_agg(c) FROM pg_listening_channels() c) AS channels
"""
REPORTED = ("application_name", "TimeZone", "search_path", "client_encoding", "DateStyle", "session_authorization")
RESETS = ["pipelined", "when_dirty", "confirmed", "awaited"]
ALWAYS = ["pipelined", "confirmed", "awaited"]


@asynccontextmanager
async def one_connection(address: str, **options: Any) -> AsyncIterator[Pool]:
    """A pool of one connection: the next lease gets the same backend, or the pool has closed it."""
    async with asyncio.timeout(20), create_pool(address, min_size=0, max_size=1, **options) as pool:
        yield pool


async def state(con: asyncpg.Connection) -> dict[str, Any]:
    """What a session has that a new one has not."""
    row = dict(await con.fetchrow(STATE))
    row["in_transaction"] = con.is_in_transaction()
    row["reported"] = {name: getattr(con.get_settings(), name, None) for name in REPORTED}
    raw = getattr(con, "_con", con)
    kinds = (raw._listeners, raw._log_listeners, raw._query_loggers, raw._termination_listeners)
    row["callbacks"] = [len(callbacks) for callbacks in kinds]
    return row


async def pristine(address: str, init: Callable[[Any], Awaitable[Any]] | None = None) -> dict[str, Any]:
    """What a new session has."""
    con = await asyncpg.connect(address)
    try:
        if init is not None:
            await init(con)
        return await state(con)
    finally:
        await con.close()


async def leased_state(pool: Pool) -> dict[str, Any]:
    """What the next lease finds."""
    async with pool.acquire() as con:
        return await state(con)


@contextlib.contextmanager
def quiet_handler() -> Iterator[list[dict[str, Any]]]:
    """asyncpg tells the loop's exception handler of a transaction that is left open; that is no failure."""
    loop = asyncio.get_running_loop()
    told: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: told.append(context))
    yield told
    loop.set_exception_handler(None)
    unexpected = [context for context in told if "active transaction" not in context["message"]]
    assert unexpected == []
