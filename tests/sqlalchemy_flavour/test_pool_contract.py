"""The pool keeps SQLAlchemy's contract with connections that are mocks, as SQLAlchemy's own tests have them."""

from __future__ import annotations

import asyncio
from unittest.mock import Mock

import pytest
from sqlalchemy import event
from sqlalchemy.pool.base import _AsyncConnDialect
from sqlalchemy.util import await_only, greenlet_spawn

from loopaware_pool.sqlalchemy import LoopAwareQueuePool

pytestmark = [pytest.mark.both_pythons, pytest.mark.both_drivers]


class TerminatingDialect(_AsyncConnDialect):
    """An async dialect that can close without waiting."""

    has_terminate = True


def make_pool(connect=Mock, **options):
    return LoopAwareQueuePool(connect, dialect=TerminatingDialect(), **options)


async def idle():
    """Let everything happen that waits for the loop only."""
    for _ in range(10):
        await asyncio.sleep(0)


class NotAnException(BaseException):
    """As a timeout in other kinds of greenlets is."""


@pytest.mark.parametrize("where", ["creator", "listener"])
def test_a_connect_may_fail_with_any_error(where, run):
    """The caller gets it, whatever it derives from, with no error of the pool's behind it; then the pool serves."""
    failures = [NotAnException(), ValueError()]

    def fail(*_):
        if failures:
            raise failures[0]
        return Mock()

    pool = make_pool(fail if where == "creator" else Mock, pool_size=1, max_overflow=0)
    if where == "listener":
        event.listen(pool, "connect", fail)

    async def main():
        while failures:
            with pytest.raises(type(failures[0])) as caught:
                await greenlet_spawn(pool.connect)
            assert caught.value is failures.pop(0)
            assert caught.value.__context__ is None
        fairy = await greenlet_spawn(pool.connect)
        assert pool.checkedout() == 1
        await greenlet_spawn(fairy.close)

    run(main())


def test_an_unknown_connection_is_closed_at_once(run):
    """A connection that was invalidated, or closed after it was detached, is closed when the caller goes on."""
    pool = make_pool(pool_size=1, max_overflow=0)

    async def main():
        fairy = await greenlet_spawn(pool.connect)
        invalidated = fairy.dbapi_connection
        await greenlet_spawn(fairy.invalidate)
        assert [name for name, *_ in invalidated.mock_calls] == ["close"]

        fairy = await greenlet_spawn(pool.connect)
        detached = fairy.dbapi_connection
        await greenlet_spawn(fairy.detach)
        detached.close.assert_not_called()
        await greenlet_spawn(fairy.close)
        detached.close.assert_called_once()

    run(main())


def test_a_connection_that_takes_a_detached_ones_place_stays_open(run):
    """Its record is the same. What the pool does at the end of the old lease leaves the new connection alone."""
    pool = make_pool(pool_size=2, max_overflow=0)

    def detach_and_connect():
        old = pool.connect()
        record = old._connection_record
        old.record_info["kept"] = True
        old.detach()
        new = pool.connect()
        assert new._connection_record is record
        return new

    async def main():
        new = await greenlet_spawn(detach_and_connect)
        await idle()
        assert new.record_info == {"kept": True}
        new.dbapi_connection.close.assert_not_called()
        assert new._connection_record.dbapi_connection is new.dbapi_connection
        await greenlet_spawn(new.close)

    run(main())


@pytest.mark.parametrize("options", [{"max_overflow": -1}, {"max_overflow": -5}, {"pool_size": 0, "max_overflow": 3}])
def test_any_negative_overflow_is_no_limit(options, run):
    """As in SQLAlchemy's own pool, whose tests have -5."""
    pool = make_pool(**{"pool_size": 1, "timeout": 0, **options})

    async def main():
        fairies = [await greenlet_spawn(pool.connect) for _ in range(20)]
        assert pool.checkedout() == len(fairies)
        for fairy in fairies:
            await greenlet_spawn(fairy.close)

    run(main())


def test_a_connect_that_nobody_waits_for_is_not_checked_out(run):
    """Its caller was cancelled. The connection is opened nonetheless, and serves the next caller."""
    gate = asyncio.Event()

    def connect():
        await_only(gate.wait())
        return Mock()

    pool = make_pool(connect, pool_size=1, max_overflow=0)

    async def main():
        caller = asyncio.create_task(greenlet_spawn(pool.connect))
        await idle()
        assert (pool.checkedin(), pool.checkedout(), pool.overflow()) == (0, 1, 0)
        caller.cancel()
        await asyncio.wait([caller])
        assert (pool.checkedin(), pool.checkedout(), pool.overflow()) == (0, 0, -1)
        gate.set()
        await idle()
        assert (pool.checkedin(), pool.checkedout(), pool.overflow()) == (1, 0, 0)
        fairy = await greenlet_spawn(pool.connect)
        assert pool.checkedout() == 1
        await greenlet_spawn(fairy.close)

    run(main())


def connect_and_drop(pool):
    """Leave a lease to the garbage collector, and return the DBAPI's connection."""
    fairy = pool.connect()
    fairy.record_info["kept"] = True
    return fairy.dbapi_connection


def test_a_dropped_connection_gives_its_record_back(run):
    """It is not checked out from then on. The record's next connection finds what `record_info` had."""
    pool = make_pool(pool_size=1, max_overflow=0)

    async def main():
        with pytest.warns(match="garbage collector is trying to clean up"):
            dropped = await greenlet_spawn(connect_and_drop, pool)
        assert (pool.checkedin(), pool.checkedout(), pool.overflow()) == (1, 0, 0)
        await idle()
        dropped.close.assert_called_once()
        assert (pool.checkedin(), pool.checkedout(), pool.overflow()) == (1, 0, 0)
        fairy = await greenlet_spawn(pool.connect)
        assert fairy.record_info == {"kept": True}
        await greenlet_spawn(fairy.close)

    run(main())
