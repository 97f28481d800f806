"""Threads with an event loop each, on one async engine of SQLAlchemy's."""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import AsyncSession

from loopaware_pool.sqlalchemy import create_async_engine

url = make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+asyncpg")
engine = create_async_engine(url, pool_size=4, max_overflow=0)


async def square(number: int) -> int:
    async with AsyncSession(engine) as session:
        return await session.scalar(text("SELECT CAST(:number AS int) * CAST(:number AS int)"), {"number": number})


async def sum_of_squares(limit: int) -> int:
    return sum(await asyncio.gather(*map(square, range(1, limit + 1))))


def work(limit: int) -> int:
    return asyncio.run(sum_of_squares(limit))


if __name__ == "__main__":
    with ThreadPoolExecutor(max_workers=3) as threads:
        print(list(threads.map(work, [10, 20, 30, 40, 50, 60])))
    print(work(70))  # in the main thread, on one more loop
