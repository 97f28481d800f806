"""What SQLAlchemy's own pool does, ours does: sizes, times, events, records. Where it is run on both, both agree."""

from __future__ import annotations

import asyncio
import gc
import logging
import pickle
import time
import warnings

import asyncpg
import pytest
import sqlalchemy
from prometheus_client import CollectorRegistry
from sqlalchemy import event, exc, text
from sqlalchemy.exc import SAWarning
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.ext.asyncio import create_async_engine as create_stock
from sqlalchemy.pool import AsyncAdaptedQueuePool, QueuePool

import helpers
from engines import Engines, ask, ask_all, hold, pid
from loopaware_pool.errors import PoolError
from loopaware_pool.metrics.prometheus import register
from loopaware_pool.sqlalchemy import LoopAwareQueuePool, PoolTimeout, TooManyWaiting, create_async_engine
from loopaware_pool.stats import LeaseDropped

pytestmark = [pytest.mark.both_pythons, pytest.mark.both_drivers]

BOTH = [pytest.param(create_stock, id="stock"), pytest.param(create_async_engine, id="ours")]
EVENTS = (
    *("connect", "first_connect", "checkout", "checkin", "reset", "invalidate", "soft_invalidate"),
    *("close", "detach", "close_detached"),
)


def written_down(engine):
    """Note the names of a pool's events."""
    notes = []
    for name in EVENTS:
        event.listen(engine.sync_engine.pool, name, lambda *_, name=name: notes.append(name))
    return notes


@pytest.fixture
def stock_may_leak():
    """Collect what SQLAlchemy's own pool leaves open with psycopg, before it disturbs the next test."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


# ---- sizes ----


@pytest.mark.parametrize("create", BOTH)
def test_what_is_above_the_size_is_closed_when_it_comes_back(engines, run, create):
    """Up to `max_overflow` more are opened; they do not stay."""

    async def main():
        engine = engines.make(create, pool_size=2, max_overflow=2)
        pool = engine.sync_engine.pool
        connections = [await engine.connect() for _ in range(4)]
        counts = [(pool.size(), pool.checkedin(), pool.checkedout(), pool.overflow(), pool.status())]
        for connection in connections:
            await connection.close()
        await helpers.eventually(lambda: engines.sessions() == 2)
        counts.append((pool.size(), pool.checkedin(), pool.checkedout(), pool.overflow(), pool.status()))
        assert (pool._pool.qsize(), pool._pool.maxsize, pool._pool.empty(), pool._pool.full()) == (2, 2, False, True)
        await engine.dispose()
        assert counts == [
            (2, 0, 4, 2, "Pool size: 2  Connections in pool: 0 Current Overflow: 2 Current Checked out connections: 4"),
            (2, 2, 0, 0, "Pool size: 2  Connections in pool: 2 Current Overflow: 0 Current Checked out connections: 0"),
        ]

    run(main())


@pytest.mark.parametrize("sizes", [{"pool_size": 0}, {"pool_size": 1, "max_overflow": -1}])
@pytest.mark.parametrize("create", BOTH)
def test_there_may_be_no_limit(engines, run, create, sizes):
    """With `pool_size=0` all of them stay, with `max_overflow=-1` as many as the size says."""

    async def main():
        engine = engines.make(create, **sizes)
        await hold(engine, 4)
        kept = 1 if sizes["pool_size"] else 4
        await helpers.eventually(lambda: engines.sessions() == kept)
        assert engine.sync_engine.pool.checkedin() == kept
        await engine.dispose()

    run(main())


@pytest.mark.parametrize("is_last_first", [False, True])
@pytest.mark.parametrize("create", BOTH)
def test_which_one_is_lent_next_can_be_said(engines, run, create, is_last_first):
    """`pool_use_lifo`."""

    async def main():
        engine = engines.make(create, pool_use_lifo=is_last_first)
        first, last = await hold(engine, 2)
        assert await ask(engine, "SELECT pg_backend_pid()") == (last if is_last_first else first)
        await engine.dispose()

    run(main())


# ---- times ----


@pytest.mark.parametrize("timeout", [0, 0.05])
@pytest.mark.parametrize("create", BOTH)
def test_a_caller_that_waits_for_others_gets_the_error_of_sqlalchemy(engines, run, create, timeout):
    """A `sqlalchemy.exc.TimeoutError` with its code."""

    async def main():
        engine = engines.make(create, pool_size=1, pool_timeout=timeout)
        async with engine.connect():
            with pytest.raises(exc.TimeoutError, match=r"QueuePool limit .*reached.* timeout 0.0") as told:
                await ask(engine)
        assert told.value.code == "3o7r"
        assert "https://sqlalche.me/e/" in str(told.value)
        assert await ask(engine) == 42
        await engine.dispose()

    run(main())


def test_a_timeout_tells_who_holds_the_connections(engines, run):
    """It carries what timeouts of the other flavours carry, and names the line that acquired them."""

    async def main():
        engine = engines.make(pool_size=1, pool_timeout=0.01, name="orders", leak_threshold=60)
        async with engine.connect():
            with pytest.raises(PoolTimeout) as told:
                await ask(engine)
        error = told.value
        assert isinstance(error, (TimeoutError, PoolError))
        assert (error.pool, error.timeout, error.stats.lent) == ("orders", pytest.approx(0.01, abs=0.01), 1)
        assert "test_engine_contract.py" in error.holders[0].where
        assert "this very task holds 1 of them" in str(error)
        await engine.dispose()

    run(main())


@pytest.mark.parametrize("create", BOTH)
def test_no_timeout_passes_while_a_connection_is_opened(engines, run, create):
    """With a time of 0, a cold pool still serves as many as it may have."""

    async def main():
        engine = engines.make(create, pool_size=5, pool_timeout=0)

        @event.listens_for(engine.sync_engine.pool, "connect")
        def be_slow(connection, _):
            cursor = connection.cursor()
            cursor.execute("SELECT pg_sleep(0.1)")
            cursor.close()

        assert await ask_all(engine, 5) == [42] * 5
        await engine.dispose()

    run(main())


@pytest.mark.parametrize("create", BOTH)
def test_each_caller_gets_the_error_of_a_connect_at_once(engines, run, create):
    """Nothing is tried twice, and nobody waits until the time is up."""

    async def main():
        engine = engines.make(create, pool_size=5)

        @event.listens_for(engine.sync_engine, "do_connect")
        def refuse(*_):
            raise ConnectionRefusedError("no")

        found = await asyncio.wait_for(ask_all(engine, 5), 10)
        assert [type(error) for error in found] == [ConnectionRefusedError] * 5
        assert engine.sync_engine.pool.checkedout() == 0

    run(main())


def test_a_connection_is_recycled_when_it_is_too_old(engines, run, monkeypatch):
    """By SQLAlchemy itself, as the caller takes it: the record stays, with its `record_info`, and has another."""

    async def main():
        engine = engines.make(pool_size=1, pool_recycle=100)
        async with engine.connect() as connection:
            before = await pid(connection)
            raw = await connection.get_raw_connection()
            raw.record_info["kept"] = True
            raw.info["lost"] = True
        later = time.time() + 1000
        with monkeypatch.context() as patch:
            patch.setattr("sqlalchemy.pool.base.time.time", lambda: later)
            async with engine.connect() as connection:
                assert await pid(connection) != before
                raw = await connection.get_raw_connection()
                assert (raw.record_info, raw.info) == ({"kept": True}, {})
        await helpers.eventually(lambda: engines.sessions() == 1)
        await helpers.eventually(lambda: engine.pool.fd_report()[0].state == "idle")
        await engine.pool.settled()
        assert engine.pool.fd_report()[0].registered in (False, None)
        assert engines.kill() == 1
        assert await ask(engine) == 42
        await engine.dispose()

    run(main())


# ---- events and records ----


@pytest.mark.filterwarnings("ignore:.*was deleted while still open")
@pytest.mark.usefixtures("stock_may_leak")
@pytest.mark.parametrize("way", ["use", "invalidate", "soft", "detach", "dispose", "error"])
def test_events_come_as_from_the_pool_of_sqlalchemy(engines, run, way):
    """The same, in the same order."""

    async def main(create):
        engine = engines.make(create, pool_size=1)
        notes = written_down(engine)
        if way == "error":
            with pytest.raises(exc.DBAPIError):
                await ask(engine, "SELECT 1/0")
        for _ in range(2):
            async with engine.connect() as connection:
                await connection.execute(text("SELECT 1"))
                raw = await connection.get_raw_connection()
                if way == "invalidate":
                    await connection.invalidate()
                elif way == "soft":
                    raw.invalidate(soft=True)
                elif way == "detach":
                    raw.detach()
            if way == "dispose":
                await engine.dispose()
        await engine.dispose()
        return notes

    stock, ours = run(main(create_stock)), run(main(create_async_engine))
    if way == "detach" and engines.driver == "psycopg":  # SQLAlchemy leaves it to the garbage collector
        ours = [name for name in ours if name != "close_detached"]
    assert ours == stock
    assert len(stock) > 5


def test_an_invalidated_record_is_used_again(engines, run):
    """Its `record_info` is kept, and the pool has its place."""

    async def main():
        engine = engines.make(pool_size=1)
        async with engine.connect() as connection:
            raw = await connection.get_raw_connection()
            raw.record_info["kept"] = True
            await connection.invalidate()
        assert (engine.pool.checkedin(), engine.pool.checkedout()) == (1, 0)
        async with engine.connect() as connection:
            raw = await connection.get_raw_connection()
            assert raw.record_info == {"kept": True}
        await engine.dispose()

    run(main())


def test_a_detached_connection_is_the_callers_own(engines, run):
    """The pool opens another one in its place, and does not close it."""

    async def main():
        engine = engines.make(pool_size=1)
        async with engine.connect() as connection:
            raw = await connection.get_raw_connection()
            raw.detach()
            assert await ask(engine) == 42
            assert await pid(connection)
            assert engines.sessions() == 2
        await helpers.eventually(lambda: engines.sessions() == 1)
        await engine.dispose()

    run(main())


@pytest.mark.usefixtures("zero_fd_delta")
def test_a_connection_dropped_to_the_collector_is_closed_and_told(engines, run, caplog):
    """By SQLAlchemy, and by the pool, which names the line; its place is free."""
    found = []

    async def drop(engine):
        connection = await engine.connect()
        await pid(connection)
        del connection
        gc.collect()

    async def main():
        engine = engines.make(pool_size=1, pool_timeout=5, on_event=found.append, leak_threshold=60)
        with pytest.warns(SAWarning, match="garbage collector is trying to clean up"):
            await drop(engine)
        assert await ask(engine) == 42
        await helpers.eventually(lambda: engines.sessions() == 1)
        await engine.dispose()

    with caplog.at_level(logging.WARNING, "loopaware_pool"):
        run(main())
    (dropped,) = [one for one in found if isinstance(one, LeaseDropped)]
    assert "test_engine_contract.py" in dropped.lease.where
    assert "dropped without being returned" in caplog.text


def test_connections_killed_while_idle_cost_no_caller_anything(engines, run):
    """Without `pool_pre_ping`: a dead connection is seen without a round trip."""

    async def main():
        engine = engines.make(pool_size=15)
        await hold(engine, 15)
        assert engines.kill() == 15
        assert await ask_all(engine, 15) == [42] * 15
        await engine.dispose()

    run(main())


def test_an_engine_can_be_used_after_it_was_disposed_of(engines, run):
    """And what was lent then is closed when it comes back. (SQLAlchemy's own pool leaves it to the collector.)"""

    async def main():
        engine = engines.make()
        async with engine.connect() as connection:
            await pid(connection)
            await engine.dispose()
            assert await ask(engine) == 42
            assert await pid(connection)
        await engine.dispose()
        await helpers.eventually(lambda: engines.sessions() == 0)

    run(main())


def test_what_was_counted_is_not_forgotten_with_an_engine_that_is_disposed_of(engines, run):
    """A report at the end of a program reads it from the pool that the engine had, which counts as closed."""

    async def main():
        engine = engines.make()
        pool = engine.pool
        assert await ask(engine) == 42
        assert pool.stats().state == "open"
        await engine.dispose()
        assert (pool.stats().totals.acquired, pool.stats().state) == (1, "closed")
        assert (engine.pool.stats().totals.acquired, engine.pool.stats().state) == (0, "new")

    run(main())


def test_the_metrics_of_an_engine_go_on_after_it_was_disposed_of(engines, run):
    """As the documentation says: the engine's next pool has the same name."""
    registry = CollectorRegistry()

    def series():
        return registry.get_sample_value("loopaware_pool_acquires_total", {"pool": "orders"})

    async def main():
        engine = engines.make(name="orders")
        register(engine.pool, registry)
        event.listen(engine.sync_engine, "engine_disposed", lambda disposed: register(disposed.pool, registry))
        assert await ask(engine) == 42
        assert series() == 1
        await engine.dispose()
        assert await hold(engine, 2)
        assert series() == 2
        await engine.dispose()

    run(main())


def test_callers_that_wait_are_served_although_the_engine_is_disposed_of(engines, run):
    """And what they got is closed when it comes back: the pool has been replaced."""

    async def main():
        engine = engines.make(pool_size=1, pool_timeout=10)
        async with engine.connect():
            waiting = asyncio.ensure_future(ask(engine))
            await helpers.spin(5)
            await engine.dispose()
        assert await waiting == 42
        await helpers.eventually(lambda: engines.sessions() == 0)

    run(main())


@pytest.mark.usefixtures("zero_fd_delta")
def test_what_comes_back_while_an_engine_is_disposed_of_is_closed(engines, run):
    """A caller may be served, and give its connection back, before the engine has its next pool."""

    async def main():
        engine = engines.make(pool_size=3)
        await ask(engine)
        for iterations in range(6):
            asking = [asyncio.ensure_future(ask(engine)) for _ in range(6)]
            await helpers.spin(iterations)
            replaced = engine.pool
            await engine.dispose()
            assert await asyncio.gather(*asking) == [42] * 6
            await helpers.eventually(lambda replaced=replaced: replaced.stats().size == 0)
        await engine.dispose()
        await helpers.eventually(lambda: engines.sessions() == 0)

    run(main())


def test_a_pool_that_is_made_anew_and_not_disposed_of_keeps_its_connections(engines, run):
    """Some programs have a second pool of the same kind."""

    async def main():
        engine = engines.make()
        another = engine.pool.recreate()
        assert await hold(engine, 2)
        assert (engine.pool.checkedin(), another.size()) == (2, 2)
        await engine.dispose()

    run(main())


# ---- what a program does with the driver's own connection ----


@pytest.mark.parametrize("is_parked", [True, False])
def test_a_connection_of_asyncpgs_that_is_used_after_its_return_is_answered(dsn, run, is_parked):
    """As with SQLAlchemy's own pool; with its fd out of the selector nothing would read the answer."""

    async def main():
        engine = Engines(dsn, "asyncpg").make()
        async with engine.connect() as connection:
            raw = (await connection.get_raw_connection()).driver_connection
        if is_parked:
            await engine.pool.settled()
        assert await asyncio.wait_for(raw.fetchval("SELECT 42"), 10) == 42
        assert await ask(engine) == 42
        await engine.pool.settled()
        await asyncio.wait_for(raw.close(), 10)
        assert await ask(engine) == 42
        await engine.dispose()

    run(main())


def test_a_listener_is_heard_although_its_connection_is_idle(dsn, run):
    """As with SQLAlchemy's own pool, for as long as the connection is not closed."""
    heard = []

    async def main():
        engine = Engines(dsn, "asyncpg").make()
        async with engine.connect() as connection:
            raw = (await connection.get_raw_connection()).driver_connection
            await raw.add_listener("news", lambda *arguments: heard.append(arguments[-1]))
        await engine.pool.settled()
        other = await asyncpg.connect(dsn)
        await other.execute("NOTIFY news, 'hello'")
        await other.close()
        await helpers.eventually(lambda: heard == ["hello"])
        raw._listeners.clear()
        await engine.dispose()

    run(main())


def test_an_idle_connection_is_in_no_selector(dsn, run):
    """Some milliseconds after its return; uvloop does not let that be seen."""

    async def main():
        for driver in ("asyncpg", "psycopg"):
            engine = Engines(dsn, driver).make()
            await hold(engine, 2)
            await engine.pool.settled()
            assert all(not report.registered for report in engine.pool.fd_report())
            await engine.dispose()

    run(main())


# ---- sessions ----


def test_sessions_streams_and_synchronous_code_work(engines, run):
    """`AsyncSession`, `async_sessionmaker`, `run_sync`, `stream`."""

    async def main():
        engine = engines.make()
        factory = async_sessionmaker(engine, class_=AsyncSession)
        async with factory() as session, session.begin():
            assert await session.scalar(text("SELECT 42")) == 42
            assert await session.run_sync(lambda sync: sync.scalar(text("SELECT 43"))) == 43
        async with engine.connect() as connection:
            result = await connection.stream(text("SELECT * FROM generate_series(1, 1000)"))
            assert [row[0] async for row in result] == list(range(1, 1001))
        async with engine.connect() as connection:
            result = await connection.stream(text("SELECT * FROM generate_series(1, 1000)"))
            async for _ in result:
                break
            await result.close()
        assert sorted(await hold(engine, 2)) == sorted(await hold(engine, 2))
        await engine.dispose()

    run(main())


# ---- options ----


def test_an_engine_has_the_options_and_the_counts_of_the_other_flavours(engines, run):
    """Given to `create_async_engine`, and kept when the engine is disposed of."""
    found = []

    async def main():
        engine = engines.make(name="orders", max_waiting=1, on_event=found.append, max_idle=60, fd_check=60)
        assert await ask(engine) == 42
        await engine.pool.settled()
        stats = engine.pool.stats()
        assert (stats.name, stats.max_size, stats.idle) == ("orders", 2, 1)
        (report,) = engine.pool.fd_report()
        assert report.state == "idle"
        assert not report.registered
        connections = [await engine.connect() for _ in range(2)]
        waiting = asyncio.ensure_future(ask(engine))
        await helpers.spin(3)
        with pytest.raises(TooManyWaiting):
            await ask(engine)
        for connection in connections:
            await connection.close()
        await waiting
        await engine.dispose()
        assert engine.pool.stats().name == "orders"

    run(main())
    assert {type(one).__name__ for one in found} >= {"ConnectionOpened", "ConnectionClosed"}


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"pool_size": -1}, ValueError),
        ({"pool_size": "5"}, TypeError),
        ({"max_overflow": 0.5}, TypeError),
        ({"pool_timeout": "30"}, TypeError),
        ({"pool_timeout": -1}, ValueError),
        ({"leak_threshold": "1"}, TypeError),
        ({"max_waiting": -1}, ValueError),
        ({"name": ""}, TypeError),
        ({"on_event": 3}, TypeError),
        ({"leak_treshold": 1}, TypeError),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_by_its_name(engines, options, error):
    """Before anything is opened."""
    (name,) = options
    with pytest.raises(error, match=name.removeprefix("pool_") if name == "pool_timeout" else name):
        engines.make(**options)


@pytest.mark.parametrize("url", ["postgresql+psycopg2://", "mysql+aiomysql://", "sqlite+aiosqlite://"])
def test_another_driver_is_refused_in_one_sentence(url):
    """A synchronous one, and a database that is none of ours."""
    pool = QueuePool(lambda: None)
    dialect = sqlalchemy.make_url(url).get_dialect()()
    with pytest.raises(exc.ArgumentError, match=r"postgresql\+asyncpg or postgresql\+psycopg, not for"):
        LoopAwareQueuePool(pool._creator, dialect=dialect)


def test_an_engine_that_is_not_async_is_refused(dsn):
    """`poolclass` with `create_engine`."""
    url = dsn.replace("postgresql://", "postgresql+psycopg://")
    with pytest.raises(exc.ArgumentError, match="a sync engine with postgresql"):
        sqlalchemy.create_engine(url, poolclass=LoopAwareQueuePool)


def test_it_is_a_pool_of_sqlalchemys(engines):
    """For programs that ask, and to be named as `poolclass`. It cannot be pickled."""
    engine = create_stock(engines.url, poolclass=LoopAwareQueuePool, pool_size=3)
    assert isinstance(engine.pool, AsyncAdaptedQueuePool)
    assert engine.pool.size() == 3
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(engine.pool)
