"""Coroutines that are made on one loop, or on none, and run on another."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import os
import subprocess
import sys

import asyncpg
import pytest

from asyncpg_drop_in import ONE
from loopaware_pool import errors
from loopaware_pool.asyncpg import proxy as asyncpg_proxy
from loopaware_pool.asyncpg import resources as asyncpg_resources
from loopaware_pool.testing import LoopThread
from running import make_pool

pytestmark = pytest.mark.both_drivers
# ---- coroutines that are made where no loop runs, or another ----

COROUTINES = {
    "fetchval": lambda con: con.fetchval("SELECT 1"),
    "execute": lambda con: con.execute("SELECT 1"),
    "prepare": lambda con: con.prepare("SELECT 1"),
    "executemany": lambda con: con.executemany("SELECT $1::int", [(1,)]),
    "a transaction's start": lambda con: con.transaction().start(),
}


@pytest.mark.parametrize("use", COROUTINES)
def test_a_coroutine_is_made_without_a_loop_and_run_on_the_right_one(create_pool, dsn, runner_factory, use):
    """As by a prompt, a synchronous wrapper or a fixture: `loop.run_until_complete(con.fetchval(...))`."""
    with runner_factory() as runner:
        loop = runner.get_loop()
        asyncio.set_event_loop(loop)
        pool = loop.run_until_complete(create_pool(dsn, **ONE))
        con = loop.run_until_complete(pool.acquire())
        loop.run_until_complete(COROUTINES[use](con))
        loop.run_until_complete(con.execute("ROLLBACK"))
        loop.run_until_complete(pool.release(con))
        loop.run_until_complete(pool.close())


def test_transactions_statements_and_cursors_are_made_without_a_loop(create_pool, dsn, runner_factory):
    """They work on the loop that their coroutines run on."""
    with runner_factory() as runner:
        loop = runner.get_loop()
        asyncio.set_event_loop(loop)
        do = loop.run_until_complete

        async def awaited(awaitable):
            return await awaitable

        pool = do(create_pool(dsn, **ONE))
        con = do(pool.acquire())
        transaction = con.transaction()
        do(transaction.start())
        statement = do(con.prepare("SELECT generate_series(1, 3)"))
        assert do(statement.fetchval()) == 1
        assert len(do(statement.fetch())) == 3
        for factory in (con.cursor("SELECT generate_series(1, 3)"), statement.cursor()):
            cursor = do(awaited(factory))
            assert [row[0] for row in do(cursor.fetch(2))] == [1, 2]
            assert do(cursor.fetchrow())[0] == 3
        rows = aiter(con.cursor("SELECT generate_series(1, 3)"))
        assert do(anext(rows))[0] == 1
        do(transaction.commit())
        do(pool.release(con))
        do(pool.close())


def test_a_coroutine_is_made_in_another_thread_for_the_right_loop(create_pool, dsn, loop_factory):
    """By `run_coroutine_threadsafe`, where no loop runs, and where another does."""

    async def make():
        return await create_pool(dsn, **ONE)

    async def acquire(pool):
        return await pool.acquire()

    async def from_another_loop(con, loop):
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(con.fetchval("SELECT 1"), loop))

    with LoopThread(loop_factory) as home, LoopThread(loop_factory) as abroad:
        pool = home.run(make())
        con = home.run(acquire(pool))
        assert asyncio.run_coroutine_threadsafe(con.fetchval("SELECT 1"), home.loop).result(20) == 1
        assert abroad.run(from_another_loop(con, home.loop)) == 1
        home.run(pool.release(con))
        home.run(pool.close())


async def started(transaction):
    await transaction.start()


async def entered(transaction):
    async with transaction:
        raise AssertionError("entered")


async def iterated(cursor):
    async for _ in cursor:
        raise AssertionError("a row")


async def awaited(awaitable):
    return await awaitable


# What is made of a connection on its loop, and the first step that is tried on another.
MADE = {
    "transaction.start": (lambda con: con.transaction(), started),
    "transaction.__aenter__": (lambda con: con.transaction(), entered),
    "cursor": (lambda con: con.cursor("SELECT 1"), awaited),
    "iterator": (lambda con: con.cursor("SELECT 1"), iterated),
}
# What only its loop can make: by a coroutine.
OPENED = {
    "statement.fetch": (lambda con: con.prepare("SELECT 1"), lambda statement: statement.fetch()),
    "statement.fetchval": (lambda con: con.prepare("SELECT 1"), lambda statement: statement.fetchval()),
    "statement.explain": (lambda con: con.prepare("SELECT 1"), lambda statement: statement.explain()),
    "statement.cursor": (lambda con: con.prepare("SELECT 1"), lambda statement: awaited(statement.cursor())),
    "statement.iterator": (lambda con: con.prepare("SELECT 1"), lambda statement: iterated(statement.cursor())),
    "cursor.fetch": (lambda con: awaited(con.cursor("SELECT 1")), lambda cursor: cursor.fetch(1)),
    "cursor.fetchrow": (lambda con: awaited(con.cursor("SELECT 1")), lambda cursor: cursor.fetchrow()),
    "cursor.forward": (lambda con: awaited(con.cursor("SELECT 1")), lambda cursor: cursor.forward(1)),
}


@pytest.mark.parametrize(
    ("what", "made_at"),
    [*itertools.product(MADE, ["home", "abroad", "nowhere"]), *itertools.product(OPENED, ["home"])],
)
def test_no_first_step_is_taken_on_another_loop(dsn, loop_factory, what, made_at):
    """It is refused by an error that names both loops, and does no harm; with asyncpg's own pool it breaks things."""
    pool = make_pool(dsn, max_size=1)

    async def lease():
        await pool
        con = await pool.acquire()
        outer = con.transaction()
        await outer.start()
        return con, outer

    async def make_here(con):
        if what in OPENED:
            return await OPENED[what][0](con)
        return MADE[what][0](con)

    async def misuse(made):
        with pytest.raises(errors.WrongLoop) as caught:
            await (MADE | OPENED)[what][1](made)
        return str(caught.value)

    async def use_well(con, outer):
        assert await con.fetchval("SELECT 1") == 1
        await outer.rollback()
        await pool.release(con)
        await pool.close()

    with LoopThread(loop_factory) as home, LoopThread(loop_factory) as abroad:
        con, outer = home.run(lease())
        if made_at == "nowhere":
            made = MADE[what][0](con)
        else:
            made = (home if made_at == "home" else abroad).run(make_here(con))
        message = abroad.run(misuse(made))
        assert pool.name in message
        assert "the connection belongs to" in message
        home.run(use_well(con, outer))


# ---- methods that a tracer has replaced ----

# Replaces coroutine methods of asyncpg's by plain functions that return their coroutines, as some tracers do; then
# looks whether the pool still knows what runs, and where.
TRACED = """
import asyncio, sys, threading
import asyncpg
from asyncpg.connection import Connection
from asyncpg.cursor import Cursor, CursorIterator
from asyncpg.prepared_stmt import PreparedStatement
from asyncpg.transaction import Transaction

seen = []

def trace(kind, name):
    original = getattr(kind, name)
    def traced(self, *args, **kwargs):
        seen.append(name)
        return original(self, *args, **kwargs)
    setattr(kind, name, traced)

def trace_all():
    for name in ("execute", "fetchval", "fetch", "prepare"):
        trace(Connection, name)
    for kind, name in ((Transaction, "start"), (PreparedStatement, "fetch"), (Cursor, "fetch")):
        trace(kind, name)
    trace(CursorIterator, "__anext__")

if sys.argv[2] == "before":
    trace_all()
from loopaware_pool import create_pool
from loopaware_pool.errors import WrongLoop
if sys.argv[2] == "after":
    trace_all()

async def refused(con, statement, cursor, rows):
    for use in (
        lambda: con.execute("SELECT 1"), lambda: con.fetchval("SELECT 1"), lambda: con.transaction().start(),
        lambda: con.prepare("SELECT 1"), lambda: statement.fetch(), lambda: cursor.fetch(1), lambda: rows.__anext__(),
    ):
        try:
            await use()
        except WrongLoop:
            continue
        raise AssertionError("not refused")

def abroad(con, statement, cursor, rows):
    asyncio.run(refused(con, statement, cursor, rows))

async def main():
    async with create_pool(sys.argv[1], min_size=1, max_size=1, session_reset="when_dirty") as pool:
        for _ in range(3):
            async with pool.acquire() as con:
                assert await con.fetchval("SHOW work_mem") != "5MB", "the setting was not reset"
                await con.execute("SELECT 1")
                await con.execute("SET work_mem = '5MB'")
        async with pool.acquire() as con, con.transaction():
            statement = await con.prepare("SELECT 1")
            cursor = await con.cursor("SELECT 1")
            rows = aiter(con.cursor("SELECT 1"))
            await asyncio.to_thread(abroad, con, statement, cursor, rows)
            seen.clear()
            await statement.fetch(), await cursor.fetch(1), await anext(rows), await con.execute("SELECT 1")
            assert set(seen) >= {"fetch", "__anext__", "execute"}, seen

asyncio.run(main())
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_methods_that_a_tracer_has_replaced_are_looked_after_as_before(dsn, when):
    """Whether it came before the pool or after: `SET` is seen, another loop is refused, and the tracer is called."""
    done = subprocess.run(
        [sys.executable, "-c", TRACED, dsn, when], check=False, capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr


def test_the_names_of_coroutine_methods_are_asyncpgs():
    """A list that the pool has of them names no other, and all that this version of asyncpg has."""
    for kind, names in asyncpg_resources._COROUTINES.items() | {(asyncpg.Connection, asyncpg_proxy._COROUTINES)}:
        known = {
            name
            for name, method in inspect.getmembers(kind, inspect.isfunction)
            if inspect.iscoroutinefunction(inspect.unwrap(method)) and (name[0] != "_" or name[:2] == "__")
        }
        assert known == set(names), kind


def test_rows_that_have_come_are_given_and_others_not_asked_for_in_the_next_lease(dsn, run):
    """An iterator's coroutines that take their first steps late send nothing into another lease's transaction."""

    async def main():
        async with make_pool(dsn, max_size=1) as pool:
            async with pool.acquire() as con, con.transaction():
                rows = aiter(con.cursor("SELECT generate_series(1, 4)", prefetch=2))
                assert (await anext(rows))[0] == 1
                late = [anext(rows) for _ in range(2)]  # the second row has come, the third has not
            async with pool.acquire() as con, con.transaction():
                assert (await late[0])[0] == 2
                with pytest.raises(asyncpg.InterfaceError, match="released back to the pool"):
                    await late[1]
                assert await con.fetchval("SELECT 1") == 1

    run(main())


def test_rows_that_have_come_are_not_given_on_another_loop(dsn, loop_factory):
    """Nor are others; on its own loop all of them are."""
    pool = make_pool(dsn, max_size=1)

    async def first():
        await pool
        con = await pool.acquire()
        transaction = con.transaction()
        await transaction.start()
        rows = aiter(con.cursor("SELECT generate_series(1, 5)", prefetch=2))
        return con, transaction, rows, (await anext(rows))[0]

    async def misuse(rows):
        with pytest.raises(errors.WrongLoop, match=r"CursorIterator.__anext__\(\)"):
            await anext(rows)

    async def rest(con, transaction, rows):
        found = [row[0] async for row in rows]
        await transaction.commit()
        await pool.release(con)
        await pool.close()
        return found

    with LoopThread(loop_factory) as home, LoopThread(loop_factory) as abroad:
        con, transaction, rows, found = home.run(first())
        abroad.run(misuse(rows))
        assert [found, *home.run(rest(con, transaction, rows))] == [1, 2, 3, 4, 5]
