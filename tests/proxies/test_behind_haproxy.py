"""A HAProxy in TCP mode between the pool and one server, or two."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql

from haproxy import haproxy
from loopaware_pool import errors
from loopaware_pool.testing.embedded_server import EmbeddedServer
from proxy_storms import SIZE, Storm, all_flavours, as_good_as_new, make_new, opened
from running import DEADLINE_SECONDS, eventually_async

pytestmark = [pytest.mark.usefixtures("zero_fd_delta")]


@pytest.fixture(scope="module")
def second_server(dsn):
    """Another server, with the same password."""
    with EmbeddedServer() as server:
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute(sql.SQL("ALTER ROLE postgres PASSWORD {}").format(urlsplit(dsn).password))
        yield server


def port_of(dsn):
    return urlsplit(dsn).port


@all_flavours
@pytest.mark.thorough
def test_a_storm_while_connections_are_cut(dsn, haproxy_program, run, flavour):
    """By the proxy, time and again: callers get their own answers or an error, and nothing is lost."""

    async def main():
        with haproxy(haproxy_program, dsn) as between:

            async def cut():
                for _ in range(8):
                    await asyncio.to_thread(between.shut_down_sessions, "one")

            async with opened(flavour, between.dsn) as client:
                storm = Storm(client)
                for _ in range(3):
                    await storm.blow(100, meanwhile=cut)
                await storm.blow(50)
                await as_good_as_new(client)
        assert storm.answered > 150
        assert storm.told

    run(main())


@all_flavours
def test_idle_connections_that_it_ends_are_not_lent(dsn, haproxy_program, run, flavour):
    """`timeout client` and `timeout server` end what is idle: the next callers get new connections, and no error."""

    async def main():
        with haproxy(haproxy_program, dsn, idle="900ms") as between:
            async with opened(flavour, between.dsn) as client:
                for _ in range(3):
                    await as_good_as_new(client)
                    await eventually_async(lambda: between.connections() == 0, "the end of idle connections")
                    assert await asyncio.gather(*(client.value("SELECT 7") for _ in range(20))) == [7] * 20

    run(main())


def test_keepalive_keeps_connections_that_it_would_end(dsn, haproxy_program, run):
    """A `keepalive` below its timeouts: the same sessions after several times that."""

    async def main():
        with haproxy(haproxy_program, dsn, idle="1500ms") as between:
            options = {"keepalive": 0.1, "session_reset": "never", "min_size": 2, "max_size": 2}
            async with opened("asyncpg", between.dsn, **options) as client:
                before = await backends(client, 2)
                await asyncio.sleep(2.5)  # nothing is to happen
                assert await backends(client, 2) == before

    run(main())


async def backends(client, size):
    leases = [client.lend(timeout=DEADLINE_SECONDS) for _ in range(size)]
    connections = [await lease.__aenter__() for lease in leases]
    found = {await client.ask(connection, "SELECT pg_backend_pid()") for connection in connections}
    for lease in leases:
        await lease.__aexit__(None, None, None)
    return found


@all_flavours
def test_a_drained_server_keeps_its_connections_until_they_are_expired(
    dsn, second_server, haproxy_program, run, flavour
):
    """New ones go to the other server, which has another port. Expiring those moves the rest, without an error."""
    port = "SELECT inet_server_port()"

    async def main():
        with haproxy(haproxy_program, dsn, second_server.dsn) as between:
            async with opened(flavour, between.dsn) as client:
                assert await client.value(port) == port_of(dsn)
                between.set_state("one", "drain")
                assert await client.value(port) == port_of(dsn)
                await make_new(client)
                assert await client.value(port) == second_server.port
                await as_good_as_new(client)
                between.set_state("one", "ready")
                await make_new(client)
                assert await client.value(port) == port_of(dsn)

    run(main())


@all_flavours
def test_when_the_server_is_taken_away_callers_go_to_the_other(dsn, second_server, haproxy_program, run, flavour):
    """`on-marked-down shutdown-sessions`: what is lent gets an error, what is idle is not lent again."""

    async def main():
        options = " default-server on-marked-down shutdown-sessions\n"
        with haproxy(haproxy_program, dsn, second_server.dsn, options=options) as between:
            async with opened(flavour, between.dsn) as client:
                await as_good_as_new(client)
                between.set_state("one", "maint")
                await eventually_async(lambda: between.connections() == 0, "the end of its connections")
                ports = await asyncio.gather(*(client.value("SELECT inet_server_port()") for _ in range(20)))
                assert set(ports) == {second_server.port}
                await as_good_as_new(client)

    run(main())


@all_flavours
def test_with_all_servers_down_callers_get_an_error_in_their_time(dsn, haproxy_program, run, flavour):
    """It accepts, and hangs up. When a server is back, so is the pool."""

    async def main():
        options = " default-server on-marked-down shutdown-sessions\n"
        with haproxy(haproxy_program, dsn, options=options) as between:
            async with opened(flavour, between.dsn) as client:
                await as_good_as_new(client)
                between.set_state("one", "maint")
                await eventually_async(lambda: between.connections() == 0, "the end of its connections")
                calls = (client.value("SELECT 7", timeout=0.5) for _ in range(3 * SIZE))
                outcomes = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 10)
                assert all(isinstance(each, (OSError, errors.PoolError)) for each in outcomes) or flavour != "asyncpg"
                assert all(isinstance(each, Exception) for each in outcomes), outcomes
                between.set_state("one", "ready")
                await as_good_as_new(client)

    run(main())


def test_a_check_that_fails_is_as_a_server_that_is_gone(haproxy_program, run):
    """The server refuses connections: the check finds out, and finds out when it is back."""

    async def main():
        with EmbeddedServer() as first:
            options = " option pgsql-check user postgres\n default-server on-marked-down shutdown-sessions\n"
            with haproxy(haproxy_program, first.dsn, options=options) as between:
                async with opened("asyncpg", between.dsn) as client:
                    await as_good_as_new(client)
                    first.stop()
                    await eventually_async(lambda: between.status("one") == "DOWN", "the check to fail")
                    with pytest.raises((OSError, errors.PoolError)) as told:
                        await client.value("SELECT 7", timeout=0.5)
                    assert told.value

    run(main())
