"""What psycopg_pool's pools do, and say, in passing: the same programs on theirs and on ours."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import Any

import psycopg
import psycopg_pool
import pytest
from psycopg.rows import DictRow, Row, dict_row

from loopaware_pool._platform.conninfo import MISREAD, may_hold_password
from loopaware_pool.psycopg import AsyncConnectionPool, AsyncNullConnectionPool, LoopAwareConnection
from psycopg_pools import make_pool
from running import eventually_async

pytestmark = [pytest.mark.both_drivers, pytest.mark.usefixtures("zero_fd_delta")]

PLAIN = (psycopg_pool.AsyncConnectionPool, AsyncConnectionPool)
NULL = (psycopg_pool.AsyncNullConnectionPool, AsyncNullConnectionPool)
BOTH = {"theirs": PLAIN[0], "ours": PLAIN[1], "theirs, null": NULL[0], "ours, null": NULL[1]}
every = pytest.mark.parametrize("cls", BOTH.values(), ids=BOTH)


def one(cls):
    """What has a pool have one connection."""
    return {"max_size": 1} if cls in NULL else {"min_size": 1}


class TheirsConnection(psycopg.AsyncConnection[Row]):
    """A generic class of a user's."""


class OursConnection(LoopAwareConnection[Row]):
    """Another, derived from ours."""


@every
@pytest.mark.parametrize("kind", [TheirsConnection, OursConnection])
def test_a_parametrised_class_is_a_connection_class(dsn, run, cls, kind):
    """It makes connections of the class it parametrises, and reads as it was given."""

    async def main():
        options = {"connection_class": kind[DictRow], "kwargs": {"row_factory": dict_row}}
        async with make_pool(cls, dsn, **one(cls), **options) as pool, pool.connection() as connection:
            assert type(connection) is kind
            assert await (await connection.execute("SELECT 1 AS one")).fetchone() == {"one": 1}
            assert pool.connection_class == kind[DictRow]

    run(main())


@pytest.mark.parametrize("kind", [list[int], psycopg.Connection[Any], dict[str, int]])
def test_what_it_parametrises_must_be_one(kind):
    """The error shows what was given."""
    with pytest.raises(TypeError, match=r"connection_class=.*\["):
        AsyncConnectionPool(open=False, connection_class=kind)


@pytest.mark.parametrize("cls", PLAIN, ids=["theirs", "ours"])
def test_waiting_after_a_return_waits_for_its_reset(dsn, run, cls):
    """A pool is full when its connections are ready, not when they are on their way back."""

    async def main():
        calls, may_end = [], asyncio.Event()

        async def reset(_):
            await may_end.wait()
            calls.append("reset")

        async with make_pool(cls, dsn, min_size=1, reset=reset) as pool:
            await pool.wait()
            async with pool.connection():
                pass
            assert calls == []
            asyncio.get_running_loop().call_later(0.1, may_end.set)
            await pool.wait()
            assert calls == ["reset"]

    run(main())


def test_waiting_counts_what_is_lent(dsn, run):
    """In difference to theirs, which would close the pool under its users."""

    async def main():
        async with make_pool(AsyncConnectionPool, dsn, min_size=1) as pool, pool.connection():
            await pool.wait(timeout=0.5)
            assert not pool.closed

    run(main())


@every
def test_a_getconn_of_ones_own_is_called_by_keyword(dsn, run, cls):
    """It may take its timeout by keyword alone, or not name it in the same place."""

    class Own(cls):
        async def getconn(self, *, timeout=None):
            heard.append(timeout)
            return await super().getconn(timeout)

    heard = []

    async def main():
        async with make_pool(Own, dsn, **one(cls)) as pool:
            async with pool.connection(3):
                pass
            async with pool.connection():
                pass

    run(main())
    assert heard == [3, None]


# ---- what it calls ----


@every
@pytest.mark.parametrize("kind", [psycopg.AsyncConnection, OursConnection], ids=["theirs", "ours"])
@pytest.mark.parametrize("callback", ["configure", "check", "reset"])
def test_a_callback_may_end_what_it_has_begun_by_a_block(dsn, run, cls, kind, callback):
    """`async with connection:` commits, and leaves the connection open, as it does for whoever it is lent to."""
    calls = []

    async def call(connection):
        async with connection:
            calls.append(await (await connection.execute("SELECT 42")).fetchone())

    async def main():
        options = {"connection_class": kind, "kwargs": {"autocommit": False}, callback: call}
        async with make_pool(cls, dsn, **one(cls), **options) as pool:
            pids = []
            for _ in range(3):
                async with pool.connection() as connection:
                    pids.append(connection.info.backend_pid)
            assert len(set(pids)) == (3 if cls in NULL else 1)
            assert calls or (cls in NULL and callback == "reset")

    run(main())


@every
@pytest.mark.parametrize("error", [None, ZeroDivisionError("mine")], ids=repr)
@pytest.mark.parametrize("before", ["nothing", "a lease", "a lease that failed"])
def test_leaving_what_is_not_entered_loses_nothing(dsn, run, cls, error, before):
    """It is an error, or none, in the same cases."""

    async def leave(context):
        return not await context.__aexit__(error and type(error), error, None)

    async def outcome(pool):
        context = pool.connection(timeout=0.2 if before == "a lease that failed" else None)
        if before == "a lease":
            await context.__aenter__()
            await leave(context)
        elif before == "a lease that failed":
            async with pool.connection():
                with pytest.raises(psycopg_pool.PoolTimeout):
                    await context.__aenter__()
        try:
            return await leave(context)
        except RuntimeError:
            return "an error"

    async def main():
        async with make_pool(cls, dsn, min_size=0, max_size=1, timeout=5) as pool:
            expected = "an error" if (before == "nothing") == (error is None) else True
            assert await outcome(pool) == expected
            if expected is True or before != "nothing":  # else one is lost to theirs
                async with pool.connection() as connection:
                    await connection.execute("SELECT 1")

    run(main())


# ---- what it counts ----


@pytest.mark.parametrize("cls", NULL, ids=["theirs", "ours"])
def test_a_null_pools_caller_who_connects_does_not_wait(dsn, run, cls):
    """Neither to the statistics, however long it takes, nor to `max_waiting`."""

    async def configure(_):
        await asyncio.sleep(0.1)

    async def main():
        async with make_pool(cls, dsn, max_size=4, max_waiting=1, timeout=20, configure=configure) as pool:
            all_connected = asyncio.Barrier(4)

            async def hold():
                async with pool.connection():
                    await all_connected.wait()

            await asyncio.gather(*(hold() for _ in range(4)))
            return pool.get_stats()

    stats = run(main())
    assert stats["requests_num"] == 4
    assert stats.keys().isdisjoint({"requests_queued", "requests_wait_ms", "requests_errors"})


@pytest.mark.parametrize("cls", NULL, ids=["theirs", "ours"])
def test_a_null_pools_caller_who_gives_up_connecting_has_not_waited(dsn, run, cls):
    """It has, of course; but not for others."""

    async def main():
        is_connecting, has_given_up = asyncio.Event(), asyncio.Event()

        async def configure(_):
            is_connecting.set()
            await has_given_up.wait()

        async with make_pool(cls, dsn, max_size=1, configure=configure) as pool:
            caller = asyncio.create_task(pool.getconn())
            await is_connecting.wait()
            await asyncio.sleep(0.02)
            caller.cancel()
            with pytest.raises(asyncio.CancelledError):
                await caller
            has_given_up.set()
            return pool.get_stats()

    assert run(main()).keys().isdisjoint({"requests_queued", "requests_wait_ms"})


@pytest.mark.parametrize("cls", NULL, ids=["theirs", "ours"])
def test_a_null_pools_caller_who_waits_for_others_does(dsn, run, cls):
    """As long as they take; one who gives up as well."""

    async def main():
        async with make_pool(cls, dsn, max_size=2) as pool:
            held = [await pool.getconn(), await pool.getconn()]
            waiting = asyncio.create_task(pool.getconn())
            await eventually_async(lambda: pool.get_stats()["requests_waiting"] == 1, "a caller who waits")
            with pytest.raises(psycopg_pool.PoolTimeout):
                await pool.getconn(timeout=0.1)
            await pool.putconn(held.pop())
            for connection in [await waiting, *held]:
                await pool.putconn(connection)
            return pool.get_stats()

    stats = run(main())
    assert (stats["requests_num"], stats["requests_queued"], stats["requests_errors"]) == (4, 2, 1)
    assert stats["requests_wait_ms"] >= 190


# ---- what it says ----


@pytest.mark.parametrize("pair", [PLAIN, NULL], ids=["plain", "null"])
def test_the_same_is_said_at_info(dsn, run, caplog, pair):
    """Of opening, requests, growth and returns: each line as often, with the pool's name."""
    caplog.set_level(logging.INFO, logger="psycopg.pool")

    async def said_by(cls):
        caplog.clear()
        async with make_pool(cls, dsn, name="here", max_size=3, **({"min_size": 1} if pair is PLAIN else {})) as pool:
            await pool.wait()
            async with pool.connection(), pool.connection(), pool.connection():
                pass
        return Counter(record.getMessage() for record in caplog.records if record.levelno == logging.INFO)

    theirs, ours = [run(said_by(cls)) for cls in pair]
    assert ours == theirs
    assert {"connection requested from 'here'", "connection given by 'here'", "returning connection to 'here'"} < {
        *ours
    }


def test_nothing_is_said_at_the_level_that_psycopg_sets(dsn, run, caplog):
    """Warnings, and worse."""

    async def main():
        async with make_pool(AsyncConnectionPool, dsn, min_size=1) as pool, pool.connection():
            pass

    run(main())
    assert [record for record in caplog.records if record.name == "psycopg.pool"] == []


@pytest.mark.parametrize(
    ("conninfo", "is_told"),
    [
        ("host=127.0.0.1 port=1 bogus=1", True),
        ("postgresql://127.0.0.1:1/db?bogus=1", True),
        ("postgresql:///db?bogus=1", True),
        ("host=127.0.0.1 port=1 password=two bogus=1", False),
        ("host=127.0.0.1 port=1 PWD=two bogus", False),
        ("postgresql://me:secret@127.0.0.1:1/db?bogus=1", False),
        ("postgresql://me:secret/db?bogus=1", False),
        ("postgresql://127.0.0.1:1/db?bogus=1&password=two", False),
    ],
)
def test_an_option_that_libpq_does_not_know_is_named_where_no_password_is_near(conninfo, is_told):
    """What it takes for an option's name may be a part of a password."""

    async def main():
        async with AsyncConnectionPool(conninfo, open=False, min_size=0, max_size=1) as pool:
            with pytest.raises(psycopg.ProgrammingError) as caught:
                await pool.getconn(timeout=20)
        return str(caught.value)

    said = asyncio.run(main())
    assert ("bogus" in said) is is_told
    assert (said == MISREAD) is not is_told
    assert may_hold_password(conninfo) is not is_told


class ForgivingConnection(LoopAwareConnection[Row]):
    """A class of a user's whose blocks suppress an error."""

    async def __aexit__(self, exc_type, exc_val, exc_tb):
        await super().__aexit__(exc_type, exc_val, exc_tb)
        return isinstance(exc_val, ZeroDivisionError)


@every
@pytest.mark.parametrize(
    ("error", "suppressing", "expected"),
    [(None, False, False), (ZeroDivisionError(), False, False), (ZeroDivisionError(), True, True)],
    ids=["no error", "an error", "an error that its class suppresses"],
)
def test_the_end_of_a_block_says_whether_an_error_is_suppressed(dsn, run, cls, error, suppressing, expected):
    """False unless the connection's class says otherwise, for programs that call `__aexit__` themselves."""

    async def main():
        options = {"connection_class": ForgivingConnection} if suppressing else {}
        async with make_pool(cls, dsn, **one(cls), **options) as pool:
            context = pool.connection()
            await context.__aenter__()
            try:
                told = await context.__aexit__(error and type(error), error, None)
            except ZeroDivisionError:
                told = False
            assert told is expected

    run(main())


@every
@pytest.mark.parametrize("error", [ZeroDivisionError("mine"), asyncio.CancelledError("mine")], ids=repr)
def test_a_reset_that_raises_is_a_bad_return(dsn, run, cls, error):
    """Also if it raises a `CancelledError`, although nothing was cancelled."""

    async def reset(connection):
        raise error

    async def main():
        async with make_pool(cls, dsn, **one(cls), reset=reset) as pool:
            connection = await pool.getconn()
            waiting = asyncio.create_task(pool.getconn())  # else a null pool resets nothing
            await eventually_async(lambda: pool.get_stats()["requests_waiting"], "a caller that waits")
            await pool.putconn(connection)
            await pool.putconn(await waiting)
            await eventually_async(lambda: pool.get_stats().get("returns_bad"), "a bad return")
            assert connection.closed

    run(main())
