"""A connect that hangs keeps its place in the pool for as long as a caller waits for it, and little longer."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from engines import ask, hold
from helpers import spin
from loopaware_pool._core import runner as runners
from loopaware_pool.psycopg import LoopAwareConnection

pytestmark = [pytest.mark.both_pythons, pytest.mark.both_drivers]


@pytest.mark.usefixtures("zero_fd_delta")
def test_a_connect_that_hangs_keeps_no_place_once_its_caller_is_gone(engines, run, monkeypatch):
    """A caller that comes while it hangs gets a connect of its own."""
    monkeypatch.setattr(runners, "ABANDONED_CONNECT_SECONDS", 0.05)
    connect = asyncpg.connect if engines.driver == "asyncpg" else LoopAwareConnection.connect
    hanging = [True]

    async def create():
        if hanging:
            hanging.pop()
            await asyncio.get_running_loop().create_future()
        return await connect(engines.dsn)

    async def main():
        engine = engines.make(pool_size=1, async_creator=create)
        impatient = asyncio.create_task(ask(engine))
        await spin(5)
        assert not hanging
        impatient.cancel()
        await asyncio.gather(impatient, return_exceptions=True)
        assert await asyncio.wait_for(ask(engine), 10) == 42
        assert len(await hold(engine, 1)) == 1
        await engine.dispose()

    run(main())


def test_a_connect_whose_caller_is_gone_joins_the_pool(engines, run):
    """The next caller finds it."""

    async def main():
        engine = engines.make(pool_size=1)
        impatient = asyncio.create_task(ask(engine))
        await spin(5)
        impatient.cancel()
        await asyncio.gather(impatient, return_exceptions=True)
        assert await ask(engine) == 42
        assert engine.pool.stats().totals.opened == 1
        await engine.dispose()

    run(main())
