"""What a caller sees when sessions or servers end; docs/reliability.md has it as a table."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import time
from contextlib import AsyncExitStack

import pytest

import helpers
from failovers import dsn_of_both, frozen, until_replicated
from faults import SCHEDULING_SECONDS, both_flavours, connect, pids, within
from flavours import DRIVER_ERRORS, both, sqlstate_of
from loopaware_pool import errors
from loopaware_pool._core import shard
from loopaware_pool.testing.embedded_server import EmbeddedServerError
from running import eventually_async

pytestmark = [pytest.mark.usefixtures("zero_fd_delta")]


# ---- sessions killed ----


@both_flavours
def test_nobody_notices_that_idle_connections_were_killed(dsn, run, open_pool):
    """All of them, time and again: the next callers get new ones."""

    async def main():
        async with open_pool(dsn, max_size=5) as client:
            for _ in range(3):
                before = await pids(client, 5)
                await client.pool.settled()
                assert helpers.kill_sessions(dsn, client.pool.name) == 5
                after = await asyncio.gather(*(client.value("SELECT pg_backend_pid()") for _ in range(20)))
                assert not set(after) & before

    run(main())


@both_flavours
def test_a_caller_whose_session_is_killed_hears_of_it_and_nobody_else(dsn, run, open_pool):
    """His connection is closed at its return, and with it those idle ones that were killed too."""

    async def main():
        async with open_pool(dsn, max_size=5) as client:
            before = await pids(client, 5)
            with pytest.raises(DRIVER_ERRORS):
                async with client.lend() as connection:
                    helpers.kill_sessions(dsn, client.pool.name)
                    await client.run(connection, "SELECT 1")
            await eventually_async(lambda: not client.pool.fd_report(), "the end of all five")
            assert await client.value("SELECT pg_backend_pid()") not in before

    run(main())


def test_a_floor_that_was_lost_is_restored_beside_its_callers(dsn, run):
    """It begins as soon as it is lost; nobody waits for more than the first of it."""

    async def main():
        async with both["asyncpg"](dsn, min_size=3, max_size=5) as client:
            pool = client.pool
            helpers.kill_sessions(dsn, pool.name)
            await eventually_async(
                lambda: pool.stats().totals.found_dead or pool.stats().totals.closed == 3, "the loss"
            )
            counts = pool.stats()
            assert counts.size + counts.connecting
            assert await asyncio.gather(*(client.value("SELECT 1") for _ in range(10))) == [1] * 10
            await eventually_async(lambda: pool.get_size() >= 3, "the floor")

    run(main())


# ---- the server ends ----


class Load:
    """
    Callers that never rest. Notes when each had an answer or an error.

    Attributes:
        answers_in_a_row: How many there were since the last error.
    """

    def __init__(self, client):
        self.answers = []
        self.errors = []
        self.answers_in_a_row = 0
        self._client = client
        self._tasks = [asyncio.create_task(self._ask(timeout)) for timeout in (0.2, 0.2, 10.0, 10.0)]

    async def _ask(self, timeout):
        while True:
            try:
                await self._client.value("SELECT 1", timeout)
                self.answers.append(time.monotonic())
                self.answers_in_a_row += 1
            except DRIVER_ERRORS as error:
                self.errors.append(error)
                self.answers_in_a_row = 0
                await asyncio.sleep(0.001)

    async def stop(self):
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def served_again(loads, since):
    """
    Wait until all loads are served without errors, two seconds later at most. Give the time until each one's first
    answer. A busy machine may cause a late error here and there, but not one every few answers.
    """
    async with asyncio.timeout(2.0 + SCHEDULING_SECONDS):
        for load in loads:
            load.answers_in_a_row = 0
        while any(load.answers_in_a_row < 50 for load in loads):
            await asyncio.sleep(0.01)
    return [next(answer for answer in load.answers if answer > since) - since for load in loads]


def restart(server):
    """Bring a server back whose postmaster was killed; when it accepted connections, in monotonic seconds."""
    given_up_at = time.monotonic() + 60
    while True:
        try:
            server.control("start")  # not while children of the dead one hold its memory
            break
        except EmbeddedServerError:
            if time.monotonic() > given_up_at:
                raise
            time.sleep(0.02)
    with connect(server.dsn):
        return time.monotonic()


def test_a_server_that_is_killed_and_restarted_under_load(private_server, run):
    """First success within a second of its accepting connections; no error later than two seconds after."""

    async def main():
        async with both["asyncpg"](private_server.dsn) as one, both["psycopg"](private_server.dsn) as other:
            loads = [Load(one), Load(other)]
            await eventually_async(lambda: all(load.answers for load in loads), "answers")
            os.kill(private_server.pid, signal.SIGKILL)
            accepted_at = await asyncio.to_thread(restart, private_server)
            assert max(await served_again(loads, accepted_at)) < 1.0 + SCHEDULING_SECONDS
            for load in loads:
                await load.stop()
        assert all(load.errors for load in loads)  # or nothing was tested

    run(main())


async def demote(primary, standby):
    """Make the standby the primary, while the sessions on the old one stay, and may only read."""
    with connect(primary.dsn) as connection:
        connection.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        connection.execute("SELECT pg_reload_conf()")
    await asyncio.to_thread(standby.control, "promote")


def test_a_failover_that_leaves_the_old_primary_reading(pair, run):
    """25006: one caller of each pool hears of it; then all is on the new primary, at once."""
    primary, standby = pair

    async def main():
        dsn = dsn_of_both(primary, standby, target_session_attrs="read-write")
        async with both["asyncpg"](dsn, max_size=5) as one, both["psycopg"](dsn, max_size=5) as other:
            for client in (one, other):
                await client.do("CREATE TABLE IF NOT EXISTS kept (x int)")
                await pids(client, 5)
            await asyncio.to_thread(until_replicated, primary, standby)
            await demote(primary, standby)
            for client in (one, other):
                await helpers.eventually(functools.partial(is_refused, client))
                with within(1.0):
                    for _ in range(10):
                        await client.do("INSERT INTO kept VALUES (1)")
                        assert await client.value("SELECT inet_server_port()") == standby.port
                name = client.pool.name
                await helpers.eventually(lambda: not helpers.server_sessions(primary.dsn, name))  # noqa: B023

    async def is_refused(client):
        try:
            await client.do("INSERT INTO kept VALUES (0)")
        except DRIVER_ERRORS as error:
            return sqlstate_of(error) == "25006"
        return False

    run(main())


def test_a_failover_after_the_old_primary_was_killed(pair, run):
    """Callers that wait with a deadline are served by the new primary within a second of its promotion."""
    primary, standby = pair

    async def main():
        dsn = dsn_of_both(primary, standby, target_session_attrs="read-write")
        async with both["asyncpg"](dsn) as one, both["psycopg"](dsn) as other:
            loads = [Load(one), Load(other)]
            await eventually_async(lambda: all(load.answers for load in loads), "answers")
            os.kill(primary.pid, signal.SIGKILL)
            await asyncio.to_thread(standby.control, "promote")
            promoted_at = time.monotonic()
            assert max(await served_again(loads, promoted_at)) < 1.0 + SCHEDULING_SECONDS
            for load in loads:
                await load.stop()
            for client in (one, other):
                assert await client.value("SELECT inet_server_port()") == standby.port

    run(main())


@both_flavours
def test_a_write_in_a_transaction_that_is_read_only_by_intent_costs_nothing(dsn, run, open_pool):
    """The error is the same, 25006, but the server has not changed."""

    async def main():
        async with open_pool(dsn) as client:
            before = await pids(client, 2)
            for begin in ("BEGIN READ ONLY", "SET default_transaction_read_only = on"):
                with pytest.raises(DRIVER_ERRORS) as caught:
                    async with client.lend() as connection:
                        await client.run(connection, begin)
                        await client.run(connection, "CREATE TABLE never (x int)")
                assert sqlstate_of(caught.value) == "25006"
                await client.pool.settled()
            assert await pids(client, 2) == before

    run(main())


def test_a_pool_of_a_standby_is_left_alone(pair, run):
    """It was read-only when its connections were opened."""
    _, standby = pair

    async def main():
        for open_pool in both.values():
            async with open_pool(standby.dsn) as client:
                before = await pids(client, 2)
                for _ in range(2):
                    with pytest.raises(DRIVER_ERRORS):
                        await client.do("CREATE TABLE never (x int)")
                await client.pool.settled()
                assert await pids(client, 2) == before

    run(main())


@pytest.mark.parametrize(
    ("session_reset", "is_reset_due"), [("pipelined", False), ("pipelined", True), ("confirmed", True)]
)
def test_an_old_server_that_is_frozen_does_not_hold_its_successor_up(
    dsn, private_server, run, session_reset, is_reset_due, monkeypatch
):
    """Connections that say goodbye to it, or wait for an answer, leave their places to callers."""
    for limit in ("SILENT_SECONDS", "SLOW_SECONDS"):  # it is not for its silence that they do
        monkeypatch.setattr(shard, limit, 3600.0)

    async def main():
        async with both["asyncpg"](private_server.dsn, max_size=4, session_reset=session_reset) as client:
            pool = client.pool
            leases = [await pool.acquire() for _ in range(4)]
            backends = [await client.ask(connection, "SELECT pg_backend_pid()") for connection in leases]
            if not is_reset_due:
                await asyncio.gather(*map(pool.release, leases))
                await pool.settled()
            with frozen(backends):
                if is_reset_due:
                    await asyncio.gather(*map(pool.release, leases))
                pool.set_connect_args(dsn)
                await pool.expire_connections()
                with within(0.2):
                    assert await asyncio.gather(*(client.value("SELECT 1", timeout=8) for _ in range(8))) == [1] * 8

    run(main())


def test_a_timeout_accounts_for_every_connection(private_server, run, monkeypatch):
    """What is lent, and what says goodbye, adds up to what the pool may have."""
    monkeypatch.setattr(shard, "GOODBYE_GRACE_SECONDS", 3600.0)

    async def main():
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(both["asyncpg"](private_server.dsn, max_size=2, max_queries=1))
            await stack.enter_async_context(client.lend())
            async with client.lend() as connection:
                stack.enter_context(frozen([await client.ask(connection, "SELECT pg_backend_pid()")]))
            with pytest.raises(errors.PoolTimeout, match=r"1 of 2 connections lent, 0 idle, .* 1 closing and"):
                await client.value("SELECT 1", timeout=0.05)

    run(main())
