"""Pools are made and opened as psycopg_pool's are."""

from __future__ import annotations

import asyncio
import inspect
import warnings
from typing import Any

import psycopg
import psycopg_pool
import pytest
from psycopg.rows import DictRow, TupleRow, dict_row

from loopaware_pool import errors
from loopaware_pool.psycopg import (
    AsyncConnectionPool,
    AsyncNullConnectionPool,
    LoopAwareConnection,
    PoolClosed,
    PoolTimeout,
)
from psycopg_likeness import OwnConnection, both, pid_of
from psycopg_pools import IS_PSYCOPG_3_2, make_pool
from running import DEADLINE_SECONDS, eventually_async

pytestmark = [pytest.mark.both_drivers, pytest.mark.usefixtures("zero_fd_delta")]


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
        await pool.open()
        patient = asyncio.create_task(pool.wait(DEADLINE_SECONDS))
        await eventually_async(lambda: pool._core.runner().shard.last_error, "a connect that fails")
        with pytest.raises(PoolTimeout, match=r"pool initialization incomplete after 0.2 sec") as caught:
            await pool.open(wait=True, timeout=0.2)
        assert isinstance(caught.value.__cause__, psycopg.OperationalError)
        assert pool.closed
        with pytest.raises(psycopg.OperationalError):
            await patient

    asyncio.run(main())


def test_a_server_that_says_nothing_leaves_the_time_as_the_cause(way):
    """If there is no refusal that would say more."""

    async def main():
        way.heal()
        way.freeze()
        with pytest.raises(PoolTimeout, match=r"pool initialization incomplete") as caught:
            await make_pool(AsyncNullConnectionPool, way.dsn).open(wait=True, timeout=0.05)
        assert isinstance(caught.value.__cause__, TimeoutError)

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
            await pool.wait(DEADLINE_SECONDS)
            assert pool._nconns == 2

    asyncio.run(main())
