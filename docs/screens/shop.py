"""A shop whose pool is too small for a sale, and `top` looking at it: what `docs/screens/top.svg` shows."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import threading
from contextlib import chdir, suppress
from typing import TYPE_CHECKING

from loopaware_pool import create_pool
from loopaware_pool.live import serve_live
from loopaware_pool.testing.embedded_server import EmbeddedServer

if TYPE_CHECKING:
    from loopaware_pool.asyncpg import Pool

SALE_SECONDS = 6.0


async def checkout(pool: Pool) -> None:
    while True:
        async with pool.acquire() as connection:
            await connection.fetchval("SELECT pg_sleep(0.004)")


async def nightly_report(pool: Pool) -> None:
    async with pool.acquire() as connection:
        await connection.fetchval("SELECT pg_sleep(600)")


async def sell(pool: Pool, customers: int) -> None:
    await pool
    async with asyncio.TaskGroup() as group:
        group.create_task(nightly_report(pool), name="nightly report")
        await asyncio.sleep(0.5)
        for number in range(customers):
            group.create_task(checkout(pool), name=f"customer {number}")


async def watch(pool: Pool) -> None:
    selling = asyncio.create_task(sell(pool, customers=7))
    await asyncio.sleep(3)
    with tempfile.TemporaryDirectory() as folder, chdir(folder), serve_live(pool, "shop.sock") as view:
        top = [sys.executable, "-m", "loopaware_pool", "top", view.address, "--once"]
        await asyncio.to_thread(subprocess.run, top, check=True)
    selling.cancel()


def run_back_office(pool: Pool) -> None:
    with suppress(TimeoutError):
        asyncio.run(asyncio.wait_for(sell(pool, customers=2), SALE_SECONDS))


with EmbeddedServer() as server:
    pool = create_pool(server.dsn, name="shop", min_size=0, max_size=5)
    back_office = threading.Thread(target=run_back_office, args=[pool], name="back office")
    back_office.start()
    asyncio.run(watch(pool))
    back_office.join()
