"""A PgBouncer between the pool and the server."""

from __future__ import annotations

import asyncio
import logging

import pytest

import helpers
from loopaware_pool.asyncpg import create_pool
from pgbouncer import pgbouncer

CALLERS, CONNECTIONS = 200, 5


@pytest.mark.parametrize(
    ("pool_mode", "session_reset"),
    [
        *[(mode, reset) for mode in ("transaction", "session") for reset in ("auto", "when_dirty", "confirmed")],
        ("session", "pipelined"),
    ],
)
def test_callers_are_answered_through_a_pgbouncer(dsn, pgbouncer_program, run, caplog, pool_mode, session_reset):
    """
    In transaction mode it loses what is sent behind a reset. Nothing is sent unless the user has said that it is safe.
    The default, which has to guess, says once what it has found, and which settings fit.
    """

    async def main(address):
        options = {"session_reset": session_reset, "statement_cache_size": 0}
        async with create_pool(address, min_size=CONNECTIONS, max_size=CONNECTIONS, **options) as pool:
            # A setting is something to reset, whatever `session_reset` says.
            for question in ("SELECT set_config('my.number', $1, false)", "SELECT $1::text"):
                helpers.make_known(question)
                questions = [pool.fetchval(question, str(n)) for n in range(CALLERS)]
                assert await asyncio.wait_for(asyncio.gather(*questions), 60) == [str(n) for n in range(CALLERS)]

    caplog.set_level(logging.INFO)
    with pgbouncer(pgbouncer_program, dsn, pool_mode=pool_mode) as address:
        run(main(address))
    said = [record.getMessage() for record in caplog.records if "such as PgBouncer" in record.getMessage()]
    assert len(said) == (session_reset == "auto")
    for setting in ("confirmed", "pipelined", "never"):
        assert all(f'session_reset="{setting}"' in text for text in said)
