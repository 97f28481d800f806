"""Where connections go when a DSN names a primary and its standby; docs/reliability.md has it as a table."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import asyncpg
import pytest
from sqlalchemy import exc

from failovers import ERRORS, FLAVOURS, ON_PSYCOPG, answer_of_a_host, dsn_of_both, follow, replace_all, until_replicated
from faults import connect, pids, within
from flavours import both
from helpers import eventually
from loopaware_pool import errors
from rotating import refusal
from running import make_pool

pytestmark = [pytest.mark.usefixtures("zero_fd_delta")]

WHERE = "SELECT inet_server_port()"


async def opened(stack, flavours, dsn, **options):
    return {name: await stack.enter_async_context(open_pool(dsn, **options)) for name, open_pool in flavours.items()}


async def places(client, size):
    """Where so many connections lead that are lent at the same time."""
    async with AsyncExitStack() as leases:
        connections = [await leases.enter_async_context(client.lend()) for _ in range(size)]
        return [await client.ask(connection, WHERE) for connection in connections]


class Writer:
    """Writes all the time, and notes by way of which server."""

    def __init__(self, client, number):
        self.ports = []
        self._client, self._number = client, number
        self._task = asyncio.create_task(self._write())

    async def _write(self):
        while True:
            try:
                query = f"INSERT INTO kept VALUES ({self._number}) RETURNING inet_server_port()"
                self.ports.append(await self._client.value(query, 15))
            except ERRORS:
                pass
            await asyncio.sleep(0.01)

    async def more(self):
        """Wait for some more writes. What is returned is where all of these went."""
        before = len(self.ports)
        await eventually(lambda: len(self.ports) >= before + 5)
        return set(self.ports[before + 1 :])  # the first may have been under way

    async def stop(self):
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


def test_a_primary_that_comes_back_as_a_standby_gets_no_write(pair, run):
    """Although the DSN names it first, and every connection is made anew."""
    old, new = pair

    async def main():
        with connect(old.dsn) as connection:
            connection.execute("CREATE TABLE kept (x int)")
        async with AsyncExitStack() as stack:
            clients = await opened(stack, FLAVOURS, dsn_of_both(old, new, target_session_attrs="read-write"))
            writers = [Writer(client, number) for number, client in enumerate(clients.values())]
            for writer in writers:
                stack.push_async_callback(writer.stop)
                assert await writer.more() == {old.port}
            await asyncio.to_thread(old.control, "stop", "-m", "fast")
            await asyncio.to_thread(new.control, "promote")
            assert [await writer.more() for writer in writers] == [{new.port}] * len(writers)
            await asyncio.to_thread(follow, old, new)
            for client in clients.values():
                await replace_all(client)
            assert [await writer.more() for writer in writers] == [{new.port}] * len(writers)
            for writer in writers:
                await writer.stop()
            await asyncio.to_thread(until_replicated, new, old)
            for number, writer in enumerate(writers):
                with connect(old.dsn) as connection:
                    query = "SELECT count(*) FROM kept WHERE x = %s"
                    assert connection.execute(query, [number]).fetchone()[0] >= len(writer.ports)

    run(main())


def test_readers_that_prefer_a_standby_get_along_without_and_go_back(pair, run):
    """They go back when a connection is replaced, as by the end of its life; those that live on stay."""
    primary, standby = pair

    async def main():
        dsn = dsn_of_both(primary, standby, target_session_attrs="prefer-standby")
        async with AsyncExitStack() as stack:
            clients = await opened(stack, FLAVOURS, dsn, max_lifetime=1)
            staying = await stack.enter_async_context(FLAVOURS["asyncpg"](dsn))
            for client in (*clients.values(), staying):
                assert await places(client, 2) == [standby.port] * 2
            await asyncio.to_thread(standby.control, "stop", "-m", "immediate")
            for client in (*clients.values(), staying):
                assert (await answer_of_a_host(client))[0] == primary.port
            kept = await pids(staying, 1)
            await asyncio.to_thread(standby.control, "start")
            for client in clients.values():
                await eventually(lambda: is_at(client, standby))  # noqa: B023
            assert await pids(staying, 1) == kept
            await replace_all(staying)
            assert await places(staying, 2) == [standby.port] * 2

    async def is_at(client, server):
        return await client.value(WHERE) == server.port

    run(main())


def test_libpq_spreads_connections_over_the_hosts_and_asyncpg_takes_the_first(pair, run):
    """asyncpg spreads them with a `connect` of the program's own that changes the order."""
    primary, standby = pair

    async def main():
        async with AsyncExitStack() as stack:
            dsn = dsn_of_both(primary, standby, load_balance_hosts="random")
            clients = await opened(stack, ON_PSYCOPG, dsn, max_size=16)
            for client in clients.values():
                assert set(await places(client, 16)) == {primary.port, standby.port}
            turns = iter(range(16))

            async def connect_in_turn(dsn, **options):
                hosts = [primary, standby]
                if next(turns) % 2:
                    hosts.reverse()
                options |= {"host": ["127.0.0.1"] * 2, "port": [host.port for host in hosts]}
                return await asyncpg.connect(dsn, **options)

            dsn = dsn_of_both(primary, standby)
            client = await stack.enter_async_context(FLAVOURS["asyncpg"](dsn, max_size=16))
            assert await places(client, 16) == [primary.port] * 16
            client = await stack.enter_async_context(FLAVOURS["asyncpg"](dsn, max_size=16, connect=connect_in_turn))
            assert sorted(await places(client, 16)) == sorted([primary.port, standby.port] * 8)

    run(main())


# ---- hosts that cannot serve ----


def words_of(error):
    """What the driver says. A pool's timeout has that as its cause, as it may quote a password."""
    return str(error.__cause__ if isinstance(error, errors.PoolTimeout) else error)


def test_a_standby_alone_that_is_asked_for_writes_is_named_within_the_deadline(pair, run):
    """An engine's caller gets each connect's own error. Nothing is lost: when it is promoted, all can be lent."""
    _, standby = pair

    async def main():
        dsn = dsn_of_both(standby, standby, target_session_attrs="read-write")
        async with AsyncExitStack() as stack:
            clients = await opened(stack, FLAVOURS, dsn)
            words = ("session is read-only", "None of the hosts match the target attribute requirement")
            for name, client in clients.items():
                is_pool = name in both
                await refusal(client, *words)
                with within(0.3), pytest.raises(errors.PoolTimeout if is_pool else exc.DBAPIError) as caught:
                    await client.value(WHERE, 0.3)
                assert any(text in str(caught.value) for text in words)
            await asyncio.to_thread(standby.control, "promote")
            for client in clients.values():
                assert (await answer_of_a_host(client))[0] == standby.port
                assert len(await pids(client, 2)) == 2

    run(main())


def test_hosts_of_which_none_answers_are_told_within_the_deadline(run):
    """With the last refusal, and with no permit and no socket lost."""

    async def main():
        async with AsyncExitStack() as stack:
            clients = await opened(stack, FLAVOURS, "postgresql://postgres@127.0.0.1:1,127.0.0.1:2/postgres?")
            words = ("Connection refused", "Connect call failed")
            for name, client in clients.items():
                await refusal(client, *words, words_of=words_of)
                for _ in range(3):
                    with within(0.2), pytest.raises(ERRORS) as caught:
                        await client.value(WHERE, 0.2)
                    assert isinstance(caught.value, errors.PoolTimeout) is (name in both)
                    assert any(text in words_of(caught.value) for text in words)
                await eventually(lambda: client.pool.stats().connecting == 0)  # noqa: B023

    run(main())


@pytest.mark.parametrize(
    ("dsn", "host"), [("postgresql://app@db,/shop", None), ("postgresql://app@/shop?host=,db", None), (None, "db,,db2")]
)
def test_an_empty_host_is_told_at_once(run, dsn, host, monkeypatch):
    """asyncpg's own pool says "string index out of range"."""
    if host is not None:
        monkeypatch.setenv("PGHOST", host)

    async def main():
        with pytest.raises(IndexError, match="string index out of range"):
            await asyncpg.create_pool(dsn)
        async with make_pool(dsn) as pool:
            with within(0.0), pytest.raises(asyncpg.exceptions.ClientConfigurationError, match="a host is empty"):
                await pool.fetchval("SELECT 1", timeout=10)

    run(main())
