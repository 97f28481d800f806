"""An AWS Lambda function that queries PostgreSQL by an async engine of SQLAlchemy's."""

import asyncio
import os
from typing import Any

from sqlalchemy import make_url, text

from loopaware_pool.sqlalchemy import create_async_engine

engine = create_async_engine(make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+asyncpg"), pool_size=2)


async def square(number: int) -> int:
    async with engine.connect() as connection:
        return await connection.scalar(text("SELECT CAST(:number AS int) * :number"), {"number": number})


def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    return {"statusCode": 200, "body": asyncio.run(square(event["number"]))}
