"""Celery tasks that query PostgreSQL, each in an `asyncio.run` of its own."""

import asyncio
import os

from celery import Celery

from loopaware_pool import create_pool

app = Celery("celery_tasks", broker=os.environ["REDIS_URL"], backend=os.environ["REDIS_URL"])
pool = create_pool(os.environ["DATABASE_URL"], min_size=0, max_size=4)


async def sum_of_squares(limit: int) -> int:
    await pool
    squares = (pool.fetchval("SELECT $1::int * $1::int", number) for number in range(1, limit + 1))
    return sum(await asyncio.gather(*squares))


@app.task
def squares(limit: int) -> int:
    return asyncio.run(sum_of_squares(limit))
