"""A network that loses packets, as where a machine or a cable has gone; docs/reliability.md has it as a table."""

from __future__ import annotations

import asyncio
import socket
from contextlib import AsyncExitStack, ExitStack

import asyncpg
import psycopg
import pytest
from sqlalchemy import exc

from failovers import ERRORS, FLAVOURS, ON_ASYNCPG, ON_PSYCOPG, Limited, answer_of_a_host, dsn_of_both
from faults import both_flavours, connect, pids
from flavours import asyncpg_flavour, psycopg_flavour
from helpers import server_sessions
from loopaware_pool._core import runner, shard
from loopaware_pool.psycopg import connection as psycopg_connection
from loopaware_pool.testing.embedded_server import EmbeddedServer
from network import FarServer, NetworkUnavailable, network
from running import eventually_async, make_pool, no_session_left, until_server_waits

pytestmark = [pytest.mark.usefixtures("zero_fd_delta")]

CONNECT_SECONDS = 2  # the least that libpq takes
KEEPALIVES = "keepalives_idle=1&keepalives_interval=1&keepalives_count=1"
PID = "SELECT pg_backend_pid()"
PORT = "SELECT inet_server_port()"
ENDED = (psycopg.OperationalError, asyncpg.ConnectionDoesNotExistError, exc.OperationalError)


def far_server_or_skip(stack):
    try:
        between = stack.enter_context(network())
    except NetworkUnavailable as reason:
        pytest.skip(str(reason))
    return stack.enter_context(FarServer(between))


@pytest.fixture(scope="module")
def far_server():
    with ExitStack() as stack:
        yield far_server_or_skip(stack)


@pytest.fixture
def far(far_server):
    """A server behind a network that a test may break."""
    yield far_server
    far_server.network.heal()


@pytest.fixture
def pair():
    """A primary behind a network that a test may break, and its standby behind none."""
    with ExitStack() as stack:
        primary = far_server_or_skip(stack)
        here = {"listen_addresses": "127.0.0.1"}
        yield primary, stack.enter_context(EmbeddedServer(standby_of=primary.dsn, settings=here))


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    """Seconds are long."""
    monkeypatch.setattr(shard, "SILENT_SECONDS", 0.1)
    monkeypatch.setattr(psycopg_connection, "CANCEL_SECONDS", 0.1)
    monkeypatch.setattr(psycopg_connection, "DOUBT_SECONDS", 0.05)


@pytest.fixture
def patient(monkeypatch):
    """What a connection may take, if nobody waits for it, is for ever."""
    monkeypatch.setattr(runner, "GOODBYE_SECONDS", 3600.0)
    monkeypatch.setattr(shard, "SLOW_SECONDS", 3600.0)


def open_flavour(name, dsn, **options):
    """A pool of that flavour whose connects have a limit; its queries have none."""
    if name in ON_ASYNCPG:
        return FLAVOURS[name](dsn, timeout=CONNECT_SECONDS, **options)
    return FLAVOURS[name](f"{dsn}&connect_timeout={CONNECT_SECONDS}", **options)


async def lend_all(stack, client, size):
    """Lend so many connections; where they lead to."""
    connections = [await stack.enter_async_context(client.lend(timeout=15)) for _ in range(size)]
    return {await client.ask(connection, PORT) for connection in connections}


# ---- failover ----


@pytest.mark.usefixtures("patient")
def test_a_primary_that_was_cut_off_gets_no_caller_when_the_network_is_back(pair, run):
    """It believes that it is still the primary. What it answers then, to pings for example, comes too late."""
    primary, standby = pair

    async def main():
        with connect(primary.dsn) as connection:
            connection.execute("CREATE TABLE kept (x int)")
        dsn = dsn_of_both(primary, standby, target_session_attrs="read-write")
        async with AsyncExitStack() as stack:
            users = {name: await stack.enter_async_context(open_flavour(name, dsn, max_size=3)) for name in FLAVOURS}
            for client in users.values():
                assert len(await pids(client, 3)) == 3
            await asyncio.sleep(shard.SILENT_SECONDS)
            with primary.network.silent():
                await asyncio.to_thread(standby.control, "promote")
                asking = (answer_of_a_host(Limited(client), PORT) for client in users.values())
                served = dict(zip(users, await asyncio.gather(*asking), strict=True))
                errors = {name: 2 if name == "engine-asyncpg" else 1 for name in users}
                assert served == {name: (standby.port, errors[name]) for name in users}
            for client in users.values():
                await eventually_async(lambda: is_at_rest(client), "answers")  # noqa: B023
                async with AsyncExitStack() as leases:
                    assert await lend_all(leases, client, len(client.pool.fd_report())) == {standby.port}
                write = "INSERT INTO kept VALUES (1) RETURNING inet_server_port()"
                assert [await client.value(write) for _ in range(5)] == [standby.port] * 5
        with connect(standby.dsn) as connection:
            assert connection.execute("SELECT count(*) FROM kept").fetchone()[0] == 5 * len(users)

    run(main())


def is_at_rest(client):
    return not {"resetting", "closing"} & {report.state for report in client.pool.fd_report()}


@pytest.mark.usefixtures("patient")
def test_connections_to_a_primary_that_was_cut_off_take_no_place_from_callers(pair, run):
    """Although the new primary answers all the time: that says nothing of the old one."""
    primary, standby = pair

    async def main():
        dsn = dsn_of_both(primary, standby, target_session_attrs="read-write")
        async with open_flavour("asyncpg", dsn, max_size=3) as client:
            assert len(await pids(client, 3)) == 3
            await asyncio.sleep(shard.SILENT_SECONDS)
            with primary.network.silent():
                await asyncio.to_thread(standby.control, "promote")
                assert await answer_of_a_host(Limited(client), PORT) == (standby.port, 1)
                async with AsyncExitStack() as leases:
                    assert await lend_all(leases, client, 3) == {standby.port}

    run(main())


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.thorough] if name in ON_PSYCOPG else []) for name in FLAVOURS]
)
def test_a_host_that_does_not_even_refuse_is_passed_over(far, server, run, name):
    """Its machine has gone. It costs a connect's limit; asyncpg's own pool tries it for ever."""

    async def main():
        both = dsn_of_both(server, server, target_session_attrs="any").replace("127.0.0.1", far.network.address, 1)
        with far.network.silent():
            async with open_flavour(name, both) as client:
                errors = 1 if name == "engine-asyncpg" else 0
                assert await answer_of_a_host(Limited(client, None), PORT) == (server.port, errors)
            if name == "asyncpg":
                async with asyncpg.create_pool(both, min_size=0, max_size=1, timeout=CONNECT_SECONDS) as theirs:
                    for _ in range(2):
                        with pytest.raises(TimeoutError):
                            await theirs.fetchval("SELECT 1")

    run(main())


# ---- what bounds a query ----


async def give_up_in_tcp(connection):
    """For asyncpg, which has no option for it: what libpq's `tcp_user_timeout` and `keepalives` do."""
    own = connection._transport.get_extra_info("socket")
    own.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000)
    own.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT):
        own.setsockopt(socket.IPPROTO_TCP, option, 1)


def open_with_limits_of_tcp(name, dsn):
    if name == "asyncpg":
        return asyncpg_flavour(dsn, init=give_up_in_tcp)
    return FLAVOURS[name](f"{dsn}?tcp_user_timeout=1000&{KEEPALIVES}")


@pytest.mark.parametrize("name", ["asyncpg", *ON_PSYCOPG])
def test_a_query_that_the_network_has_lost_ends_by_tcp_user_timeout(far, run, name):
    """Its connection is replaced, and no other."""

    async def main():
        async with open_with_limits_of_tcp(name, far.dsn) as client:
            before = await pids(client, 2)
            await client.pool.settled()
            far.network.lose()
            with pytest.raises(ENDED):
                await client.value(PID)
            far.network.heal()
            async with asyncio.timeout(15):
                while len(after := await ids_of_those_that_answer(client)) < 2:
                    pass
            assert len(after & before) < 2
            assert len(client.pool.fd_report()) == 2

    run(main())


async def ids_of_those_that_answer(client):
    """An idle connection may have been pinged, and lost, by now."""
    try:
        return await pids(client, 2)
    except ERRORS:
        return set()


@pytest.mark.parametrize("name", ["asyncpg", "psycopg"])
def test_a_query_that_the_server_has_got_ends_by_keepalives(far, run, name):
    """The server goes on acknowledging until the network is lost, and the answer never comes."""

    async def main():
        async with open_with_limits_of_tcp(name, far.dsn) as client:
            query = asyncio.create_task(client.value("SELECT pg_sleep(3600)"))
            await until_server_waits(far.unix_dsn, client.pool)
            far.network.lose()
            with pytest.raises(ENDED):
                await query
            far.network.heal()
            assert await client.value("SELECT 1") == 1

    run(main())


@pytest.mark.thorough
def test_keepalives_do_not_end_a_query_that_was_lost_nor_does_the_other_one_that_was_got(far, run):
    """Linux sends no keepalives while data is not acknowledged, and the other limit is for such data. It takes both."""

    async def main():
        async with AsyncExitStack() as stack:
            limits = (KEEPALIVES, "tcp_user_timeout=1000&keepalives=0", f"tcp_user_timeout=3000&{KEEPALIVES}")
            opened = [psycopg_flavour(f"{far.dsn}?{limit}", max_size=1) for limit in limits]
            lost, got, both = [await stack.enter_async_context(client) for client in opened]
            for client in (lost, both):
                assert await client.value("SELECT 1") == 1
            sleeping = asyncio.create_task(got.value("SELECT 1 FROM pg_sleep(6)"))
            await until_server_waits(far.unix_dsn, got.pool)
            far.network.lose()
            asking = asyncio.create_task(lost.value("SELECT 1"))
            with pytest.raises(ENDED):  # after more than the 2 s that the keepalives would take
                await both.value("SELECT 1")
            assert not asking.done()
            assert not sleeping.done()
            far.network.heal()
            assert await asyncio.gather(asking, sleeping) == [1, 1]

    run(main())


def test_asyncpg_has_the_server_set_what_libpq_sets_for_itself(far, run):
    """So the same DSN protects the client with libpq, and only the server with asyncpg."""

    async def main():
        connection = await asyncpg.connect(f"{far.dsn}?tcp_user_timeout=1234")
        own = connection._transport.get_extra_info("socket")
        assert await connection.fetchval("SHOW tcp_user_timeout") == "1234"
        assert own.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0
        assert own.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0
        await connection.close()
        with pytest.raises(asyncpg.UndefinedObjectError, match="keepalives_idle"):
            await asyncpg.connect(f"{far.dsn}?keepalives_idle=1")

    run(main())


@both_flavours
def test_a_limit_of_the_callers_ends_a_query_that_was_lost(far, run, open_pool):
    """Nor can the server be asked to cancel it. Nothing of that is left."""

    async def main():
        async with open_pool(far.dsn, max_size=1) as client:
            before = await client.value(PID)
            await client.pool.settled()  # else it is a reset that is lost, and nothing is asked
            with far.network.silent(), pytest.raises(TimeoutError):
                await Limited(client).value(PID)
            assert await client.value(PID) != before

    run(main())


@pytest.mark.thorough
def test_the_server_keeps_the_session_of_a_client_that_has_vanished_unless_it_asks(far, run):
    """That session counts towards `max_connections`. Keepalives of the server's own end it."""
    asks = {f"tcp_keepalives_{name}": "1" for name in ("idle", "interval", "count")} | {"tcp_user_timeout": "1000"}

    async def main():
        asking, other = make_pool(far.dsn), make_pool(far.dsn)
        async with asking, other:
            asking.set_connect_args(far.dsn, server_settings={"application_name": asking.name} | asks)
            for pool in (asking, other):
                assert await pool.fetchval("SELECT 1") == 1
            with far.network.silent():
                asking.terminate()
                other.terminate()
                no_session_left(far.unix_dsn, asking)
                assert server_sessions(far.unix_dsn, other.name) == 1

    run(main())


# ---- connections that are idle, or about to be ----


@pytest.mark.parametrize("name", FLAVOURS)
def test_nothing_waits_for_a_link_that_is_dead(far, run, name, monkeypatch):
    """Neither the release of a connection nor the end of its pool, beyond the moment that a goodbye has."""
    monkeypatch.setattr(runner, "GOODBYE_SECONDS", 0.1)

    async def main():
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(FLAVOURS[name](far.dsn))
            await pids(client, 2)
            await client.pool.settled()
            with far.network.silent():
                async with client.lend():
                    pass
                await stack.aclose()

    run(main())


def test_a_pool_is_terminated_at_once_on_a_link_that_is_dead(far, run):
    """Whoever has a query under way is told, and no socket is left."""

    async def main():
        async with asyncpg_flavour(far.dsn) as client:
            await pids(client, 2)
            await client.pool.settled()
            with far.network.silent():
                sent = far.network.sent
                query = asyncio.create_task(client.value("SELECT 1"))
                await eventually_async(lambda: far.network.sent > sent, "a query that is lost")
                client.pool.terminate()
                assert client.pool.fd_report() == []
                with pytest.raises(ERRORS):
                    await query

    run(main())


def test_a_release_waits_for_no_answer(far, run):
    """asyncpg's own pool does."""

    async def main():
        async with make_pool(far.dsn) as ours, asyncpg.create_pool(far.dsn, min_size=0, max_size=1) as theirs:
            released = {}
            for pool in (ours, theirs):
                connection = await pool.acquire()
                assert await connection.fetchval("SELECT 1") == 1
                far.network.lose()
                sent = far.network.sent
                release = asyncio.create_task(pool.release(connection))
                await eventually_async(lambda: far.network.sent > sent, "a reset that is sent")  # noqa: B023
                released[pool] = release.done()
                far.network.heal()
                await release
            assert released == {ours: True, theirs: False}

    run(main())


def test_a_network_that_is_down_for_a_moment_costs_nothing(far, run):
    """Queries under way are answered late. No connection is replaced, whether it was lent or idle."""

    async def main():
        async with AsyncExitStack() as stack:
            users = [await stack.enter_async_context(FLAVOURS[name](far.dsn, max_size=3)) for name in FLAVOURS]
            before = [await pids(client, 3) for client in users]
            sent = far.network.sent
            with far.network.silent():
                queries = [asyncio.create_task(client.value("SELECT 7")) for client in users for _ in range(2)]
                await eventually_async(lambda: far.network.sent >= sent + len(queries), "queries that are lost")
            assert await asyncio.gather(*queries) == [7] * len(queries)
            assert [await pids(client, 3) for client in users] == before

    run(main())


def test_a_server_far_away_serves_as_many_as_there_are_connections(far, run):
    """Each answer takes a tenth of a second. No connection is opened in vain, or replaced."""

    async def main():
        async with AsyncExitStack() as stack:
            users = [await stack.enter_async_context(FLAVOURS[name](far.dsn, max_size=3)) for name in FLAVOURS]
            before = [await pids(client, 3) for client in users]
            far.network.delay_seconds = 0.05
            stack.callback(setattr, far.network, "delay_seconds", 0.0)
            queries = [client.value("SELECT 7") for client in users for _ in range(9)]
            assert await asyncio.gather(*queries) == [7] * len(queries)
            assert [await pids(client, 3) for client in users] == before

    run(main())
