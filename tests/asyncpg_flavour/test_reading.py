"""How much is asked of the socket at each read."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import asyncpg
import pytest

import servers
from loopaware_pool.asyncpg import create_pool

pytestmark = [pytest.mark.both_pythons, pytest.mark.both_drivers]

READ_BYTES = 64 * 1024
# In a heap that maps each buffer of 256 KiB, a query costs asyncpg two page faults a read.
COUNT_FAULTS = """
import asyncio, ctypes, resource, sys
import asyncpg, loopaware_pool

ctypes.CDLL(None).mallopt(-3, 131072)


def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


async def per_query(create_pool):
    async with create_pool(sys.argv[1], min_size=1, max_size=1) as pool:
        for _ in range(200):
            await pool.fetchval("SELECT 1")
        before = faults()
        for _ in range(200):
            await pool.fetchval("SELECT 1")
        return (faults() - before) / 200


async def main():
    print(await per_query(asyncpg.create_pool), await per_query(loopaware_pool.create_pool))


asyncio.run(main())
"""


def sizes(con):
    """What the transports of a connection ask for, by attribute."""
    transport = con._transport
    return {
        owner: reader.max_size
        for owner, reader in (("transport", transport), ("tls", getattr(transport, "_ssl_protocol", None)))
        if hasattr(reader, "max_size")
    }


async def size_on_a_lease(dsn, **options):
    async with create_pool(dsn, min_size=1, max_size=1, **options) as pool, pool.acquire() as con:
        assert await con.fetchval("SELECT length(repeat('x', 300000))") == 300_000
        assert len(await con.fetchval("SELECT repeat('x', 300000)")) == 300_000
        return sizes(con)


def test_a_transport_asks_for_64_kib(dsn, run, loop_factory):
    """asyncio's alone has such a limit, and a large result still comes whole."""
    is_asyncio = loop_factory.__module__.startswith("asyncio")
    assert run(size_on_a_lease(dsn)) == ({"transport": READ_BYTES} if is_asyncio else {})


def test_so_does_the_part_that_decrypts(run, loop_factory):
    """Over TLS the transport reads into one buffer that stays; what is decrypted is read into a new one each time."""
    with servers.tls_server(servers.postgresql(17)) as server:
        found = run(size_on_a_lease(server.dsn, ssl=server.ssl_context))
    if loop_factory.__module__.startswith("asyncio"):
        assert found == {"tls": READ_BYTES}


def test_a_size_that_is_not_asyncios_own_stays(dsn):
    """A transport that somebody has set, or a later Python's, is left alone."""

    async def connect(*args, **kwargs):
        con = await asyncpg.connect(*args, **kwargs)
        con._transport.max_size = 12_345
        return con

    assert asyncio.run(size_on_a_lease(dsn, connect=connect)) == {"transport": 12_345}


@pytest.mark.skipif(sys.platform != "linux", reason="page faults are those of Linux and glibc")
def test_a_query_costs_no_page_fault(dsn):
    """Where each buffer of 256 KiB is mapped anew, as in a heap without a free hole of that size."""
    told = subprocess.run(
        [sys.executable, "-c", COUNT_FAULTS, dsn], capture_output=True, text=True, timeout=60, check=True
    )
    theirs, own = map(float, told.stdout.split())
    assert theirs > 1
    assert own < 0.1
