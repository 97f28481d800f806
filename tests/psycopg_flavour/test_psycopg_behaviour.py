"""What psycopg_pool's async pools do, and ours as they (P12)."""

from __future__ import annotations

import asyncio
import inspect
import logging
import warnings
from typing import Any

import psycopg
import psycopg_pool
import pytest
from psycopg.pq import TransactionStatus
from psycopg.rows import DictRow, Row, TupleRow, dict_row

from helpers import spin
from loopaware_pool import errors
from loopaware_pool.psycopg import (
    AsyncConnectionPool,
    AsyncNullConnectionPool,
    LoopAwareConnection,
    PoolClosed,
    PoolTimeout,
    TooManyRequests,
)
from loopaware_pool.testing import FaultProxy
from psycopg_pools import IS_PSYCOPG_3_2, busy, make_pool
from running import eventually_async

BOTH = [AsyncConnectionPool, AsyncNullConnectionPool]
# What has them have one connection.
ONE = {AsyncConnectionPool: {"min_size": 1}, AsyncNullConnectionPool: {"max_size": 1}}

pytestmark = [pytest.mark.both_drivers, pytest.mark.usefixtures("zero_fd_delta")]
both = pytest.mark.parametrize("cls", BOTH)


@pytest.fixture
def pool_of(dsn):
    """Makes a pool that is not opened; in a transaction unless told otherwise, as psycopg's connections are."""

    def make(cls=AsyncConnectionPool, dsn=dsn, **options):
        options["kwargs"] = {"autocommit": False} | options.get("kwargs", {})
        if cls is AsyncNullConnectionPool:
            options = {"max_size": 2} | options | {"min_size": 0}
        return make_pool(cls, dsn, **options)

    return make


@pytest.fixture
def way(dsn):
    """A way to the server, which refuses connections until it is healed."""
    with FaultProxy(dsn) as proxy:
        proxy.refuse()
        yield proxy


async def pid_of(pool, **options):
    async with pool.connection(**options) as connection:
        return connection.info.backend_pid


async def kill(dsn, *pids):
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        for pid in pids:
            await connection.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])


async def pids_of_all(pool, size):
    connections = [await pool.getconn() for _ in range(size)]
    pids = [connection.info.backend_pid for connection in connections]
    for connection in connections:
        await pool.putconn(connection)
    return pids


def words(caplog, logger="psycopg.pool", level=logging.WARNING):
    return [record.message for record in caplog.records if record.name == logger and record.levelno >= level]


# ---- making ----


def test_every_parameter_and_default_of_theirs_is_there():
    """By name, kind and default; the connection class is the one difference."""
    ours = inspect.signature(AsyncConnectionPool.__init__).parameters
    for name, theirs in inspect.signature(psycopg_pool.AsyncConnectionPool.__init__).parameters.items():
        assert ours[name].kind == theirs.kind
        if name != "connection_class":
            assert ours[name].default == theirs.default
    assert ours["connection_class"].default is LoopAwareConnection
    assert inspect.signature(AsyncNullConnectionPool.__init__).parameters["min_size"].default == 0


def defaults_of(method):
    return {name: parameter.default for name, parameter in inspect.signature(method).parameters.items()}


def test_every_method_of_theirs_takes_what_it_takes():
    """Parameters by name, with the same defaults."""
    for theirs in (psycopg_pool.AsyncConnectionPool, psycopg_pool.AsyncNullConnectionPool):
        ours = AsyncConnectionPool if theirs is psycopg_pool.AsyncConnectionPool else AsyncNullConnectionPool
        for name, method in inspect.getmembers(theirs, inspect.isfunction):
            if not name.startswith("_"):
                wanted = {key: one.default for key, one in inspect.signature(method).parameters.items()}
                assert {
                    key: one.default for key, one in inspect.signature(getattr(ours, name)).parameters.items()
                } == wanted


def test_pools_are_what_they_stand_for():
    """To `isinstance`, and to annotations that are evaluated."""
    pool, null = AsyncConnectionPool(open=False), AsyncNullConnectionPool(open=False)
    assert isinstance(pool, psycopg_pool.AsyncConnectionPool)
    assert isinstance(null, psycopg_pool.AsyncNullConnectionPool)
    assert isinstance(null, AsyncConnectionPool)
    assert AsyncConnectionPool[psycopg.AsyncConnection[TupleRow]](open=False).min_size == 4
    assert AsyncNullConnectionPool[psycopg.AsyncConnection[TupleRow]](open=False).min_size == 0


class OwnConnection(psycopg.AsyncConnection[Row]):
    """A generic class of a user's."""


def test_a_pool_of_a_generic_class_gives_its_rows(pool_of):
    """`configure` sees the connection, and the rows are of the factory's kind."""

    async def configure(connection: OwnConnection[Any]) -> None:
        seen.append(type(connection))

    async def main():
        pool: AsyncConnectionPool[OwnConnection[DictRow]] = pool_of(
            connection_class=OwnConnection, kwargs={"row_factory": dict_row}, min_size=1, configure=configure
        )
        async with pool, pool.connection() as connection:
            assert await (await connection.execute("SELECT 1 AS x")).fetchone() == {"x": 1}

    seen: list[type] = []
    asyncio.run(main())
    assert seen == [OwnConnection]


@pytest.mark.parametrize(
    ("sizes", "complaint"),
    [
        ({"min_size": -1}, "min_size cannot be negative"),
        ({"min_size": 4, "max_size": 2}, "max_size must be greater or equal than min_size"),
        ({"min_size": 0, "max_size": 0}, "if min_size is 0 max_size must be greater than 0"),
        ({"min_size": 0}, "if min_size is 0 max_size must be greater than 0"),
        ({"num_workers": 0}, "num_workers must be at least 1"),
    ],
)
def test_sizes_that_make_no_sense_are_refused_in_their_words(sizes, complaint):
    """As theirs does, at once; 3.2 words it a little otherwise."""
    with pytest.raises(ValueError, match=complaint):
        AsyncConnectionPool(open=False, **sizes)
    with pytest.raises(ValueError, match=r".*" if IS_PSYCOPG_3_2 else complaint):
        psycopg_pool.AsyncConnectionPool(open=False, **sizes)


@pytest.mark.parametrize(
    ("sizes", "complaint"),
    [({"min_size": 1}, "min_size = 0"), ({"max_size": -1}, "max_size must be greater")],
)
def test_a_null_pool_has_no_floor(sizes, complaint):
    """And any ceiling."""
    with pytest.raises(ValueError, match=complaint):
        AsyncNullConnectionPool(open=False, **sizes)
    assert AsyncNullConnectionPool(open=False).max_size == 0


@pytest.mark.parametrize(("min_size", "max_size", "wanted"), [(2, None, (2, 2)), (0, 3, (0, 3)), (2, 4, (2, 4))])
def test_sizes_are_as_given(min_size, max_size, wanted):
    """No `max_size` means as many as `min_size`."""
    pool = AsyncConnectionPool(open=False, min_size=min_size, max_size=max_size)
    assert (pool.min_size, pool.max_size) == wanted


@both
@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("max_size", "3", TypeError),
        ("timeout", "soon", TypeError),
        ("timeout", None, TypeError),
        ("max_waiting", -1, ValueError),
        ("max_waiting", 1.5, TypeError),
        ("max_lifetime", "1h", TypeError),
        ("max_idle", float("nan"), ValueError),
        ("reconnect_timeout", None, TypeError),
        ("num_workers", 1.5, TypeError),
        ("connection_class", psycopg.Connection, TypeError),
        ("connection_class", "AsyncConnection", TypeError),
        ("session_reset", "pipelined", ValueError),
        ("idle_order", "random", ValueError),
        ("discard_dead", True, ValueError),
        ("discard_expired", "never", ValueError),
        ("keepalive", -1, ValueError),
        ("shed_after", -0.1, ValueError),
        ("leak_threshold", "x", TypeError),
        ("fd_check", 0, ValueError),
        ("on_event", 3, TypeError),
    ],
)
def test_bad_input_names_the_argument_and_the_value(cls, option, value, error):
    """Before anything is opened."""
    with pytest.raises(error) as caught:
        cls(open=False, **{option: value})
    assert option in str(caught.value)
    assert repr(value) in str(caught.value)


def test_names_are_counted_with_theirs():
    """pool-1, pool-2, ... whoever's they are; and each pool has one."""
    first, second = AsyncConnectionPool(open=False), psycopg_pool.AsyncConnectionPool(open=False)
    assert int(second.name.removeprefix("pool-")) == int(first.name.removeprefix("pool-")) + 1
    assert repr(AsyncConnectionPool(open=False, name="orders")).startswith(
        "<loopaware_pool.psycopg.AsyncConnectionPool 'orders' at 0x"
    )


def test_attributes_are_as_given():
    """Those that theirs has; some may be set."""
    numbers = {"timeout": 3, "max_waiting": 4, "max_lifetime": 5, "max_idle": 6, "reconnect_timeout": 7}
    pool = AsyncConnectionPool("dbname=x", open=False, kwargs={"a": 1}, **numbers)
    assert (pool.conninfo, pool.kwargs, pool.connection_class) == ("dbname=x", {"a": 1}, LoopAwareConnection)
    assert {name: getattr(pool, name) for name in numbers} == numbers
    assert (pool.num_workers, pool.close_returns, pool.closed) == (3, False, True)
    assert 9.5 <= AsyncConnectionPool._jitter(10, -0.05, 0.0) <= 10
    pool.conninfo, pool.kwargs, pool.timeout = "dbname=y", None, 1
    assert (pool.conninfo, pool.kwargs, pool.timeout) == ("dbname=y", None, 1)


# ---- opening ----


@both
def test_opening_in_the_constructor_is_warned_of(cls, dsn):
    """At once if asked for; at the first use if implied, but for a context manager."""

    async def main():
        with pytest.warns(RuntimeWarning, match="constructor is deprecated"):
            pool = cls(dsn, open=True)
        async with pool.connection():
            pass
        await pool.close()
        implied = cls(dsn)
        with pytest.warns(RuntimeWarning, match="constructor is deprecated"):
            async with implied.connection():
                pass
        await implied.close()
        waiting = cls(dsn)
        with pytest.warns(RuntimeWarning):
            await waiting.wait()
        await waiting.close()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            async with cls(dsn) as entered, entered.connection():
                pass
            later = cls(dsn, open=False)
            await later.open()
            async with later.connection():
                pass
            await later.close()

    asyncio.run(main())


@both
def test_opening_without_a_loop_is_refused(cls, dsn):
    """A `RuntimeError`, which names the class; without opening, a pool needs no loop."""
    with pytest.raises(RuntimeError, match=f"{cls.__name__} open with no running loop"):
        cls(dsn)
    cls(dsn, open=False)


@both
def test_a_pool_that_is_not_open_says_so(cls, pool_of):
    """Before, and after; and it cannot be opened twice."""

    async def main():
        pool = pool_of(cls)
        with pytest.raises(psycopg_pool.PoolClosed, match="is not open yet"):
            await pool.getconn()
        with pytest.raises(PoolClosed, match="is not open yet"):
            await pool.wait()
        assert pool.closed
        await pool.open()
        await pool.open()
        assert not pool.closed
        await pool.close()
        await pool.close()
        assert pool.closed
        with pytest.raises(errors.PoolClosed, match="is already closed"):
            await pool.getconn()
        with pytest.raises(psycopg.OperationalError, match="cannot be reused"):
            await pool.open()

    asyncio.run(main())


@both
def test_waiting_for_a_pool_that_cannot_connect_closes_it(cls, way):
    """The error says for how long, and why."""

    async def main():
        pool = make_pool(cls, way.dsn, **({"min_size": 1} if cls is AsyncConnectionPool else {}))
        with pytest.raises(PoolTimeout, match=r"pool initialization incomplete after 0.2 sec") as caught:
            await pool.open(wait=True, timeout=0.2)
        assert isinstance(caught.value.__cause__, psycopg.OperationalError)
        assert pool.closed

    asyncio.run(main())


def test_a_pool_serves_once_the_server_appears(way):
    """Whoever waits is served; and the floor is filled."""

    async def main():
        async with make_pool(AsyncConnectionPool, way.dsn, min_size=2) as pool:
            caller = asyncio.create_task(pid_of(pool))
            await asyncio.sleep(0.2)
            assert not caller.done()
            way.heal()
            assert await caller
            await pool.wait(5)
            assert pool._nconns == 2

    asyncio.run(main())


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
            async with pool.connection():
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
                    assert "test_psycopg_behaviour.py" in caught.value.holders[0].where
                    assert caught.value.sqlstate is None
                assert pool.get_stats()["requests_waiting"] == 0
                with pytest.raises(psycopg_pool.PoolTimeout, match=r"after 0.01 sec"):
                    await pool.getconn(timeout=0.01)
            assert pool.get_stats()["requests_errors"] == 5
            assert await pid_of(pool)

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
                    "'advisory'), (SELECT count(*) FROM pg_listening_channels()), (SELECT count(*) FROM pg_cursors)"
                )
                work_mem, role, *counts = await cursor.fetchone()
                assert work_mem != "77kB"
                assert role == "pg_read_all_data"
                assert counts == [0, 0, 0]

    asyncio.run(main())


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


# ---- hooks ----


@both
def test_configure_is_called_once_for_each_connection(cls, pool_of):
    """Before anybody has it."""

    async def configure(connection):
        called.append(connection)
        async with connection.transaction():
            await connection.execute("SET default_transaction_read_only TO on")

    async def main():
        async with pool_of(cls, configure=configure, **({"min_size": 1} if cls is AsyncConnectionPool else {})) as pool:
            for _ in range(2):
                async with pool.connection() as connection:
                    cursor = await connection.execute("SHOW default_transaction_read_only")
                    assert await cursor.fetchone() == ("on",)
            assert len(called) == (1 if cls is AsyncConnectionPool else 2)

    called: list[object] = []
    asyncio.run(main())


@both
@pytest.mark.parametrize("fault", ["INTRANS", "WAT"])
def test_a_configure_that_fails_is_a_connect_that_fails(cls, pool_of, caplog, fault):
    """It is logged, and tried again until somebody's time is up."""

    async def configure(connection):
        if fault == "WAT":
            raise ZeroDivisionError(fault)
        await connection.execute("SELECT 1")

    async def main():
        pool = pool_of(cls, configure=configure, **({"min_size": 1} if cls is AsyncConnectionPool else {}))
        with pytest.raises(PoolTimeout):
            await pool.open(wait=True, timeout=0.1)

    asyncio.run(main())
    assert fault in words(caplog)[0]
    assert "error connecting in" in words(caplog)[0]


@pytest.mark.parametrize("is_async", [False, True])
def test_where_to_connect_can_be_asked_each_time(dsn, is_async):
    """Of functions, plain or async; one that fails is a connect that fails, and does not fill the log."""

    async def async_conninfo():
        return plain_conninfo()

    async def async_kwargs():
        return plain_kwargs()

    def plain_conninfo():
        asked.append("conninfo")
        return dsn

    def plain_kwargs():
        asked.append("kwargs")
        return {"application_name": f"asked-{len(asked)}"}

    async def main():
        conninfo, kwargs = (async_conninfo, async_kwargs) if is_async else (plain_conninfo, plain_kwargs)
        async with AsyncNullConnectionPool(conninfo, kwargs=kwargs, open=False) as pool:
            for number in (2, 4):
                async with pool.connection() as connection:
                    cursor = await connection.execute("SHOW application_name")
                    assert await cursor.fetchone() == (f"asked-{number}",)

    asked: list[str] = []
    asyncio.run(main())


def test_functions_that_cannot_tell_where_to_connect_are_asked_again(caplog):
    """Until somebody's time is up, who hears why; the log is not filled."""

    def conninfo():
        raise ZeroDivisionError("nowhere")

    async def main():
        async with AsyncConnectionPool(conninfo, min_size=1, open=False) as pool:
            with pytest.raises(PoolTimeout) as caught:
                await pool.getconn(timeout=0.5)
            assert isinstance(caught.value.__cause__, ZeroDivisionError)

    asyncio.run(main())
    assert 1 <= len(words(caplog)) < 5


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize("is_async", [False, True])
def test_an_outage_that_lasts_is_told(way, cls, is_async):
    """After `reconnect_timeout`, with the pool; which serves again as soon as the server does."""

    def plain(pool):
        told.append(pool)

    async def coroutine(pool):
        told.append(pool)

    async def main():
        options = {"min_size": 1} if cls is AsyncConnectionPool else {}
        hook = coroutine if is_async else plain
        async with make_pool(cls, way.dsn, reconnect_timeout=0.1, reconnect_failed=hook, **options) as pool:
            if cls is AsyncNullConnectionPool:
                with pytest.raises(psycopg.OperationalError):
                    await pool.getconn()
            await eventually_async(lambda: told, "somebody who is told")
            assert told[0] is pool
            assert pool._nconns == 0
            way.heal()
            assert await pid_of(pool)

    told: list[object] = []
    asyncio.run(main())


# ---- checks, age, and death ----


def test_a_dead_connection_is_lent_unless_somebody_looks(pool_of, dsn):
    """As theirs is, without a `check`; with `discard_dead="always"` it is not."""

    async def main():
        async with pool_of(min_size=1) as pool:
            await kill(dsn, await pid_of(pool))
            with pytest.raises(psycopg.OperationalError):
                async with pool.connection() as connection:
                    await connection.execute("SELECT 1")
        async with pool_of(min_size=1, discard_dead="always") as pool:
            await kill(dsn, await pid_of(pool))
            async with pool.connection() as connection:
                await connection.execute("SELECT 1")
            assert pool.get_stats()["connections_lost"] == 1

    asyncio.run(main())


@both
@pytest.mark.parametrize("autocommit", [True, False])
def test_a_check_leaves_the_connection_as_it_was(cls, pool_of, autocommit):
    """Idle, and with its setting."""

    async def main():
        options = {"check": cls.check_connection, "kwargs": {"autocommit": autocommit}}
        async with pool_of(cls, **options) as pool, pool.connection() as connection:
            assert connection.autocommit is autocommit
            assert connection.pgconn.transaction_status == TransactionStatus.IDLE

    asyncio.run(main())


def test_dead_connections_cost_no_caller_a_pause(pool_of, dsn, caplog):
    """Six of them, with a `check`: the next forty callers are served, and nothing is logged as a warning."""

    async def main():
        async with pool_of(min_size=6, check=AsyncConnectionPool.check_connection) as pool:
            await pool.wait()
            await kill(dsn, *await pids_of_all(pool, 6))
            for _ in range(40):
                async with pool.connection(timeout=2) as connection:
                    await connection.execute("SELECT 1")

    asyncio.run(main())
    assert words(caplog) == []


@both
def test_a_connection_that_fails_its_check_goes_back(cls, pool_of):
    """A live one is tried again, after a pause; in the end the caller is told."""

    async def check(connection):
        checked.append(connection)
        if len(checked) == 1:
            raise ZeroDivisionError

    async def refuse(connection):
        raise ZeroDivisionError

    async def main():
        async with pool_of(cls, check=check) as pool:
            assert await pid_of(pool)
            assert len(checked) == 2
        async with pool_of(cls, check=refuse) as pool:
            with pytest.raises(PoolTimeout, match="in check"):
                await pool.getconn(timeout=0.2)
            if cls is AsyncConnectionPool:
                assert len(pool._pool) >= 1

    checked: list[object] = []
    asyncio.run(main())


def test_check_replaces_what_is_broken(pool_of, dsn, caplog):
    """One of four; the other three stay."""

    async def main():
        async with pool_of(min_size=4) as pool:
            await pool.wait()
            pids = await pids_of_all(pool, 4)
            await kill(dsn, pids[0])
            await pool.check()
            await eventually_async(lambda: len(pool._pool) == 4, "a floor that is restored")
            assert len(words(caplog)) == 1
            assert "discarding broken connection" in words(caplog)[0]
            assert set(await pids_of_all(pool, 4)) & set(pids) == set(pids[1:])
            assert pool.get_stats()["connections_lost"] == 1
            assert {connection.pgconn.transaction_status for connection in pool._pool} == {TransactionStatus.IDLE}
        async with pool_of(AsyncNullConnectionPool) as null:
            await null.check()

    asyncio.run(main())


@both
def test_draining_replaces_every_connection(cls, pool_of):
    """The idle ones now, those that are out when they come back."""

    async def main():
        async with pool_of(cls, min_size=2) as pool:
            await pool.wait()
            held, other = [await pool.getconn() for _ in range(2)]
            pids = {held.info.backend_pid, other.info.backend_pid}
            await pool.putconn(other)
            await pool.drain()
            await pool.putconn(held)
            assert held.closed
            assert other.closed
            assert not pids & {await pid_of(pool) for _ in range(2)}

    asyncio.run(main())


def test_age_is_looked_at_on_return_unless_told_otherwise(pool_of):
    """An idle connection that has grown too old is lent once more, as theirs is; or, on request, replaced at once."""

    async def main():
        async with pool_of(min_size=1, max_lifetime=0.1) as pool:
            await pool.wait()
            await asyncio.sleep(0.15)
            pids = [await pid_of(pool) for _ in range(2)]
            assert pids[0] != pids[1]
        async with pool_of(min_size=1, max_lifetime=0.1, discard_expired="always") as pool:
            await pool.wait()
            counters = pool._core.runner().shard.counters
            await eventually_async(lambda: counters.closed, "a connection that has grown too old")

    asyncio.run(main())


def test_connections_are_used_in_turn_unless_told_otherwise(pool_of):
    """All alike, as theirs are; or the one used last."""

    async def main():
        async with pool_of(min_size=4) as pool:
            await pool.wait()
            pids = [await pid_of(pool) for _ in range(8)]
            assert pids[:4] == pids[4:]
            assert len(set(pids)) == 4
        async with pool_of(min_size=4, idle_order="lifo") as pool:
            await pool.wait()
            assert len({await pid_of(pool) for _ in range(8)}) == 1

    asyncio.run(main())


def test_connections_that_were_never_needed_are_closed_one_by_one(pool_of):
    """Above `min_size`, though all are used in turn."""

    async def main():
        async with pool_of(min_size=1, max_size=3, max_idle=0.1) as pool:
            await pids_of_all(pool, 3)
            assert pool._nconns == 3
            while pool._nconns > 1:
                await pid_of(pool)
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.25)
            assert pool._nconns == 1

    asyncio.run(main())


# ---- sizes and statistics ----


def test_a_pool_can_be_resized(pool_of):
    """It grows at once; what is too much goes when it was not needed."""

    async def main():
        async with pool_of(min_size=1, max_size=1, max_idle=0.05) as pool:
            await pool.wait()
            async with pool.connection():
                waiting = asyncio.create_task(pid_of(pool))
                await asyncio.sleep(0.02)
                await pool.resize(1, 2)
                assert await waiting
            await pool.resize(3)
            assert (pool.min_size, pool.max_size) == (3, 3)
            await eventually_async(lambda: len(pool._pool) == 3, "a floor that is reached")
            await pool.resize(1, 3)
            await eventually_async(lambda: pool._nconns == 1, "connections that go")
            for sizes in ((-1,), (2, 1), (0, 0)):
                with pytest.raises(ValueError, match="size"):
                    await pool.resize(*sizes)
            assert (pool.min_size, pool.max_size) == (1, 3)
        async with pool_of(AsyncNullConnectionPool, max_size=1) as null:
            await null.resize(0, 3)
            assert null.max_size == 3
            with pytest.raises(ValueError, match="min_size = 0"):
                await null.resize(1, 2)

    asyncio.run(main())


def test_statistics_have_their_names(pool_of, dsn):
    """Measures always, counters unless they are 0; `pop_stats` begins anew."""

    async def main():
        async with pool_of(min_size=2, max_size=4) as pool:
            await pool.wait()
            stats = pool.get_stats()
            measures = {"pool_min": 2, "pool_max": 4, "pool_size": 2, "pool_available": 2, "requests_waiting": 0}
            assert {key: stats[key] for key in measures} == measures
            assert stats["connections_num"] == 2
            assert stats["connections_ms"] > 0
            assert not {"requests_num", "usage_ms", "requests_errors", "returns_bad"} & stats.keys()
            async with pool.connection(), pool.connection(), pool.connection(), pool.connection():
                waiting = asyncio.create_task(pid_of(pool))
                await asyncio.sleep(0.02)
                assert pool.get_stats()["requests_waiting"] == 1
                assert len(pool._waiting) == 1
                assert pool.get_stats()["pool_available"] == 0
            await waiting
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01), pool.connection():
                    await asyncio.sleep(1)
            stats = pool.pop_stats()
            assert stats["requests_num"] == 6
            assert stats["requests_queued"] == 3
            assert stats["requests_wait_ms"] >= 20
            assert stats["usage_ms"] >= 80
            assert stats["connections_num"] == 4
            stats = pool.pop_stats()
            assert stats.keys() == measures.keys()
            assert await pid_of(pool)
            assert pool.get_stats()["requests_num"] == 1

    asyncio.run(main())


def test_connects_that_fail_are_counted(way):
    """As errors, and as attempts."""

    async def main():
        async with make_pool(AsyncConnectionPool, way.dsn, min_size=1) as pool:
            with pytest.raises(PoolTimeout):
                await pool.getconn(timeout=0.1)
            stats = pool.get_stats()
            assert stats["connections_errors"] >= 1
            assert stats["connections_num"] >= stats["connections_errors"]
            assert stats["requests_errors"] == stats["requests_num"] == 1

    asyncio.run(main())


def test_a_null_pool_connects_in_parallel(pool_of):
    """Within its callers' time, and no more than `max_size`."""

    async def configure(_):
        await asyncio.sleep(0.1)

    async def main():
        async with pool_of(AsyncNullConnectionPool, max_size=5, configure=configure) as pool:
            connections = await asyncio.gather(*(pool.getconn(timeout=0.35) for _ in range(5)))
            with pytest.raises(PoolTimeout):
                await pool.getconn(timeout=0.05)
            for connection in connections:
                await pool.putconn(connection)

    asyncio.run(main())


def test_what_psycopg_pools_workers_would_do_is_refused(pool_of):
    """There are none; the methods say so."""
    pool = pool_of()
    with pytest.raises(NotImplementedError, match="no workers"):
        pool.run_task(object())
    with pytest.raises(NotImplementedError, match="no workers"):
        asyncio.run(pool.schedule_task(object(), 1.0))


def test_a_pool_can_be_suspended(pool_of):
    """Callers queue until it is resumed."""

    async def main():
        async with pool_of(min_size=1) as pool:
            await pool.wait()
            pool.suspend()
            caller = asyncio.create_task(pid_of(pool))
            await spin(3)
            assert not caller.done()
            pool.resume()
            assert await caller

    asyncio.run(main())


def test_a_query_that_runs_as_its_connection_is_returned_says_so_in_the_log(pool_of, caplog):
    """And ends with an error."""

    async def main():
        async with pool_of(min_size=1) as pool:
            connection = await pool.getconn()
            query = asyncio.create_task(connection.execute("SELECT pg_sleep(60)"))
            await busy(connection)
            await pool.putconn(connection)
            with pytest.raises(psycopg.OperationalError, match="returned to its pool while a query was running"):
                await query

    asyncio.run(main())
    assert "closing returned connection" in words(caplog)[0]
