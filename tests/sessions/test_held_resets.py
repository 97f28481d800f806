"""A reset that is sent together with the query of the caller who waits for the connection."""

from __future__ import annotations

import asyncio
import contextlib
import os
from unittest import mock

import pytest

import helpers
from failed_resets import OPEN_THE_DOOR, by_trigger, one_connection
from loopaware_pool.asyncpg import create_pool
from loopaware_pool.stats import LeaseOverdue, LeaseReturned
from running import eventually_async

pytestmark = [pytest.mark.both_drivers, pytest.mark.both_pythons]

TENANT = "SELECT nullif(current_setting('app.tenant', true), '')"
DIRT = ["SELECT pg_advisory_lock(42)", "SET app.tenant = 'last'"]
TRY_LOCK = "SELECT pg_try_advisory_lock(42)"


def send_counting(pool, monkeypatch):
    """Count what asyncio's transports write: a reset and the query behind it are one write, or two."""
    writes = []
    transport = pool._sessions()[0]._internals.transport
    write = type(transport).write

    def counted(self, data):
        writes.append(bytes(data))
        write(self, data)

    monkeypatch.setattr(type(transport), "write", counted)
    return writes


async def leave_and_hand_over(pool, then):
    """Leave what no text tells of to a caller who waits, which does *then*."""

    async def wait():
        async with pool.acquire() as con:
            return await then(con)

    async with pool.acquire() as con:
        waiter = asyncio.create_task(wait())
        await helpers.spin(2)
        await by_trigger(con, *DIRT)
    return waiter


async def until_unlocked(admin):
    """Wait until the server has run the reset of what `DIRT` has left."""
    await eventually_async(lambda: admin.execute(TRY_LOCK).fetchone() == (True,), "a reset that was run")
    admin.execute("SELECT pg_advisory_unlock_all()")


def test_the_reset_travels_with_the_next_callers_query(bank, monkeypatch):
    """In one write, before the query: what the last lease left is gone."""

    async def main():
        helpers.make_known(OPEN_THE_DOOR, "SELECT 1", TENANT)
        async with one_connection(bank.dsn, "pipelined") as pool:
            await pool.fetchval(TENANT)
            writes = send_counting(pool, monkeypatch)
            waiter = await leave_and_hand_over(pool, lambda con: con.fetchval(TENANT))
            writes.clear()
            assert await waiter is None
            assert b"exit_on_error" in writes[0]
            assert not writes[0].endswith(b"COMMIT;\0")

    asyncio.run(main())  # uvloop's transports write what they are given


@pytest.mark.parametrize("ends", ["waits", "is cancelled", "releases"])
def test_the_reset_is_sent_soon_if_the_next_caller_sends_nothing(bank, admin, run, ends):
    """What the last lease locked is free while the next one does nothing, or has gone."""

    async def main():
        helpers.make_known(OPEN_THE_DOOR)
        async with one_connection(bank.dsn, "pipelined") as pool:
            over = asyncio.Event()

            async def do_nothing(_):
                await over.wait() if ends == "waits" else None

            waiter = await leave_and_hand_over(pool, do_nothing)
            if ends == "is cancelled":
                waiter.cancel()
            await until_unlocked(admin)
            over.set()
            with contextlib.suppress(asyncio.CancelledError):
                await waiter
            assert await pool.fetchval(TENANT) is None

    run(main())


@pytest.mark.parametrize(
    "first",
    [
        lambda con: con.executemany("INSERT INTO public.words VALUES ($1)", [("a",), ("b",)]),
        lambda con: con.copy_records_to_table("words", schema_name="public", records=[("a",), ("b",)]),
        lambda con: con.execute("SELECT '" + "x" * 100_000 + "'"),
        lambda con: con.execute("SELECT 1; SELECT 2"),
        lambda con: con.prepare("SELECT 1"),
        lambda con: con.reload_schema_state(),
    ],
    ids=["executemany", "copy", "large", "script", "prepare", "nothing sent"],
)
def test_whatever_the_next_caller_does_first_the_reset_comes_before_it(bank, admin, run, first):
    """Writes of many lines, large ones, the goodbye: none overtakes it, and none is lost."""

    async def main():
        helpers.make_known(OPEN_THE_DOOR, TENANT)

        async def look(con):
            await first(con)
            return None if con.is_closed() else await con.fetchval(TENANT)

        async with one_connection(bank.dsn, "pipelined") as pool:
            for _ in range(3):
                assert await (await leave_and_hand_over(pool, look)) is None
                assert await pool.fetchval(TENANT) is None

    run(main())


@pytest.mark.parametrize("end", ["terminate", "close", "expire", "close the connection"])
@pytest.mark.usefixtures("zero_fd_delta")
def test_a_pool_that_ends_while_a_reset_is_held_back(bank, admin, run, end):
    """The session ends, and with it what the lease left."""

    async def main():
        helpers.make_known(OPEN_THE_DOOR)
        async with one_connection(bank.dsn, "pipelined") as pool:
            then = (lambda con: con.close()) if end == "close the connection" else (lambda _: asyncio.sleep(0))
            waiter = await leave_and_hand_over(pool, then)
            if end == "terminate":
                pool.terminate()
            elif end == "close":
                await pool.close()
            elif end == "expire":
                await pool.expire_connections()
            with contextlib.suppress(Exception):
                await waiter

    run(main())
    admin.execute("SELECT pg_advisory_lock(42)")  # when the server has noticed
    admin.execute("SELECT pg_advisory_unlock_all()")


def test_a_loop_that_stops_before_the_next_caller_runs_sends_the_reset_when_it_goes_on(bank, admin, runner_factory):
    """As the caller who has been handed the connection."""

    async def begin():
        helpers.make_known(OPEN_THE_DOOR, TENANT)
        pool = await create_pool(bank.dsn, min_size=1, max_size=1)
        return pool, await leave_and_hand_over(pool, lambda con: con.fetchval(TENANT))

    async def end(pool, waiter):
        assert await waiter is None
        await pool.close()

    with runner_factory() as runner:
        runner.run(end(*runner.run(begin())))


def transport_of(pool):
    return pool._sessions()[0]._internals.transport


def test_a_tracers_write_stays_and_sees_everything(bank):
    """If the transport's `write` is another's, nothing is held back."""

    async def main():
        helpers.make_known(OPEN_THE_DOOR, TENANT)
        async with one_connection(bank.dsn, "pipelined") as pool:
            transport, seen = transport_of(pool), []
            write = transport.write
            transport.write = lambda data: (seen.append(bytes(data)), write(data))
            for _ in range(2):
                assert await (await leave_and_hand_over(pool, lambda con: con.fetchval(TENANT))) is None
            assert sum(b"exit_on_error" in data for data in seen) == 4

    asyncio.run(main())


def test_a_tracer_that_comes_while_a_reset_is_held_back_and_puts_back_what_it_found(bank):
    """It finds what holds the reset back, and its data goes through that also later."""

    async def main():
        helpers.make_known(OPEN_THE_DOOR, TENANT)
        async with one_connection(bank.dsn, "pipelined") as pool:
            transport = transport_of(pool)
            waiter = await leave_and_hand_over(pool, lambda con: con.fetchval(TENANT))
            with mock.patch.object(transport, "write", wraps=transport.write) as spy:
                assert await waiter is None
            assert spy.called
            for _ in range(2):
                assert await (await leave_and_hand_over(pool, lambda con: con.fetchval(TENANT))) is None

    asyncio.run(main())


def test_a_write_that_fails_does_not_lose_the_reset(bank, admin):
    """What cannot be joined with it is refused, and the reset goes out in the next iteration."""

    async def write_text(con):
        with pytest.raises(TypeError):
            con._con._transport.write("text")
        await asyncio.sleep(0.01)
        return await con.fetchval(TENANT)

    async def main():
        helpers.make_known(OPEN_THE_DOOR, TENANT)
        async with one_connection(bank.dsn, "pipelined") as pool:
            assert await (await leave_and_hand_over(pool, write_text)) is None

    asyncio.run(main())


def test_a_hook_that_ends_the_program_leaves_no_reset_unsent(bank, admin, run):
    """It is called while the release acts."""
    overdue, armed = [], []

    def hook(event):
        if isinstance(event, LeaseOverdue):
            overdue.append(event)
        elif isinstance(event, LeaseReturned) and armed:
            raise SystemExit

    async def main():
        helpers.make_known(OPEN_THE_DOOR)
        async with one_connection(bank.dsn, "pipelined", on_event=hook, leak_threshold=0.01) as pool:
            over = asyncio.Event()

            async def wait():
                async with pool.acquire():
                    await over.wait()

            con = await pool.acquire()
            overdue.clear()  # the first lease of the pool, which has ended, may have been slow, too
            waiter = asyncio.create_task(wait())
            await helpers.spin(2)
            await by_trigger(con, *DIRT)
            await eventually_async(lambda: overdue, "an overdue lease")
            armed.append(True)
            with pytest.raises(SystemExit):
                await pool.release(con)
            armed.clear()
            await until_unlocked(admin)
            over.set()
            await waiter

    run(main())


def test_over_tls_as_well(tls_server, run):
    """There the two share a record."""

    async def main():
        async with create_pool(tls_server.dsn, ssl=tls_server.ssl_context, min_size=1, max_size=2) as pool:

            async def ask(n):
                for _ in range(20):
                    async with pool.acquire() as con:
                        assert await con.fetchval("SELECT $1::int", n) == n

            await asyncio.gather(*map(ask, range(8)))

    run(main())


@pytest.mark.usefixtures("zero_fd_delta")
def test_a_child_sends_nothing_that_its_parent_holds_back(bank, admin, run):
    """The parent's session is reset once, by the parent."""

    async def main():
        helpers.make_known(OPEN_THE_DOOR, TENANT)
        async with one_connection(bank.dsn, "pipelined") as pool:
            waiter = await leave_and_hand_over(pool, lambda con: con.fetchval(TENANT))
            child = os.fork()
            if not child:
                os._exit(0 if not pool._sessions() else 1)
            assert os.waitpid(child, 0)[1] == 0
            assert await waiter is None

    run(main())
