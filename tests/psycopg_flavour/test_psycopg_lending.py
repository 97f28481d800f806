"""Connections are lent and come back as from psycopg_pool's pools."""

from __future__ import annotations

import asyncio

import psycopg
import psycopg_pool
import pytest
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row

from helpers import spin
from loopaware_pool import errors
from loopaware_pool.psycopg import (
    AsyncConnectionPool,
    AsyncNullConnectionPool,
    LoopAwareConnection,
    PoolTimeout,
    TooManyRequests,
)
from psycopg_likeness import BOTH, OwnConnection, both, kill, pid_of, words
from psycopg_pools import IS_PSYCOPG_3_2, make_pool
from running import DEADLINE_SECONDS, eventually_async

pytestmark = [pytest.mark.both_drivers, pytest.mark.usefixtures("zero_fd_delta")]
# What has them have one connection.
ONE = {AsyncConnectionPool: {"min_size": 1}, AsyncNullConnectionPool: {"max_size": 1}}


# ---- lending ----


def test_a_connection_is_used_again(pool_of):
    """Also after an error in the block, which rolls back."""

    async def main():
        async with pool_of(min_size=1) as pool:
            pid = await pid_of(pool)
            with pytest.raises(ZeroDivisionError):
                async with pool.connection() as connection:
                    await connection.execute("CREATE TABLE never (x int)")
                    raise ZeroDivisionError
            assert await pid_of(pool) == pid
            async with pool.connection() as connection:
                assert await (await connection.execute("SELECT to_regclass('never')")).fetchone() == (None,)

    asyncio.run(main())


def test_a_null_pool_connects_each_time(pool_of):
    """And its connections are closed as they come back."""

    async def main():
        async with pool_of(AsyncNullConnectionPool) as pool:
            connection = await pool.getconn()
            pids = {connection.info.backend_pid}
            await pool.putconn(connection)
            assert connection.closed
            pids |= {await pid_of(pool) for _ in range(2)}
            assert len(pids) == 3
            assert pool.get_stats()["pool_size"] == 0

    asyncio.run(main())


@both
def test_a_block_commits(cls, pool_of):
    """On success; psycopg's own context does."""

    async def main():
        async with pool_of(cls) as pool:
            async with pool.connection() as connection:
                await connection.execute("CREATE TABLE IF NOT EXISTS committed (x int)")
                assert connection.pgconn.transaction_status == TransactionStatus.INTRANS
            async with pool.connection() as connection:
                await connection.execute("DROP TABLE committed")

    asyncio.run(main())


@both
def test_lent_connections_know_their_pool(cls, pool_of):
    """As psycopg looks for it; and not once they are back."""

    async def main():
        async with pool_of(cls) as pool:
            connection = await pool.getconn()
            assert connection._pool is pool
            await pool.putconn(connection)
            assert connection._pool is None

    asyncio.run(main())


@both
def test_only_what_is_lent_can_be_returned(cls, pool_of, dsn):
    """Once, and to its own pool."""

    async def main():
        async with (
            pool_of(cls) as pool,
            pool_of(cls) as other,
            await LoopAwareConnection.connect(dsn) as stranger,
        ):
            connection = await pool.getconn()
            with pytest.raises(ValueError, match=f"it comes from pool '{pool.name}'"):
                await other.putconn(connection)
            await pool.putconn(connection)
            with pytest.raises(ValueError, match="it doesn't come from any pool"):
                await pool.putconn(connection)
            with pytest.raises(ValueError, match="it doesn't come from any pool"):
                await pool.putconn(stranger)

    asyncio.run(main())


@both
def test_callers_are_served_in_the_order_they_came(cls, pool_of):
    """And each returns what it has to the next."""

    async def caller(pool, number):
        async with pool.connection() as connection:
            assert connection._pool is pool
            served.append(number)
            await asyncio.sleep(0.01)

    async def main():
        async with pool_of(cls, **ONE[cls]) as pool:
            await pool.wait()
            await asyncio.gather(*(caller(pool, number) for number in range(8)))

    served: list[int] = []
    asyncio.run(main())
    assert served == list(range(8))


@both
def test_more_callers_than_may_wait_are_refused(cls, pool_of):
    """The error says how many wait, in which pool."""

    async def main():
        async with pool_of(cls, max_waiting=2, **ONE[cls]) as pool:
            async with pool.connection():
                waiting = [asyncio.create_task(pid_of(pool)) for _ in range(2)]
                await spin(2)
                with pytest.raises(psycopg_pool.TooManyRequests) as caught:
                    await pool.getconn()
                assert isinstance(caught.value, TooManyRequests)
                assert isinstance(caught.value, errors.TooManyWaiting)
                assert "2" in str(caught.value)
                assert pool.name in str(caught.value)
            await asyncio.gather(*waiting)

    asyncio.run(main())


@both
def test_a_caller_that_waits_too_long_is_told_all_there_is_to_know(cls, pool_of):
    """And is out of the queue at once, as is one that is cancelled."""

    async def main():
        async with pool_of(cls, timeout=0.05, max_waiting=1, **ONE[cls]) as pool:
            async with pool.connection(timeout=DEADLINE_SECONDS):
                for _ in range(4):
                    with pytest.raises(
                        psycopg_pool.PoolTimeout, match=r"couldn't get a connection after 0.05 sec"
                    ) as caught:
                        await pool.getconn()
                    assert isinstance(caught.value, errors.PoolTimeout)
                    assert isinstance(caught.value, TimeoutError)
                    assert caught.value.timeout == 0.05
                    assert caught.value.stats.lent == 1
                    assert len(caught.value.holders) == 1
                    assert "test_psycopg_lending.py" in caught.value.holders[0].where
                    assert caught.value.sqlstate is None
                assert pool.get_stats()["requests_waiting"] == 0
                with pytest.raises(psycopg_pool.PoolTimeout, match=r"after 0.01 sec"):
                    await pool.getconn(timeout=0.01)
            assert pool.get_stats()["requests_errors"] == 5
            assert await pid_of(pool, timeout=DEADLINE_SECONDS)

    asyncio.run(main())


@pytest.mark.parametrize(
    "pool_class", [AsyncConnectionPool, psycopg_pool.AsyncConnectionPool], ids=["ours", "upstream"]
)
def test_a_caller_without_time_takes_no_place_in_the_queue(pool_class, dsn):
    """So that no other is refused for it."""

    async def main():
        async with make_pool(pool_class, dsn, min_size=1, max_size=1, max_waiting=1) as pool:
            await pool.wait()
            connection = await pool.getconn()
            hasty = asyncio.create_task(pool.getconn(timeout=0))
            patient = asyncio.create_task(pool.getconn(timeout=5))
            with pytest.raises(psycopg_pool.PoolTimeout):
                await hasty
            await pool.putconn(connection)
            await pool.putconn(await patient)

    asyncio.run(main())


def test_no_time_is_enough_for_what_is_idle(pool_of):
    """And for nothing else."""

    async def main():
        async with pool_of(min_size=1) as pool:
            await pool.wait()
            async with pool.connection(timeout=0):
                with pytest.raises(PoolTimeout):
                    await pool.getconn(timeout=0)
                with pytest.raises(TypeError, match="timeout='soon'"):
                    await pool.getconn(timeout="soon")

    asyncio.run(main())


def test_a_timeout_carries_why_nothing_could_be_connected(way):
    """The last error, as its cause; a null pool's callers hear of that itself, at once."""

    async def main():
        async with make_pool(AsyncConnectionPool, way.dsn, min_size=1) as pool:
            await eventually_async(lambda: pool.get_stats().get("connections_errors"), "a connect that fails")
            with pytest.raises(PoolTimeout) as caught:
                await pool.getconn(timeout=0.2)
            assert isinstance(caught.value.__cause__, psycopg.OperationalError)
        async with make_pool(AsyncNullConnectionPool, way.dsn) as pool:
            with pytest.raises(psycopg.OperationalError, match="refused"):
                await pool.getconn()

    asyncio.run(main())


def test_a_context_can_decorate_a_function(pool_of):
    """As theirs can, any number of times; but it cannot be entered twice."""

    async def main():
        async with pool_of(min_size=1) as pool:

            @pool.connection()
            async def work():
                return len(pool._pool)

            assert [await work(), await work()] == [0, 0]
            context = pool.connection()
            async with context:
                with pytest.raises(RuntimeError, match="entered already"):
                    await context.__aenter__()
            with pytest.raises(RuntimeError, match="entered already"):
                await context.__aenter__()

    asyncio.run(main())


@pytest.mark.parametrize(
    "pool_class", [AsyncConnectionPool, psycopg_pool.AsyncConnectionPool], ids=["ours", "upstream"]
)
def test_a_context_is_left_once(pool_class, dsn):
    """Left without having been entered, or once more, it takes no connection from another caller."""

    async def main():
        async with make_pool(pool_class, dsn, min_size=1, max_size=1) as pool:
            with pytest.raises(RuntimeError):
                await pool.connection().__aexit__(None, None, None)
            context = pool.connection()
            async with context:
                pass
            connection = await pool.getconn()
            await context.__aexit__(None, None, None)
            assert not connection.closed
            await pool.putconn(connection)

    asyncio.run(main())


# ---- returning ----


def test_an_open_transaction_is_rolled_back(pool_of, caplog):
    """One record says so; the session stays."""

    async def main():
        async with pool_of(min_size=1) as pool:
            for query, error in (("SELECT 1", None), ("SELECT 1 / 0", psycopg.errors.DivisionByZero)):
                caplog.clear()
                connection = await pool.getconn()
                pid = connection.info.backend_pid
                if error is None:
                    await connection.execute(query)
                else:
                    with pytest.raises(error):
                        await connection.execute(query)
                await pool.putconn(connection)
                assert len(words(caplog)) == 1
                assert ("INTRANS" if error is None else "INERROR") in words(caplog)[0]
                assert await pid_of(pool) == pid
                assert connection.pgconn.transaction_status == TransactionStatus.IDLE

    asyncio.run(main())


def test_a_connection_in_the_middle_of_a_query_is_closed(pool_of, caplog):
    """Two records: what it was doing, and that it is gone."""

    async def main():
        async with pool_of(min_size=1) as pool:
            connection = await pool.getconn()
            connection.pgconn.exec_(b"COPY (SELECT 1) TO STDOUT")
            await pool.putconn(connection)
            assert connection.closed
            assert ["ACTIVE" in words(caplog)[0], "BAD" in words(caplog)[1]] == [True, True]
            assert len(words(caplog)) == 2
            assert await pid_of(pool)
            assert pool.get_stats()["returns_bad"] == 1

    asyncio.run(main())


def test_a_connection_that_cannot_be_rolled_back_is_closed(pool_of, dsn, caplog):
    """Three records: what, why, and that it is gone."""

    async def main():
        async with pool_of(min_size=1) as pool:
            connection = await pool.getconn()
            pid = connection.info.backend_pid
            with pytest.raises(psycopg.errors.DivisionByZero):
                await connection.execute("SELECT 1 / 0")
            await kill(dsn, pid)
            await pool.putconn(connection)
            said = words(caplog)
            assert len(said) == 3
            assert "INERROR" in said[0]
            assert any(name in said[1] for name in ("OperationalError", "AdminShutdown"))
            assert "BAD" in said[2]
            assert await pid_of(pool) != pid

    asyncio.run(main())


def test_a_connection_that_was_closed_is_replaced(pool_of, caplog):
    """It is counted as returned bad."""

    async def main():
        async with pool_of(min_size=1) as pool:
            async with pool.connection() as connection:
                pid = connection.info.backend_pid
                await connection.close()
            assert await pid_of(pool) != pid
            assert pool.get_stats()["returns_bad"] == 1
            assert "BAD" in words(caplog)[0]

    asyncio.run(main())


@pytest.mark.parametrize("cls", BOTH)
def test_reset_is_called_with_what_comes_back(cls, pool_of, caplog):
    """On a null pool with what is handed on; what it spoils is replaced."""

    async def reset(connection):
        called.append(connection)
        if len(called) == 2:
            await connection.execute("SELECT 'a transaction'")
        if len(called) == 3:
            raise ZeroDivisionError("WAT")

    async def main():
        async with pool_of(cls, reset=reset, **ONE[cls]) as pool:
            pids = []
            held = await pool.getconn()
            for _ in range(4):
                following = asyncio.create_task(pool.getconn())
                await spin(2)
                pids.append(held.info.backend_pid)
                await pool.putconn(held)
                held = await following
            await pool.putconn(held)
            assert pids[0] == pids[1]
            assert len(set(pids)) == 3
            await eventually_async(lambda: len(called) == (5 if cls is AsyncConnectionPool else 4), "resets")
        assert any("INTRANS" in line for line in words(caplog))
        assert any("WAT" in line for line in words(caplog))

    called: list[object] = []
    asyncio.run(main())


def test_sessions_are_reset_on_request(pool_of):
    """Settings, role, locks, listeners, cursors; and what a caller did to the connection's own attributes."""

    async def configure(connection):
        await connection.set_autocommit(True)
        await connection.execute("SET ROLE pg_read_all_data")
        connection.prepare_threshold = 2

    async def main():
        async with pool_of(min_size=1, session_reset="awaited", configure=configure) as pool:
            async with pool.connection() as connection:
                pid = connection.info.backend_pid
                assert connection.autocommit
                await connection.execute("SET work_mem = '77kB'")
                await connection.execute("RESET ROLE")
                await connection.execute("SELECT pg_advisory_lock(77)")
                await connection.execute("LISTEN news")
                await connection.execute("DECLARE cursor_77 CURSOR WITH HOLD FOR SELECT 1")
                await connection.set_autocommit(False)
                await connection.set_read_only(True)
                connection.row_factory = dict_row
                connection.prepare_threshold = 5
                connection.add_notice_handler(print)
            async with pool.connection() as connection:
                assert connection.info.backend_pid == pid
                assert connection.autocommit
                assert connection.read_only is None
                assert connection.prepare_threshold == 2
                assert not connection._notice_handlers
                cursor = await connection.execute(
                    "SELECT current_setting('work_mem'), current_user, (SELECT count(*) FROM pg_locks WHERE locktype = "
                    "'advisory' AND pid = pg_backend_pid()), (SELECT count(*) FROM pg_listening_channels()), "
                    "(SELECT count(*) FROM pg_cursors)"
                )
                work_mem, role, *counts = await cursor.fetchone()
                assert work_mem != "77kB"
                assert role == "pg_read_all_data"
                assert counts == [0, 0, 0]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("query", "left"),
    [("", "7"), ("RESET ALL; SELECT set_config('app.tenant', 'mine', false)", "mine"), ("DISCARD ALL", "")],
)
def test_the_users_query_is_sent_in_place_of_the_reset(pool_of, query, left):
    """
    What psycopg itself remembers of the lease is restored all the same; not prepared statements that were discarded:
    psycopg 3.2.0 does not notice.
    """
    threshold = None if "DISCARD" in query else 0

    async def main():
        kwargs = {"prepare_threshold": threshold}
        async with pool_of(min_size=1, session_reset="awaited", reset_query=query, kwargs=kwargs) as pool:
            async with pool.connection() as connection:
                pid = connection.info.backend_pid
                await connection.execute("SET app.tenant = '7'")
                connection.row_factory = dict_row
            async with pool.connection() as connection:
                assert connection.info.backend_pid == pid
                cursor = await connection.execute("SELECT coalesce(current_setting('app.tenant', true), '')")
                assert await cursor.fetchone() == (left,)

    asyncio.run(main())


def test_a_connection_is_closed_if_the_users_query_fails(pool_of):
    """The next lease gets another connection."""

    async def main():
        async with pool_of(min_size=1, session_reset="awaited", reset_query="SELECT 1/0") as pool:
            pids = set()
            for _ in range(2):
                async with pool.connection() as connection:
                    pids.add(connection.info.backend_pid)
            assert len(pids) == 2

    asyncio.run(main())


def test_a_query_that_would_never_be_sent_is_refused(dsn):
    """With the default, no session is reset."""
    with pytest.raises(ValueError, match=r"reset_query='RESET ALL' would not be sent.*give session_reset='awaited'"):
        AsyncConnectionPool(dsn, open=False, reset_query="RESET ALL")


def test_sessions_are_not_reset_by_default(pool_of):
    """As theirs are not."""

    async def main():
        async with pool_of(min_size=1, kwargs={"autocommit": True}) as pool:
            async with pool.connection() as connection:
                await connection.execute("SET work_mem = '77kB'")
            async with pool.connection() as connection:
                assert await (await connection.execute("SHOW work_mem")).fetchone() == ("77kB",)

    asyncio.run(main())


@both
def test_closing_a_connection_can_return_it(cls, pool_of):
    """With `close_returns`; on a null pool it closes."""

    async def main():
        async with pool_of(cls, close_returns=True) as pool:
            connection = await pool.getconn()
            await connection.close()
            assert connection.closed is (cls is AsyncNullConnectionPool)
            if cls is AsyncNullConnectionPool:
                await pool.putconn(connection)
            assert pool.get_stats()["pool_available"] == len(pool._pool)
            async with pool.connection() as connection:
                await connection.execute("SELECT 1")

    asyncio.run(main())


class Returning(psycopg.AsyncConnection):
    """The way to have `close` return a connection before `close_returns`."""

    async def close(self):
        if pool := getattr(self, "_pool", None):
            await pool.putconn(self)
        else:
            closed.append(self)
            await super().close()


closed: list[object] = []


def test_a_class_with_a_close_of_its_own_is_closed_by_it(pool_of):
    """Both when a caller closes, which returns it, and when the pool does."""

    async def main():
        closed.clear()
        async with pool_of(connection_class=Returning, min_size=1) as pool:
            await pool.wait()
            connection = await pool.getconn()
            await connection.close()
            assert not connection.closed
            assert len(pool._pool) == 1
        assert connection.closed
        assert closed == [connection]

    asyncio.run(main())


def test_a_foreign_class_cannot_return_itself_with_psycopg_3_2():
    """As theirs, in a word; psycopg 3.3's connections can."""
    if IS_PSYCOPG_3_2:
        with pytest.raises(TypeError, match=r"requires psycopg 3\.3"):
            AsyncConnectionPool(open=False, close_returns=True, connection_class=OwnConnection)
    else:
        assert AsyncConnectionPool(open=False, close_returns=True, connection_class=OwnConnection).close_returns
    assert AsyncConnectionPool(open=False, close_returns=True).close_returns
