"""RQ jobs that query PostgreSQL, each in an `asyncio.run` of its own."""

import asyncio
import os

from loopaware_pool import create_pool

pool = create_pool(os.environ["DATABASE_URL"], min_size=0, max_size=4)


async def sum_of_squares(limit: int) -> int:
    await pool
    squares = (pool.fetchval("SELECT $1::int * $1::int", number) for number in range(1, limit + 1))
    return sum(await asyncio.gather(*squares))


def squares(limit: int) -> int:
    return asyncio.run(sum_of_squares(limit))
