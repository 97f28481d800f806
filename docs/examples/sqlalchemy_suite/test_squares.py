"""A suite of pytest-asyncio, with SQLAlchemy: all tests share one engine, without `NullPool`."""

import os

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import AsyncSession

from loopaware_pool.sqlalchemy import create_async_engine

pytestmark = [pytest.mark.asyncio, pytest.mark.zero_fd_delta]
engine = create_async_engine(make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+asyncpg"))


@pytest.mark.parametrize("number", range(1, 7))
async def test_a_number_is_squared(number: int) -> None:
    async with AsyncSession(engine) as session:
        square = text("SELECT CAST(:number AS int) * CAST(:number AS int)")
        assert await session.scalar(square, {"number": number}) == number**2
