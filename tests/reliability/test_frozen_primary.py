"""A primary that says nothing any more, while its standby takes over; docs/reliability.md has it as a table."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, ExitStack, contextmanager

import pytest

from failovers import (
    ERRORS,
    FLAVOURS,
    ON_ASYNCPG,
    ON_PSYCOPG,
    Limited,
    answer_of_a_host,
    dsn_of_both,
    frozen,
    processes_of,
    replace_all,
    until_replicated,
)
from faults import connect, pids, within
from flavours import both
from loopaware_pool._core import shard
from loopaware_pool.psycopg import connection as psycopg_connection
from loopaware_pool.testing import FaultProxy
from running import eventually_async

pytestmark = [pytest.mark.usefixtures("zero_fd_delta")]

WANTS_WRITES = {"target_session_attrs": "read-write"}
CONNECT_SECONDS = 2  # the least that libpq takes


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    """Seconds are long."""
    monkeypatch.setattr(shard, "SILENT_SECONDS", 0.1)
    monkeypatch.setattr(psycopg_connection, "CANCEL_SECONDS", 0.1)
    monkeypatch.setattr(psycopg_connection, "DOUBT_SECONDS", 0.05)


class Old:
    """A primary that can be silenced; `port` is where pools reach it."""

    def __init__(self, server, how, stack):
        self._server, self._how = server, how
        self._proxy = stack.enter_context(FaultProxy(server.dsn)) if how == "network" else None
        self.port = server.port if self._proxy is None else self._proxy.port

    @contextmanager
    def silent(self):
        """Its processes are stopped, or the network to it passes nothing on."""
        if self._proxy is None:
            with frozen(processes_of(self._server)):
                yield
        else:
            self._proxy.freeze()
            try:
                yield
            finally:
                self._proxy.reset()


def open_flavour(name, dsn, **options):
    """A pool of that flavour, for four connections."""
    if name in ON_ASYNCPG:
        return FLAVOURS[name](dsn, max_size=4, timeout=CONNECT_SECONDS, **options)
    return FLAVOURS[name](f"{dsn}&connect_timeout={CONNECT_SECONDS}", max_size=4, **options)


@pytest.mark.parametrize(
    ("flavours", "how"),
    [
        (ON_ASYNCPG, "stopped"),
        pytest.param(ON_PSYCOPG, "stopped", marks=pytest.mark.thorough),  # a connect takes 2 s
        pytest.param(FLAVOURS, "network", marks=pytest.mark.thorough),
    ],
    ids=["asyncpg-stopped", "psycopg-stopped", "network"],
)
def test_a_primary_that_is_frozen_costs_one_caller_its_limit(pair, run, flavours, how):
    """Not one for each idle connection: the others are asked, and given up. An engine tells of a connect as well."""
    primary, standby = pair

    async def main():
        with ExitStack() as stack:
            old = Old(primary, how, stack)
            dsn = dsn_of_both(primary, standby, first_port=old.port, **WANTS_WRITES)
            async with AsyncExitStack() as clients:
                users = {name: await clients.enter_async_context(open_flavour(name, dsn)) for name in flavours}
                for client in users.values():
                    assert len(await pids(client, 4)) == 4
                await asyncio.sleep(shard.SILENT_SECONDS)
                with old.silent():
                    await asyncio.to_thread(standby.control, "promote")
                    with within(8.0):
                        served = await asyncio.gather(*map(answer_of_a_host, map(Limited, users.values())))
                    assert {port for port, _ in served} == {standby.port}
                    errors = dict(zip(users, (errors for _, errors in served), strict=True))
                    assert errors == {name: 2 if name == "engine-asyncpg" else 1 for name in flavours}
                    for client in users.values():
                        for _ in range(10):
                            assert await answer_of_a_host(Limited(client, None)) == (standby.port, 0)

    run(main())


@pytest.mark.thorough
def test_readers_of_a_standby_that_is_frozen_are_served_by_the_primary(pair, run):
    """asyncpg would look for a standby on all hosts, the silent one included, before it is content with a primary."""
    primary, standby = pair

    async def main():
        dsn = dsn_of_both(primary, standby, target_session_attrs="prefer-standby")
        async with AsyncExitStack() as clients:
            users = {name: await clients.enter_async_context(open_flavour(name, dsn)) for name in FLAVOURS}
            for client in users.values():
                assert await client.value("SELECT inet_server_port()") == standby.port
            with frozen(processes_of(standby)), within(12.0):
                served = await asyncio.gather(*map(answer_of_a_host, map(Limited, users.values())))
            assert {port for port, _ in served} == {primary.port}

    run(main())


@pytest.mark.thorough
def test_a_primary_that_thaws_does_what_it_was_sent_before(pair, run):
    """No pool can prevent that. Nor can it tell which of two primaries is the right one: that takes fencing."""
    old, new = pair

    async def main():
        with connect(old.dsn) as connection:
            connection.execute("CREATE TABLE kept (x int)")
        await asyncio.to_thread(until_replicated, old, new)
        dsn = dsn_of_both(old, new, **WANTS_WRITES)
        async with AsyncExitStack() as clients:
            users = {name: await clients.enter_async_context(open_flavour(name, dsn)) for name in both}
            for client in users.values():
                assert await client.value("SELECT inet_server_port()") == old.port
            with frozen(processes_of(old)):
                for client in users.values():
                    with pytest.raises(ERRORS):
                        await Limited(client).do("INSERT INTO kept VALUES (1)")
                await asyncio.to_thread(new.control, "promote")
                for client in users.values():
                    assert await answer_of_a_host(Limited(client, None)) == (new.port, 0)
            await eventually_async(lambda: rows(old) == 2, "the writes that had timed out")
            assert rows(new) == 0
            for client in users.values():
                assert await client.value("SELECT inet_server_port()") == new.port
                await replace_all(client)
            assert await users["asyncpg"].value("SELECT inet_server_port()") == new.port
            assert await users["psycopg"].value("SELECT inet_server_port()") == old.port

    run(main())


def rows(server):
    with connect(server.dsn) as connection:
        return connection.execute("SELECT count(*) FROM kept").fetchone()[0]
