"""One engine serves loops in turn, loops side by side, and a forked child; what ends takes its connections along."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import threading

import pytest
from sqlalchemy import event

import helpers
from engines import ask, ask_all, hold, pid
from forking import in_child
from loopaware_pool.sqlalchemy.first_connect import FirstConnectGate
from running import DEADLINE_SECONDS, LoopThread, end_abruptly, end_politely, eventually

pytestmark = [pytest.mark.both_pythons, pytest.mark.both_drivers]


def all_at_once(works):
    """Call functions in threads of their own, and give what they return."""
    found = []
    threads = [threading.Thread(target=lambda work=work: found.append(work())) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.usefixtures("zero_fd_delta")
def test_an_engine_serves_one_run_after_the_other(engines, run):
    """Its connections end with their loop, politely."""
    engine = engines.make()
    assert [run(ask(engine)) for _ in range(3)] == [42, 42, 42]
    assert engine.pool.fd_report() == []
    eventually(lambda: engines.sessions() == 0, "the server has no session left")


@pytest.mark.usefixtures("zero_fd_delta")
def test_the_first_connects_of_an_engine_may_come_from_many_threads(engines, runner_factory):
    """SQLAlchemy initialises its dialect once, whichever loop comes first, and everybody is served."""
    engine = engines.make()

    def one():
        with runner_factory() as runner:
            return runner.run(ask_all(engine, 10))

    assert all_at_once([one] * 3) == [[42] * 10] * 3


def test_the_first_connect_may_fail_on_one_loop_while_others_wait_for_it(engines, runner_factory):
    """Its caller hears of it, unless another one has served that caller; the next connect initialises the dialect."""
    engine = engines.make(pool_size=4)
    failures = [ZeroDivisionError("the first one fails")]

    @event.listens_for(engine.sync_engine.pool, "connect")
    def fail_once(*_):
        if failures:
            raise failures.pop()

    def one():
        with runner_factory() as runner:
            return runner.run(ask_all(engine, 2))

    found = [answer for answers in all_at_once([one] * 3) for answer in answers]
    assert not failures
    assert found.count(42) + sum(isinstance(answer, ZeroDivisionError) for answer in found) == 6
    assert found.count(42) >= 5


def test_a_loop_that_stops_in_the_middle_of_the_first_connect_holds_up_nobody(runner_factory):
    """Who waits for it looks whether its loop runs."""
    gate = FirstConnectGate()
    with runner_factory() as stopped, runner_factory() as other:
        stopped.run(enter(gate, forever=True))
        other.run(enter(gate))


def test_a_child_forked_in_the_middle_of_the_first_connect_does_not_wait_for_it(runner_factory):
    """In the child, the parent's loop looks as if it still ran."""
    gate = FirstConnectGate()

    async def main():
        await enter(gate, forever=True)
        assert await asyncio.to_thread(in_child, child)

    def child():
        with runner_factory() as other:
            other.run(enter(gate))
        return True

    with runner_factory() as runner:
        runner.run(main())


async def enter(gate, *, forever=False):
    from sqlalchemy.util import greenlet_spawn

    async def keep():
        await greenlet_spawn(gate.__enter__)
        if forever:
            await asyncio.get_running_loop().create_future()
        gate.__exit__()

    task = asyncio.ensure_future(keep())
    if forever:
        await helpers.spin(3)
        enter.kept = task  # a task that is collected is done
    else:
        await asyncio.wait_for(task, DEADLINE_SECONDS)


@pytest.mark.usefixtures("zero_fd_delta")
@pytest.mark.parametrize("end", [end_politely, end_abruptly])
def test_a_loop_that_ends_takes_its_connections_along(engines, loop_factory, end):
    """Idle ones and lent ones, whether it ends by `asyncio.run` or by a plain `loop.close()`."""
    engine = engines.make()

    async def leave_one_lent():
        await hold(engine, 2)
        kept.append(await engine.connect())

    kept = []
    with LoopThread(loop_factory, end=end) as thread:
        thread.run(leave_one_lent())
    assert engine.pool.fd_report() == []
    eventually(lambda: engines.sessions() == 0, "the server has no session left")
    with LoopThread(loop_factory) as thread:
        assert len(thread.run(hold(engine, 2))) == 2
    kept.clear()  # what the caller had is useless since, and its collection harms nobody
    gc.collect()
    assert len(engine.pool.fd_report()) == 0


@pytest.mark.usefixtures("zero_fd_delta")
def test_a_loop_that_ends_lets_a_connection_say_goodbye(engines, runner_factory, loop_factory, caplog):
    """Its tasks are cancelled, but not that goodbye: SQLAlchemy would log that the close has failed."""
    engine = engines.make(pool_size=1)

    async def lose_it_to_another_loop():
        assert await ask(engine) == 42
        asking.append(thread.start(ask(engine)))
        while not any(loop.closing for loop in engine.pool.stats().loops):
            await asyncio.sleep(0)
        # The goodbye begins in the iteration in which the run ends.

    asking = []
    with LoopThread(loop_factory) as thread:
        with runner_factory() as runner:
            runner.run(lose_it_to_another_loop())
        assert asking[0].result(DEADLINE_SECONDS) == 42
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []
    eventually(lambda: engines.sessions() == 0, "the server has no session left")


@pytest.mark.filterwarnings("ignore:The garbage collector is trying")
def test_a_connection_given_back_on_another_loop_is_free_on_its_own(engines, loop_factory):
    """SQLAlchemy cannot roll back there: the connection is closed, and its place is free."""
    engine = engines.make(pool_size=1, pool_timeout=5)

    async def lend():
        connection = await engine.connect()
        await pid(connection)
        return connection

    async def give_back(connection):
        with contextlib.suppress(Exception):  # SQLAlchemy's, or the driver's
            await connection.close()

    with LoopThread(loop_factory) as here, LoopThread(loop_factory) as there:
        connection = here.run(lend())
        there.run(give_back(connection))
        del connection  # SQLAlchemy 2.0 has failed to give it back
        gc.collect()
        assert here.run(ask(engine)) == 42
        assert there.run(ask(engine)) == 42


@pytest.mark.parametrize("is_disposed", [True, False])
def test_a_forked_child_starts_with_an_empty_pool(engines, run, runner_factory, is_disposed):
    """It need not call `engine.dispose(close=False)`, and may. The parent's connections are not touched."""
    engine = engines.make()

    def child():
        async def main():
            if is_disposed:
                await engine.dispose(close=False)
            return await hold(engine, 2)

        with runner_factory() as runner:
            return runner.run(main())

    async def parent():
        before = await hold(engine, 2)
        theirs = await asyncio.to_thread(in_child, child)
        assert not set(theirs) & set(before)
        assert sorted(await hold(engine, 2)) == sorted(before)

    run(parent())


def test_two_engines_share_a_loop(engines, run):
    """Each has its own connections."""

    async def main():
        first, second = engines.make(), engines.make()
        assert not set(await hold(first, 2)) & set(await hold(second, 2))
        await first.dispose()
        assert await ask(second) == 42
        await second.dispose()
        await helpers.eventually(lambda: engines.sessions() == 0)

    run(main())


@pytest.mark.usefixtures("zero_fd_delta")
def test_an_engine_that_is_dropped_leaves_nothing_open(engines, run):
    """The collector takes its pool and its connections, as with SQLAlchemy's own."""

    async def main():
        engine = engines.make()
        await hold(engine, 2)
        del engine
        gc.collect()
        await helpers.spin(5)
        gc.collect()

    with pytest.warns(ResourceWarning) as _:
        run(main())
