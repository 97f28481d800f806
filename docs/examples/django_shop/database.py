"""The pool of the process: views of either kind use it, on whichever loop and thread they run."""

import os

from loopaware_pool import create_pool

pool = create_pool(os.environ["DATABASE_URL"], min_size=0, max_size=5, name="shop")


async def double(number: int) -> int:
    async with (await pool).acquire() as connection:  # the first `await pool` opens it
        doubled: int = await connection.fetchval("SELECT $1::int * 2", number)
        return doubled


async def sleep(seconds: float) -> None:
    async with (await pool).acquire() as connection:
        await connection.execute("SELECT pg_sleep($1)", seconds)
