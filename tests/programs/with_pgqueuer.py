"""pgqueuer: jobs are enqueued, and a manager drains the queue. A helper of pgqueuer's makes a pool of asyncpg's."""

from __future__ import annotations

import asyncio
import os
import sys

import asyncpg
from pgqueuer import PgQueuer
from pgqueuer.adapters.connections import create_asyncpg_pool
from pgqueuer.db import AsyncpgPoolDriver
from pgqueuer.domain.types import QueueExecutionMode
from pgqueuer.queries import Queries

dsn = os.environ["DSN"]
made = asyncpg.create_pool(dsn, min_size=2)


async def main():
    async with create_asyncpg_pool(dsn) as pool:
        driver = AsyncpgPoolDriver(pool)
        await Queries(driver).install()
        manager = PgQueuer(driver)

        @manager.entrypoint("greet")
        async def greet(job):
            print("hello", job.payload.decode())

        await Queries(driver).enqueue(["greet"] * 2, [b"first", b"second"], [0, 0])
        await manager.qm.run(mode=QueueExecutionMode.drain)
        await driver.__aexit__()


async def start():
    await Queries.from_asyncpg_pool(await made).install()


async def enqueue(number):
    queries = Queries.from_asyncpg_pool(made)
    await queries.enqueue("greet", b"%d" % number)
    print("enqueued", number, [(each.entrypoint, each.count) for each in await queries.queue_size()])


if __name__ == "__main__":
    if sys.argv[1:] == ["loops"]:
        asyncio.run(start())
        for number in (1, 2, 3):
            asyncio.run(enqueue(number))
    else:
        asyncio.run(main())
