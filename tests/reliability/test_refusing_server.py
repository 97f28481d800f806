"""What a caller sees when the server refuses, is full, or stands still; docs/reliability.md has it as a table."""

from __future__ import annotations

import asyncio
import resource
import socket
import threading
import time

import pytest

from faults import both_flavours, connect, pids, within
from flavours import DRIVER_ERRORS, both
from loopaware_pool import errors
from loopaware_pool._core import shard
from loopaware_pool.asyncpg import create_pool
from loopaware_pool.testing.embedded_server import EmbeddedServer
from rotating import FLAVOURS, refusal
from running import LoopThread
from servers import dsn_of_role

pytestmark = [pytest.mark.usefixtures("zero_fd_delta")]


# ---- a server that refuses ----


@both_flavours
def test_callers_of_a_full_server_keep_their_deadline_and_hear_the_reason(private_server, run, open_pool):
    """53300; and whoever still waits when there is room again is served."""

    async def main():
        async with open_pool(private_server.dsn) as client:
            others = [connect(private_server.dsn) for _ in range(6)]
            try:
                patient = asyncio.create_task(client.value("SELECT 1", timeout=30))
                await refusal(client, "too many clients already")
                began = time.monotonic()
                with within(0.5), pytest.raises(errors.PoolTimeout, match="too many clients already") as caught:
                    await client.value("SELECT 1", timeout=0.5)
                assert time.monotonic() - began >= 0.5
                assert "too many clients already" in str(caught.value.__cause__)
                assert not patient.done()
            finally:
                for other in others:
                    other.close()
            assert await patient == 1

    run(main())


def test_a_password_that_was_changed_is_given_to_the_pool_while_it_lives(private_server, run):
    """asyncpg: by `set_connect_args`, or a function as the password. Old connections go on until they are expired."""
    dsn = dsn_of_role(private_server.dsn, "guarded")
    passwords = ["old"]

    async def main():
        set_password(private_server, "old")
        async with (
            both["asyncpg"](dsn, password="old") as told,
            both["asyncpg"](dsn, password=lambda: passwords[-1]) as asking,
        ):
            for client in (told, asking):
                assert await client.value("SELECT 1") == 1
            set_password(private_server, "new")
            for client in (told, asking):
                assert await client.value("SELECT 1") == 1
                await client.pool.expire_connections()
                assert isinstance(await refusal(client, "password authentication failed"), errors.PoolTimeout)
            told.pool.set_connect_args(dsn, password="new")
            passwords.append("new")
            for client in (told, asking):
                with within(1.0):
                    assert await client.value("SELECT 1", timeout=20) == 1

    run(main())


@pytest.mark.parametrize("is_async", [False, True])
def test_a_password_that_was_changed_is_asked_for(private_server, run, is_async):
    """psycopg: by a function as `kwargs`. Old connections go on until they are drained."""
    dsn = dsn_of_role(private_server.dsn, "guarded")
    passwords = ["old"]

    def kwargs():
        return {"autocommit": True, "password": passwords[-1]}

    async def async_kwargs():
        return kwargs()

    async def main():
        set_password(private_server, "old")
        async with FLAVOURS["psycopg"](dsn, kwargs=async_kwargs if is_async else kwargs) as client:
            assert await client.value("SELECT 1") == 1
            set_password(private_server, "new")
            await client.expire()
            assert isinstance(await refusal(client, "password authentication failed"), errors.PoolTimeout)
            passwords.append("new")
            with within(1.0):
                assert await client.value("SELECT 1", timeout=20) == 1

    run(main())


def set_password(server, password):
    with connect(server.dsn) as connection:
        connection.execute("DO $$BEGIN CREATE ROLE guarded LOGIN; EXCEPTION WHEN duplicate_object THEN END$$")
        connection.execute(f"ALTER ROLE guarded PASSWORD '{password}'")


@both_flavours
def test_names_that_cannot_be_resolved_are_tried_again(dsn, open_pool, monkeypatch):
    """Callers keep their deadline and hear the reason; who still waits when the name is known is served."""
    known, resolve = threading.Event(), socket.getaddrinfo

    def getaddrinfo(host, *args, **kwargs):
        if host != "database.test":
            return resolve(host, *args, **kwargs)
        if not known.is_set():
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return resolve("127.0.0.1", *args, **kwargs)

    async def main():
        async with open_pool(dsn.replace("127.0.0.1", "database.test")) as client:
            patient = asyncio.create_task(client.value("SELECT 1", timeout=30))
            reason = "name resolution" if open_pool is both["asyncpg"] else "OperationalError"
            await refusal(client, reason)
            with within(0.3), pytest.raises(errors.PoolTimeout, match=reason):
                await client.value("SELECT 1", timeout=0.3)
            known.set()
            assert await patient == 1

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    asyncio.run(main())  # uvloop does not ask Python


# ---- other things that fill up or stand still ----


@pytest.fixture(scope="module")
def cramped_server():
    """A server that cannot make a file longer than 18 MB, which is enough for its log of writes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    server = EmbeddedServer()
    resource.setrlimit(resource.RLIMIT_FSIZE, (18 << 20, limits[1]))
    try:
        server.start()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    yield server
    server.stop()


@both_flavours
def test_a_full_disk_fails_statements_and_costs_no_connection(cramped_server, run, open_pool):
    """What the server cannot write it says; its sessions stay."""

    async def main():
        async with open_pool(cramped_server.dsn) as client:
            before = await pids(client, 2)
            for _ in range(2):
                with pytest.raises(DRIVER_ERRORS, match=r"could not (extend|write)"):
                    await client.do("CREATE TABLE large AS SELECT repeat('x', 2000) FROM generate_series(1, 12000)")
                await client.pool.settled()
            assert await pids(client, 2) == before

    run(main())


@both_flavours
def test_a_loop_that_stands_still_costs_its_own_callers_time_and_nothing_else(dsn, run, loop_factory, open_pool):
    """Others are served meanwhile; when it goes on, who is late is told, and no connection is lost."""

    async def main():
        async with open_pool(dsn, max_size=3) as client:
            await client.value("SELECT 1")
            with LoopThread(loop_factory) as elsewhere:
                elsewhere.run(pids(client, 2))  # of which it gives one away, to the callers here that wait
                holder = asyncio.create_task(client.value("SELECT 1 FROM pg_sleep(0.05)"))
                callers = [asyncio.create_task(client.value("SELECT 1", timeout=0.2)) for _ in range(8)]
                await asyncio.sleep(0)
                stands_until = time.monotonic() + 0.5
                while time.monotonic() < stands_until:  # this loop does not go round: what follows is waited for here
                    assert elsewhere.run(client.value("SELECT 1", timeout=5)) == 1
                with within(0.0):
                    outcomes = await asyncio.gather(holder, *callers, return_exceptions=True)
            assert outcomes[0] == 1
            assert all(outcome == 1 or isinstance(outcome, errors.PoolTimeout) for outcome in outcomes)
            assert len(await pids(client, 3)) == 3

    run(main())


def test_a_loop_that_was_blocked_reads_the_answers_before_it_gives_up(dsn, run, monkeypatch):
    """The answer to the last lease's reset has come meanwhile, and the next caller comes before it is read."""
    monkeypatch.setattr(shard, "SILENT_SECONDS", 0.05)
    monkeypatch.setattr(shard, "READ_SECONDS", 5.0)

    async def main():
        async with create_pool(dsn, min_size=0, max_size=1) as pool:
            seen = set()
            for _ in range(2):
                async with pool.acquire() as con:
                    seen.add(con.get_server_pid())
                    await con.execute("SET work_mem = '77kB'")  # so that the answer is waited for
                time.sleep(shard.SILENT_SECONDS)
            assert len(seen) == 1
            assert pool.stats().totals.closed == 0

    run(main())
