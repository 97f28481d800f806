"""One pool, one loop after the other; and what becomes of loops that stand still."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import time
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor

import asyncpg
import pytest
import uvloop

import helpers
from flavours import both
from loopaware_pool.asyncpg import create_pool
from loopaware_pool.testing import FaultProxy
from running import (
    DEADLINE_SECONDS,
    LoopThread,
    ask,
    eventually,
    eventually_async,
    make_pool,
    no_session_left,
    no_socket_left,
    take_all,
)

pytestmark = [pytest.mark.both_pythons, pytest.mark.both_drivers]
# As users write it: at import time, where there is no loop and no server.
POOL = create_pool(min_size=1, max_size=3, name="module-level", server_settings={"application_name": "module-level"})


# ---- one loop after the other ----


def test_runs_in_a_row_on_a_module_level_pool(dsn, runner_factory):
    """Twenty runs share a pool made at import time, and each leaves no socket and no session behind."""
    POOL.set_connect_args(dsn, server_settings={"application_name": "module-level"})

    async def handle():
        await POOL
        assert await asyncio.gather(*[ask(POOL) for _ in range(6)]) == [1] * 6

    for _ in range(20):
        with no_socket_left(), runner_factory() as runner:
            runner.run(handle())
        assert POOL.get_size() == 0
    no_session_left(dsn, POOL)


def test_a_loop_that_never_opened_the_pool_is_served(dsn, runner_factory):
    """Only the first loop has to await the pool."""
    pool = make_pool(dsn)

    async def open_pool():
        await pool

    for work in (open_pool(), ask(pool), take_all(pool)):
        with runner_factory() as runner:
            runner.run(work)


def test_a_loop_that_ends_during_connects_ends_in_peace(dsn, runner_factory):
    """Whatever asyncpg is waiting for at that moment, it leaves no exception that nobody retrieves."""
    pool = make_pool(dsn, max_size=5)
    complaints = []

    async def open_pool():
        await pool

    async def end_after(iterations):
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context["message"]))
        asking = [asyncio.ensure_future(ask(pool)) for _ in range(5)]
        for _ in range(iterations):
            await asyncio.sleep(0)
            time.sleep(0.0003)  # so that the server answers meanwhile
        return len(asking)

    with runner_factory() as runner:
        runner.run(open_pool())
    for iterations in range(0, 25, 2):
        with no_socket_left(), runner_factory() as runner:
            runner.run(end_after(iterations))
        gc.collect()
        assert complaints == []


def test_a_permit_does_not_stay_with_a_loop_that_stands_still(dsn, runner_factory):
    """A caller that waited there cannot be told that there is a connection for it; those elsewhere are served."""
    pool = make_pool(dsn, max_size=1)

    async def take():
        await pool
        return await pool.acquire()

    async def wait_in_vain():
        waiting = asyncio.ensure_future(ask(pool))
        await asyncio.sleep(0.1)
        return waiting

    async def give_back_and_ask(connection):
        await pool.release(connection)
        await asyncio.sleep(0.2)  # longer than a connection serves its own loop first
        return await ask(pool, timeout=DEADLINE_SECONDS)

    async def wait_for(waiting):
        return await waiting

    with no_socket_left(), runner_factory() as here:
        connection = here.run(take())
        with runner_factory() as elsewhere:
            waiting = elsewhere.run(wait_in_vain())
            assert here.run(give_back_and_ask(connection)) == 1
            assert elsewhere.run(wait_for(waiting)) == 1
        here.run(pool.close())
    no_session_left(dsn, pool)


def test_a_connection_that_was_being_closed_where_nobody_is_any_more_holds_no_close_up(dsn, runner_factory):
    """Its loop stands still before the server has said goodbye."""
    pool = make_pool(dsn, max_queries=1)

    async def wear_one_out():
        await pool
        assert await ask(pool) == 1

    async def close():
        async with asyncio.timeout(DEADLINE_SECONDS):
            await pool.close()

    with runner_factory() as elsewhere:
        elsewhere.run(wear_one_out())
        with runner_factory() as here:
            here.run(close())
    no_session_left(dsn, pool)


def test_a_goodbye_on_a_loop_that_stops_meanwhile_holds_no_close_up(dsn, loop_factory, runner_factory):
    """It has heard that the pool closes, and stops before the server has hung up."""

    async def open_and_ask(pool):
        await pool
        assert await ask(pool) == 1

    async def hear_of_the_end(pool):
        await eventually_async(lambda: pool.stats().loops[0].closing, "a goodbye")

    with FaultProxy(dsn) as proxy, LoopThread(loop_factory) as home:
        pool = make_pool(proxy.dsn)
        with runner_factory() as elsewhere:
            elsewhere.run(open_and_ask(pool))
            proxy.freeze()
            go_on = threading.Event()
            hearing = elsewhere.get_loop().create_task(hear_of_the_end(pool))
            elsewhere.get_loop().call_soon(go_on.set)
            with ThreadPoolExecutor(1) as thread:
                running = thread.submit(elsewhere.get_loop().run_until_complete, hearing)
                assert go_on.wait(DEADLINE_SECONDS)
                closing = home.start(pool.close())
                running.result(DEADLINE_SECONDS)
            closing.result(DEADLINE_SECONDS)
    no_session_left(dsn, pool)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="Python 3.11 knows no eager tasks")
def test_a_connect_that_fails_at_once_is_told_of_where_tasks_are_eager(dsn):
    """Though its task would have ended before anybody could wait for it."""

    async def open_pool():
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with asyncio.timeout(DEADLINE_SECONDS):
            with pytest.raises(asyncpg.ClientConfigurationError):
                await make_pool(dsn, min_size=1, ssl="no such mode")

    asyncio.run(open_pool())


def test_awaiting_again_on_another_loop_gives_the_same_pool(dsn, runner_factory):
    """A pool is open once and for all; awaiting it on a further loop opens that loop's `init_size`."""
    pool = make_pool(dsn, min_size=1)

    async def open_pool():
        assert await pool is pool
        return pool.get_size()

    for _ in range(3):
        with runner_factory() as runner:
            assert runner.run(open_pool()) == 1


def test_a_loop_per_test(dsn, tmp_path):
    """pytest-asyncio gives each test a loop of its own, and a module-level pool serves them all in peace."""
    (tmp_path / "test_inner.py").write_text(
        "import asyncio, os, pytest\n"
        "from loopaware_pool import create_pool\n"
        "settings = {'application_name': 'loop-per-test'}\n"
        "pool = create_pool(os.environ['INNER_DSN'], min_size=1, max_size=2, server_settings=settings)\n"
        "loops = []\n"
        "@pytest.mark.asyncio\n"
        "@pytest.mark.parametrize('nth', range(4))\n"
        "async def test_inner(nth):\n"
        "    assert asyncio.get_running_loop() not in loops\n"
        "    loops.append(asyncio.get_running_loop())\n"
        "    await pool\n"
        "    assert len(pool.fd_report()) == 1\n"
        "    assert await asyncio.gather(*[pool.fetchval('SELECT 1') for _ in range(5)]) == [1] * 5\n"
    )
    completed = run_python(
        *("-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", f"--rootdir={tmp_path}"),
        *("-o", "asyncio_default_fixture_loop_scope=function", "test_inner.py"),
        cwd=tmp_path,
        INNER_DSN=dsn,
    )
    assert "4 passed" in completed.stdout, completed.stdout + completed.stderr
    eventually(lambda: not helpers.server_sessions(dsn, "loop-per-test"), "no session left")


def run_python(*arguments, cwd, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=2 * DEADLINE_SECONDS,
    )


# ---- loops that stand still ----


@pytest.mark.parametrize("flavour", both)
def test_loops_that_are_forgotten_are_collected(dsn, flavour):
    """The pool keeps those alone that have a connection; where uvloop is used, uvloop keeps them all."""
    opening = both[flavour](dsn, max_size=2)

    async def value(client):
        return await client.value("SELECT 1", timeout=DEADLINE_SECONDS)

    def forget_one():
        loop = asyncio.new_event_loop()
        assert loop.run_until_complete(value(client)) == 1
        return weakref.ref(loop)

    with no_socket_left(), asyncio.Runner() as runner:
        client = runner.run(opening.__aenter__())
        with warnings.catch_warnings(action="ignore", category=ResourceWarning):  # unclosed event loop
            forgotten = [forget_one() for _ in range(20)]
            gc.collect()
        assert sum(loop() is not None for loop in forgotten) <= 2
        assert len(client.pool.stats().loops) <= 3
        assert client.pool.stats().totals.acquired == 20
        for loop in filter(None, (loop() for loop in forgotten)):
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()
        runner.run(opening.__aexit__(None, None, None))
    no_session_left(dsn, client.pool)


def test_what_uvloop_keeps_of_a_forgotten_loop_is_gone_when_it_is_closed(dsn):
    """A given-up session ends at once; its socket is closed in its loop's next turn, or with the loop."""
    pool = make_pool(dsn, max_size=2)

    async def open_pool():
        await pool

    with no_socket_left(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as home:
        home.run(open_pool())
        begin = helpers.socket_count()
        forgotten = [uvloop.new_event_loop() for _ in range(10)]
        for loop in forgotten:
            assert loop.run_until_complete(ask(pool, timeout=DEADLINE_SECONDS)) == 1
            assert pool.get_size() <= 2
        assert helpers.socket_count() - begin <= len(forgotten)
        home.run(eventually_async(lambda: helpers.server_sessions(dsn, pool.name) <= 2, "the end of given-up sessions"))
        forgotten.pop(0).run_until_complete(asyncio.sleep(0.01))
        for loop in forgotten:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()
        home.run(pool.close())
    no_session_left(dsn, pool)


def test_a_loop_that_was_let_go_of_is_as_before_when_it_runs_again(dsn, runner_factory):
    """Its callers are served, and it looks after `min_size` as it did."""
    pool = make_pool(dsn, min_size=1, max_size=1)

    async def open_pool():
        await pool

    async def until_floor_is_restored():
        assert await ask(pool, timeout=DEADLINE_SECONDS) == 1
        helpers.kill_sessions(dsn, pool.name)
        async with asyncio.timeout(DEADLINE_SECONDS):
            while pool.stats().totals.opened < opened + 2:
                await asyncio.sleep(0.01)

    with no_socket_left(), runner_factory() as home:
        home.run(open_pool())
        with runner_factory() as elsewhere:
            assert elsewhere.run(ask(pool, timeout=DEADLINE_SECONDS)) == 1
            assert len(pool.stats().loops) == 1
        opened = pool.stats().totals.opened
        home.run(until_floor_is_restored())
        home.run(pool.close())
    no_session_left(dsn, pool)
