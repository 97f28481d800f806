"""An AWS Lambda function that queries PostgreSQL, in an `asyncio.run` of its own for each event."""

import asyncio
import os
from typing import Any

from loopaware_pool import create_pool

pool = create_pool(os.environ["DATABASE_URL"], min_size=0, max_size=2)


async def sum_of_squares(limit: int) -> int:
    await pool
    squares = (pool.fetchval("SELECT $1::int * $1::int", number) for number in range(1, limit + 1))
    return sum(await asyncio.gather(*squares))


def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    return {"statusCode": 200, "body": asyncio.run(sum_of_squares(event["limit"]))}
