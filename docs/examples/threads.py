"""Threads with an event loop each, on one pool of asyncpg's flavour."""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor

from loopaware_pool import create_pool

pool = create_pool(os.environ["DATABASE_URL"], min_size=0, max_size=4)


async def sum_of_squares(limit: int) -> int:
    await pool
    squares = (pool.fetchval("SELECT $1::int * $1::int", number) for number in range(1, limit + 1))
    return sum(await asyncio.gather(*squares))


def work(limit: int) -> int:
    return asyncio.run(sum_of_squares(limit))


if __name__ == "__main__":
    with ThreadPoolExecutor(max_workers=3) as threads:
        print(list(threads.map(work, [10, 20, 30, 40, 50, 60])))
    print(work(70))  # in the main thread, on one more loop
