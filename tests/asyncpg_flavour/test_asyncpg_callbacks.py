"""Loggers and listeners that `init`, a connection class or a lease has registered."""

from __future__ import annotations

import asyncio
import sys

import asyncpg
import pytest

import helpers
from asyncpg_drop_in import ONE, close_cancelled, only_ours
from running import make_pool

pytestmark = pytest.mark.both_drivers
RESETS = ["pipelined", "when_dirty", "confirmed", "awaited", "never"]


def con_of(pool):
    """The one connection of a pool."""
    return pool._holders[0]._con


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

    run(main())


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

    run(main())


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

    run(main())


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

    run(main())


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

    run(main())


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

    run(main())


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
            async with pool.acquire(timeout=20) as con:
                assert await con.fetchval("SELECT 1") == 1

    run(main())


# ---- what a termination listener is called with ----


async def terminated(pool, con):
    pool.terminate()


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

    run(main())


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

    run(main())


def test_a_termination_listener_is_called_with_the_proxy_by_a_terminate_while_no_loop_runs(
    create_pool, dsn, runner_factory
):
    """Once the loop runs again."""
    heard = []
    with runner_factory() as runner:
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

    run(main())
