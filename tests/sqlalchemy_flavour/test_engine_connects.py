"""A connect that hangs keeps its place in the pool for as long as a caller waits for it, and little longer."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

import helpers
from engines import ask, hold
from loopaware_pool._core import runner as runners
from loopaware_pool.psycopg import LoopAwareConnection
from loopaware_pool.sqlalchemy import driver as drivers
from running import DEADLINE_SECONDS

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
        await helpers.spin(5)
        assert not hanging
        impatient.cancel()
        await asyncio.gather(impatient, return_exceptions=True)
        assert await asyncio.wait_for(ask(engine), DEADLINE_SECONDS) == 42
        assert len(await hold(engine, 1)) == 1
        await engine.dispose()

    run(main())


def test_a_connect_whose_caller_is_gone_joins_the_pool(engines, run):
    """The next caller finds it. Until then it is nobody's, and not checked out."""

    async def main():
        engine = engines.make(pool_size=1)
        impatient = asyncio.create_task(ask(engine))
        await helpers.spin(5)
        assert engine.pool.checkedout() == 1
        impatient.cancel()
        await asyncio.gather(impatient, return_exceptions=True)
        assert engine.pool.checkedout() == 0
        assert await ask(engine) == 42
        assert engine.pool.stats().totals.opened == 1
        await engine.dispose()

    run(main())


@pytest.mark.usefixtures("zero_fd_delta")
def test_a_connection_that_the_pool_cannot_use_fails_its_caller(engines, run, monkeypatch):
    """It is closed, and the caller gets the error: another connect would fail in the same way."""

    async def main():
        engine = engines.make()
        with monkeypatch.context() as patch:
            patch.setattr(drivers, "RecordSession", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                await asyncio.wait_for(ask(engine), 10)
        await helpers.eventually(lambda: engines.sessions() == 0)
        assert len(await hold(engine, 2)) == 2
        await engine.dispose()

    run(main())
