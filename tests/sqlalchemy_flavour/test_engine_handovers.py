"""A connection that SQLAlchemy takes out of its record, or replaces there, is no other caller's and not forgotten."""

from __future__ import annotations

import asyncio
import gc
import threading

import pytest
from sqlalchemy.util import greenlet_spawn

from engines import hold, pid
from forking import in_child
from running import LoopThread, end_abruptly, end_politely, eventually

pytestmark = [
    pytest.mark.both_pythons,
    pytest.mark.both_drivers,
    # With psycopg, SQLAlchemy leaves a detached connection to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


async def detach(connection):
    """Make a connection the caller's own."""
    await connection.run_sync(lambda sync: sync.detach())


def test_a_detached_connections_record_may_serve_another_thread_at_once(engines, loop_factory):
    """The loop that has detached it, and has had no time since, does not close what the record has by then."""
    engine = engines.make()
    detached, taken = threading.Event(), threading.Event()
    own = []

    async def make_own():
        connection = await engine.connect()
        await detach(connection)
        detached.set()
        taken.wait(10)
        await asyncio.sleep(0.1)  # the loop does what it has to do
        own.append(await pid(connection))
        await connection.close()

    async def take_another():
        connection = await engine.connect()
        first = await pid(connection)
        taken.set()
        return connection, first

    async def still_serves(connection, first):
        assert await pid(connection) == first
        await connection.close()

    with LoopThread(loop_factory) as here, LoopThread(loop_factory) as there:
        making = threading.Thread(target=here.run, args=(make_own(),))
        making.start()
        detached.wait(10)
        connection, first = there.run(take_another())
        making.join()
        there.run(still_serves(connection, first))
        assert own != [first]


def test_a_detached_connection_that_is_dropped_is_closed(engines, run):
    """Nothing of the pool's keeps it alive."""

    async def main():
        engine = engines.make()
        connection = await engine.connect()
        await detach(connection)
        assert engines.sessions() == 1
        del connection
        gc.collect()
        await asyncio.sleep(0)
        gc.collect()
        eventually(lambda: engines.sessions() == 0, "the server has no session left")
        assert len(await hold(engine, 2)) == 2
        await engine.dispose()

    run(main())


@pytest.mark.usefixtures("zero_fd_delta")
@pytest.mark.parametrize("end", [end_politely, end_abruptly])
def test_a_connection_that_is_replaced_when_it_is_lent_ends_with_its_loop(engines, loop_factory, end):
    """As `pool_recycle` has it. The pool knows the new socket."""
    engine = engines.make(pool_size=1, pool_recycle=3600)
    kept = []

    async def lend_another():
        before = await hold(engine, 1)
        engine.pool._recycle = 0
        kept.append(await engine.connect())
        assert await pid(kept[0]) not in before
        (row,) = engine.pool.fd_report()
        assert row.identity.is_open()

    with LoopThread(loop_factory, end=end) as thread:
        thread.run(lend_another())
    eventually(lambda: engines.sessions() == 0, "the server has no session left")
    with LoopThread(loop_factory) as thread:
        assert len(thread.run(hold(engine, 1))) == 1


def test_a_forked_child_does_not_touch_a_connection_that_was_replaced(engines, runner_factory):
    """The child drops it, and its collector would say goodbye to the parent's server process."""
    engine = engines.make(pool_size=1, pool_recycle=3600)
    kept = []

    async def lend_another():
        await hold(engine, 1)
        engine.pool._recycle = 0
        kept.append(await engine.connect())
        return await pid(kept[0])

    def child():
        kept.clear()
        gc.collect()
        return True

    async def still_serves(first):
        assert await pid(kept[0]) == first
        await kept[0].close()
        await engine.dispose()

    with runner_factory() as runner:
        first = runner.run(lend_another())
        assert in_child(child)
        runner.run(still_serves(first))


def test_no_more_count_as_checked_in_than_may_be_idle(engines, run):
    """Records without a connection are counted like idle connections, as by SQLAlchemy."""

    async def main():
        engine = engines.make(max_overflow=4)
        connections = [await engine.connect() for _ in range(6)]
        for connection in connections[:3]:
            await connection.invalidate()
            await connection.close()
        assert (engine.pool.checkedin(), engine.pool.checkedout(), engine.pool.overflow()) == (2, 3, 3)
        for connection in connections[3:]:
            await connection.close()
        await engine.pool.settled()
        assert (engine.pool.checkedin(), engine.pool.checkedout(), engine.pool.overflow()) == (2, 0, 0)
        assert len(await hold(engine, 6)) == 6
        await engine.dispose()

    run(main())


def test_a_connection_may_be_detached_at_the_bottom_of_a_greenlets_stack(engines, run):
    """Its place in the pool is free: the pool may look at the frames below only as far as there are any."""

    async def main():
        engine = engines.make(pool_size=1, pool_timeout=5)
        raw = await greenlet_spawn(engine.sync_engine.raw_connection)
        await greenlet_spawn(raw.detach)
        assert len(await hold(engine, 1)) == 1
        await greenlet_spawn(raw.close)
        await engine.dispose()

    run(main())


def test_a_return_that_reaches_its_loop_late_ends_no_other_callers_lease(engines, run):
    """The connection was closed meanwhile, and its record has one that another caller has."""

    async def main():
        engine = engines.make(pool_size=1)
        async with engine.connect() as connection:
            record = (await connection.get_raw_connection())._connection_record
            listener = record.loopaware_session.owner
            await connection.invalidate()
        async with engine.connect() as connection:
            assert (await connection.get_raw_connection())._connection_record is record
            engine.pool._take_back_at_home(record, listener)
            assert (engine.pool.checkedout(), engine.pool.checkedin()) == (1, 0)
        await engine.dispose()

    run(main())


def test_what_the_collector_returns_in_the_middle_of_a_decision_is_decided_later(engines, run, monkeypatch):
    """Its connection was invalidated by its record, and then its handle was dropped."""

    async def main():
        engine = engines.make(pool_size=1)
        connection = await engine.connect()
        fairy = await connection.get_raw_connection()
        record = fairy._connection_record
        shard = record.loopaware_session.owner.runner.shard
        await greenlet_spawn(record.invalidate)
        with monkeypatch.context() as patch:
            patch.setattr("loopaware_pool.sqlalchemy.pool.has_interrupted_a_decision", lambda: True)
            await greenlet_spawn(fairy.close)
        assert len(shard.slots) == 1
        await asyncio.sleep(0)
        assert not shard.slots
        assert len(await hold(engine, 1)) == 1
        await engine.dispose()

    run(main())
