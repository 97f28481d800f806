"""A suite of pytest-asyncio: each test runs on a loop of its own, and all share the pool of the session."""

import asyncio
import os
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from loopaware_pool import create_pool
from loopaware_pool.asyncpg import Pool

pytestmark = [pytest.mark.asyncio, pytest.mark.zero_fd_delta]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def pool() -> AsyncIterator[Pool]:
    async with create_pool(os.environ["DATABASE_URL"], min_size=1, max_size=4) as pool:
        yield pool


@pytest.mark.parametrize("number", range(1, 7))
async def test_a_number_is_squared(pool: Pool, number: int) -> None:
    assert await pool.fetchval("SELECT $1::int * $1::int", number) == number**2


async def test_many_numbers_are_squared_at_once(pool: Pool) -> None:
    squares = (pool.fetchval("SELECT $1::int * $1::int", number) for number in range(20))
    assert await asyncio.gather(*squares) == [number**2 for number in range(20)]
