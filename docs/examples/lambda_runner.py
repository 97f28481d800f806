"""An AWS Lambda function that keeps its loop and its connections from one event to the next."""

import asyncio
import os
from typing import Any

from loopaware_pool import create_pool

runner = asyncio.Runner()
pool = create_pool(os.environ["DATABASE_URL"], min_size=0, max_size=1)


async def ask_for_backend() -> int:
    await pool
    return await pool.fetchval("SELECT pg_backend_pid()", timeout=5)


def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    return {"statusCode": 200, "body": runner.run(ask_for_backend())}
