"""A forked child starts with an empty pool; its parent notices nothing."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys

import psycopg
import pytest

import helpers
from forking import in_child
from loopaware_pool import errors
from running import DEADLINE_SECONDS, LoopThread, eventually, make_pool, no_session_left, until_server_waits

pytestmark = [
    pytest.mark.both_pythons,
    pytest.mark.both_drivers,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork"),
]


async def ask(pool, query="SELECT 1"):
    async with pool.acquire(timeout=DEADLINE_SECONDS) as connection:
        return await connection.fetchval(query)


async def who(pool):
    return await ask(pool, "SELECT pg_backend_pid()")


class Lives:
    """What a child does with the pool it inherits; each says what it saw."""

    def __init__(self, pool, loop_factory):
        self.pool = pool
        self._loop_factory = loop_factory

    def run(self, *works):
        with asyncio.Runner(loop_factory=self._loop_factory) as runner:
            return [runner.run(work) for work in works]

    def uses(self):
        """Uses the pool in two loops, one after the other."""
        found = len(self.pool.fd_report())
        pids = self.run(who(self.pool), who(self.pool)) + self.run(who(self.pool))
        return found, pids, len(self.pool.fd_report())

    def uses_to_the_full(self):
        """Takes as many connections at once as the pool may have."""

        async def take_all():
            connections = [await self.pool.acquire(timeout=DEADLINE_SECONDS) for _ in range(self.pool.get_max_size())]
            pids = [await connection.fetchval("SELECT pg_backend_pid()") for connection in connections]
            for connection in connections:
                await self.pool.release(connection)
            return pids

        return 0, self.run(take_all())[0], 0

    def closes(self):
        """Uses the pool, and closes it."""
        return 0, self.run(who(self.pool), self.pool.close())[:1], len(self.pool.fd_report())

    def closes_at_once(self):
        """Closes what it inherited, unused."""
        self.run(self.pool.close())
        return 0, [], len(self.pool.fd_report())

    def terminates(self):
        """Terminates what it inherited."""
        self.pool.terminate()
        return 0, [], len(self.pool.fd_report())

    def collects(self):
        """Lets the collector have what the parent's loop had."""
        gc.collect()
        return 0, [], len(self.pool.fd_report())

    def does_nothing(self):
        """Exits."""
        return 0, [], 0


LIVES = [name for name in vars(Lives) if not name.startswith("_") and name != "run"]


@pytest.mark.parametrize("life", LIVES)
def test_a_child_forked_in_a_running_loop(life, dsn, run, loop_factory):
    """The parent's query in flight, its lease, its idle connection and its selector survive whatever the child does."""
    pool = make_pool(dsn, max_size=3)
    key = os.getpid()

    async def main():
        await pool
        loop = asyncio.get_running_loop()
        async with pool.acquire() as busy, pool.acquire() as lent:
            pids = [await connection.fetchval("SELECT pg_backend_pid()") for connection in (busy, lent)]
            idle_pid = await who(pool)
            await pool.settled()
            watched = helpers.kernel_watched_fds()
            with psycopg.connect(dsn) as locker:
                locker.execute("SELECT pg_advisory_lock(%s)", [key])
                query = asyncio.create_task(busy.fetchval("SELECT 'done' FROM pg_advisory_lock_shared($1)", key))
                await until_server_waits(dsn, pool)
                found, children, left = in_child(getattr(Lives(pool, loop_factory), life))
            assert await asyncio.wait_for(query, DEADLINE_SECONDS) == "done"
            assert (found, left) == (0, 0)
            assert not {*children} & {*pids, idle_pid}
            assert [await connection.fetchval("SELECT pg_backend_pid()") for connection in (busy, lent)] == pids
            assert await who(pool) == idle_pid
            await pool.settled()
            assert helpers.kernel_watched_fds() >= watched
        assert {await who(pool) for _ in range(3)} <= {*pids, idle_pid}
        assert len(pool.fd_report()) == 3
        await asyncio.wait_for(pool.close(), DEADLINE_SECONDS)
        assert asyncio.get_running_loop() is loop

    run(main())
    no_session_left(dsn, pool)


@pytest.mark.parametrize("life", LIVES)
def test_a_child_forked_between_runs(life, dsn, runner_factory, loop_factory):
    """So it is for a loop that stands still at the moment of the fork."""
    pool = make_pool(dsn, max_size=3)

    async def begin():
        await pool
        await who(pool)
        connection = await pool.acquire()
        return connection, await connection.fetchval("SELECT pg_backend_pid()")

    async def go_on():
        assert await connection.fetchval("SELECT pg_backend_pid()") == pid
        await pool.release(connection)
        assert await who(pool) == pid
        await asyncio.wait_for(pool.close(), DEADLINE_SECONDS)

    with runner_factory() as runner:
        connection, pid = runner.run(begin())
        found, children, left = in_child(getattr(Lives(pool, loop_factory), life))
        assert (found, left) == (0, 0)
        assert pid not in children
        runner.run(go_on())
    no_session_left(dsn, pool)


def test_a_child_forked_while_another_thread_uses_the_pool(dsn, loop_factory):
    """Whatever another thread's loop is doing at that moment, no lock of it is held in the child for ever."""
    pool = make_pool(dsn, max_size=2)

    async def hurry(stop):
        await pool

        async def worker():
            while not stop:
                await ask(pool)

        await asyncio.gather(*[worker() for _ in range(4)])

    stop = []
    with LoopThread(loop_factory) as other:
        hurrying = other.start(hurry(stop))
        eventually(lambda: pool.stats().lent, "a lease")
        try:
            for _ in range(10):
                _, children, left = in_child(Lives(pool, loop_factory).uses_to_the_full)
                assert len({*children}) == 2
                assert left == 0
        finally:
            stop.append(True)
        hurrying.result(DEADLINE_SECONDS)


def test_a_lock_that_is_held_at_the_fork_is_free_in_the_child(dsn, runner_factory, loop_factory):
    """A thread that does not exist in the child would never let go of the pool's locks: the child has new ones."""
    pool = make_pool(dsn, max_size=2)

    async def open_pool():
        await pool

    with runner_factory() as runner:
        runner.run(open_pool())
        with pool._core._lock, pool._core.permits._lock:
            _, children, _ = in_child(Lives(pool, loop_factory).uses_to_the_full)
    assert len({*children}) == 2


def test_a_child_has_none_of_the_sockets(dsn, run):
    """The child has no way to speak to the parent's sessions, lent or idle: it holds none of their sockets."""
    pool = make_pool(dsn)

    async def main():
        before = helpers.open_sockets().keys()
        await pool
        async with pool.acquire():
            await ask(pool)
            sockets = helpers.open_sockets().keys() - before
            assert len(sockets) == 2
            assert not in_child(lambda: {*helpers.open_sockets()}) & sockets
            assert helpers.open_sockets().keys() >= sockets

    run(main())


def test_a_child_forked_in_the_middle_of_a_connect_has_no_socket_of_it(dsn, run):
    """A connection that was being opened at the fork goes on in the parent alone."""
    seen = []

    async def fork(connection):
        ours = helpers.open_sockets().keys() - before
        assert ours
        seen.append(in_child(lambda: {*helpers.open_sockets()}) & ours)
        assert await connection.fetchval("SELECT 1") == 1

    async def main():
        before.update(helpers.open_sockets())
        await pool
        assert await ask(pool) == 1

    before = {}
    pool = make_pool(dsn, max_size=1, init=fork)
    run(main())
    assert seen == [set()]


def test_a_lease_is_dead_in_the_child(dsn, run):
    """A connection that was lent at the fork is the parent's: the child's copy refuses to work, and can be released."""
    pool = make_pool(dsn)

    def misuse(connection):
        async def use():
            with pytest.raises((errors.WrongLoop, Exception)) as caught:
                await asyncio.wait_for(connection.fetchval("SELECT 1"), DEADLINE_SECONDS)
            await pool.release(connection)
            return type(caught.value).__name__

        return run(use())

    async def main():
        await pool
        async with pool.acquire() as connection:
            assert in_child(lambda: misuse(connection)) in ("WrongLoop", "InterfaceError")
            assert await connection.fetchval("SELECT 1") == 1

    run(main())


SCRIPT = """
import asyncio, importlib, os, signal, sys
from loopaware_pool import create_pool

dsn, factory, where, way = sys.argv[1:]
pool = create_pool(dsn, min_size=0, max_size=2)
runner = asyncio.Runner(loop_factory=importlib.import_module(factory).new_event_loop)

def fork_and_wait():
    child = os.fork()
    signal.alarm(20)
    if child == 0:
        os._exit(0) if way == "_exit" else sys.exit(0)
    status = os.waitpid(child, 0)[1]
    # One such child, unwinding the uvloop loop it shares with its parent, was once seen to end otherwise: why is not
    # known. What is promised is that the parent comes to no harm.
    assert status == 0 or (factory, where, way) == ("uvloop", "inside", "exit"), status

async def begin():
    await pool
    connection = await pool.acquire()
    await pool.fetchval("SELECT 1")
    pid = await connection.fetchval("SELECT pg_backend_pid()")
    if where == "inside":
        fork_and_wait()
    return connection, pid

async def end(connection, pid):
    assert await connection.fetchval("SELECT pg_backend_pid()") == pid
    await pool.release(connection)
    assert await pool.fetchval("SELECT 1") == 1
    assert len(pool.fd_report()) == 2
    await pool.close()

connection, pid = runner.run(begin())
if where == "outside":
    fork_and_wait()
runner.run(end(connection, pid))
runner.close()
print("unharmed")
"""


@pytest.mark.parametrize("way", ["_exit", "exit"])
@pytest.mark.parametrize("where", ["inside", "outside"])
@pytest.mark.parametrize("factory", ["asyncio", "uvloop"])
def test_a_child_that_exits(way, where, factory, dsn):
    """A child's exit, with all that the interpreter tears down then, does the parent no harm."""
    completed = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, dsn, factory, where, way],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=3 * DEADLINE_SECONDS,
    )
    assert completed.stdout == "unharmed\n", completed.stderr
    assert "loopaware" not in completed.stderr
