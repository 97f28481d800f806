"""A pgpool-II between the pool and one server, or a primary and a standby."""

from __future__ import annotations

import asyncio

import pytest

from helpers import make_known
from loopaware_pool import errors
from loopaware_pool.testing.embedded_server import EmbeddedServer
from pgpool import pgpool
from proxy_storms import SIZE, Storm, all_flavours, as_good_as_new, opened
from running import DEADLINE_SECONDS

pytestmark = [pytest.mark.usefixtures("zero_fd_delta")]

RESETS = ["auto", "pipelined", "when_dirty", "confirmed", "awaited", "never"]
TENANT = "SELECT current_setting('my.tenant', true)"


@all_flavours
@pytest.mark.thorough
def test_a_storm(dsn, pgpool_program, run, flavour):
    """Callers get their own answers, some are cancelled, and nothing is lost."""

    async def main():
        with pgpool(pgpool_program, dsn) as through:
            async with opened(flavour, through) as client:
                storm = Storm(client)
                for _ in range(3):
                    await storm.blow(100)
                    await as_good_as_new(client)
        assert storm.answered > 200

    run(main())


@pytest.mark.parametrize("session_reset", RESETS)
def test_every_reset_does_what_it_does_without_a_proxy(dsn, pgpool_program, run, session_reset, caplog):
    """A session stays with its client: the default finds the process that was announced, and sends queries behind."""
    make_known("SELECT $1::text")

    async def main():
        with pgpool(pgpool_program, dsn) as through:
            async with opened("asyncpg", through, session_reset=session_reset) as client:
                asked = (client.pool.fetchval("SELECT $1::text", str(number)) for number in range(100))
                assert await asyncio.gather(*asked) == [str(number) for number in range(100)]
                async with client.lend() as connection:
                    await client.run(connection, "SET my.tenant = 'one'")
                found = [await connection_value(client) for _ in range(SIZE)]
                assert ("one" in found) == (session_reset == "never")
                followed = [session._guarded is not None for session in client.pool._sessions()]
                assert set(followed) == {session_reset in ("auto", "pipelined")}

    async def connection_value(client):
        async with client.lend() as connection:
            return await client.ask(connection, TENANT)

    run(main())
    assert not caplog.records


@pytest.mark.thorough
def test_before_a_primary_and_a_standby(pgpool_program, run):
    """It sends reads to either: answers are right, also of queries that are sent behind a reset."""

    async def main():
        with EmbeddedServer() as primary, EmbeddedServer(standby_of=primary.dsn) as standby:
            settings = {
                "backend_clustering_mode": "streaming_replication",
                "backend_hostname1": "127.0.0.1",
                "backend_port1": standby.port,
                "load_balance_mode": "on",
                "sr_check_user": "postgres",
                "sr_check_period": 1,
            }
            with pgpool(pgpool_program, primary.dsn, **settings) as through:
                async with opened("asyncpg", through) as client:
                    storm = Storm(client)
                    for _ in range(2):
                        await storm.blow(60)
                        await as_good_as_new(client)
                    assert not storm.told

    run(main())


def test_with_all_its_processes_taken_callers_wait_in_their_time(dsn, pgpool_program, run):
    """It has `num_init_children` processes, one for each client: a pool that is larger waits for ever for the rest."""

    async def main():
        with pgpool(pgpool_program, dsn, num_init_children=2, reserved_connections=0) as through:
            async with opened("asyncpg", through) as other:
                async with opened("asyncpg", through, max_size=2) as client:
                    await as_good_as_new(client, 2)
                    with pytest.raises(errors.PoolTimeout):
                        await other.value("SELECT 7", timeout=0.3)
                assert await other.value("SELECT 7", timeout=DEADLINE_SECONDS) == 7

    run(main())
