"""Writes on one pool, reads on another: each line of the input puts a note, gets one, or peeks at one."""

import asyncio
import os
import sys

import asyncpg

from loopaware_pool import create_pool

dsn = os.environ["DATABASE_URL"]  # of all hosts: postgresql://user@host-1:5432,host-2:5432/database
limits = {"timeout": 3, "command_timeout": 3, "acquire_timeout": 15}
writers = create_pool(dsn, target_session_attrs="read-write", min_size=0, max_size=4, **limits)
readers = create_pool(dsn, target_session_attrs="prefer-standby", min_size=0, max_size=16, max_lifetime=300, **limits)

FAILOVER = (OSError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError, asyncpg.ReadOnlySQLTransactionError)
PUT = "INSERT INTO notes VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET note = $2 RETURNING inet_server_port()"
GET = "SELECT note || ' from ' || inet_server_port() FROM notes WHERE name = $1"
HAS_REPLAYED = "SELECT NOT pg_is_in_recovery() OR pg_last_wal_replay_lsn() >= $1::text::pg_lsn"


async def put(name: str, note: str) -> tuple[int, str]:
    """Store a note. Returns who did, and the place in the log up to which a reader must have come to see it."""
    async with writers.acquire() as connection:
        port = await connection.fetchval(PUT, name, note)
        return port, await connection.fetchval("SELECT pg_current_wal_insert_lsn()::text")


async def get(name: str, place: str | None) -> str | None:
    """Read a note on a standby, or on the primary if the standby is behind *place*."""
    async with readers.acquire() as connection:
        if place is None or await connection.fetchval(HAS_REPLAYED, place):
            return await connection.fetchval(GET, name)
    return await writers.fetchval(GET, name)


async def answer(line: str, places: dict[str, str]) -> str | None:
    command, name, *note = line.split()
    if command == "put":
        port, places[name] = await put(name, *note)
        return f"stored by {port}"
    return await get(name, places.get(name) if command == "get" else None)


async def main() -> None:
    async with writers, readers:
        places: dict[str, str] = {}  # a web application keeps its user's last place in the session
        print("ready", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            try:
                print(await answer(line, places), flush=True)
            except FAILOVER:  # once more: what each line does may be done twice
                print(await answer(line, places), flush=True)


asyncio.run(main())
