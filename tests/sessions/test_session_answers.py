"""Nobody gets another's answers: resets, queries and what the server says by itself follow each other."""

from __future__ import annotations

import asyncio
import contextlib

import asyncpg
import psycopg
import pytest

import helpers
from loopaware_pool.asyncpg import create_pool
from session_state import ALWAYS, RESETS, leased_state, one_connection, pristine, quiet_handler

pytestmark = pytest.mark.both_drivers


# ---- when the reset happens ----


@pytest.mark.parametrize("session_reset", RESETS)
def test_an_advisory_lock_is_free_before_anybody_uses_the_connection_again(address, run, session_reset):
    """The server has run the reset soon after the release, although nobody has acquired since."""

    async def main():
        monitor = await asyncpg.connect(address)
        async with one_connection(address, session_reset=session_reset) as pool:
            async with pool.acquire() as con:
                pid = con.get_server_pid()
                await con.execute("SELECT pg_advisory_lock(4711), pg_advisory_lock_shared(4712)")
            query = "SELECT count(*) = 0 FROM pg_locks WHERE locktype = 'advisory' AND pid = $1"
            await helpers.eventually(lambda: monitor.fetchval(query, pid))
            alive = await monitor.fetchval("SELECT count(*) FROM pg_stat_activity WHERE pid = $1", pid)
            assert alive == 1
        await monitor.close()

    run(main())


def test_settled_waits_for_the_resets(address, run):
    """After `settled()` the server has answered every reset."""

    async def main():
        monitor = await asyncpg.connect(address)
        query = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = $1"
        async with one_connection(address) as pool:
            for key in range(20):
                async with pool.acquire() as con:
                    pid = con.get_server_pid()
                    await con.execute(f"SELECT pg_advisory_lock({key})")
                await pool.settled()
                assert await monitor.fetchval(query, pid) == 0
        await monitor.close()

    run(main())


# ---- whose answer is whose ----


@pytest.mark.parametrize("session_reset", [*RESETS, "never"])
def test_interleaved_leases_get_their_own_answers(address, run, session_reset):
    """Forty tasks on three connections each get the value they asked for, and no setting of another."""

    async def worker(pool, number):
        for turn in range(15):
            async with pool.acquire() as con:
                value = number * 1000 + turn
                if turn % 5 == 4:
                    await pool.release(con)  # unused: the resets of two leases follow each other
                    continue
                if session_reset != "never":
                    assert await con.fetchval("SELECT nullif(current_setting('app.tenant', true), '')") is None
                assert await con.fetchval("SELECT $1::int", value) == value
                if turn % 3 == 0:
                    assert await con.execute(f"SET app.tenant = '{value}'") == "SET"
                if turn % 4 == 0:
                    rows = await con.fetch("SELECT n + $1::int FROM generate_series(1, 500) n", value)
                    assert [row[0] for row in rows] == list(range(value + 1, value + 501))

    async def main():
        async with (
            asyncio.timeout(60),
            create_pool(address, min_size=0, max_size=3, session_reset=session_reset) as pool,
            asyncio.TaskGroup() as group,
        ):
            for number in range(40):
                group.create_task(worker(pool, number))

    run(main())


@pytest.mark.parametrize("session_reset", [*RESETS, "never"])
def test_leases_without_a_query_follow_each_other(address, run, session_reset):
    """Acquiring and releasing over and over without a query leaves a connection that answers."""

    async def main():
        async with one_connection(address, session_reset=session_reset) as pool:
            pids = set()
            for turn in range(300):
                con = await pool.acquire()
                pids.add(con.get_server_pid())
                if turn % 50 == 49:
                    assert await con.fetchval("SELECT $1::int", turn) == turn
                await pool.release(con)
            assert len(pids) == 1

    run(main())


@pytest.mark.parametrize("session_reset", RESETS)
def test_dirt_behind_a_reset_in_flight_is_reset_too(address, run, session_reset):
    """A lease that begins before the last reset is answered, and dirties the session, is reset itself."""

    async def main():
        clean = await pristine(address)
        async with one_connection(address, session_reset=session_reset) as pool:
            for _ in range(20):
                await pool.release(await pool.acquire())
                async with pool.acquire() as con:
                    await con.execute("SET app.tenant = '7'")
                await pool.release(await pool.acquire())
                assert await leased_state(pool) == clean

    run(main())


@pytest.mark.parametrize("session_reset", RESETS)
def test_a_query_sent_behind_a_reset_in_flight_can_be_cancelled(address, run, session_reset):
    """A query cancelled while the reset before it is unanswered harms nobody; what it set is gone."""

    async def lease(pool):
        async with pool.acquire() as con:
            await con.execute("SELECT set_config('app.tenant', '7', false), pg_sleep(1)")

    async def main():
        clean = await pristine(address)
        async with one_connection(address, session_reset=session_reset) as pool:
            for iterations in range(12):
                async with pool.acquire() as con:
                    await con.execute("SET app.tenant = '8'")
                task = asyncio.create_task(lease(pool))
                await helpers.spin(iterations)
                task.cancel()
                await asyncio.wait([task])
                assert await leased_state(pool) == clean

    run(main())


async def by_proxy(con, query):
    await con.execute(query)


async def by_prepared_statement(con, query):
    await (await con.prepare(query)).fetch()


async def by_connection(con, query):
    await con._con.execute(query)


async def by_method_of_the_class(con, query):
    await con.slowly(query)


async def until_asleep(address, pid):
    """Wait until the server is in the middle of that session's `pg_sleep`."""
    con = await asyncpg.connect(address)
    while await con.fetchval("SELECT wait_event FROM pg_stat_activity WHERE pid = $1", pid) != "PgSleep":
        await asyncio.sleep(0.005)
    await con.close()


class WithMethod(asyncpg.Connection):
    async def slowly(self, query):
        await self.execute(query)


@pytest.mark.parametrize("session_reset", [*RESETS, "never"])
@pytest.mark.parametrize("ask", [by_proxy, by_prepared_statement, by_connection, by_method_of_the_class])
def test_a_connection_released_under_a_running_query_is_closed(address, run, session_reset, ask):
    """A release while another task still queries ends the connection and that query; the next lease is unharmed."""

    async def main():
        kind = WithMethod if ask is by_method_of_the_class else asyncpg.Connection
        async with one_connection(address, session_reset=session_reset, connection_class=kind) as pool:
            con = await pool.acquire()
            pid = await con.fetchval("SELECT pg_backend_pid()")  # asks nothing of the connection past the proxy
            query = asyncio.create_task(ask(con, "SELECT pg_sleep(60)"))
            await until_asleep(address, pid)
            with contextlib.suppress(asyncpg.InterfaceError, asyncpg.InternalClientError):
                await pool.release(con)
            await asyncio.wait([query])
            assert isinstance(query.exception(), asyncpg.PostgresError | asyncpg.InterfaceError | OSError)
            async with pool.acquire() as con:
                assert await con.fetchval("SELECT 5") == 5
                assert con.get_server_pid() != pid

    run(main())


@pytest.mark.parametrize("session_reset", [*RESETS, "never"])
@pytest.mark.parametrize("is_cancelled", [True, False], ids=["cancelled", "abandoned"])
def test_a_lease_that_ends_in_the_middle_of_a_copy_out_harms_nobody(address, run, session_reset, is_cancelled):
    """Rows that a slow sink has not taken yet do not reach the next lease."""

    async def main():
        flowing = asyncio.Event()

        async def sink(data):
            flowing.set()
            await asyncio.Event().wait()

        async with one_connection(address, session_reset=session_reset) as pool:
            con = await pool.acquire()
            query = "SELECT repeat('x', 100) FROM generate_series(1, 200000)"
            copying = asyncio.create_task(con.copy_from_query(query, output=sink))
            await flowing.wait()
            if is_cancelled:
                copying.cancel()
                await asyncio.wait([copying])
            with contextlib.suppress(asyncpg.InterfaceError, asyncpg.InternalClientError):
                await pool.release(con)
            for number in range(3):
                assert await pool.fetchval("SELECT $1::int", number) == number
            copying.cancel()
            await asyncio.gather(copying, return_exceptions=True)
            assert await pool.fetchval("SELECT 7") == 7

    run(main())


@pytest.mark.parametrize("session_reset", [*RESETS, "never"])
@pytest.mark.parametrize("is_cancelled", [True, False], ids=["cancelled", "abandoned"])
def test_a_lease_that_ends_in_the_middle_of_a_copy_in_harms_nobody(address, run, session_reset, is_cancelled):
    """Rows of a copy that was not finished are not in the table, and the next lease is unharmed."""

    async def main():
        flowing = asyncio.Event()

        async def source():
            yield b"1\n2\n"
            flowing.set()
            await asyncio.Event().wait()

        async with one_connection(address, session_reset=session_reset) as pool:
            con = await pool.acquire()
            copying = asyncio.create_task(con.copy_to_table("copied", schema_name="dirt", source=source()))
            await flowing.wait()
            if is_cancelled:
                copying.cancel()
                await asyncio.wait([copying])
            with contextlib.suppress(asyncpg.InterfaceError, asyncpg.InternalClientError):
                await pool.release(con)
            assert await pool.fetchval("SELECT count(*) FROM dirt.copied") == 0
            copying.cancel()
            await asyncio.gather(copying, return_exceptions=True)
            assert await pool.fetchval("SELECT count(*) FROM dirt.copied") == 0

    run(main())


@pytest.mark.parametrize("session_reset", RESETS)
def test_a_cursor_and_a_transaction_of_an_ended_lease_are_dead(address, session_reset):
    """Objects of a lease that has ended refuse to work on the connection of the next."""

    async def main():
        async with one_connection(address, session_reset=session_reset) as pool:
            with quiet_handler():
                con = await pool.acquire()
                statement = await con.prepare("SELECT 1")
                transaction = con.transaction()
                await transaction.start()
                await pool.release(con)
                async with pool.acquire() as other:
                    with pytest.raises(asyncpg.InterfaceError, match="released back to the pool"):
                        await statement.fetch()
                    with pytest.raises(asyncpg.InterfaceError, match="released back to the pool"):
                        await transaction.commit()
                    with pytest.raises(asyncpg.InterfaceError, match="released back to the pool"):
                        con.execute("SELECT 1")
                    assert not other.is_in_transaction()

    asyncio.run(main())


# ---- what the server says by itself ----


@pytest.mark.parametrize("session_reset", RESETS)
def test_notices_in_the_answer_to_a_reset_do_no_harm(address, run, session_reset):
    """A session that reports every debug message does so during its reset too, and stays in use."""

    async def main():
        async with one_connection(address, session_reset=session_reset) as pool:
            for number in range(10):
                async with pool.acquire() as con:
                    pid = con.get_server_pid()
                    await con.execute("SET client_min_messages = 'debug5'")
                async with pool.acquire() as con:
                    assert await con.fetchval("SELECT $1::int", number) == number
                    assert con.get_server_pid() == pid

    run(main())


@pytest.mark.parametrize("session_reset", [*ALWAYS, "never"])
def test_a_parameter_that_the_server_changes_reaches_the_driver(dirty_server, run, session_reset):
    """A reload of the server's configuration is told with a reset's answer or a query's, and no connection is lost."""

    def reload(value):
        with psycopg.connect(dirty_server.dsn, autocommit=True) as admin:
            admin.execute(f"ALTER SYSTEM SET DateStyle = '{value}'")
            admin.execute("SELECT pg_reload_conf()")

    async def main():
        async with one_connection(dirty_server.dsn, session_reset=session_reset) as pool:
            async with pool.acquire() as con:
                pid = con.get_server_pid()
            await pool.settled()
            reload("SQL, DMY")
            await helpers.eventually(lambda: is_told(pool, pid, "SQL, DMY"))
            async with pool.acquire() as con:
                reload("ISO, MDY")
            await helpers.eventually(lambda: is_told(pool, pid, "ISO, MDY"))

    async def is_told(pool, pid, style):
        """Without a query, where there is a reset: its answer tells."""
        async with pool.acquire() as con:
            assert con.get_server_pid() == pid
            if session_reset == "never":
                await con.execute("SELECT 1")
            return con.get_settings().DateStyle == style

    try:
        run(main())
    finally:
        reload("ISO, MDY")


def test_a_notification_to_an_idle_connection_is_not_its_death(address, run):
    """A connection that listens since `init` and is notified while idle is lent all the same."""

    async def init(con):
        await con.execute("LISTEN dirt_channel")

    async def main():
        monitor = await asyncpg.connect(address)
        async with create_pool(address, min_size=1, max_size=1, init=init, session_reset="never") as pool:
            async with pool.acquire() as con:
                pid = con.get_server_pid()
            for turn in range(5):
                await pool.settled()
                for _ in range(turn):
                    await monitor.execute("NOTIFY dirt_channel, 'x'")
                async with pool.acquire(timeout=20) as con:
                    assert con.get_server_pid() == pid
                    assert await con.fetchval("SELECT $1::int", turn) == turn
            assert pool.stats().loops[0].counters.found_dead == 0
        await monitor.close()

    run(main())
