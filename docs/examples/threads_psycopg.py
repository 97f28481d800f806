"""Threads with an event loop each, on one pool of psycopg's flavour."""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor

from loopaware_pool.psycopg import AsyncConnectionPool

pool = AsyncConnectionPool(os.environ["DATABASE_URL"], min_size=0, max_size=4, timeout=5, open=False)


async def square(number: int) -> int:
    async with pool.connection() as connection:
        cursor = await connection.execute("SELECT %s::int * %s::int", [number, number])
        return (await cursor.fetchone())[0]


async def sum_of_squares(limit: int) -> int:
    await pool.open()
    return sum(await asyncio.gather(*map(square, range(1, limit + 1))))


def work(limit: int) -> int:
    return asyncio.run(sum_of_squares(limit))


if __name__ == "__main__":
    with ThreadPoolExecutor(max_workers=3) as threads:
        print(list(threads.map(work, [10, 20, 30, 40, 50, 60])))
    print(work(70))  # in the main thread, on one more loop
