"""RQ jobs that query PostgreSQL by one async engine of SQLAlchemy's."""

import asyncio
import os

from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import AsyncSession

from loopaware_pool.sqlalchemy import create_async_engine

engine = create_async_engine(make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+asyncpg"))


async def square_of(number: int) -> int:
    async with AsyncSession(engine) as session:
        return await session.scalar(text("SELECT CAST(:number AS int) * CAST(:number AS int)"), {"number": number})


def square(number: int) -> int:
    return asyncio.run(square_of(number))
