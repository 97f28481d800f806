"""A PgBouncer that is paused, reloaded, restarted, or kills its connections, between the pool and the server."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager

import psycopg
import pytest
import sqlalchemy

from flavours import DRIVER_ERRORS
from helpers import eventually
from pgbouncer import running_pgbouncer
from proxy_storms import FOR_SHARED_SESSIONS, SIZE, Storm, all_flavours, as_good_as_new, opened
from running import DEADLINE_SECONDS, eventually_async

pytestmark = [pytest.mark.usefixtures("zero_fd_delta")]

# The sessions that it has at the server, at most.
SERVER_SESSIONS = {"transaction": 3, "session": 2 * SIZE}
RESETS = [
    *(("session", reset) for reset in ("auto", "pipelined", "when_dirty", "confirmed", "awaited", "never")),
    *(("transaction", reset) for reset in ("auto", "when_dirty", "confirmed", "awaited", "never")),
]
# 1.18 itself ends when clients cancel much ("bad client state"), which would be another test.
STANDS_CANCELS = {"1.18": False, "1.24": True}
modes = pytest.mark.parametrize("pool_mode", SERVER_SESSIONS)


@pytest.fixture(params=STANDS_CANCELS)
def version(request):
    return request.param


@pytest.fixture
def program(version, request):
    return request.getfixturevalue("pgbouncer_program" if version == "1.18" else "newer_pgbouncer_program")


@asynccontextmanager
async def opened_behind(through, flavour, pool_mode, **options):
    """A pool with what its flavour needs there; its sessions are counted at the end."""
    if pool_mode == "transaction":
        options = FOR_SHARED_SESSIONS[flavour] | options
    async with opened(flavour, through.dsn, **options) as client:
        yield client
        assert len(through.server_pids()) <= SERVER_SESSIONS[pool_mode]
    await eventually_async(lambda: through.clients() == 0, "the end of all clients")


def started(program, dsn, pool_mode):
    """After a connect that the server has refused or cut, it tries again soon, and not in 15 s."""
    options = {"default_pool_size": SERVER_SESSIONS[pool_mode], "server_login_retry": 0.1}
    return running_pgbouncer(program, dsn, pool_mode=pool_mode, **options)


# ---- trouble ----


async def sessions_killed(through):
    """The server ends the proxy's sessions."""
    for _ in range(5):
        await asyncio.to_thread(through.kill_server_sessions)


async def paused(through):
    """It stands still for a moment, and reads its settings again."""
    for command in ("PAUSE", "RELOAD", "RESUME"):
        await asyncio.to_thread(through.tell, command)


async def killed(through):
    """It drops every connection of the database, and takes new ones again."""
    for command in ("KILL postgres", "RESUME postgres"):
        await asyncio.to_thread(through.tell, command)


async def reconnected(through):
    """It replaces its sessions at the server, each when it is free."""
    await asyncio.to_thread(through.tell, "RECONNECT")


async def restarted(through):
    """It ends without a word, and is started again."""
    await asyncio.to_thread(through.restart)


TROUBLES = [sessions_killed, paused, killed, reconnected, restarted]


@pytest.mark.thorough
@all_flavours
@modes
def test_a_storm_in_every_trouble(dsn, version, program, run, flavour, pool_mode):
    """Callers get their own answers, or an error, and nobody waits for ever; afterwards nothing is missing."""

    async def main():
        cancels = STANDS_CANCELS[version]
        with started(program, dsn, pool_mode) as through:
            async with opened_behind(through, flavour, pool_mode) as client:
                storm = Storm(client)
                # In session mode, PAUSE waits until all clients have left.
                for trouble in TROUBLES if pool_mode == "transaction" else set(TROUBLES) - {paused}:
                    await storm.blow(60, meanwhile=lambda trouble=trouble: trouble(through), cancels=cancels)
                    await as_good_as_new(client)
                told = storm.told.total()
                await storm.blow(60, cancels=cancels)
                assert storm.told.total() == told  # when all is well again, nobody is told anything
                await as_good_as_new(client)
        assert storm.answered > 150
        assert told

    run(main())


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: trouble.__name__)
@all_flavours
def test_idle_connections_in_trouble(dsn, pgbouncer_program, run, flavour, trouble):
    """What the proxy has closed is not lent again; what it keeps is. Callers that come afterwards are answered."""

    async def main():
        with started(pgbouncer_program, dsn, "transaction") as through:
            async with opened_behind(through, flavour, "transaction") as client:
                await as_good_as_new(client)
                await trouble(through)
                if trouble in (killed, restarted):
                    await eventually_async(lambda: through.clients() == 0, "the end of all clients")
                await eventually(lambda: all_are_answered(client))
                await as_good_as_new(client)

    run(main())


async def all_are_answered(client):
    """False if the proxy was not let in by the server: on a busy machine, that may still have sessions to end."""
    calls = (client.value("SELECT 7", timeout=DEADLINE_SECONDS) for _ in range(20))
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    if any("server_login_retry" in str(each) for each in outcomes):
        return False
    assert outcomes == [7] * 20
    return True


@pytest.mark.thorough
@all_flavours
def test_while_it_is_paused_callers_wait_no_longer_than_they_said(dsn, pgbouncer_program, run, flavour):
    """It answers nothing, and takes connections that it leaves without an answer, too. Resumed, all is well."""

    async def main():
        with started(pgbouncer_program, dsn, "transaction") as through:
            async with opened_behind(through, flavour, "transaction") as client:
                await as_good_as_new(client)
                await asyncio.to_thread(through.tell, "PAUSE")

                async def bounded():
                    async with asyncio.timeout(0.3):
                        return await client.value("SELECT 7")

                outcomes = await asyncio.gather(*(bounded() for _ in range(3 * SIZE)), return_exceptions=True)
                assert all(isinstance(each, TimeoutError) for each in outcomes), outcomes
                await asyncio.to_thread(through.tell, "RESUME")
                await as_good_as_new(client)

    run(main())


@all_flavours
def test_when_all_its_sessions_are_taken_callers_wait_until_it_loses_patience(dsn, pgbouncer_program, run, flavour):
    """It closes the connection after `query_wait_timeout`: an error of the driver's. The pool connects anew."""

    async def main():
        options = {"pool_mode": "transaction", "default_pool_size": 1}
        with running_pgbouncer(pgbouncer_program, dsn, **options) as through:
            async with opened_behind(through, flavour, "transaction") as client:
                await as_good_as_new(client)
                with psycopg.connect(through.dsn) as other:  # begins a transaction with its first query
                    other.execute("SELECT 1")
                    through.tell("SET query_wait_timeout = '0.3'")
                    with pytest.raises((*DRIVER_ERRORS, sqlalchemy.exc.DBAPIError)):
                        await client.value("SELECT 7", timeout=DEADLINE_SECONDS)
                    through.tell("SET query_wait_timeout = '120'")
                await as_good_as_new(client)

    run(main())


# ---- what a reset does, and does not ----


@pytest.mark.thorough
@pytest.mark.parametrize(("pool_mode", "session_reset"), RESETS)
def test_a_storm_with_every_reset(dsn, pgbouncer_program, run, pool_mode, session_reset, caplog):
    """All answers are right, whatever the reset; only the default has to guess, and says so."""
    caplog.set_level(logging.WARNING)

    async def main():
        with started(pgbouncer_program, dsn, pool_mode) as through:
            async with opened_behind(through, "asyncpg", pool_mode, session_reset=session_reset) as client:
                storm = Storm(client)
                for _ in range(2):
                    await storm.blow(60, cancels=False)
                assert not storm.told
                await as_good_as_new(client)

    run(main())
    said = [record.getMessage() for record in caplog.records if "proxy" in record.getMessage()]
    assert len(said) == (session_reset == "auto")


TENANT = "SELECT current_setting('my.tenant', true)"


@pytest.mark.parametrize("session_reset", [reset for mode, reset in RESETS if mode == "session"])
def test_in_session_mode_a_reset_does_what_it_does_without_a_proxy(dsn, pgbouncer_program, run, session_reset):
    """What a lease has set is not there in the next."""

    async def main():
        with started(pgbouncer_program, dsn, "session") as through:
            async with opened_behind(through, "asyncpg", "session", session_reset=session_reset, max_size=1) as client:
                await client.do("SET my.tenant = 'one'")
                assert (await client.value(TENANT) == "one") == (session_reset == "never")

    run(main())


@pytest.mark.parametrize("session_reset", [reset for mode, reset in RESETS if mode == "transaction"])
def test_in_transaction_mode_no_reset_holds(dsn, pgbouncer_program, run, session_reset):
    """
    What a lease has set, somebody else finds who gets that session for a transaction meanwhile: the reset goes to
    another session. So "never" is honest. What is set for a transaction ends with it.
    """

    async def main():
        options = {"session_reset": session_reset, "max_size": 1, "statement_cache_size": 0}
        with started(pgbouncer_program, dsn, "transaction") as through:
            async with opened("asyncpg", through.dsn, **options) as client, opened("asyncpg", through.dsn) as other:
                async with client.lend() as connection, connection.transaction():
                    await client.run(connection, "SET LOCAL my.tenant = 'none'")
                async with other.lend() as theirs:
                    async with client.lend() as connection:
                        await client.run(connection, "SET my.tenant = 'one'")
                        await other.run(theirs, "BEGIN")
                    await client.pool.settled()
                    assert [row[0] for row in await theirs.fetch(TENANT)] == ["one"]
                    await other.run(theirs, "COMMIT")

    run(main())
