"""A connection that SQLAlchemy takes out of its record, or replaces there, is no other caller's and not forgotten."""

from __future__ import annotations

import asyncio
import gc
import threading

import pytest

from engines import hold, pid
from running import LoopThread, eventually

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
