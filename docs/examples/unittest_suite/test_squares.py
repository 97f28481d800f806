"""A suite of unittest: each test runs on a loop of its own, and all share the pool of the module."""

import asyncio
import os
import unittest

from loopaware_pool import create_pool
from loopaware_pool.audit import assert_zero_fd_delta

pool = create_pool(os.environ["DATABASE_URL"], min_size=0, max_size=4)


class SquaresTest(unittest.IsolatedAsyncioTestCase):
    @classmethod
    def setUpClass(cls) -> None:
        cls.enterClassContext(assert_zero_fd_delta())  # the loop of each test has ended by then

    async def asyncSetUp(self) -> None:
        await pool

    async def test_a_number_is_squared(self) -> None:
        self.assertEqual(await pool.fetchval("SELECT $1::int * $1::int", 7), 49)

    async def test_many_numbers_are_squared_at_once(self) -> None:
        squares = (pool.fetchval("SELECT $1::int * $1::int", number) for number in range(20))
        self.assertEqual(await asyncio.gather(*squares), [number**2 for number in range(20)])


if __name__ == "__main__":
    unittest.main()
