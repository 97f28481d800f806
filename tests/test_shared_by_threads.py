"""What threads share: no step of one thread is lost because another comes between its instructions."""

from __future__ import annotations

import asyncio
import functools
import sys
import threading

import pytest

import psycopg_pools
from loopaware_pool import credentials
from loopaware_pool._core import pool as pool_module
from loopaware_pool._core.config import PoolConfig
from loopaware_pool._core.pool import PoolCore
from loopaware_pool._core.state import PoolState
from loopaware_pool.psycopg import AsyncConnectionPool
from loopaware_pool.testing import FakeDriver
from running import DEADLINE_SECONDS, NOWHERE

# Long enough for a thread that is not kept out by a lock.
BLOCKED_SECONDS = 0.1


def with_another_thread_between(function, at, other):
    """
    Call *function*, and let another thread call *other* before its instruction number *at*, if there are so many.

    Returns:
        Whether there are. The other thread has ended by then, even if a lock kept it out meanwhile.
    """
    code, seen, threads = function.__code__, 0, []

    def trace(frame, event, _):
        nonlocal seen
        if frame.f_code is not code:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            seen += 1
            if seen == at:
                threads.append(threading.Thread(target=other, daemon=True))
                threads[0].start()
                threads[0].join(BLOCKED_SECONDS)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
    for thread in threads:
        thread.join(DEADLINE_SECONDS)
        assert not thread.is_alive()
    return bool(threads)


class Face:
    """Stands for the pool that a user holds."""


@pytest.fixture
def core():
    face = Face()
    core = PoolCore(PoolConfig(min_size=0, init_size=0, max_size=1), FakeDriver(), face)
    core.state = PoolState.OPEN
    yield core
    core.terminate()


class Bound:
    """A call of a method with its arguments, whose code is the method's."""

    def __init__(self, method, *args):
        self._method, self._args = method, args
        self.__code__ = method.__func__.__code__

    def __call__(self):
        self._method(*self._args)


def test_no_expiry_brings_back_a_generation_that_has_ended(core):
    """Wherever another thread expires the pool as well, twice even: the generation is one that never was."""
    at = 1
    while True:
        began, others = core.shared.generation, []

        def expire_twice(others=others):
            core.expire()
            others.append(core.shared.generation)
            core.expire()
            others.append(core.shared.generation)

        if not with_another_thread_between(Bound(core.expire), at, expire_twice):
            break
        assert core.shared.generation == began + 3, f"instruction {at}"
        at += 1
    assert at > 10


def test_every_failed_connect_is_counted():
    """Wherever another loop's connect fails, too: the log tells the first, second, fourth and so on, each once."""
    pool = psycopg_pools.make_pool(AsyncConnectionPool, NOWHERE, min_size=0, max_size=1)
    driver = pool._core.driver

    def fail():
        asyncio.run(fail_on_a_loop())

    async def fail_on_a_loop():
        driver._failed(OSError("refused"))

    async def fail_with_another_between(at):
        return with_another_thread_between(Bound(driver._failed, OSError("refused")), at, fail)

    at = 1
    while True:
        expected = next(driver._failures) + 3
        if not asyncio.run(fail_with_another_between(at)):
            break
        assert next(driver._failures) == expected, f"instruction {at}"
        at += 1
    assert at > 10


def test_everybody_who_closes_the_pool_is_woken(core, monkeypatch):
    """A caller of `close()` that is woken leaves the list while the others are woken: none of them is left out."""
    loop = asyncio.new_event_loop()
    try:
        closers = [(loop, loop.create_future()) for _ in range(3)]
        core._closers[:] = closers
        woken = []

        def post(_, callback, future):
            woken.append(future)
            core._closers[:] = [closer for closer in core._closers if closer[1] is not future]

        monkeypatch.setattr(pool_module.event_loops, "post", post)
        core.loop_emptied()
        assert woken == [future for _, future in closers]
    finally:
        loop.close()


def test_a_fetch_that_ends_while_those_who_wait_are_cancelled_wakes_the_others():
    """A caller's thread may take its future out between any two instructions of the thread that fetches."""
    loop = asyncio.new_event_loop()
    at = 1
    while True:
        fetch = credentials._Fetch(0.0)
        waiting = fetch.waiting
        waiting.update(futures := [loop.create_future() for _ in range(3)])
        if not with_another_thread_between(
            Bound(fetch.end, None, None), at, functools.partial(waiting.discard, futures[0])
        ):
            break
        loop.run_until_complete(asyncio.wait(futures[1:], timeout=DEADLINE_SECONDS))
        assert [future.done() for future in futures[1:]] == [True, True]
        at += 1
    loop.close()
    assert at > 10
