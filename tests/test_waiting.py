"""Who is served when, how long anybody waits, and what they are told."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import psycopg
import pytest

import helpers
from loopaware_pool import stats
from loopaware_pool._core import connect_pacing
from loopaware_pool.asyncpg import PoolTimeout, TooManyWaiting, create_pool
from loopaware_pool.errors import PoolClosed
from loopaware_pool.testing.embedded_server import EmbeddedServer

HERE = Path(__file__).name
# Long enough that it is never reached where it must not be, and never waited for.
AMPLE = 30.0


@asynccontextmanager
async def some_pool(dsn, size=1, **options):
    async with asyncio.timeout(60), create_pool(dsn, min_size=0, max_size=size, **options) as pool:
        yield pool


def run(loop_factory, main):
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


def own_pids(pool):
    return [session._con.get_server_pid() for session in pool._holders if session._con is not None]


def kill(dsn, *pids):
    """End these sessions, and return when the server has."""
    with psycopg.connect(dsn, autocommit=True) as admin:
        for pid in pids:
            admin.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])


# ---- order ----


def test_waiters_are_served_in_the_order_they_came(dsn, loop_factory):
    """Ten callers on one connection get it first come, first served."""

    async def main():
        served = []

        async def user(number):
            async with pool.acquire() as con:
                served.append(number)
                await con.execute("SELECT 1")

        async with some_pool(dsn) as pool:
            con = await pool.acquire()
            tasks = []
            for number in range(10):
                tasks.append(asyncio.create_task(user(number)))
                await asyncio.sleep(0)
            await pool.release(con)
            await asyncio.gather(*tasks)
            assert served == list(range(10))

    run(loop_factory, main)


def test_a_running_task_cannot_barge_past_a_woken_one(dsn, loop_factory):
    """A task that releases and acquires in one go stands behind the one that was waiting."""

    async def main():
        order = []

        async def waiting():
            async with pool.acquire():
                order.append("waiting")

        async with some_pool(dsn) as pool:
            con = await pool.acquire()
            task = asyncio.create_task(waiting())
            await helpers.spin(2)
            await pool.release(con)
            con = await pool.acquire()
            order.append("running")
            await pool.release(con)
            await task
            assert order == ["waiting", "running"]

    run(loop_factory, main)


def test_a_newcomer_does_not_take_what_comes_free_while_others_wait(dsn, loop_factory):
    """With callers in the queue of a suspended pool, an idle connection is not for a newcomer."""

    async def main():
        order = []

        async def user(name):
            async with pool.acquire():
                order.append(name)

        async with some_pool(dsn) as pool:
            await pool.execute("SELECT 1")
            pool.suspend()
            tasks = [asyncio.create_task(user("early"))]
            await helpers.spin(2)
            assert pool.stats().idle == 1
            pool.resume()
            tasks.append(asyncio.create_task(user("late")))
            await asyncio.gather(*tasks)
            assert order == ["early", "late"]

    run(loop_factory, main)


# ---- timeouts ----


def test_a_timeout_tells_everything(dsn, loop_factory):
    """The error is a TimeoutError that names the pool, its counts, and who holds connections since which line."""

    async def hold(pool, done):
        async with pool.acquire():
            await done.wait()

    async def main():
        done = asyncio.Event()
        async with some_pool(dsn, size=2, name="orders") as pool:
            holders = [asyncio.create_task(hold(pool, done), name=f"holder-{n}") for n in range(2)]
            await helpers.eventually(lambda: pool.stats().lent == 2)
            with pytest.raises(TimeoutError) as caught:
                await pool.acquire(timeout=0.01)
            done.set()
            await asyncio.gather(*holders)
        error = caught.value
        line = hold.__code__.co_firstlineno + 1
        assert isinstance(error, PoolTimeout)
        assert str(error).startswith("couldn't get a connection in 0.01 s: pool 'orders' has 2 of 2 connections lent, ")
        assert "0 idle, 0 connecting, 0 resetting, 0 closing and " in str(error)
        assert f"{HERE}:{line} in hold" in str(error)
        assert "holder-0 for 0." in str(error)
        assert (error.pool, error.timeout, error.stats.lent, error.stats.max_size) == ("orders", 0.01, 2, 2)
        assert sorted(lease.task for lease in error.holders) == ["holder-0", "holder-1"]
        assert all(lease.held_seconds >= 0 for lease in error.holders)
        assert error.__cause__ is None

    run(loop_factory, main)


@pytest.mark.parametrize("method", ["fetch", "fetchrow", "fetchval", "execute", "acquire", "enter"])
def test_the_pools_own_timeout_covers_every_way_to_acquire(dsn, loop_factory, method):
    """`acquire_timeout` bounds an acquire that gives none, and those inside `pool.fetch` and its like."""

    async def use(pool):
        if method == "enter":
            async with pool.acquire():
                pass
        elif method == "acquire":
            await pool.acquire()
        else:
            await getattr(pool, method)("SELECT 1")

    async def main():
        async with some_pool(dsn, acquire_timeout=0.01) as pool:
            pool.suspend()
            with pytest.raises(PoolTimeout):
                await use(pool)
            assert pool.stats().waiting == 0
            pool.resume()

    run(loop_factory, main)


def test_a_timeout_of_the_call_goes_before_the_pools(dsn, loop_factory):
    """An acquire that gives a timeout is bound by that one."""

    async def main():
        async with some_pool(dsn, acquire_timeout=0.01) as pool:
            con = await pool.acquire(timeout=AMPLE)
            patient = asyncio.create_task(give(pool))
            with pytest.raises(PoolTimeout):
                await pool.acquire()
            assert not patient.done()
            await pool.release(con)
            await patient

    async def give(pool):
        async with pool.acquire(timeout=AMPLE):
            pass

    run(loop_factory, main)


@pytest.mark.parametrize("timeout", [0, -1, 0.0])
def test_no_time_at_all_is_enough_for_an_idle_connection_only(dsn, loop_factory, timeout):
    """A timeout of nothing gets an idle connection, and never waits."""

    async def main():
        async with some_pool(dsn) as pool:
            await pool.execute("SELECT 1")
            async with pool.acquire(timeout=timeout):
                with pytest.raises(PoolTimeout):
                    await pool.acquire(timeout=timeout)

    run(loop_factory, main)


def test_the_deadline_covers_connecting(dsn, loop_factory):
    """A connect that takes longer than the caller's time ends the caller's waiting, and serves the next."""

    async def main():
        let_go = asyncio.Event()

        async def connect(*args, **kwargs):
            await let_go.wait()
            return await asyncpg.connect(*args, **kwargs)

        async with some_pool(dsn, connect=connect) as pool:
            with pytest.raises(PoolTimeout, match="1 connecting"):
                await pool.acquire(timeout=0.01)
            let_go.set()
            assert await pool.fetchval("SELECT 1") == 1

    run(loop_factory, main)


def test_the_deadline_covers_setup(dsn, loop_factory):
    """A `setup` that takes longer than the caller's time is ended, and its connection closed."""

    async def main():
        blocked = True

        async def setup(con):
            if blocked:
                await asyncio.Event().wait()

        async with some_pool(dsn, setup=setup) as pool:
            with pytest.raises(PoolTimeout, match=r"in setup"):
                await pool.acquire(timeout=0.5)
            blocked = False
            assert await pool.fetchval("SELECT 1") == 1
            assert pool.stats().size == 1

    run(loop_factory, main)


def test_a_timeout_that_setup_raises_itself_is_its_own(dsn, loop_factory):
    """A TimeoutError of the user's `setup` is not taken for the pool's."""

    async def setup(con):
        raise TimeoutError("mine")

    async def main():
        async with some_pool(dsn, setup=setup) as pool:
            with pytest.raises(TimeoutError, match=r"^mine$") as caught:
                await pool.acquire(timeout=AMPLE)
            assert not isinstance(caught.value, PoolTimeout)
            assert pool.stats().lent == 0

    run(loop_factory, main)


def test_who_gives_up_leaves_the_queue_at_once(dsn, loop_factory):
    """A caller that timed out is not counted any more, and is counted as such."""

    async def main():
        async with some_pool(dsn) as pool, pool.acquire():
            patient = asyncio.create_task(pool.fetchval("SELECT 1"))
            await helpers.spin(2)
            hasty = [asyncio.create_task(pool.fetchval("SELECT 1")) for _ in range(3)]
            await helpers.spin(2)
            assert pool.stats().waiting == 4
            for task in hasty:
                task.cancel()
            await asyncio.wait(hasty)
            assert pool.stats().waiting == 1
            with pytest.raises(PoolTimeout):
                await pool.acquire(timeout=0.01)
            assert pool.stats().waiting == 1
            counters = pool.stats().loops[0].counters
            assert (counters.timed_out, counters.cancelled) == (1, 3)
            patient.cancel()

    run(loop_factory, main)


# ---- the server refuses ----


def refusing(pool):
    """Have the pool connect to where nobody listens from now on."""
    pool.set_connect_args("postgresql://postgres@127.0.0.1:1/postgres")


def test_a_timeout_has_the_last_connect_error_as_its_cause(dsn, loop_factory):
    """Who waited while the server refused learns the server's reason."""

    async def main():
        async with some_pool(dsn) as pool:
            refusing(pool)
            with pytest.raises(PoolTimeout) as caught:
                await pool.acquire(timeout=0.3)
            assert isinstance(caught.value.__cause__, OSError)

    run(loop_factory, main)


def test_without_a_timeout_a_refused_caller_gets_the_connect_error(dsn, loop_factory):
    """With nothing to wait for, callers without a deadline are told at once, all of them."""

    async def main():
        async with some_pool(dsn, size=3) as pool:
            refusing(pool)
            tasks = [asyncio.create_task(pool.fetchval("SELECT 1")) for _ in range(5)]
            await asyncio.wait(tasks, timeout=AMPLE)
            assert all(isinstance(task.exception(), OSError) for task in tasks)
            assert pool.stats().waiting == 0
            pool.set_connect_args(dsn)
            assert await pool.fetchval("SELECT 1") == 1

    run(loop_factory, main)


def test_a_refusal_spares_those_whom_a_lease_can_still_serve(dsn, loop_factory):
    """While a connection is lent, not all who wait are told off by one failed connect."""

    async def main():
        async with some_pool(dsn, size=2) as pool:
            con = await pool.acquire()
            refusing(pool)
            tasks = [asyncio.create_task(pool.fetchval("SELECT 1")) for _ in range(3)]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            assert pool.stats().waiting >= 1
            await pool.release(con)
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert 1 in outcomes

    run(loop_factory, main)


def test_callers_with_time_left_are_served_when_the_server_is_back(dsn, loop_factory):
    """A deadline is waited out through refusals: the first connect that works serves those who wait."""

    async def main():
        refused = asyncio.Event()
        works = False

        async def connect(*args, **kwargs):
            if works:
                return await asyncpg.connect(*args, **kwargs)
            refused.set()
            raise ConnectionRefusedError

        async with some_pool(dsn, size=3, connect=connect) as pool:
            tasks = [asyncio.create_task(pool.fetchval("SELECT 1", timeout=None)) for _ in range(1)]
            await asyncio.wait(tasks)
            assert isinstance(tasks[0].exception(), ConnectionRefusedError)
            refused.clear()
            waiting = [asyncio.create_task(self_timed(pool)) for _ in range(4)]
            await refused.wait()
            works = True
            assert await asyncio.gather(*waiting) == [1] * 4

    async def self_timed(pool):
        async with pool.acquire(timeout=AMPLE) as con:
            return await con.fetchval("SELECT 1")

    run(loop_factory, main)


def test_a_refusing_server_is_asked_by_one_prober_at_a_time(dsn, loop_factory):
    """However many wait, only one connect is tried at a time after a refusal."""

    async def main():
        in_flight, most = 0, 0
        attempts = asyncio.Semaphore(0)

        async def connect(*args, **kwargs):
            nonlocal in_flight, most
            in_flight += 1
            most = max(most, in_flight)
            await asyncio.sleep(0)
            in_flight -= 1
            attempts.release()
            raise ConnectionRefusedError

        async def wait_long():
            async with pool.acquire(timeout=AMPLE):
                pass

        async with some_pool(dsn, size=10, connect=connect) as pool:
            first = asyncio.create_task(wait_long())
            await attempts.acquire()
            most = 0
            tasks = [first, *[asyncio.create_task(wait_long()) for _ in range(9)]]
            for _ in range(3):
                await attempts.acquire()
            assert most == 1
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    run(loop_factory, main)


# ---- limits and switches ----


def test_more_waiters_than_max_waiting_are_refused(dsn, loop_factory):
    """The caller above `max_waiting` is refused at once, by an error that is asyncpg's InterfaceError too."""

    async def main():
        async with some_pool(dsn, max_waiting=2, name="small") as pool:
            con = await pool.acquire()
            tasks = [asyncio.create_task(pool.fetchval("SELECT 1")) for _ in range(2)]
            await helpers.spin(2)
            with pytest.raises(TooManyWaiting, match="pool 'small' has 2 callers waiting") as caught:
                await pool.acquire()
            assert isinstance(caught.value, asyncpg.InterfaceError)
            assert caught.value.max_waiting == 2
            await pool.release(con)
            assert await asyncio.gather(*tasks) == [1, 1]
            assert await pool.fetchval("SELECT 1") == 1

    run(loop_factory, main)


def test_a_suspended_pool_serves_nobody_until_it_resumes(dsn, loop_factory):
    """While suspended, callers queue and time out, leases go on; afterwards all are served."""

    async def main():
        async with some_pool(dsn, size=2) as pool:
            lent = await pool.acquire()
            pool.suspend()
            pool.suspend()
            tasks = [asyncio.create_task(pool.fetchval("SELECT 1")) for _ in range(4)]
            await helpers.spin(3)
            assert await lent.fetchval("SELECT 2") == 2
            await pool.release(lent)
            with pytest.raises(PoolTimeout):
                await pool.acquire(timeout=0.01)
            assert pool.stats().waiting == 4
            assert pool.stats().idle == 1
            pool.resume()
            assert await asyncio.gather(*tasks) == [1] * 4
            pool.resume()

    run(loop_factory, main)


def test_a_suspended_pool_can_be_closed(dsn, loop_factory):
    """Closing a suspended pool tells those who wait."""

    async def main():
        async with some_pool(dsn) as pool:
            pool.suspend()
            task = asyncio.create_task(pool.fetchval("SELECT 1"))
            await helpers.spin(3)
            await pool.close()
            assert isinstance(task.exception(), PoolClosed)

    run(loop_factory, main)


# ---- closing ----


def test_close_wakes_every_waiter_with_an_error(dsn, loop_factory):
    """Callers in the queue hear at once that the pool closes, while the lease goes on to its end."""

    async def main():
        async with some_pool(dsn) as pool:
            con = await pool.acquire()
            tasks = [asyncio.create_task(pool.fetchval("SELECT 1")) for _ in range(5)]
            await helpers.spin(2)
            closing = asyncio.create_task(pool.close())
            await asyncio.wait(tasks)
            for task in tasks:
                assert isinstance(task.exception(), asyncpg.InterfaceError)
                assert str(task.exception()) == "pool is closing"
            assert not closing.done()
            assert await con.fetchval("SELECT 1") == 1
            with pytest.raises(asyncpg.InterfaceError, match="pool is closing"):
                await pool.acquire()
            await pool.release(con)
            await closing
            with pytest.raises(asyncpg.InterfaceError, match="pool is closed"):
                await pool.acquire()

    run(loop_factory, main)


def test_close_waits_for_leases_and_their_resets(dsn, loop_factory):
    """`close()` returns when the last lease has been given back and reset."""

    async def main():
        gate, entered = asyncio.Event(), asyncio.Event()

        async def reset(con):
            entered.set()
            await gate.wait()

        async with some_pool(dsn, size=2, reset=reset) as pool:
            con = await pool.acquire()
            closing = asyncio.create_task(pool.close())
            await helpers.spin(10)
            assert not closing.done()
            release = asyncio.create_task(pool.release(con))
            await entered.wait()
            await helpers.spin(10)
            assert not closing.done()
            gate.set()
            await closing
            await release

    run(loop_factory, main)


def test_close_ends_connects_that_are_under_way(dsn, loop_factory, zero_fd_delta):
    """A connect that is being made while the pool closes is ended, not waited for."""

    async def main():
        entered = asyncio.Event()

        async def init(con):
            entered.set()
            await asyncio.Event().wait()

        async with some_pool(dsn, init=init) as pool:
            task = asyncio.create_task(pool.fetchval("SELECT 1"))
            await entered.wait()
            await pool.close()
            assert isinstance(task.exception(), PoolClosed)

    run(loop_factory, main)


def test_close_timeout_terminates_and_says_who_held_on(dsn, loop_factory, caplog, zero_fd_delta):
    """When `close_timeout` is over, leases are cut, and the log names their holders."""

    async def main():
        async with some_pool(dsn, close_timeout=0.05, name="held") as pool:
            con = await pool.acquire()
            await pool.close()
            assert pool.stats().size == 0
            with pytest.raises(asyncpg.InterfaceError):
                await con.fetchval("SELECT 1")

    with caplog.at_level(logging.WARNING):
        run(loop_factory, main)
    assert [record.name for record in caplog.records] == ["asyncpg.pool"]
    assert "held: close() ends after 0.05 s, close_timeout" in caplog.text
    assert f"{HERE}:" in caplog.text


def test_two_closers_both_return(dsn, loop_factory):
    """`close()` called twice at once, and again after it, ends each time."""

    async def main():
        async with some_pool(dsn) as pool:
            con = await pool.acquire()
            closers = [asyncio.create_task(pool.close()) for _ in range(2)]
            await helpers.spin(3)
            await pool.release(con)
            await asyncio.gather(*closers)
            await pool.close()

    run(loop_factory, main)


# ---- connections that the server has closed ----


def test_a_mass_kill_of_idle_connections_is_noticed_by_no_caller(dsn, loop_factory):
    """After every idle session was terminated, the same number of callers at once are all served."""

    async def main():
        async with some_pool(dsn, size=5) as pool:
            for _ in range(3):
                leases = [await pool.acquire() for _ in range(5)]
                for con in leases:
                    await pool.release(con)
                await pool.settled()
                victims = own_pids(pool)
                assert len(victims) == 5
                kill(dsn, *victims)
                values = await asyncio.gather(*[pool.fetchval("SELECT $1::int", n) for n in range(15)])
                assert values == list(range(15))
                assert not set(own_pids(pool)) & set(victims)
            assert pool.stats().loops[0].counters.found_dead >= 1

    run(loop_factory, main)


@pytest.mark.parametrize("is_parked", [True, False], ids=["parked", "fresh"])
def test_a_killed_idle_connection_is_never_handed_out(dsn, loop_factory, is_parked):
    """Without the loop having run since, a killed session is known to be one, and the next one works."""

    async def main():
        async with some_pool(dsn) as pool:
            for _ in range(5):
                await pool.execute("SELECT 1")
                if is_parked:
                    await pool.settled()
                (pid,) = own_pids(pool)
                kill(dsn, pid)
                async with pool.acquire() as con:
                    assert con.get_server_pid() != pid
                    assert await con.fetchval("SELECT 1") == 1

    run(loop_factory, main)


def test_a_killed_connection_is_not_handed_to_a_waiter(dsn, loop_factory):
    """A session killed while its holder does nothing is not passed on at his release."""

    async def main():
        async with some_pool(dsn) as pool:
            con = await pool.acquire()
            pid = con.get_server_pid()
            waiter = asyncio.create_task(pool.fetchval("SELECT pg_backend_pid()"))
            await helpers.spin(2)
            kill(dsn, pid)
            await pool.release(con)
            assert await waiter != pid

    run(loop_factory, main)


@pytest.mark.parametrize("how", ["immediate", "fast"])
def test_after_a_restart_of_the_server_acquires_succeed_again(loop_factory, how):
    """When the server has come back, idle and lent connections are replaced, and only leases have noticed."""

    async def main():
        async with some_pool(server.dsn, size=3) as pool:
            leases = [await pool.acquire() for _ in range(3)]
            for con in leases[1:]:
                await pool.release(con)
            await pool.settled()
            server.control("restart", "-m", how)
            assert await asyncio.gather(*[pool.fetchval("SELECT $1::int", n) for n in range(8)]) == list(range(8))
            with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
                await leases[0].fetchval("SELECT 1")
            await pool.release(leases[0])
            assert await pool.fetchval("SELECT 9") == 9

    with EmbeddedServer() as server:
        run(loop_factory, main)


def test_a_stopped_server_is_told_and_a_started_one_found(loop_factory):
    """While the server is down callers learn why; when it is up again a caller with time left is served."""

    async def patient(pool):
        async with pool.acquire(timeout=AMPLE) as con:
            return await con.fetchval("SELECT 1")

    async def main():
        async with some_pool(server.dsn, size=2) as pool:
            await pool.execute("SELECT 1")
            server.control("stop", "-m", "immediate")
            with pytest.raises((asyncpg.PostgresError, OSError)):
                await pool.execute("SELECT 1")
            with pytest.raises(PoolTimeout) as caught:
                await pool.acquire(timeout=0.1)
            assert isinstance(caught.value.__cause__, asyncpg.PostgresError | OSError)
            waiting = asyncio.create_task(patient(pool))
            await helpers.spin(10)
            server.control("start")
            assert await waiting == 1

    with EmbeddedServer() as server:
        run(loop_factory, main)


# ---- leases that last too long ----


def test_a_lease_that_lasts_too_long_is_reported_once(dsn, loop_factory, caplog):
    """`leak_threshold` logs the acquiring line and task, and tells the listener, once per lease."""

    async def main():
        told = []
        overdue = asyncio.Event()

        def listen(event):
            if isinstance(event, stats.LeaseOverdue):
                told.append(event)
                overdue.set()

        async with some_pool(dsn, size=2, leak_threshold=0.01, on_event=listen, name="leaky") as pool:
            asyncio.current_task().set_name("the-leaker")
            con = await pool.acquire()
            await overdue.wait()
            other = await pool.acquire()
            await helpers.eventually(lambda: len(told) == 2)
            await pool.release(con)
            await pool.release(other)
        assert len(told) == 2
        assert told[0].pool == "leaky"
        assert told[0].lease.task == "the-leaker"
        assert f"{HERE}:" in told[0].lease.where

    with caplog.at_level(logging.WARNING, "loopaware_pool"):
        run(loop_factory, main)
    assert caplog.text.count("leaky: a connection is still held by the-leaker for 0.0 s, from") == 2
    assert len(caplog.records) == 4  # and that each came back
    assert f"{HERE}:" in caplog.text


# ---- events ----


def test_every_event_is_told(dsn, loop_factory):
    """Opening, closing, failing to connect, to reset and to acquire are told, with their reasons."""
    told = []

    def only(kind):
        found = [event for event in told if type(event) is kind]
        told.clear()
        return found

    async def main():
        fails = False

        async def reset(con):
            if fails:
                raise ZeroDivisionError

        async with some_pool(dsn, on_event=told.append, reset=reset, name="telling") as pool:
            await pool.execute("SELECT 1")
            (event,) = only(stats.ConnectionOpened)
            assert (event.pool, event.loop) == ("telling", pool.stats().loops[0].loop)
            assert event.seconds > 0

            await pool.expire_connections()
            await pool.execute("SELECT 1")
            (event,) = only(stats.ConnectionClosed)
            assert event.reason == "expired"
            assert event.age_seconds > 0

            con = await pool.acquire()
            with pytest.raises(PoolTimeout):
                await pool.acquire(timeout=0)
            (event,) = only(stats.AcquireFailed)
            assert isinstance(event.error, PoolTimeout)
            assert event.waited_seconds >= 0
            task = asyncio.create_task(pool.fetchval("SELECT 1"))
            await helpers.spin(2)
            task.cancel()
            await asyncio.wait([task])
            (event,) = only(stats.AcquireFailed)
            assert event.error is None

            fails = True
            with pytest.raises(ZeroDivisionError):
                await pool.release(con)
            failures = [event for event in told if isinstance(event, stats.ResetFailed)]
            assert len(failures) == 1
            assert isinstance(failures[0].error, ZeroDivisionError)
            (event,) = only(stats.ConnectionClosed)
            assert event.reason == "reset failed"

            refusing(pool)
            with pytest.raises(OSError):
                await pool.acquire()
            (event,) = only(stats.ConnectFailed)
            assert isinstance(event.error, OSError)

            fails = False
            pool.set_connect_args(dsn)
            await pool.execute("SELECT 1")
            only(object)
        assert [event.reason for event in only(stats.ConnectionClosed)] == ["pool closed"]

    run(loop_factory, main)


def test_a_loop_that_ends_is_told(dsn, loop_factory):
    """A loop that ends without `close()` is reported with the number of its connections."""
    told = []

    async def main():
        nonlocal pool
        pool = await create_pool(dsn, min_size=0, init_size=2, max_size=2, on_event=told.append)

    pool = None
    run(loop_factory, main)
    assert [event.connections for event in told if isinstance(event, stats.LoopEnded)] == [2]


def test_a_pipelined_reset_that_fails_is_told(dsn, loop_factory):
    """A session that the server would not reset is closed, counted and told, and no caller gets it."""
    told = []

    async def init(con):
        await con.execute("DROP ROLE IF EXISTS short_lived; CREATE ROLE short_lived; SET ROLE short_lived")

    async def main():
        async with some_pool(dsn, on_event=told.append, init=init) as pool:
            async with pool.acquire() as con:
                pid = con.get_server_pid()
                await con.execute("RESET ROLE; DROP ROLE short_lived")
            await pool.settled()
            assert await pool.fetchval("SELECT pg_backend_pid()") != pid
            assert pool.stats().loops[0].counters.reset_failures == 1
            async with pool.acquire() as con:
                await con.execute("RESET ROLE; DROP ROLE short_lived")
        assert [event for event in told if isinstance(event, stats.ResetFailed)]

    run(loop_factory, main)


def test_a_listener_that_raises_is_logged_and_breaks_nothing(dsn, loop_factory, caplog):
    """Whatever `on_event` raises goes to the log, and the pool goes on."""

    def listen(event):
        raise ZeroDivisionError(type(event).__name__)

    async def main():
        async with some_pool(dsn, size=2, on_event=listen, leak_threshold=0.01) as pool:
            assert await asyncio.gather(*[pool.fetchval("SELECT 1") for _ in range(5)]) == [1] * 5
            with pytest.raises(PoolTimeout):
                async with pool.acquire(), pool.acquire():
                    await pool.acquire(timeout=0)
            await pool.expire_connections()
            assert await pool.fetchval("SELECT 2") == 2

    run(loop_factory, main)
    for name in ("ConnectionOpened", "ConnectionClosed", "AcquireFailed"):
        assert f"ZeroDivisionError: {name}" in caplog.text
    assert "on_event raised" in caplog.text


# ---- keeping connections ----


def test_an_idle_connection_is_pinged(dsn, loop_factory):
    """With `keepalive`, an idle connection makes a round trip now and then, and stays the same."""

    async def main():
        async with some_pool(dsn, keepalive=0.02, session_reset="never") as pool:
            con = await pool.acquire()
            raw, pid = con._con, con.get_server_pid()
            await pool.release(con)
            before = raw._protocol.queries_count
            await helpers.eventually(lambda: raw._protocol.queries_count >= before + 3)
            assert await pool.fetchval("SELECT pg_backend_pid()") == pid

    run(loop_factory, main)


def test_a_ping_finds_a_dead_connection(dsn, loop_factory):
    """An idle connection that does not answer its ping is closed, without anybody asking for it."""

    async def main():
        async with some_pool(dsn, keepalive=0.02) as pool:
            await pool.execute("SELECT 1")
            kill(dsn, *own_pids(pool))
            await helpers.eventually(lambda: pool.stats().size == 0)
            assert await pool.fetchval("SELECT 1") == 1

    run(loop_factory, main)


def test_a_caller_during_a_ping_waits_for_it(dsn, loop_factory):
    """A connection being pinged is nobody's; the caller that comes then gets it afterwards."""

    async def main():
        async with some_pool(dsn, keepalive=0.01) as pool:
            await pool.execute("SELECT 1")
            (pid,) = own_pids(pool)
            for _ in range(3):
                await helpers.eventually(lambda: pool.stats().loops[0].resetting == 1)
                assert await pool.fetchval("SELECT pg_backend_pid()") == pid

    run(loop_factory, main)


def test_a_connection_is_replaced_at_the_end_of_its_life(dsn, loop_factory):
    """After `max_lifetime` an idle connection is closed, and a lent one when it is given back."""

    async def main():
        async with some_pool(dsn, max_lifetime=0.05) as pool:
            con = await pool.acquire()
            pid = con.get_server_pid()
            await asyncio.sleep(0.06)
            assert await con.fetchval("SELECT pg_backend_pid()") == pid
            await pool.release(con)
            await helpers.eventually(lambda: pool.stats().size == 0)
            assert await pool.fetchval("SELECT pg_backend_pid()") != pid
            await helpers.eventually(lambda: pool.stats().size == 0)

    run(loop_factory, main)


def test_lifetimes_are_jittered(dsn, loop_factory):
    """`lifetime_jitter` takes a random part off each lifetime, never more than asked for."""

    async def main():
        async with some_pool(dsn, size=8, init_size=8, max_lifetime=1000, lifetime_jitter=0.5) as pool:
            lifetimes = [slot.expires_at - slot.opened_at for slot in pool._core.slots()]
            assert len(set(lifetimes)) == 8
            assert all(500 <= lifetime < 1000 + AMPLE for lifetime in lifetimes)
        async with some_pool(dsn, size=8, init_size=8) as pool:
            assert {slot.expires_at for slot in pool._core.slots()} == {float("inf")}

    run(loop_factory, main)


def test_the_floor_is_restored_when_its_connections_die(dsn, loop_factory):
    """`min_size` connections are there again some time after they were killed, without a caller."""

    async def main():
        async with asyncio.timeout(60), create_pool(dsn, min_size=2, max_size=4) as pool:
            before = own_pids(pool)
            assert len(before) == 2
            kill(dsn, *before)
            await helpers.eventually(lambda: len(own_pids(pool)) == 2 and not set(own_pids(pool)) & set(before))

    run(loop_factory, main)


def test_idle_connections_above_the_floor_are_closed(dsn, loop_factory):
    """What is idle for longer than allowed is closed, down to `min_size`."""

    async def main():
        options = {"min_size": 1, "init_size": 4, "max_size": 4, "max_inactive_connection_lifetime": 0.03}
        async with asyncio.timeout(60), create_pool(dsn, **options) as pool:
            assert pool.stats().loops[0].counters.opened == 4
            await helpers.eventually(lambda: pool.stats().size == 1)
            await asyncio.sleep(0.1)
            assert pool.stats().size == 1

    run(loop_factory, main)


# ---- growing ----


class Connects:
    """Connects that end when they are told to."""

    def __init__(self):
        self.started = 0
        self.in_flight = 0
        self.most = 0
        self.let_go = asyncio.Event()

    async def __call__(self, *args, **kwargs):
        self.started += 1
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        try:
            await self.let_go.wait()
            return await asyncpg.connect(*args, **kwargs)
        finally:
            self.in_flight -= 1


def test_no_connect_starts_that_nobody_waits_for(dsn, loop_factory):
    """Connects in flight never exceed the callers who wait, however long it takes."""

    async def main():
        connects = Connects()
        async with some_pool(dsn, size=10, connect=connects) as pool:
            tasks = [asyncio.create_task(pool.fetchval("SELECT 1")) for _ in range(2)]
            await asyncio.sleep(0.1)
            assert connects.started == 2
            connects.let_go.set()
            await asyncio.gather(*tasks)
            assert connects.started == 2

    run(loop_factory, main)


@pytest.mark.parametrize(("options", "ceiling"), [({}, 6), ({"max_connecting": 2}, 2), ({"max_connecting": 50}, 6)])
def test_connects_ramp_up_to_their_ceiling_and_no_further(dsn, loop_factory, monkeypatch, options, ceiling):
    """A burst of callers starts few connects at first, then as many as `max_connecting` and `max_size` allow."""
    monkeypatch.setattr(connect_pacing, "STEP_SECONDS", 60.0)  # a slow machine takes longer than a step to begin

    async def main():
        connects = Connects()
        async with some_pool(dsn, size=6, connect=connects, **options) as pool:
            tasks = [asyncio.create_task(pool.fetchval("SELECT 1")) for _ in range(30)]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert 1 <= connects.started <= min(3, ceiling)
            monkeypatch.undo()
            await helpers.eventually(lambda: connects.in_flight == ceiling)
            await asyncio.sleep(0.05)
            assert connects.most == ceiling
            connects.let_go.set()
            await asyncio.gather(*tasks)
            assert connects.started <= 6
            assert pool.stats().size <= 6

    run(loop_factory, main)


def test_a_connection_that_comes_free_serves_before_a_connect_that_is_under_way(dsn, loop_factory):
    """A waiter takes what is given back first; the connect that was started for it joins the idle."""

    async def main():
        connects = Connects()
        connects.let_go.set()
        async with some_pool(dsn, size=2, connect=connects) as pool:
            con = await pool.acquire()
            connects.let_go.clear()
            task = asyncio.create_task(pool.fetchval("SELECT 1"))
            await helpers.eventually(lambda: connects.in_flight == 1)
            await pool.release(con)
            assert await task == 1
            assert connects.in_flight == 1
            connects.let_go.set()
            await helpers.eventually(lambda: pool.stats().idle == 2)

    run(loop_factory, main)
