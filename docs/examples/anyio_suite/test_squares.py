"""A suite of anyio's plugin for pytest, on asyncio and on uvloop: all tests share the pool of the module."""

import os

import anyio
import pytest

from loopaware_pool import create_pool

pytestmark = [pytest.mark.anyio, pytest.mark.zero_fd_delta]
pool = create_pool(os.environ["DATABASE_URL"], min_size=0, max_size=4)


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param}


async def square(number: int) -> int:
    await pool
    return await pool.fetchval("SELECT $1::int * $1::int", number)


@pytest.mark.parametrize("number", range(1, 4))
async def test_a_number_is_squared(number: int) -> None:
    assert await square(number) == number**2


async def test_many_numbers_are_squared_at_once() -> None:
    squares: list[int] = []

    async def keep_square(number: int) -> None:
        squares.append(await square(number))

    async with anyio.create_task_group() as group:
        for number in range(20):
            group.start_soon(keep_square, number)
    assert sorted(squares) == [number**2 for number in range(20)]
