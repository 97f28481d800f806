"""
A program that cancels a query with a libpq that knows only the blocking way, and prints what came of it.

Started by a test, with psycopg in plain Python: a process has one libpq.
"""

import bundled_libpq  # noqa: F401, I001 - first, as psycopg looks for libpq when it is imported

import asyncio
import sys
from time import monotonic

import psycopg
import uvloop
from psycopg import pq

from loopaware_pool.psycopg import connection as psycopg_connection
from loopaware_pool.psycopg import AsyncConnectionPool
from loopaware_pool.testing import FaultProxy
from psycopg_pools import make_pool
from running import until_server_waits


async def cancelled(dsn, proxy, is_silent):
    """Cancel a query, and tell what is left of its connection."""
    async with make_pool(AsyncConnectionPool, proxy.dsn, min_size=1) as pool:
        connection = await pool.getconn()
        query = asyncio.create_task(connection.execute("SELECT pg_sleep(60)"))
        await until_server_waits(dsn, pool)
        if is_silent:
            proxy.freeze()
        began = monotonic()
        query.cancel()
        await asyncio.wait([query], timeout=40)
        outcome = [
            "cancelled" if query.done() and query.cancelled() else f"not cancelled: {query}",
            "in time" if monotonic() - began < 20 else "late",
            "closed" if connection.closed else "open",
        ]
        if not connection.closed:
            outcome.append(str((await (await connection.execute("SELECT 1")).fetchone())[0]))
        await pool.putconn(connection)
    return ", ".join(outcome)


def main():
    dsn, loop, answers = sys.argv[1:]
    psycopg_connection.CANCEL_SECONDS = 0.5 if answers == "silent" else 30.0
    assert not psycopg.capabilities.has_cancel_safe(), f"libpq {pq.version()} is no old one"
    with FaultProxy(dsn) as proxy:
        new_loop = asyncio.new_event_loop if loop == "asyncio" else uvloop.new_event_loop
        with asyncio.Runner(loop_factory=new_loop) as runner:
            outcome = runner.run(cancelled(dsn, proxy, answers == "silent"))
        print(outcome)  # noqa: T201 - to the test


main()
