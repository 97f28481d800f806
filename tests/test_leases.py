"""Leases that last too long, that nobody returns, and that wait for themselves: on both flavours."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
import threading
from pathlib import Path

import asyncpg
import pytest
import uvloop

import flavours
import helpers
from loopaware_pool._core.leases import DEEPEST, stack_of
from loopaware_pool.asyncpg import session as asyncpg_session
from loopaware_pool.errors import PoolClosed, PoolTimeout
from loopaware_pool.stats import AcquireFailed, ConnectionClosed, LeaseDropped, LeaseOverdue, LeaseReturned

pytestmark = [pytest.mark.both_drivers, pytest.mark.both_pythons]

HERE = Path(__file__).name
# Long enough that it is never reached where it must not be, and never waited for.
AMPLE = 30.0


@pytest.fixture(params=flavours.both)
def flavour(request):
    return flavours.both[request.param]


def of(kind, events):
    return [event for event in events if type(event) is kind]


def line_of(function, offset):
    """How a stack names a line of *function*, counted from its first."""
    code = function.__code__
    return f"{HERE}:{code.co_firstlineno + offset} in {code.co_name}"


# ---- leases that last too long ----


async def make_ready(client, told):
    """Have a connection idle, so that a lease begins in one step: else it may be overdue before its caller goes on."""
    async with client.lend():
        pass
    await client.pool.settled()
    told.clear()


def test_an_overdue_lease_is_told_with_its_holders_stack_and_then_with_its_return(dsn, flavour, run, caplog):
    """Who holds it, from which line, and where he stands now; then for how long in all. No value, no source text."""
    done = asyncio.Event()

    async def deepest(password):
        await done.wait()

    async def work(client):
        async with client.lend():
            await deepest("CANARY")

    async def main():
        told = []
        async with flavour(dsn, leak_threshold=0.01, on_event=told.append, name="leaky") as client:
            await make_ready(client, told)
            task = asyncio.create_task(work(client), name="the-holder")
            await helpers.eventually(lambda: of(LeaseOverdue, told))
            assert of(LeaseReturned, told) == []
            done.set()
            await task
        return of(LeaseOverdue, told), of(LeaseReturned, told)

    (overdue,), (returned,) = run(main())
    assert [lease.task for lease in (overdue.lease, returned.lease)] == ["the-holder"] * 2
    assert overdue.lease.where.endswith(line_of(work, 1))
    assert returned.lease.where == overdue.lease.where
    stack = overdue.lease.stack
    assert [line.rpartition("/")[2] for line in stack if HERE in line] == [line_of(deepest, 1), line_of(work, 2)]
    assert returned.lease.held_seconds > overdue.lease.held_seconds >= 0.01
    assert returned.lease.stack == ()
    held = f"for {overdue.lease.held_seconds:.1f} s"
    assert f"leaky: a connection is still held by the-holder {held}, from {overdue.lease.where}" in caplog.text
    assert " < ".join(stack) in caplog.text
    held = f"for {returned.lease.held_seconds:.1f} s"
    assert f"leaky: a connection came back that was held by the-holder {held}" in caplog.text
    for secret in ("CANARY", "password", "done.wait"):
        assert secret not in caplog.text + repr((overdue, returned))


def test_a_lease_in_time_is_not_told(dsn, flavour, run):
    """Neither as overdue nor as returned."""

    async def main():
        told = []
        async with flavour(dsn, leak_threshold=60, on_event=told.append) as client:
            await client.value("SELECT 1")
        return told

    assert not {LeaseOverdue, LeaseReturned} & {type(event) for event in run(main())}


def test_an_overdue_lease_whose_holder_has_ended_has_no_stack(dsn, flavour, run):
    """Where the task that acquired it stood last is not where the connection is."""

    async def main():
        told = []
        async with flavour(dsn, leak_threshold=0.01, on_event=told.append) as client:
            await make_ready(client, told)
            lease = client.lend()
            await asyncio.create_task(lease.__aenter__())
            await helpers.eventually(lambda: of(LeaseOverdue, told))
            await lease.__aexit__(None, None, None)
        return of(LeaseOverdue, told)

    (overdue,) = run(main())
    assert overdue.lease.task is None
    assert overdue.lease.stack == ()


def test_a_stack_goes_through_generators_and_ends_at_its_innermost_lines(run):
    """However deep it is, it stays short; through what awaits without being a coroutine."""

    class Awaitable:
        def __await__(self):
            yield from asyncio.sleep(60).__await__()

    async def generate():
        await Awaitable()
        yield

    async def descend(depth):
        if depth:
            await descend(depth - 1)
        async for _ in generate():
            pass

    async def main():
        task = asyncio.create_task(descend(100))
        await asyncio.sleep(0)
        stack = stack_of(task)
        task.cancel()
        assert len(stack) == DEEPEST
        assert stack[0].endswith(line_of(descend, 3))
        assert all(line.endswith(line_of(descend, 2)) for line in stack[1:])
        waits = asyncio.create_task(sleep_by(Awaitable()))
        await asyncio.sleep(0)
        assert stack_of(waits)[-1].endswith(line_of(sleep_by, 1))
        assert any(line.endswith(line_of(Awaitable.__await__, 1)) for line in stack_of(waits))
        waits.cancel()

    async def sleep_by(awaitable):
        await awaitable

    run(main())


# ---- callers that wait for what they hold themselves ----


async def nest(client):
    await client.value("SELECT 1", 0.01)


def test_a_nested_acquire_is_named_in_the_timeout(dsn, flavour, run):
    """How many of the connections the very task holds that waits for one, and from which line."""

    async def main():
        told = []
        async with flavour(dsn, max_size=2, on_event=told.append) as client, client.lend(), client.lend():
            with pytest.raises(PoolTimeout) as caught:
                await nest(client)
        assert [event.error for event in told if isinstance(event, AcquireFailed)] == [caught.value]
        return caught.value

    error = run(main())
    assert [lease.where for lease in error.held_by_this_task] == [lease.where for lease in error.holders]
    assert len(error.holders) == 2
    assert "; this very task holds 2 of them (nested acquire from " in str(error)
    assert str(error).endswith("in value)")
    assert str(error).count("this very task") == 1


def test_a_nested_query_of_the_pools_own_is_named_in_the_timeout(dsn, run):
    """`pool.fetchval` acquires, too; the line is the caller's, not asyncpg's."""

    async def ask(pool):
        await pool.fetchval("SELECT 1")

    async def main():
        async with (
            flavours.asyncpg_flavour(dsn, max_size=1, acquire_timeout=0.01) as client,
            client.lend(timeout=AMPLE),
        ):
            with pytest.raises(PoolTimeout, match=f"nested acquire from .*{line_of(ask, 1)}"):
                await ask(client.pool)

    run(main())


def test_a_nested_acquire_that_is_awaited_is_named_in_the_timeout(dsn, run):
    """Without a block Python leaves the caller's frame out of the stack when the error is thrown."""

    async def ask(pool):
        await pool.acquire(timeout=0.01)

    async def main():
        async with flavours.asyncpg_flavour(dsn, max_size=1) as client, client.lend():
            with pytest.raises(PoolTimeout, match=f"nested acquire from .*{line_of(ask, 1)}"):
                await ask(client.pool)

    run(main())


@pytest.mark.skipif(sys.version_info < (3, 12), reason="older Pythons wait for a task of its own")
def test_a_lease_is_traced_to_the_line_that_waits_for_it(dsn, run):
    """Not to a line of asyncio's."""

    async def lend(client):
        return await asyncio.wait_for(client.pool.getconn(), AMPLE)

    async def main():
        async with flavours.psycopg_flavour(dsn, max_size=1) as client:
            connection = await lend(client)
            with pytest.raises(PoolTimeout) as caught:
                await client.pool.getconn(0.01)
            await client.pool.putconn(connection)
        return caught.value.holders[0].where

    assert run(main()).endswith(line_of(lend, 1))


class AwaitedFor:
    """Awaits a coroutine, and is none itself: Python leaves out the frames of those that await it."""

    def __init__(self, coroutine):
        self.coroutine = coroutine

    def __await__(self):
        return self.coroutine.__await__()


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_the_line_that_starts_the_loop_is_not_taken_for_a_nested_acquire(dsn, new_loop):
    """Of uvloop there is no frame between the two."""

    async def main():
        async with flavours.psycopg_flavour(dsn, max_size=1) as client, client.lend():
            with pytest.raises(PoolTimeout, match="nested acquire from unknown"):
                await AwaitedFor(client.pool.getconn(0.01))

    with contextlib.closing(new_loop()) as loop:
        loop.run_until_complete(main())


def test_what_other_tasks_hold_is_not_named_as_nested(dsn, flavour, run):
    """Nor is what the task itself has returned."""

    async def main():
        async with flavour(dsn, max_size=1) as client:
            await client.value("SELECT 1")
            lease = client.lend()
            holder = asyncio.create_task(lease.__aenter__(), name="holder")
            await holder
            with pytest.raises(PoolTimeout) as caught:
                await nest(client)
            await lease.__aexit__(None, None, None)
        return caught.value

    error = run(main())
    assert error.held_by_this_task == ()
    assert "this very task" not in str(error)


def test_a_nested_acquire_is_named_while_checks_fail(dsn, run):
    """The search for a connection that passes its check makes an error of its own."""

    async def main():
        is_first = True

        async def check(connection):
            nonlocal is_first
            if not is_first:
                raise ValueError
            is_first = False

        async with flavours.psycopg_flavour(dsn, max_size=2, check=check) as client, client.lend():
            with pytest.raises(PoolTimeout) as caught:
                await client.value("SELECT 1", 0.1)
        return caught.value

    error = run(main())
    assert len(error.held_by_this_task) == 1
    assert str(error).count("this very task holds 1 of them") == 1


# ---- leases that nobody returns ----


async def take(client):
    """Lend a connection that nothing but the caller refers to."""
    lend = getattr(client.pool, "getconn", None) or client.pool.acquire
    return await lend()


async def wait_in_vain(client):
    """Wait for a connection: none comes free, as no lease is taken for dropped."""
    with pytest.raises(PoolTimeout):
        await client.value("SELECT 1", 0.01)
    assert client.pool._core.stats().loops[0].counters.dropped == 0


@pytest.fixture
def uncounted(monkeypatch):
    """No reference is counted, as with the Pythons that do not count all of them."""
    monkeypatch.setattr(asyncpg_session, "_ARE_REFERENCES_COUNTED", False)


@pytest.fixture
def no_collector():
    """What is dropped is to be noticed without it."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_a_dropped_lease_is_reclaimed_for_who_waits(dsn, flavour, run, caplog, uncounted, no_collector, zero_fd_delta):
    """Its session ends, its place is free, and all that is known of who had it is told; the collector is off."""

    async def main():
        told = []
        async with flavour(dsn, max_size=1, on_event=told.append, name="leaky") as client:
            asyncio.current_task().set_name("the-leaker")
            connection = await take(client)
            pid = await client.ask(connection, "SELECT pg_backend_pid()")
            del connection
            assert await client.value("SELECT pg_backend_pid()", AMPLE) != pid
            counters = client.pool._core.stats().loops[0].counters
            assert counters.dropped == 1
        return told

    told = run(main())
    (dropped,) = of(LeaseDropped, told)
    assert (dropped.pool, dropped.lease.task) == ("leaky", "the-leaker")
    assert dropped.lease.where.endswith(line_of(take, 3))
    assert "dropped by its holder" in [event.reason for event in of(ConnectionClosed, told)]
    assert f"leaky: closing a connection that was dropped without being returned by {dropped.lease}" in caplog.text


def test_a_lease_lost_in_a_failed_task_is_reclaimed(dsn, flavour, run, uncounted):
    """As long as the error is there, its traceback has the connection; then nobody has."""

    async def fail(client):
        connection = await take(client)
        await client.run(connection, "SELECT 1")
        raise ZeroDivisionError

    async def main():
        async with flavour(dsn, max_size=1) as client:
            task = asyncio.create_task(fail(client))
            await asyncio.wait([task])
            await wait_in_vain(client)
            assert isinstance(task.exception(), ZeroDivisionError)
            del task
            await client.value("SELECT 1", AMPLE)

    run(main())


def test_leases_dropped_on_one_loop_are_reclaimed_for_another(dsn, flavour, run, uncounted):
    """The connections of the process are one number; who waits has all loops asked."""
    stop = threading.Event()
    ready = threading.Event()

    async def main():
        async with flavour(dsn, max_size=2) as client:

            async def leak():
                for _ in range(2):
                    await take(client)
                ready.set()
                while not stop.is_set():
                    await asyncio.sleep(0.01)

            def other_loop():
                run(leak())

            thread = threading.Thread(target=other_loop)
            thread.start()
            try:
                await asyncio.to_thread(ready.wait)
                await client.value("SELECT 1", AMPLE)
            finally:
                stop.set()
                await asyncio.to_thread(thread.join)

    run(main())


def test_closing_does_not_wait_for_dropped_leases(dsn, flavour, run, uncounted, zero_fd_delta):
    """They would never come back."""

    async def main():
        async with asyncio.timeout(AMPLE), flavour(dsn, max_size=2) as client:
            for _ in range(2):
                await take(client)

    run(main())


def test_what_somebody_still_refers_to_is_not_reclaimed(dsn, flavour, run, uncounted):
    """However he got hold of it: by a variable, a context manager, a query under way, another task."""

    async def use(client, connection, started):
        started.set()
        await client.run(connection, "SELECT pg_sleep(30)")

    async def main():
        told = []
        async with flavour(dsn, max_size=4, on_event=told.append) as client:
            kept = [await take(client)]
            lease = client.lend()
            await lease.__aenter__()
            started = asyncio.Event()
            task = asyncio.create_task(use(client, await take(client), started))
            await started.wait()
            async with client.lend():
                await wait_in_vain(client)
            assert of(LeaseDropped, told) == []
            task.cancel()
            await asyncio.wait([task])
            del task  # and with it what its traceback refers to
            await lease.__aexit__(None, None, None)
            await getattr(client.pool, "putconn", getattr(client.pool, "release", None))(kept.pop())

    run(main())


async def open_cursor(connection):
    """Make a cursor, and end the transaction that it needs: while that goes on, asyncpg's connection refers to it."""
    async with connection.transaction():
        return await connection.cursor("SELECT 42")


async def rows_of_statement(connection):
    async with connection.transaction():
        return aiter((await connection.prepare("SELECT 42")).cursor())


async def transaction(connection):
    return connection.transaction()


async def cursor_factory(connection):
    return connection.cursor("SELECT 42")


async def statement(connection):
    return await connection.prepare("SELECT 42")


async def call_not_begun(connection):
    return connection.fetchval("SELECT 42")


MADE = (open_cursor, rows_of_statement, transaction, cursor_factory, statement, call_not_begun)


@pytest.mark.parametrize("make", MADE)
def test_what_was_made_with_an_asyncpg_lease_keeps_it(dsn, run, uncounted, no_collector, make):
    """Whoever has a prepared statement need not keep the connection; when both are gone, the lease is reclaimed."""

    async def leave(client):
        return await make(await take(client))

    async def main():
        async with flavours.asyncpg_flavour(dsn, max_size=1, close_timeout=0) as client:
            left = await leave(client)
            await wait_in_vain(client)
            if make is statement:
                assert await left.fetchval() == 42
            if make is call_not_begun:
                assert await left == 42
            del left
            await client.value("SELECT 1", AMPLE)

    run(main())


async def open_transaction(connection):
    """Begin a transaction, and forget it: asyncpg's connection refers to it."""
    await connection.transaction().start()


async def statement_in_a_wrapper(connection):
    """Prepare a statement where a tracer returns something of its own."""
    return await connection.prepare("SELECT 42")


@pytest.mark.parametrize("make", [open_transaction, statement_in_a_wrapper])
@pytest.mark.parametrize("counts", [True, False], ids=["counted", "not counted"])
def test_a_lease_that_may_be_in_use_is_kept(dsn, run, monkeypatch, make, counts):
    """Nothing tells whether somebody has the transaction, or what is in the wrapper."""
    prepare = asyncpg.Connection.prepare

    async def traced(*args, **kwargs):
        return [await prepare(*args, **kwargs)]

    monkeypatch.setattr(asyncpg.Connection, "prepare", traced)
    if not counts:
        monkeypatch.setattr(asyncpg_session, "_ARE_REFERENCES_COUNTED", False)

    async def leave(client):
        return await make(await take(client))

    async def main():
        async with flavours.asyncpg_flavour(dsn, max_size=1, close_timeout=0) as client:
            left = await leave(client)
            await wait_in_vain(client)
            del left

    run(main())


async def listener(connection):
    await connection.add_listener("news", print)


async def log_listener(connection):
    connection.add_log_listener(print)


async def termination_listener(connection):
    connection.add_termination_listener(print)


@pytest.mark.parametrize("listen", [listener, log_listener, termination_listener])
@pytest.mark.parametrize("counts", [True, False], ids=["counted", "not counted"])
def test_what_an_asyncpg_lease_listens_for_keeps_it(dsn, run, monkeypatch, listen, counts):
    """Whoever listens need not keep the connection itself."""
    if not counts:
        monkeypatch.setattr(asyncpg_session, "_ARE_REFERENCES_COUNTED", False)

    async def leave(client):
        await listen(await take(client))

    async def main():
        async with flavours.asyncpg_flavour(dsn, max_size=1, close_timeout=0) as client:
            await leave(client)
            await wait_in_vain(client)

    run(main())


class OwnConnection(asyncpg.Connection):
    """A connection with a method of its own, which only the connection behind the proxy has."""

    async def nap(self, started):
        started.set()
        return await self.fetchval("SELECT 42 FROM pg_sleep(0.05)")


@pytest.mark.parametrize("counts", [True, False], ids=["counted", "not counted"])
def test_a_method_of_a_class_of_the_programs_own_keeps_its_lease(dsn, run, monkeypatch, counts):
    """While it runs, it refers to the connection behind the proxy only."""
    if not counts:
        monkeypatch.setattr(asyncpg_session, "_ARE_REFERENCES_COUNTED", False)

    async def nap(client, started):
        return await (await take(client)).nap(started)

    async def main():
        options = {"max_size": 1, "close_timeout": 0, "connection_class": OwnConnection}
        async with flavours.asyncpg_flavour(dsn, **options) as client:
            started = asyncio.Event()
            task = asyncio.create_task(nap(client, started))
            await started.wait()
            await wait_in_vain(client)
            assert await task == 42

    run(main())


@pytest.mark.parametrize(
    "counts",
    [
        pytest.param(True, marks=pytest.mark.skipif(sys.version_info >= (3, 14), reason="not all references count")),
        False,
    ],
    ids=["counted", "not counted"],
)
@pytest.mark.parametrize("shows", [True, False], ids=["connection shown", "class of its own"])
def test_a_lease_that_asyncpg_refers_to_is_reclaimed_if_references_are_counted(dsn, run, monkeypatch, counts, shows):
    """Where they are not, it might be in use, and is kept."""
    if not counts:
        monkeypatch.setattr(asyncpg_session, "_ARE_REFERENCES_COUNTED", False)

    async def leave(client):
        connection = await take(client)
        if shows:
            assert isinstance(connection._con, asyncpg.Connection)

    async def main():
        options = {} if shows else {"connection_class": OwnConnection}
        async with flavours.asyncpg_flavour(dsn, max_size=1, close_timeout=0, **options) as client:
            await leave(client)
            if counts:
                await client.value("SELECT 1", AMPLE)
            else:
                await wait_in_vain(client)

    run(main())


async def printed(connection):
    assert repr(connection).startswith("<PoolConnectionProxy <asyncpg.connection.Connection object at 0x")


async def printed_when_released(connection):
    await connection._holder.pool.release(connection)
    assert repr(connection).startswith("<PoolConnectionProxy [released] 0x")


@pytest.mark.parametrize("look", [printed, printed_when_released])
def test_to_print_a_lease_is_not_to_use_it(dsn, run, uncounted, look):
    """Nor has asyncpg to refer to it for that."""

    async def leave(client):
        await look(await take(client))

    async def main():
        async with flavours.asyncpg_flavour(dsn, max_size=1) as client:
            await leave(client)
            await client.value("SELECT 1", AMPLE)

    run(main())


class InACycle:
    """Has a lease, and refers to itself, so that only the garbage collector notices that nobody has it any more."""

    def __init__(self, connection, use):
        self.connection = connection
        self.use = use
        self.myself = self

    def __del__(self):
        self.use(self.connection)


@pytest.mark.parametrize("counts", [True, False], ids=["counted", "not counted"])
def test_a_lease_that_a_finalizer_brings_back_is_kept(dsn, run, monkeypatch, no_collector, counts):
    """By then the garbage collector has cleared all weak references to it. It ends as any other does."""
    if not counts:
        monkeypatch.setattr(asyncpg_session, "_ARE_REFERENCES_COUNTED", False)

    async def main():
        async with flavours.asyncpg_flavour(dsn, max_size=1, close_timeout=0) as client:
            left = []
            InACycle(await take(client), left.append)
            gc.collect()
            await wait_in_vain(client)
            connection = left.pop()
            assert await connection.fetchval("SELECT 42") == 42
            await client.pool.release(connection)
            with pytest.raises(asyncpg.InterfaceError, match="released"):
                await connection.fetchval("SELECT 42")
            async with client.lend() as other:
                await client.pool.release(connection)  # does nothing
                assert await other.fetchval("SELECT 42") == 42
            assert client.pool._core.stats().totals.dropped == 0

    run(main())


def test_what_a_finalizer_releases_may_be_closed_already(dsn, run, no_collector):
    """Then nothing is left to do, here or on another loop."""

    async def main():
        async with flavours.asyncpg_flavour(dsn, max_size=1) as client:
            left = []
            InACycle(await take(client), left.append)
            gc.collect()
            client.pool.terminate()
            await client.pool.release(left[0])
            await asyncio.to_thread(asyncio.run, client.pool.release(left[0]))
            await client.pool.settled()

    run(main())


def test_a_listener_may_terminate_the_pool_at_a_dropped_lease(dsn, run, uncounted):
    """It is called in the middle of a look at all leases, and in the middle of an acquire."""

    async def main():
        def listen(event):
            if isinstance(event, LeaseDropped):
                client.pool.terminate()

        async with flavours.asyncpg_flavour(dsn, max_size=2, on_event=listen) as client:
            for _ in range(2):
                await take(client)
            with pytest.raises(PoolClosed):
                await client.value("SELECT 1", AMPLE)

    run(main())
