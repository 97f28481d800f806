"""Prepared statements where a session is another one after each transaction: what fails, and what helps."""

from __future__ import annotations

import asyncio

import asyncpg
import psycopg
import pytest
import sqlalchemy

from pgbouncer import pgbouncer
from proxy_storms import FOR_SHARED_SESSIONS, SIZE, all_flavours, as_good_as_new, opened
from running import DEADLINE_SECONDS

pytestmark = [pytest.mark.usefixtures("zero_fd_delta")]

OPTIONS = {"pool_mode": "transaction", "default_pool_size": 2}
# For asyncpg they are prepared at once; psycopg prepares what comes a sixth time.
ROUNDS = 12


async def ask_much(client, flavour):
    """The outcome of many queries with arguments, which are prepared unless the settings forbid it."""

    async def ask(connection, number):
        if flavour == "asyncpg":
            return await connection.fetchval("SELECT $1::int", number)
        if flavour == "psycopg":
            return (await (await connection.execute("SELECT %s::int", [number])).fetchone())[0]
        return (await connection.execute(sqlalchemy.text("SELECT CAST(:number AS int)"), {"number": number})).scalar()

    async def lease(number):
        async with client.lend(timeout=DEADLINE_SECONDS) as connection:
            return await ask(connection, number)

    outcomes = []
    for _ in range(ROUNDS):
        calls = (lease(number) for number in range(2 * SIZE))
        outcomes += await asyncio.gather(*calls, return_exceptions=True)
    return outcomes


EXPECTED = [*range(2 * SIZE)] * ROUNDS


@all_flavours
def test_without_the_settings_for_it_some_queries_fail_and_nothing_is_lost(dsn, pgbouncer_program, run, flavour):
    """Before 1.21, or without `max_prepared_statements`. The error of asyncpg's names the way out."""
    unset = {"session_reset": "never"} if flavour == "asyncpg" else {}

    async def main():
        with pgbouncer(pgbouncer_program, dsn, **OPTIONS) as through:
            async with (
                opened(flavour, through, **unset) as client,
                opened("psycopg", through, **FOR_SHARED_SESSIONS["psycopg"]) as other,
            ):
                outcomes = await ask_much(client, flavour)
                async with other.lend() as connection:
                    await other.run(connection, "BEGIN")  # has one of the sessions now
                    outcomes += await ask_much(client, flavour)
                    await other.run(connection, "COMMIT")
                failed = [each for each in outcomes if isinstance(each, Exception)]
                assert failed
                assert all(
                    isinstance(each, (asyncpg.PostgresError, psycopg.Error, sqlalchemy.exc.DBAPIError))
                    for each in failed
                )
                assert all("prepared statement" in str(each) for each in failed), failed
                if flavour == "asyncpg":
                    assert any("statement_cache_size" in str(each) for each in failed)
                right = [a == b for a, b in zip(outcomes, 2 * EXPECTED, strict=True) if not isinstance(a, Exception)]
                assert all(right)

    run(main())


@all_flavours
def test_with_the_settings_for_it_all_queries_are_answered(dsn, pgbouncer_program, run, flavour):
    """Those of docs/proxies.md."""

    async def main():
        with pgbouncer(pgbouncer_program, dsn, **OPTIONS) as through:
            async with opened(flavour, through, **FOR_SHARED_SESSIONS[flavour]) as client:
                assert await ask_much(client, flavour) == EXPECTED
                await as_good_as_new(client)

    run(main())


@all_flavours
def test_a_newer_one_follows_prepared_statements_from_session_to_session(dsn, newer_pgbouncer_program, run, flavour):
    """From 1.21 on, with `max_prepared_statements` (200 from 1.24 on), caches may stay as they are."""
    options = {"session_reset": "never"} if flavour == "asyncpg" else {}

    async def main():
        with pgbouncer(newer_pgbouncer_program, dsn, **OPTIONS, max_prepared_statements=100) as through:
            async with opened(flavour, through, **options) as client:
                assert await ask_much(client, flavour) == EXPECTED
                await as_good_as_new(client)

    run(main())


@pytest.mark.skipif(psycopg.pq.version() < 170000, reason="an older libpq has no way to close a statement")
def test_more_statements_than_psycopg_keeps_are_closed_in_words_that_a_newer_one_knows(
    dsn, newer_pgbouncer_program, run
):
    """Not by `DEALLOCATE`, which names a statement that the session does not have."""

    async def keep_few(connection):
        connection.prepared_max = 2

    async def main():
        with pgbouncer(newer_pgbouncer_program, dsn, **OPTIONS, max_prepared_statements=100) as through:
            options = {"configure": keep_few, "kwargs": {"prepare_threshold": 0}}
            async with opened("psycopg", through, **options) as client:
                for _ in range(3):
                    asked = (client.value(f"SELECT {number}") for number in range(4 * SIZE))
                    assert await asyncio.gather(*asked) == [*range(4 * SIZE)]
                await as_good_as_new(client)

    run(main())


@pytest.mark.parametrize("threshold", [0, None])
def test_without_the_settings_one_may_be_answered_with_the_result_of_another_ones_statement(
    dsn, pgbouncer_program, run, threshold
):
    """psycopg numbers the statements of each connection from 0: in another session that name is another statement's."""

    async def main():
        options = {"max_size": 1, "kwargs": {"prepare_threshold": threshold}}
        with pgbouncer(pgbouncer_program, dsn, **OPTIONS) as through:
            async with (
                opened("psycopg", through, **options) as one,
                opened("psycopg", through, **options) as two,
                opened("psycopg", through, **FOR_SHARED_SESSIONS["psycopg"]) as other,
            ):
                assert await one.value("SELECT 1") == 1
                async with other.lend() as connection:
                    await other.run(connection, "BEGIN")  # has the session that is first in line
                    assert await two.value("SELECT 2") == 2
                    found = await one.value("SELECT 1")
                    await other.run(connection, "COMMIT")
        assert found == (2 if threshold == 0 else 1)

    run(main())
