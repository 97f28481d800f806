"""Loops that run at the same time share what a pool may have open."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import asyncpg
import pytest

import helpers
from running import (
    DEADLINE_SECONDS,
    LoopThread,
    ask,
    eventually,
    make_pool,
    no_session_left,
    no_socket_left,
)

pytestmark = [pytest.mark.both_pythons, pytest.mark.both_drivers]


def test_four_threads_share_max_size(dsn, runner_factory):
    """Four loops at once take 400 connections each; there are never more sessions than `max_size`."""
    pool = make_pool(dsn, max_size=3)
    counts = []

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
            counts.append(helpers.open_sessions(dsn, pool.name))

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
    assert any(at_server for at_server, _ in counts)
    assert max(still_open for _, still_open in counts) <= 3
    assert pool.stats().ended.acquired == 4 * 400
    no_session_left(dsn, pool)


def test_loops_that_run_now_and_then_share_max_size(dsn, run, runner_factory):
    """What four loops have begun and stand still with is never more than `max_size` sessions at the server."""
    pool = make_pool(dsn, max_size=2)
    counts = []

    async def open_pool():
        await pool

    async def pause(seconds):
        await asyncio.sleep(seconds)

    def thread(number):
        chance = random.Random(number)
        with runner_factory() as runner:
            loop = runner.get_loop()
            tasks = [loop.create_task(ask(pool, timeout=DEADLINE_SECONDS)) for _ in range(40)]
            while not all(task.done() for task in tasks):
                runner.run(pause(chance.random() * 0.01))
                time.sleep(chance.random() * 0.02)
            return [task.result() for task in tasks]

    def watch():
        while not done.is_set():
            counts.append(helpers.open_sessions(dsn, pool.name))

    done = threading.Event()
    run(open_pool())
    with ThreadPoolExecutor(5) as threads:
        watcher = threads.submit(watch)
        work = [threads.submit(thread, number) for number in range(4)]
        try:
            answers = [each.result(4 * DEADLINE_SECONDS) for each in work]
        finally:
            done.set()
        watcher.result(DEADLINE_SECONDS)
    assert answers == [[1] * 40] * 4
    assert any(at_server for at_server, _ in counts)
    assert max(still_open for _, still_open in counts) <= 2
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


def test_a_pool_that_is_suspended_again_at_once_stays_suspended_on_every_loop(dsn, loop_factory):
    """The other loop has not heard of the resumption when the pool is suspended again, so it serves no caller."""
    pool = make_pool(dsn, max_size=2)
    is_blocked, go_on = threading.Event(), threading.Event()

    async def open_pool():
        await pool

    async def suspend():
        async with pool.acquire():
            pool.suspend()

    async def block():
        is_blocked.set()
        go_on.wait(DEADLINE_SECONDS)

    with LoopThread(loop_factory) as here, LoopThread(loop_factory) as there:
        here.run(open_pool())
        there.run(suspend())
        waiting = there.start(ask(pool, timeout=DEADLINE_SECONDS))
        eventually(lambda: pool.stats().waiting == 1, "the caller waits")
        blocked = there.start(block())
        is_blocked.wait(DEADLINE_SECONDS)
        pool.resume()
        pool.suspend()
        go_on.set()
        blocked.result(DEADLINE_SECONDS)
        with pytest.raises(TimeoutError):
            there.run(ask(pool, timeout=0.05))
        assert not waiting.done()
        pool.resume()
        assert waiting.result(DEADLINE_SECONDS) == 1
