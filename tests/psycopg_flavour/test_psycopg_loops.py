"""One psycopg pool and any number of loops, threads and forks; loops that end early."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
import warnings
from pathlib import Path

import psycopg
import psycopg_pool
import pytest

import helpers
from loopaware_pool.psycopg import AsyncConnectionPool, AsyncNullConnectionPool
from psycopg_pools import HELD_UP, busy, held_up, make_pool
from running import (
    DEADLINE_SECONDS,
    LoopThread,
    end_abruptly,
    end_politely,
    eventually,
    eventually_async,
    no_session_left,
)

pytestmark = [pytest.mark.both_pythons, pytest.mark.both_drivers]


class OfTheUsers(psycopg.AsyncConnection):
    """A connection class that is not ours."""


@pytest.fixture(params=["ours", "foreign class"])
def options(request):
    return {} if request.param == "ours" else {"connection_class": OfTheUsers}


async def answer(pool, number=1):
    async with pool.connection() as connection:
        cursor = await connection.execute("SELECT %s::int, pg_sleep(0.002)", [number])
        return (await cursor.fetchone())[0]


def use_in_three_runs(pool, loop_factory):
    """Open a pool in one `asyncio.run`, use it there and in two more, and close it in the last."""
    answers = []

    async def first():
        await pool.open()
        answers.append(await answer(pool))

    async def second():
        answers.extend(await asyncio.gather(*(answer(pool, number) for number in range(3))))

    async def third():
        answers.append(await answer(pool))
        await pool.close()

    for work in (first, second, third):
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(work())
    return answers


def test_a_pool_in_three_runs(dsn, loop_factory, options, zero_fd_delta):
    """As programs have them at module level; nothing is left open between the runs or after them."""
    pool = make_pool(AsyncConnectionPool, dsn, min_size=1, max_size=2, **options)
    assert use_in_three_runs(pool, loop_factory) == [1, 0, 1, 2, 1]
    no_session_left(dsn, pool)


def test_psycopg_pools_own_pool_fails_in_three_runs(dsn):
    """Its workers are gone with the first: a second connection never comes. Or a run waits for ever for one of them."""
    child = (
        "import asyncio, sys, psycopg_pool\n"
        "sys.path[:0] = sys.argv[1:2]\n"
        "from psycopg_flavour.test_psycopg_loops import use_in_three_runs\n"
        "pool = psycopg_pool.AsyncConnectionPool(sys.argv[2], open=False, min_size=1, max_size=2, timeout=0.5)\n"
        "print(use_in_three_runs(pool, asyncio.new_event_loop))\n"
    )
    arguments = [sys.executable, "-c", child, str(Path(__file__).parents[1]), dsn]
    try:
        ended = subprocess.run(arguments, capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return
    assert ended.returncode, ended.stdout
    error = ended.stderr.splitlines()[-1].partition(":")[0].rpartition(".")[2]
    assert error in ("PoolTimeout", "RuntimeError", "CancelledError"), ended.stderr


def test_a_pool_in_four_threads(dsn, runner_factory, options, zero_fd_delta):
    """Each with a loop of its own; there are never more sessions than `max_size`."""
    pool = make_pool(AsyncConnectionPool, dsn, min_size=0, max_size=3, **options)
    seen = most = 0
    wrong = []
    has_looked = threading.Event()

    async def work(thread):
        numbers = range(100 * thread, 100 * thread + 15)
        wrong.extend([number for number in numbers if await answer(pool, number) != number])

    async def many(thread):
        await asyncio.gather(*(work(10 * thread + part) for part in range(3)))
        await asyncio.to_thread(has_looked.wait, DEADLINE_SECONDS)

    def run(thread):
        with runner_factory() as runner:
            runner.run(many(thread))

    asyncio.run(pool.open())
    threads = [threading.Thread(target=run, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        at_server, still_open = helpers.open_sessions(dsn, pool.name)
        seen, most = max(seen, at_server), max(most, still_open)
        if seen:
            has_looked.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert seen
    assert most <= 3
    asyncio.run(pool.close())
    no_session_left(dsn, pool)


def test_a_connection_can_be_returned_from_another_thread(dsn, run, loop_factory, options, zero_fd_delta):
    """It goes back to the loop it belongs to."""

    async def main():
        async with make_pool(AsyncConnectionPool, dsn, min_size=1, **options) as pool:
            connection = await pool.getconn()
            await connection.execute("SELECT 1")
            with LoopThread(loop_factory) as other:
                await asyncio.to_thread(other.run, pool.putconn(connection))
            async with pool.connection() as again:
                assert again is connection
                await again.execute("SELECT 1")

    run(main())


async def leave_idle(pool):
    assert await answer(pool) == 1


async def leave_lent(pool):
    connection = await pool.getconn()
    await connection.execute("SELECT 1")
    left.append(connection)


async def leave_querying(pool):
    connection = await pool.getconn()
    left.append((connection, asyncio.create_task(connection.execute("SELECT pg_sleep(60)"))))
    await busy(connection)


left: list[object] = []


@pytest.mark.parametrize("end", [end_politely, end_abruptly])
@pytest.mark.parametrize("leave", [leave_idle, leave_lent, leave_querying])
def test_a_loop_that_ends_takes_its_connections_along(dsn, run, loop_factory, end, leave, options, zero_fd_delta):
    """Without `close()`; the garbage collector is off, and the caller keeps what he has."""
    pool = make_pool(AsyncConnectionPool, dsn, min_size=1, **options)

    async def main():
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        await pool.open(wait=True)
        await leave(pool)

    end(loop_factory, main())
    eventually(lambda: not helpers.server_sessions(dsn, pool.name) or leave is leave_querying, "sessions that end")
    for kept in left:
        if isinstance(kept, tuple):
            kept[1]._log_destroy_pending = False
    left.clear()
    assert pool._nconns == 0
    assert run(answer(pool)) == 1


@pytest.mark.parametrize("end", [end_politely, end_abruptly])
@pytest.mark.parametrize("has_begun", [False, True], ids=["idle", "in a transaction"])
def test_a_lease_that_has_outlived_its_loop_can_be_ended(
    dsn, run, loop_factory, end, has_begun, options, zero_fd_delta
):
    """By leaving its block or by `putconn()`, without a word: its connection was closed with the loop."""
    pool = make_pool(AsyncConnectionPool, dsn, min_size=0, max_size=2, kwargs={"autocommit": not has_begun}, **options)

    async def begin():
        await pool.open()
        block = pool.connection()
        leases = await block.__aenter__(), await pool.getconn()
        for connection in leases:
            await connection.execute("SELECT 1")
        return block, *leases

    async def finish(block, entered, connection):
        assert entered.closed
        assert not await block.__aexit__(None, None, None)
        await pool.putconn(connection)
        for returned in (entered, connection):
            with pytest.raises(ValueError, match="it doesn't come from any pool"):
                await pool.putconn(returned)
        assert await answer(pool) == 1
        await pool.close()

    leases = end(loop_factory, begin())
    run(finish(*leases))


def test_a_run_returns_though_connects_are_under_way(run, zero_fd_delta):
    """To a server that takes connections and says nothing. (psycopg_pool's keeps the program from ending.)"""
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        port = deaf.getsockname()[1]
        dsn = f"host=127.0.0.1 port={port} user=nobody dbname=nobody sslmode=disable gssencmode=disable"
        pool = make_pool(AsyncConnectionPool, dsn, min_size=2)

        async def main():
            await pool.open()
            await asyncio.sleep(0.05)

        run(main())


def test_a_pool_that_is_dropped_closes_its_connections(dsn, runner_factory, options, zero_fd_delta):
    """The collector finds it; the program is warned."""

    async def main():
        pool = make_pool(AsyncConnectionPool, dsn, min_size=1, **options)
        name = pool.name
        await pool.open(wait=True)
        await answer(pool)
        with warnings.catch_warnings(record=True):
            warnings.simplefilter("always")
            del pool
            gc.collect()
            await helpers.spin(5)
        if hasattr(loop, "_selector"):
            assert not helpers.selector_fds(loop)
        return name

    with runner_factory() as runner:
        loop = runner.get_loop()
        name = runner.run(main())
    eventually(lambda: not helpers.server_sessions(dsn, name), "sessions that end")


def test_what_is_lent_when_the_pool_closes_is_closed_as_it_comes_back(dsn, run, options, zero_fd_delta):
    """The holder goes on until then; idle connections are closed, and whoever waits is told, at once."""

    async def main():
        async with make_pool(AsyncConnectionPool, dsn, min_size=2, max_size=2, **options) as pool:
            await pool.wait()
            first, second = [await pool.getconn() for _ in range(2)]
            waiting = asyncio.create_task(pool.getconn())
            await helpers.spin(2)
            await pool.putconn(first)
            await pool.putconn(await waiting)
            waiting = [asyncio.create_task(pool.getconn()) for _ in range(2)]
            await helpers.spin(2)
            await pool.close()
            outcomes = await asyncio.gather(*waiting, return_exceptions=True)
            assert [type(outcome).__mro__[1].__name__ for outcome in outcomes[1:]] == ["PoolClosed"]
            assert isinstance(outcomes[1], psycopg_pool.PoolClosed)
            await second.execute("SELECT 1")
            for connection in (second, outcomes[0]):
                await pool.putconn(connection)
                assert connection.closed or await closes(connection)
            assert pool._nconns == 0

    async def closes(connection):
        await eventually_async(lambda: connection.closed, "a connection that closes")
        return True

    run(main())


def test_a_pool_is_closed_on_every_loop(dsn, run, loop_factory, zero_fd_delta):
    """Callers that wait on other loops are told, and their idle connections closed."""
    pool = make_pool(AsyncConnectionPool, dsn, min_size=0, max_size=2)

    async def wait_for_one():
        held = [await pool.getconn() for _ in range(2)]
        with pytest.raises(psycopg_pool.PoolClosed):
            await pool.getconn(timeout=DEADLINE_SECONDS)
        for connection in held:
            await pool.putconn(connection)

    async def close_soon():
        # The holder's getconn() may wait for its connects as well.
        await eventually_async(lambda: pool.stats().lent == 2 and pool.stats().waiting == 1, "a caller who waits")
        await pool.close()

    asyncio.run(pool.open())
    with LoopThread(loop_factory) as other:
        waiting = other.start(wait_for_one())
        run(close_soon())
        waiting.result(DEADLINE_SECONDS)
    no_session_left(dsn, pool)


def test_a_null_pool_in_several_loops(dsn, loop_factory, zero_fd_delta):
    """It, too, serves any loop and keeps nothing."""
    pool = make_pool(AsyncNullConnectionPool, dsn, max_size=2)
    assert use_in_three_runs(pool, loop_factory) == [1, 0, 1, 2, 1]
    no_session_left(dsn, pool)


# ---- forks ----


def in_child(work):
    """Call *work* in a forked child; fail with what it raised."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks in processes with threads
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.alarm(int(DEADLINE_SECONDS))
            work()
            status = 0
        except BaseException:
            os.write(writing, traceback.format_exc().encode())
        finally:
            os._exit(status)
    os.close(writing)
    with open(reading, "rb") as complaints:
        complaint = complaints.read().decode()
    _, status = os.waitpid(pid, 0)
    assert not complaint, complaint
    assert status == 0


def test_a_fork_leaves_the_parents_connections_alone(dsn, run, runner_factory, options):
    """Idle, lent and in the middle of a query; the child closes what it knows, uses the pool, and ends."""
    pool = make_pool(AsyncConnectionPool, dsn, min_size=2, **options)

    def be_child(connection):
        gc.collect()
        with runner_factory() as runner:
            assert runner.run(answer(pool, 7)) == 7
            closing = connection.close()
            runner.run(closing)
            runner.run(pool.close())

    async def main():
        async with pool:
            await pool.wait()
            connection = await pool.getconn()
            pid = connection.info.backend_pid
            with held_up(dsn):
                query = asyncio.create_task(connection.execute(f"{HELD_UP}, 42"))
                await busy(connection)
                await asyncio.to_thread(in_child, lambda: be_child(connection))
            assert (await (await query).fetchone())[1] == 42
            assert connection.info.backend_pid == pid
            await pool.putconn(connection)
            assert sorted(await asyncio.gather(answer(pool, 1), answer(pool, 2))) == [1, 2]

    run(main())
    no_session_left(dsn, pool)


def test_a_child_can_end_the_parents_leases(dsn, run, options):
    """By leaving their blocks, as when it unwinds its stack, or by `putconn()`, without a word; the parent has them."""
    pool = make_pool(AsyncConnectionPool, dsn, min_size=0, max_size=2, **options)

    async def end(block, connection):
        assert connection.closed
        assert not await block.__aexit__(None, None, None)
        await pool.putconn(connection)
        with pytest.raises(ValueError, match="it doesn't come from any pool"):
            await pool.putconn(connection)
        assert await answer(pool, 7) == 7
        await pool.close()

    def be_child(*lease):
        run(end(*lease))

    async def main():
        async with pool:
            block = pool.connection()
            leases = await block.__aenter__(), await pool.getconn()
            await asyncio.to_thread(in_child, lambda: be_child(block, leases[1]))
            for connection in leases:
                assert await (await connection.execute("SELECT 42")).fetchone() == (42,)
            await block.__aexit__(None, None, None)
            await pool.putconn(leases[1])

    run(main())
    no_session_left(dsn, pool)


def test_psycopgs_own_connection_does_not_survive_a_child_that_closes_it(dsn):
    """Its goodbye goes to the parent's server: what the test above would see if the pool did as much."""

    def be_child(connection):
        closing = connection.close()
        with pytest.raises(StopIteration):
            closing.send(None)

    async def main():
        connection = await psycopg.AsyncConnection.connect(dsn, autocommit=True)
        in_child(lambda: be_child(connection))
        with pytest.raises(psycopg.OperationalError):
            await connection.execute("SELECT 1")

    asyncio.run(main())
