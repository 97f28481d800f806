"""One pool, many loops: one after the other, side by side, ended in every way (P1, P9, P11)."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import select
import socket
import subprocess
import sys
import threading
import time
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from urllib.parse import urlsplit

import asyncpg
import psycopg
import pytest
import uvloop

import helpers
from flavours import both
from loopaware_pool import errors
from loopaware_pool.asyncpg import create_pool
from loopaware_pool.testing import FaultProxy
from running import (
    DEADLINE_SECONDS,
    LoopThread,
    end_abruptly,
    end_politely,
    eventually,
    eventually_async,
    make_pool,
    no_session_left,
    no_socket_left,
    until_server_waits,
)

pytestmark = [pytest.mark.both_pythons, pytest.mark.both_drivers]

# As users write it: at import time, where there is no loop and no server.
POOL = create_pool(min_size=1, max_size=3, name="module-level", server_settings={"application_name": "module-level"})


@pytest.fixture(autouse=True)
def _without_collector(server):
    """The collector may not help: what is left behind stays."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()
    gc.collect()  # what it has to say, it says of this test


@pytest.fixture
def runner_factory(loop_factory):
    return lambda: asyncio.Runner(loop_factory=loop_factory)


async def ask(pool, query="SELECT 1", **options):
    async with pool.acquire(**options) as connection:
        return await connection.fetchval(query)


async def take_all(pool):
    """Lend everything the pool has at once: no slot is lost."""
    connections = [await pool.acquire(timeout=DEADLINE_SECONDS) for _ in range(pool.get_max_size())]
    assert [await connection.fetchval("SELECT 1") for connection in connections] == [1] * len(connections)
    for connection in connections:
        await pool.release(connection)


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


# ---- loops that end ----


class Gate:
    """A callback that holds up whoever calls it, for ever, while it is shut."""

    def __init__(self, then=None):
        self.is_shut = True
        self.entered = 0
        self._then = then

    async def __call__(self, *args, **kwargs):
        self.entered += 1
        while self.is_shut:
            await asyncio.sleep(DEADLINE_SECONDS)
        return await self._then(*args, **kwargs) if self._then is not None else None

    async def wait_for_victim(self):
        await eventually_async(lambda: self.entered, "somebody at the gate")


class Scene:
    """What a pool is doing on a loop at the moment at which that loop ends."""

    def __init__(self, **options):
        self.options = options
        self.kept = []

    def start(self, work):
        """Begin *work*, and leave it unfinished."""
        task = asyncio.get_running_loop().create_task(work)
        task._log_destroy_pending = False
        self.kept.append(task)

    async def play(self, pool):
        raise NotImplementedError

    def over(self):
        """Let the pool do as it likes."""


class Idle(Scene):
    async def play(self, pool):
        await asyncio.gather(ask(pool), ask(pool))
        # One connection may have served both; then the other is still being opened.
        await eventually_async(lambda: not pool.stats().connecting, "connections that are open")


class JustReleased(Scene):
    async def play(self, pool):
        connection = await pool.acquire()
        await pool.release(connection)


class Lent(Scene):
    async def play(self, pool):
        self.kept.append(await pool.acquire())


class Querying(Scene):
    async def play(self, pool):
        self.start(ask(pool, "SELECT pg_sleep(3)"))
        await until_server_waits(self.dsn, pool)


class Waiting(Scene):
    async def play(self, pool):
        self.kept += [await pool.acquire() for _ in range(pool.get_max_size())]
        self.start(ask(pool))
        await eventually_async(lambda: pool.stats().waiting, "a waiter")


class Connecting(Scene):
    def __init__(self):
        self.gate = Gate(asyncpg.connect)
        super().__init__(connect=self.gate)

    async def play(self, pool):
        self.start(ask(pool))
        await self.gate.wait_for_victim()

    def over(self):
        self.gate.is_shut = False


class Initialising(Connecting):
    def __init__(self):
        self.gate = Gate()
        Scene.__init__(self, init=self.gate)


class Resetting(Connecting):
    def __init__(self):
        self.gate = Gate()
        Scene.__init__(self, reset=self.gate)


class SettingUp(Connecting):
    def __init__(self):
        self.gate = Gate()
        Scene.__init__(self, setup=self.gate)


class SayingGoodbye(Scene):
    async def play(self, pool):
        connection = await pool.acquire()
        await pool.expire_connections()
        await pool.release(connection)
        await asyncio.sleep(0)  # the goodbye has been said, and the server has not closed


SCENES = [Idle, JustReleased, Lent, Querying, Waiting, Connecting, Initialising, SettingUp, Resetting, SayingGoodbye]


@pytest.mark.parametrize("end", [end_politely, end_abruptly])
@pytest.mark.parametrize("scene", SCENES)
def test_a_loop_that_ends(scene, end, dsn, loop_factory, runner_factory):
    """Whatever a pool is doing on a loop that ends: nothing stays open, and another loop has the pool to itself."""
    scene = scene()
    scene.dsn = dsn
    pool = make_pool(dsn, **scene.options)

    async def main():
        await pool
        await scene.play(pool)

    with no_socket_left():
        end(loop_factory, main())
    assert pool.fd_report() == []
    scene.over()
    with no_socket_left(), runner_factory() as runner:
        runner.run(take_all(pool))
    no_session_left(dsn, pool)


@pytest.fixture
def private_dsn(dsn):
    """A database that nobody else uses, so that what the server counts there is ours."""
    name = f"private_{os.getpid()}"
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        yield urlsplit(dsn)._replace(path=name).geturl()
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def abandoned_sessions(dsn):
    """How many sessions of a database ended without a goodbye, from outside it."""
    where = urlsplit(dsn)
    query = "SELECT sessions_abandoned FROM pg_stat_database WHERE datname = %s"
    with psycopg.connect(where._replace(path="postgres").geturl()) as connection:
        return connection.execute(query, [where.path.strip("/")]).fetchone()[0]


@pytest.mark.parametrize("scene", [Idle, JustReleased, Lent, Waiting])
def test_a_loop_that_ends_politely_says_goodbye(scene, private_dsn, loop_factory):
    """While a loop shuts down, the server is told of each connection that ends; none just breaks off."""
    pool = make_pool(private_dsn)
    scene = scene()

    async def main():
        await pool
        await scene.play(pool)

    end_politely(loop_factory, main())
    no_session_left(private_dsn, pool)
    assert abandoned_sessions(private_dsn) == 0


def test_the_server_counts_who_leaves_without_a_goodbye(private_dsn):
    """What the test before this one trusts: a connection that breaks off is counted."""

    async def break_off():
        connection = await asyncpg.connect(private_dsn)
        connection._transport.abort()
        await asyncio.sleep(0)

    asyncio.run(break_off())
    eventually(lambda: abandoned_sessions(private_dsn) == 1, "the server has noticed")


@contextmanager
def server_that_never_answers():
    """What listens but does not talk; gives its DSN, and what takes the next client's end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        yield f"postgresql://nobody@127.0.0.1:{port}/none", listener


@pytest.mark.parametrize("end", [end_politely, end_abruptly])
def test_a_loop_that_ends_in_the_middle_of_a_handshake(end, dsn, loop_factory, runner_factory):
    """A connect that the server has not answered yet ends with its loop, and its socket is closed."""
    kept = []

    async def main():
        await pool
        task = asyncio.get_running_loop().create_task(ask(pool))
        task._log_destroy_pending = False
        kept.append(task)
        await eventually_async(lambda: is_readable(listener), "a client")
        client_end, _ = listener.accept()
        kept.append(client_end)
        await eventually_async(lambda: is_readable(client_end), "its first message")

    with server_that_never_answers() as (mute_dsn, listener):
        pool = make_pool(mute_dsn, ssl=False)
        with no_socket_left():
            end(loop_factory, main())
            with kept.pop() as client_end:
                assert is_disconnected(client_end)
    pool.set_connect_args(dsn)
    with no_socket_left(), runner_factory() as runner:
        runner.run(take_all(pool))


def is_readable(sock):
    return bool(select.select([sock], [], [], 0)[0])


def is_disconnected(sock):
    sock.settimeout(DEADLINE_SECONDS)
    try:
        while sock.recv(4096):
            pass
    except ConnectionResetError:
        pass
    return True


# ---- pools that are dropped ----


async def drop(kept):
    """Let go of what is in the list, and wait for a socket to be closed for it."""
    before = helpers.socket_count()
    kept.clear()
    await eventually_async(lambda: helpers.socket_count() < before, "the socket is closed")


def test_a_pool_dropped_while_its_loop_goes_on(dsn, runner_factory):
    """A pool that nobody has any more is closed by its loop, and Python says that it was not closed."""

    async def main():
        kept = [make_pool(dsn)]
        name = kept[0].name
        await kept[0]
        await ask(kept[0])
        with pytest.warns(ResourceWarning, match=f"unclosed pool '{name}'"):
            await drop(kept)
        return name

    with no_socket_left(), runner_factory() as runner:
        name = runner.run(main())
    eventually(lambda: not helpers.server_sessions(dsn, name), "no session left")


def test_a_pool_dropped_after_its_loop(dsn, runner_factory):
    """A pool whose loops have ended may be dropped without a word."""
    with no_socket_left():
        pool = make_pool(dsn)
        with runner_factory() as runner:
            runner.run(take_all_of(pool))
        del pool


async def take_all_of(pool):
    await pool
    await take_all(pool)


def test_a_lease_keeps_its_pool_alive(dsn, runner_factory):
    """A pool that is dropped while a connection is lent stays, for its borrower, until that is released."""

    async def borrow_from_nobody():
        before = helpers.socket_count()
        async with (await make_pool(dsn)).acquire() as connection:
            await asyncio.sleep(0)
            assert await connection.fetchval("SELECT 1") == 1
        del connection
        await eventually_async(lambda: helpers.socket_count() == before, "the socket is closed")

    async def main():
        with pytest.warns(ResourceWarning, match="unclosed pool"):
            await borrow_from_nobody()

    with no_socket_left(), runner_factory() as runner:
        runner.run(main())


@pytest.mark.parametrize("flavour", both)
def test_a_loop_that_comes_to_the_pool_while_it_shuts_down_leaves_nothing(dsn, loop_factory, flavour):
    """Its first acquire is in another async generator's `finally`; nobody would tell the pool of the end any more."""
    opening = both[flavour](dsn, max_size=1)

    async def generate(client):
        try:
            yield
        finally:
            for _ in range(2):
                assert await client.value("SELECT 1", timeout=DEADLINE_SECONDS) == 1
                await client.do("SET application_name = 'changed'")

    async def begin(generator):
        await anext(generator)

    with warnings.catch_warnings(record=True) as told, no_socket_left():
        warnings.simplefilter("always")
        with asyncio.Runner(loop_factory=loop_factory) as home:
            client = home.run(opening.__aenter__())
            generator = generate(client)
            with asyncio.Runner(loop_factory=loop_factory) as ending:
                ending.run(begin(generator))
            home.run(opening.__aexit__(None, None, None))
    assert [str(warning.message) for warning in told] == []


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


# ---- loops side by side ----


def test_four_threads_share_max_size(dsn, runner_factory):
    """Four loops at once take 400 connections each; the server never sees more sessions than `max_size`."""
    pool = make_pool(dsn, max_size=3)
    most = []

    async def open_pool():
        await pool

    async def borrow():
        async def worker():
            for _ in range(50):
                assert await ask(pool, timeout=DEADLINE_SECONDS) == 1

        await asyncio.gather(*[worker() for _ in range(8)])

    def thread():
        with runner_factory() as runner:
            runner.run(borrow())

    def watch():
        while not done.is_set():
            most.append(helpers.server_sessions(dsn, pool.name))

    done = threading.Event()
    with no_socket_left():
        with runner_factory() as runner:
            runner.run(open_pool())
        with ThreadPoolExecutor(5) as threads:
            watcher = threads.submit(watch)
            work = [threads.submit(thread) for _ in range(4)]
            try:
                for each in work:
                    each.result(4 * DEADLINE_SECONDS)
            finally:
                done.set()
            watcher.result(DEADLINE_SECONDS)
    assert 0 < max(most) <= 3
    assert pool.stats().ended.acquired == 4 * 400
    no_session_left(dsn, pool)


def test_loops_that_run_now_and_then_share_max_size(dsn, loop_factory):
    """What four loops have begun and stand still with is never more than `max_size` sessions at the server."""
    pool = make_pool(dsn, max_size=2)
    most = []

    async def open_pool():
        await pool

    async def pause(seconds):
        await asyncio.sleep(seconds)

    def thread(number):
        chance = random.Random(number)
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            loop = runner.get_loop()
            tasks = [loop.create_task(ask(pool, timeout=DEADLINE_SECONDS)) for _ in range(40)]
            while not all(task.done() for task in tasks):
                runner.run(pause(chance.random() * 0.01))
                time.sleep(chance.random() * 0.02)
            return [task.result() for task in tasks]

    def watch():
        with psycopg.connect(dsn, autocommit=True) as connection:
            while not done.is_set():
                query = "SELECT client_port FROM pg_stat_activity WHERE application_name = %s"
                ports = {port for (port,) in connection.execute(query, [pool.name])}
                most.append(len(ports & helpers.local_ports()))  # a server may be slow to see that one was closed

    done = threading.Event()
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(open_pool())
    with ThreadPoolExecutor(5) as threads:
        watcher = threads.submit(watch)
        work = [threads.submit(thread, number) for number in range(4)]
        try:
            answers = [each.result(4 * DEADLINE_SECONDS) for each in work]
        finally:
            done.set()
        watcher.result(DEADLINE_SECONDS)
    assert answers == [[1] * 40] * 4
    assert 0 < max(most) <= 2
    no_session_left(dsn, pool)


def test_two_loops_that_want_the_last_permit_both_finish(dsn, loop_factory):
    """With one connection between two busy loops, each has its turns."""
    pool = make_pool(dsn, max_size=1)

    async def open_pool():
        await pool

    async def borrow():
        for _ in range(20):
            assert await ask(pool, timeout=DEADLINE_SECONDS) == 1

    with LoopThread(loop_factory) as one, LoopThread(loop_factory) as other:
        one.run(open_pool())
        both = [one.start(borrow()), other.start(borrow())]
        for each in both:
            each.result(2 * DEADLINE_SECONDS)


def test_a_loop_that_is_never_idle_does_not_starve_another(dsn, loop_factory):
    """A loop whose callers queue without end still gives its only connection up to another loop's caller."""
    pool = make_pool(dsn, max_size=1, max_queries=10**9)
    served = threading.Event()

    async def hog():
        await pool

        async def worker():
            while not served.is_set():
                await ask(pool, timeout=DEADLINE_SECONDS)

        await asyncio.gather(*[worker() for _ in range(4)])

    with LoopThread(loop_factory) as greedy, LoopThread(loop_factory) as modest:
        hogging = greedy.start(hog())
        eventually(lambda: pool.stats().waiting, "callers in the queue")
        try:
            for _ in range(3):
                assert modest.run(ask(pool, timeout=DEADLINE_SECONDS)) == 1
        finally:
            served.set()
        hogging.result(DEADLINE_SECONDS)


def test_slow_connects_do_not_keep_loops_from_being_served(dsn, loop_factory):
    """Where connecting takes longer than a loop's patience, a new connection serves somebody before it goes."""

    async def connect_slowly(*args, **kwargs):
        await asyncio.sleep(0.1)
        return await asyncpg.connect(*args, **kwargs)

    pool = make_pool(dsn, max_size=1, connect=connect_slowly)

    async def borrow():
        await pool
        for _ in range(3):
            assert await ask(pool, timeout=DEADLINE_SECONDS) == 1

    with LoopThread(loop_factory) as one, LoopThread(loop_factory) as other:
        for each in [one.start(borrow()), other.start(borrow())]:
            each.result(2 * DEADLINE_SECONDS)


def test_an_idle_connection_is_given_up_for_a_loop_that_has_none(dsn, loop_factory):
    """The permit of a connection that idles on one loop serves the caller that waits on another."""
    pool = make_pool(dsn, max_size=1)

    async def open_and_ask():
        await pool
        return await ask(pool, "SELECT pg_backend_pid()")

    with LoopThread(loop_factory) as rich, LoopThread(loop_factory) as poor:
        first = rich.run(open_and_ask())
        second = poor.run(ask(pool, "SELECT pg_backend_pid()", timeout=DEADLINE_SECONDS))
        assert first != second
        assert pool.get_size() == 1


def test_an_idle_connection_is_given_up_by_a_loop_that_stands_still(dsn, loop_factory, runner_factory):
    """So is that of a loop which is not running just now, and it may be used again afterwards."""
    pool = make_pool(dsn, max_size=1)

    async def open_and_ask():
        await pool
        return await ask(pool)

    with no_socket_left(), runner_factory() as still:
        still.run(open_and_ask())
        with LoopThread(loop_factory) as poor:
            assert poor.run(ask(pool, timeout=DEADLINE_SECONDS)) == 1
        assert still.run(ask(pool, timeout=DEADLINE_SECONDS)) == 1


# ---- on the wrong loop ----


def test_a_connection_released_on_another_loop_goes_home(dsn, loop_factory, runner_factory):
    """`release` on a foreign loop, in a foreign thread, hands the connection to the loop that opened it."""
    pool = make_pool(dsn, max_size=1)

    async def open_and_acquire():
        await pool
        connection = await pool.acquire()
        return connection, await connection.fetchval("SELECT pg_backend_pid()")

    with LoopThread(loop_factory) as home:
        for _ in range(3):
            connection, pid = home.run(open_and_acquire())
            with runner_factory() as runner:
                runner.run(pool.release(connection))
            assert home.run(ask(pool, "SELECT pg_backend_pid()", timeout=DEADLINE_SECONDS)) == pid
            with pytest.raises(asyncpg.InterfaceError, match="released back to the pool"):
                connection.fetchval("SELECT 1")


def test_a_foreign_release_leaves_the_connection_to_its_loop(dsn, loop_factory, runner_factory):
    """While the loop that opened a connection is busy, nobody else does its work: the connection is lent until then."""
    pool = make_pool(dsn, max_size=1)
    is_busy, go_on = threading.Event(), threading.Event()

    async def open_and_acquire():
        await pool
        return await pool.acquire()

    def be_busy():
        is_busy.set()
        go_on.wait(DEADLINE_SECONDS)

    with LoopThread(loop_factory) as home, runner_factory() as runner:
        connection = home.run(open_and_acquire())
        home.loop.call_soon_threadsafe(be_busy)
        assert is_busy.wait(DEADLINE_SECONDS)
        try:
            runner.run(pool.release(connection))
            assert [row.state for row in pool.fd_report()] == ["lent"]
        finally:
            go_on.set()
        eventually(lambda: [row.state for row in pool.fd_report()] == ["idle"], "it is taken back")


@pytest.mark.parametrize("session_reset", ["never", "awaited"])
@pytest.mark.parametrize("flavour", both)
def test_a_connection_released_while_its_loop_stands_still_is_free(dsn, runner_factory, flavour, session_reset):
    """Another loop may release it: it is closed, somebody else has its place, and the pool can be closed."""
    opening = both[flavour](dsn, max_size=1, session_reset=session_reset)

    async def lend(client):
        lease = client.lend(timeout=DEADLINE_SECONDS)
        return lease, await lease.__aenter__()

    async def release_and_ask(client, lease):
        await lease.__aexit__(None, None, None)
        return await client.value("SELECT 1", timeout=DEADLINE_SECONDS)

    async def fail_to_ask(client, connection):
        with pytest.raises((asyncpg.InterfaceError, psycopg.OperationalError)):
            await client.ask(connection, "SELECT 1")

    async def release_and_close(lease):
        await lease.__aexit__(None, None, None)
        async with asyncio.timeout(DEADLINE_SECONDS):
            await opening.__aexit__(None, None, None)

    with no_socket_left(), runner_factory() as home, runner_factory() as elsewhere:
        client = home.run(opening.__aenter__())
        lease, connection = home.run(lend(client))
        assert elsewhere.run(release_and_ask(client, lease)) == 1
        home.run(fail_to_ask(client, connection))
        lease, _ = home.run(lend(client))
        elsewhere.run(release_and_close(lease))
    no_session_left(dsn, client.pool)


@pytest.mark.parametrize("flavour", both)
def test_a_connection_dropped_while_its_loop_stands_still_is_free(dsn, runner_factory, flavour):
    """It is closed when somebody elsewhere waits for its place."""
    opening = both[flavour](dsn, max_size=1)

    async def lend(client):
        lease = client.lend(timeout=DEADLINE_SECONDS)
        return lease, await lease.__aenter__()

    async def ask(client):
        return await client.value("SELECT 1", timeout=DEADLINE_SECONDS)

    with runner_factory() as home, runner_factory() as elsewhere:
        client = home.run(opening.__aenter__())
        held = home.run(lend(client))
        del held
        gc.collect()
        assert elsewhere.run(ask(client)) == 1
        elsewhere.run(opening.__aexit__(None, None, None))
    no_session_left(dsn, client.pool)


def test_a_connection_released_after_its_loop_is_a_no_op(dsn, loop_factory, runner_factory):
    """A lease that outlived its loop may be released anywhere; it is gone already."""
    pool = make_pool(dsn)
    kept = []

    async def acquire():
        await pool
        kept.append(await pool.acquire())

    for end in (end_politely, end_abruptly):
        with no_socket_left():
            end(loop_factory, acquire())
            with runner_factory() as runner:
                runner.run(pool.release(kept.pop()))
                runner.run(take_all(pool))


USES = {
    "fetchval": lambda connection: connection.fetchval("SELECT 1"),
    "execute": lambda connection: connection.execute("SELECT 1"),
    "prepare": lambda connection: connection.prepare("SELECT 1"),
    "reset": lambda connection: connection.reset(),
    "close": lambda connection: connection.close(),
}


@pytest.mark.parametrize("use", USES)
def test_a_foreign_connection_says_whose_it_is(use, dsn, loop_factory):
    """Using a connection on another loop raises `WrongLoop`, names both loops, and does the connection no harm."""
    pool = make_pool(dsn)

    async def open_and_acquire():
        await pool
        return await pool.acquire()

    async def misuse(connection):
        with pytest.raises(errors.WrongLoop) as caught:
            await USES[use](connection)
        return str(caught.value)

    async def use_well(connection):
        assert await connection.fetchval("SELECT 1") == 1
        await pool.release(connection)

    def labels():
        return {loop.loop for loop in pool.stats().loops}

    with LoopThread(loop_factory) as home, LoopThread(loop_factory) as abroad:
        connection = home.run(open_and_acquire())
        (home_label,) = labels()
        abroad.run(ask(pool))
        (abroad_label,) = labels() - {home_label}
        message = abroad.run(misuse(connection))
        assert home_label in message
        assert abroad_label in message
        home.run(use_well(connection))


# ---- the end of the pool ----


async def hold(pool, acquired, let_go):
    """Hold a connection of *pool* until told to let go."""
    async with pool.acquire() as connection:
        acquired.release()
        while not let_go.is_set():
            await asyncio.sleep(0.005)
        return await connection.fetchval("SELECT 1")


def test_close_tells_all_waiters_and_waits_for_all_leases(dsn, loop_factory, runner_factory):
    """`close()` gives the waiters of every loop an error at once, and waits for the leases of every loop."""
    pool = make_pool(dsn, max_size=2)
    acquired, let_go = threading.Semaphore(0), threading.Event()

    async def open_pool():
        await pool

    async def main():
        own = asyncio.create_task(ask(pool))
        await eventually_async(lambda: pool.stats().waiting == 4, "four callers in the queues")
        closing = asyncio.create_task(pool.close())
        with pytest.raises(asyncpg.InterfaceError, match="pool is closing"):
            await own
        for waiter in waiters:
            with pytest.raises(errors.PoolClosed, match="pool is closing"):
                await asyncio.wait_for(asyncio.wrap_future(waiter), DEADLINE_SECONDS)
        assert not closing.done()
        with pytest.raises(asyncpg.InterfaceError, match="pool is closing"):
            await pool.acquire()
        let_go.set()
        await asyncio.wait_for(closing, DEADLINE_SECONDS)

    with no_socket_left(), LoopThread(loop_factory) as other, runner_factory() as runner:
        other.run(open_pool())
        leases = [other.start(hold(pool, acquired, let_go)) for _ in range(2)]
        assert all(acquired.acquire(timeout=DEADLINE_SECONDS) for _ in leases)
        waiters = [other.start(ask(pool)) for _ in range(3)]
        try:
            runner.run(main())
        finally:
            let_go.set()
        assert [lease.result(DEADLINE_SECONDS) for lease in leases] == [1, 1]
    no_session_left(dsn, pool)


async def begin_for_callers(pool):
    """Have the pool connect because callers want it."""
    return [asyncio.create_task(ask(pool)) for _ in range(2)]


async def begin_for_the_floor(pool):
    """Have the pool connect because a connection of the least it keeps is worn out."""
    await ask(pool)
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not pool.stats().connecting:
            await asyncio.sleep(0)
    return []


@pytest.mark.parametrize("answer_is_there", [False, True])
@pytest.mark.parametrize("begin", [begin_for_callers, begin_for_the_floor])
@pytest.mark.parametrize("end", ["close", "terminate"])
def test_the_end_of_a_pool_that_connects_is_quiet(end, begin, answer_is_there, dsn, loop_factory):
    """Wherever a connect is when its pool ends, the loop has nothing to complain of."""
    complaints = []
    options = {"min_size": 1, "max_queries": 1} if begin is begin_for_the_floor else {}

    async def main(iterations):
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        pool = await make_pool(dsn, **options)
        before = helpers.open_sockets()
        callers = await begin(pool)
        for _ in range(iterations):
            await asyncio.sleep(0)
        if answer_is_there:
            ours = [fd for name, fd in helpers.open_sockets().items() if name not in before]
            select.select(ours, [], [], 0.05)  # in vain where the server has nothing to say yet
        await pool.close() if end == "close" else pool.terminate()
        await asyncio.gather(*callers, return_exceptions=True)
        await eventually_async(lambda: not pool.fd_report(), "an empty pool")
        await asyncio.sleep(0)

    for iterations in range(12):
        with no_socket_left(), asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(main(iterations))
            gc.collect()
    assert complaints == []


def test_terminate_from_a_thread_without_a_loop(dsn, loop_factory):
    """`terminate()` may come from anywhere: queries in flight fail, waiters hear of it, nothing stays open."""
    pool = make_pool(dsn, max_size=1)

    async def main():
        await pool
        query = asyncio.create_task(ask(pool, "SELECT pg_sleep(3)"))
        waiter = asyncio.create_task(ask(pool))
        await until_server_waits(dsn, pool)
        assert pool.stats().waiting == 1
        await asyncio.get_running_loop().run_in_executor(None, pool.terminate)
        # AttributeError: asyncpg's own, for a query that was between its two messages.
        with pytest.raises((asyncpg.PostgresConnectionError, asyncpg.InterfaceError, AttributeError)):
            await query
        with pytest.raises(errors.PoolClosed, match="pool is clos"):
            await waiter
        await eventually_async(lambda: not pool.fd_report(), "an empty pool")
        with pytest.raises(errors.PoolClosed, match="pool is closed"):
            await pool.acquire()

    with no_socket_left(), asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


@pytest.mark.parametrize("end", ["close", "terminate"])
def test_the_end_of_a_pool_with_connections_on_loops_of_every_kind(end, dsn, loop_factory, runner_factory):
    """Closing reaches connections on a running loop, on one that stands still, and on the caller's own."""
    pool = make_pool(dsn, max_size=3)

    async def open_and_ask():
        await pool
        return await ask(pool)

    async def finish():
        await ask(pool)
        assert pool.get_size() == 3
        if end == "close":
            await asyncio.wait_for(pool.close(), DEADLINE_SECONDS)
        else:
            pool.terminate()
        await eventually_async(lambda: not pool.fd_report(), "an empty pool")

    with no_socket_left(), LoopThread(loop_factory) as running, runner_factory() as still, runner_factory() as own:
        running.run(open_and_ask())
        still.run(open_and_ask())
        own.run(finish())
    no_session_left(dsn, pool)
