"""What a program does with asyncpg's pool it does with ours: tests run on both, but for what only ours promises."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
import os
import subprocess
import sys

import asyncpg
import psycopg
import psycopg_pool
import pytest

import helpers
import loopaware_pool.asyncpg
from loopaware_pool import errors
from loopaware_pool.asyncpg import proxy as asyncpg_proxy
from loopaware_pool.asyncpg import resources as asyncpg_resources
from loopaware_pool.psycopg import AsyncConnectionPool
from loopaware_pool.testing import LoopThread
from running import make_pool

pytestmark = pytest.mark.both_drivers

ONE = {"min_size": 1, "max_size": 1}
RESETS = ["pipelined", "when_dirty", "confirmed", "awaited", "never"]


@pytest.fixture(params=[asyncpg.create_pool, loopaware_pool.asyncpg.create_pool], ids=["theirs", "ours"])
def create_pool(request):
    """Makes a pool: asyncpg's own, which shows what is right, or ours."""
    return request.param


@pytest.fixture
def run(loop_factory):
    """Runs a coroutine function on a loop of the test's own, for a while at most."""

    def run(main):
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            return runner.run(asyncio.wait_for(main(), 20))

    return run


def only_ours(create_pool, session_reset):
    """An option that asyncpg's own pool has not; it is "awaited"."""
    return {} if create_pool is asyncpg.create_pool else {"session_reset": session_reset}


def con_of(pool):
    """The one connection of a pool."""
    return pool._holders[0]._con


# ---- coroutines that are made where no loop runs, or another ----

COROUTINES = {
    "fetchval": lambda con: con.fetchval("SELECT 1"),
    "execute": lambda con: con.execute("SELECT 1"),
    "prepare": lambda con: con.prepare("SELECT 1"),
    "executemany": lambda con: con.executemany("SELECT $1::int", [(1,)]),
    "a transaction's start": lambda con: con.transaction().start(),
}


@pytest.mark.parametrize("use", COROUTINES)
def test_a_coroutine_is_made_without_a_loop_and_run_on_the_right_one(create_pool, dsn, loop_factory, use):
    """As by a prompt, a synchronous wrapper or a fixture: `loop.run_until_complete(con.fetchval(...))`."""
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        loop = runner.get_loop()
        asyncio.set_event_loop(loop)
        pool = loop.run_until_complete(create_pool(dsn, **ONE))
        con = loop.run_until_complete(pool.acquire())
        loop.run_until_complete(COROUTINES[use](con))
        loop.run_until_complete(con.execute("ROLLBACK"))
        loop.run_until_complete(pool.release(con))
        loop.run_until_complete(pool.close())


def test_transactions_statements_and_cursors_are_made_without_a_loop(create_pool, dsn, loop_factory):
    """They work on the loop that their coroutines run on."""
    with asyncio.Runner(loop_factory=loop_factory) as runner:
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


async def left(transaction):
    await transaction.__aexit__(None, None, None)


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


# ---- callbacks that `init` or a connection class has registered ----


class Loggers:
    """Notes what it is called with, as a query logger, as a termination listener, and as a log listener."""

    def __init__(self):
        self.queries = []
        self.ended = []
        self.logged = []

    def log(self, record):
        self.queries.append(record.query)

    def end(self, con):
        self.ended.append(con)

    def notice(self, con, message):
        self.logged.append(message)


def own_queries(loggers):
    """What was logged, less asyncpg's own resets."""
    return [query for query in loggers.queries if "RESET ALL" not in query]


@pytest.mark.parametrize("session_reset", RESETS)
def test_query_loggers_and_termination_listeners_of_init_last(create_pool, dsn, run, session_reset):
    """They hear of every lease, and of the end."""
    loggers = Loggers()

    async def init(con):
        con.add_query_logger(loggers.log)
        con.add_termination_listener(loggers.end)

    async def main():
        async with create_pool(dsn, **ONE, init=init, **only_ours(create_pool, session_reset)) as pool:
            for n in range(3):
                async with pool.acquire() as con:
                    await con.fetchval(f"SELECT {n}")
                await helpers.spin(3)
            raw = con_of(pool)
        await helpers.spin(5)
        assert own_queries(loggers) == ["SELECT 0", "SELECT 1", "SELECT 2"]
        assert loggers.ended == [raw]

    run(main)


@pytest.mark.parametrize("session_reset", RESETS)
def test_query_loggers_and_termination_listeners_of_a_connection_class_last(create_pool, dsn, run, session_reset):
    """Those that it registers when it is made, its own methods among them."""
    heard = []

    class OurConnection(asyncpg.Connection):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.add_query_logger(self._logged)
            self.add_termination_listener(self._ended)

        def _logged(self, record):
            heard.append(record.query)

        @staticmethod
        def _ended(con):
            heard.append("end")

    async def main():
        options = only_ours(create_pool, session_reset)
        async with create_pool(dsn, **ONE, connection_class=OurConnection, **options) as pool:
            for n in range(3):
                await pool.fetchval(f"SELECT {n}")
        await helpers.spin(5)
        assert [query for query in heard if "RESET ALL" not in query] == ["SELECT 0", "SELECT 1", "SELECT 2", "end"]

    run(main)


@pytest.mark.parametrize("session_reset", RESETS)
def test_a_lease_neither_adds_to_nor_takes_from_the_callbacks_of_init(dsn, run, session_reset):
    """With asyncpg's own pool, what a lease adds is called for others, and what it removes is gone for all."""
    lasting, passing = Loggers(), Loggers()

    async def init(con):
        con.add_query_logger(lasting.log)
        con.add_termination_listener(lasting.end)

    async def main():
        async with make_pool(dsn, max_size=1, init=init, session_reset=session_reset) as pool:
            async with pool.acquire() as con:
                con.remove_query_logger(lasting.log)
                con.remove_termination_listener(lasting.end)
                con.add_query_logger(passing.log)
                con.add_termination_listener(passing.end)
                await con.fetchval("SELECT 1")
            await helpers.spin(3)
            passing.queries.clear()  # asyncpg's own reset is a query like others to the logger of that lease
            async with pool.acquire() as con:
                await con.fetchval("SELECT 2")
            await helpers.spin(3)
            assert own_queries(lasting) == ["SELECT 2"]
        await helpers.spin(5)
        assert passing.queries == []
        assert passing.ended == []
        assert len(lasting.ended) == 1

    run(main)


@pytest.mark.parametrize("session_reset", [name for name in RESETS if name != "awaited"])
def test_what_the_pool_asks_for_itself_is_not_logged(dsn, run, session_reset):
    """A logger that `init` adds hears of leases' statements: of no reset, no ping and no question of ours."""
    loggers = Loggers()

    async def init(con):
        con.add_query_logger(loggers.log)

    async def main():
        options = {"max_size": 1, "min_size": 1, "init": init, "session_reset": session_reset, "keepalive": 0.01}
        async with make_pool(dsn, **options) as pool:
            with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
                async with pool.acquire() as con:
                    await con.execute("BEGIN READ ONLY; CREATE TABLE never (n int)")
            loggers.queries.clear()
            pings = con_of(pool)._protocol.queries_count + 3
            await helpers.eventually(lambda: con_of(pool)._protocol.queries_count > pings)
            await pool.settled()
        await helpers.spin(5)
        assert loggers.queries == []

    run(main)


def test_log_listeners_and_listeners_of_init_end_with_the_first_lease(create_pool, dsn, run):
    """As asyncpg documents of its reset, and with its warning."""
    loggers = Loggers()

    async def init(con):
        con.add_log_listener(loggers.notice)
        await con.add_listener("a_channel", loggers.notice)

    async def main():
        async with create_pool(dsn, **ONE, init=init) as pool:
            with pytest.warns(asyncpg.InterfaceWarning, match="active (notification|log) listener") as warned:
                await pool.execute("DO $$ BEGIN RAISE WARNING 'first'; END $$")
            assert len(warned) == 2
            await pool.execute("DO $$ BEGIN RAISE WARNING 'second'; END $$")
            assert await pool.fetch("SELECT pg_listening_channels()") == []
        assert [message.message for message in loggers.logged] == ["first"]

    run(main)


@pytest.mark.parametrize("by", ["hook", "class"])
def test_callbacks_that_the_users_own_reset_adds_stay(create_pool, dsn, run, by):
    """A `reset` callback, or a class that overrides `reset()`, may register anew what asyncpg has cleared."""
    loggers = Loggers()

    async def add(con):
        con.add_log_listener(loggers.notice)
        con.add_query_logger(loggers.log)

    class OurConnection(asyncpg.Connection):
        async def reset(self, *, timeout=None):
            await super().reset(timeout=timeout)
            await add(self)

    options = {"hook": {"reset": add}, "class": {"connection_class": OurConnection}}[by]

    async def main():
        async with create_pool(dsn, **ONE, **options) as pool:
            await pool.execute("SELECT 1")
            for _ in range(2):
                with pytest.warns(asyncpg.InterfaceWarning, match="active log listener"):
                    await pool.execute("DO $$ BEGIN RAISE WARNING 'x'; END $$")
        await helpers.spin(5)
        assert [message.message for message in loggers.logged] == ["x", "x"]
        assert len(own_queries(loggers)) == 2

    run(main)


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="later Pythons do not count all references")
def test_a_dropped_lease_is_noticed_although_a_class_listens_for_the_end(dsn, run):
    """The connection's own methods refer to it; that is no reason to hold it for lent."""

    class OurConnection(asyncpg.Connection):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.add_termination_listener(self._ended)
            self.add_query_logger(self._ended)

        def _ended(self, _):
            pass

    async def main():
        async with make_pool(dsn, max_size=1, connection_class=OurConnection) as pool:
            await pool.acquire()  # and forget it
            async with pool.acquire(timeout=5) as con:
                assert await con.fetchval("SELECT 1") == 1

    run(main)


# ---- what a termination listener is called with ----


async def terminated(pool, con):
    pool.terminate()


async def close_cancelled(pool, con):
    closing = asyncio.ensure_future(pool.close())
    await asyncio.sleep(0.01)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing


async def closed_by_caller(pool, con):
    await con.close()


async def worn_out(pool, con):
    for _ in range(4):
        await con.execute("SELECT 1")
    await pool.release(con)


async def reset_failed(pool, con):
    await con.execute("SET app.spoilt = 'yes'")
    with pytest.raises(asyncpg.DivisionByZeroError):
        await pool.release(con)


async def fail_if_spoilt(con):
    if await con.fetchval("SELECT current_setting('app.spoilt', true)") == "yes":
        await con.execute("SELECT 1 / 0")


ENDS = {
    "terminate": (terminated, {}),
    "cancelled close": (close_cancelled, {}),
    "close": (closed_by_caller, {}),
    "max_queries": (worn_out, {"max_queries": 3}),
    "failed reset": (reset_failed, {"reset": fail_if_spoilt}),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_termination_listener_is_called_with_what_the_caller_had(create_pool, dsn, run, end):
    """If the connection ends with, or in, its lease; the proxy, not the connection behind it."""
    work, options = ENDS[end]
    heard = []

    async def main():
        async with create_pool(dsn, min_size=0, max_size=1, **options) as pool:
            con = await pool.acquire()
            con.add_termination_listener(heard.append)
            await work(pool, con)
            await helpers.eventually(lambda: heard)
        assert heard == [con]

    run(main)


def test_a_termination_listener_is_called_with_the_proxy_where_setup_fails(create_pool, dsn, run):
    """The one that `setup` was given."""
    heard, given = [], []

    async def setup(con):
        con.add_termination_listener(heard.append)
        given.append(con)
        await con.execute("SELECT 1 / 0")

    async def main():
        async with create_pool(dsn, min_size=0, max_size=1, setup=setup) as pool:
            with pytest.raises(asyncpg.DivisionByZeroError):
                await pool.acquire()
            await helpers.eventually(lambda: heard)
            assert heard == given

    run(main)


def test_a_termination_listener_is_called_with_the_proxy_by_a_terminate_while_no_loop_runs(
    create_pool, dsn, loop_factory
):
    """Once the loop runs again."""
    heard = []
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        loop = runner.get_loop()
        asyncio.set_event_loop(loop)
        pool = loop.run_until_complete(create_pool(dsn, **ONE))
        con = loop.run_until_complete(pool.acquire())
        con.add_termination_listener(heard.append)
        pool.terminate()
        loop.run_until_complete(helpers.spin(5))
        assert heard == [con]


def test_a_termination_listener_is_called_with_the_connection_where_nobody_has_it(create_pool, dsn, run):
    """Its last lease has ended with its reset."""
    heard = []

    async def init(con):
        con.add_termination_listener(heard.append)

    async def main():
        async with create_pool(dsn, **ONE, init=init) as pool:
            await pool.execute("SET work_mem = '5MB'")
            raw = con_of(pool)
        await helpers.eventually(lambda: heard)
        assert heard == [raw]
        assert type(heard[0]) is asyncpg.Connection

    run(main)


# ---- errors of other servers ----


async def in_asyncpg(create, dsn, error, check):
    async with create(dsn, **ONE) as pool:
        for _ in range(5):
            with pytest.raises(type(error)):
                async with pool.acquire() as con:
                    check(con.get_server_pid())
                    raise error


async def in_psycopg(create, dsn, error, check):
    async with create(dsn, min_size=1, max_size=1, open=False) as pool:
        for _ in range(5):
            with pytest.raises(type(error)):
                async with pool.connection() as con:
                    check(con.info.backend_pid)
                    raise error


def psycopgs_own_class(dsn, **options):
    return AsyncConnectionPool(dsn, connection_class=psycopg.AsyncConnection, **options)


POOLS = {
    "asyncpg's": (in_asyncpg, asyncpg.create_pool),
    "asyncpg": (in_asyncpg, loopaware_pool.asyncpg.create_pool),
    "psycopg's": (in_psycopg, psycopg_pool.AsyncConnectionPool),
    "psycopg": (in_psycopg, AsyncConnectionPool),
    "psycopg, its own class": (in_psycopg, psycopgs_own_class),
}


@pytest.mark.parametrize("sqlstate", ["57P01", "57P02", "57P03", "25006"])
@pytest.mark.parametrize("pool", POOLS)
def test_an_error_of_another_server_costs_no_connection(dsn, run, pool, sqlstate):
    """It ends the body of a lease; but it is not this connection that it came from."""
    use, create = POOLS[pool]
    pids = set()

    async def main():
        for error in (psycopg.errors.lookup(sqlstate)("theirs"), asyncpg.PostgresError.new({"C": sqlstate, "M": "x"})):
            await use(create, dsn, error, pids.add)
            assert len(pids) == 1
            pids.clear()

    run(main)


# A session in which a function, and a commit, fail as if the server shut down.
OMINOUS = """
    CREATE FUNCTION pg_temp.server_state() RETURNS int LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION USING ERRCODE = '57P01'; END $$;
    CREATE FUNCTION pg_temp.late_omen() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION USING ERRCODE = '57P01'; END $$;
    CREATE TEMP TABLE ominous (n int);
    CREATE CONSTRAINT TRIGGER server_state AFTER INSERT ON ominous DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION pg_temp.late_omen();
"""
ASKS = "SELECT pg_temp.server_state()"


async def by_call(con):
    await con.fetchval(ASKS)


async def by_statement(con):
    await (await con.prepare(ASKS)).fetch()


async def by_commit(con):
    async with con.transaction():
        await con.execute("INSERT INTO ominous VALUES (1)")


async def by_cursor(con):
    async with con.transaction():
        await (await con.cursor(ASKS)).fetch(1)


async def by_rows(con):
    async with con.transaction():
        async for _ in con.cursor(ASKS):
            pass


async def by_rows_of_statement(con):
    async with con.transaction():
        async for _ in (await con.prepare(ASKS)).cursor():
            pass


@pytest.mark.parametrize("talk", [by_call, by_statement, by_commit, by_cursor, by_rows, by_rows_of_statement])
def test_an_error_of_this_server_is_heard_by_whatever_it_was_the_answer_to(dsn, run, talk):
    """A connection that was told of the server's end is not lent again, though the caller keep the error to itself."""

    async def init(con):
        await con.execute(OMINOUS)

    async def main():
        async with make_pool(dsn, max_size=1, init=init) as pool:
            async with pool.acquire() as con:
                before = con.get_server_pid()
                with pytest.raises(asyncpg.AdminShutdownError):
                    await talk(con)
            async with pool.acquire() as con:
                assert con.get_server_pid() != before

    run(main)


def test_an_error_that_the_pool_has_not_seen_has_the_server_asked(dsn, run):
    """As of a method of a connection class: where the server is well, the connection is lent again."""

    class OurConnection(asyncpg.Connection):
        async def fail(self):
            await self.execute("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '57P01'; END $$")

        async def end(self):
            await self.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    async def main():
        async with make_pool(dsn, max_size=1, connection_class=OurConnection) as pool:
            pids = []
            for end in ("fail", "end", "fail"):
                with pytest.raises((asyncpg.AdminShutdownError, asyncpg.ConnectionDoesNotExistError)):
                    async with pool.acquire() as con:
                        pids.append(con.get_server_pid())
                        await getattr(con, end)()
            assert pids[0] == pids[1] != pids[2]

    run(main)


# ---- subclasses, and what programs read ----


@pytest.fixture(params=[asyncpg.Pool, loopaware_pool.asyncpg.Pool], ids=["theirs", "ours"])
def pool_class(request):
    """The class of a pool: asyncpg's own, or ours."""
    return request.param


ALL_ARGUMENTS = {
    "max_queries": 50000,
    "max_inactive_connection_lifetime": 300.0,
    "loop": None,
    "connection_class": asyncpg.Connection,
    "record_class": asyncpg.Record,
}


def test_what_a_subclass_overrides_is_called(pool_class, dsn, run):
    """`acquire`, `release`, `terminate` and `close`, by blocks, by `pool.fetch` and its like, and by each other."""
    calls = []

    class OurPool(pool_class):
        def acquire(self, *, timeout=None):
            calls.append("acquire")
            return super().acquire(timeout=timeout)

        async def release(self, connection, *, timeout=None):
            calls.append("release")
            await super().release(connection, timeout=timeout)

        async def close(self):
            calls.append("close")
            await super().close()

        def terminate(self):
            calls.append("terminate")
            super().terminate()

    async def main():
        pool = OurPool(dsn, **ONE, **ALL_ARGUMENTS)
        async with pool:
            async with pool.acquire() as con:
                await con.execute("SELECT 1")
            await pool.fetch("SELECT 1")
            await pool.execute("SELECT 1")
            con = await pool.acquire()
            await pool.release(con)
        assert calls == ["acquire", "release"] * 4 + ["close"]

        calls.clear()
        pool = await OurPool(dsn, **ONE, **ALL_ARGUMENTS)
        con = await pool.acquire()
        await close_cancelled(pool, con)
        assert calls == ["acquire", "close", "terminate"]

    run(main)


def test_an_error_of_an_overridden_release_does_not_replace_the_bodys(dsn, run, caplog):
    """As with ours; where the body has none it is raised."""

    class OurPool(loopaware_pool.asyncpg.Pool):
        async def release(self, connection, *, timeout=None):
            await super().release(connection, timeout=timeout)
            raise LookupError("released")

    async def main():
        async with OurPool(dsn, **ONE, **ALL_ARGUMENTS) as pool:
            with pytest.raises(LookupError):
                await pool.execute("SELECT 1")
            with pytest.raises(ZeroDivisionError):
                async with pool.acquire():
                    raise ZeroDivisionError
            assert "released" in caplog.text

    run(main)


def test_a_release_that_was_replaced_on_the_class_is_called(dsn, run, monkeypatch):
    """As tracers do."""
    released = []
    original = loopaware_pool.asyncpg.Pool.release

    async def traced(self, connection, *, timeout=None):
        released.append(connection)
        await original(self, connection, timeout=timeout)

    monkeypatch.setattr(loopaware_pool.asyncpg.Pool, "release", traced)

    async def main():
        async with make_pool(dsn) as pool:
            await pool.execute("SELECT 1")
            assert len(released) == 1

    run(main)


def test_private_attributes_that_programs_read_are_there(dsn, run):
    """They tell what asyncpg's own do, for the same arguments, and after the same calls."""

    async def hook(*_):
        """Do nothing."""

    async def connect(*args, **kwargs):
        return await asyncpg.connect(*args, **kwargs)

    names = set(asyncpg.Pool.__slots__) - {"_holders", "_queue", "_maintenance_task", "_loop"}
    sets = {"command_timeout": 7}
    options = {"min_size": 1, "max_size": 3, "max_queries": 77, "init": hook, "reset": hook, "setup": hook, **sets}

    def tell(pool):
        return {name: getattr(pool, name) for name in names}

    async def main():
        for more in ({}, {"connect": connect}, {"max_inactive_connection_lifetime": float("inf")}):
            told = []
            for create in (asyncpg.create_pool, loopaware_pool.asyncpg.create_pool):
                pool = create(dsn, **options, **more)
                states = [tell(pool)]
                async with pool:
                    states.append(tell(pool))
                    assert pool._loop is asyncio.get_running_loop()
                    await pool.expire_connections()
                    pool.set_connect_args(dsn, command_timeout=8)
                    states.append(tell(pool))
                told.append([*states, tell(pool)])
            for theirs, ours in zip(*told, strict=True):
                assert theirs == ours

    run(main)


async def close_it(pool, con):
    await con.close()


async def terminate_it(pool, con):
    con.terminate()


async def have_it_ended(pool, con):
    with contextlib.suppress(asyncpg.PostgresError):
        await con.execute("SELECT pg_terminate_backend(pg_backend_pid())")


async def release_it(pool, con):
    await pool.release(con)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("end", [close_it, terminate_it, have_it_ended, release_it])
def test_setup_that_ends_its_connection_lends_none_and_harms_nobodys(dsn, run, end, fails):
    """With asyncpg's pool that is an AttributeError, and a pool that does not close."""

    async def setup(con):
        if not ended:
            ended.append(con)
            await end(pool, con)
            others.append(await pool.acquire())  # the same connection, if it was released
            if fails:
                raise LookupError

    async def main():
        nonlocal pool
        async with loopaware_pool.asyncpg.create_pool(dsn, min_size=0, max_size=1, setup=setup) as pool:
            expected = LookupError if fails else asyncpg.ConnectionDoesNotExistError
            with pytest.raises(expected):
                await pool.fetchval("SELECT 1")
            (other,) = others
            assert await other.fetchval("SELECT 2") == 2
            await pool.release(other)
            assert await pool.fetchval("SELECT 3") == 3

    pool, ended, others = None, [], []
    run(main)


def test_setup_that_terminates_the_pool_has_the_caller_told(dsn, run):
    """As by asyncpg's pool."""

    async def setup(_):
        pool.terminate()

    async def main():
        nonlocal pool
        async with loopaware_pool.asyncpg.create_pool(dsn, min_size=0, max_size=1, setup=setup) as pool:
            with pytest.raises(asyncpg.InterfaceError, match="pool is closed"):
                await pool.fetchval("SELECT 1")

    pool = None
    run(main)


def test_the_queue_of_free_connections_tells_its_size(create_pool, dsn, run):
    """Programs ask asyncpg's for how many connections could be lent, and whether there is one."""

    async def main():
        async with create_pool(dsn, min_size=1, max_size=2) as pool:

            def told():
                queue = pool._queue
                return queue.qsize(), queue.maxsize, queue.empty(), queue.full()

            assert told() == (2, 2, False, True)
            async with pool.acquire() as con:
                assert told() == (1, 2, False, False)
                async with pool.acquire():
                    assert told() == (0, 2, True, False)
                await con.execute("SET work_mem = '5MB'")  # whose reset a release need not wait for
            assert told() == (2, 2, False, True)

    run(main)


@pytest.mark.parametrize("session_reset", ["pipelined", "when_dirty", "confirmed", "awaited", "never"])
def test_a_proxy_has_the_name_of_asyncpgs(create_pool, dsn, run, session_reset):
    """In texts, and to who compares it."""

    async def main():
        async with create_pool(dsn, min_size=1, max_size=2, **only_ours(create_pool, session_reset)) as pool:
            async with pool.acquire() as con:
                assert type(con).__name__ == type(con).__qualname__ == "PoolConnectionProxy"
                assert repr(con).startswith("<PoolConnectionProxy <asyncpg.connection.Connection object at")
            assert repr(con).startswith("<PoolConnectionProxy [released]")

    run(main)


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

    run(main)


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


def failing_rows():
    yield (1,)
    raise asyncpg.AdminShutdownError("of another server")


async def failing_source():
    yield b"1\n"
    raise asyncpg.AdminShutdownError("of another server")


async def prepared_many(con):
    await (await con.prepare("SELECT $1::int")).executemany(failing_rows())


FED = {
    "executemany": lambda con: con.executemany("SELECT $1::int", failing_rows()),
    "fetchmany": lambda con: con.fetchmany("SELECT $1::int", failing_rows()),
    "a statement's executemany": prepared_many,
    "copy_records_to_table": lambda con: con.copy_records_to_table("fed", records=failing_rows()),
    "copy_to_table": lambda con: con.copy_to_table("fed", source=failing_source()),
}


@pytest.mark.parametrize("feed", FED)
def test_an_error_of_another_server_in_what_feeds_a_call_costs_no_connection(create_pool, dsn, run, feed):
    """The call raises it, but it is not what this server has answered."""

    async def main():
        async with create_pool(dsn, **ONE) as pool:
            async with pool.acquire() as con:
                before = con.get_server_pid()
                await con.execute("CREATE TEMP TABLE fed (n int)")
                with pytest.raises(asyncpg.AdminShutdownError, match="of another server"):
                    await FED[feed](con)
            async with pool.acquire() as con:
                assert con.get_server_pid() == before

    run(main)
