"""FastAPI: one pool in each worker, opened and closed by the lifespan; each request that asks gets a connection."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from asyncpg.pool import PoolConnectionProxy
from fastapi import Depends, FastAPI

from loopaware_pool import create_pool

pool = create_pool(os.environ["DATABASE_URL"], min_size=1, max_size=5, name="shop")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with pool:
        yield


async def lend() -> AsyncIterator[PoolConnectionProxy]:
    async with pool.acquire() as connection:
        yield connection


Connection = Annotated[PoolConnectionProxy, Depends(lend, scope="function")]
app = FastAPI(lifespan=lifespan)


@app.get("/double/{number}")
async def double(number: int, connection: Connection) -> int:
    doubled: int = await connection.fetchval("SELECT $1::int * 2", number)
    return doubled


@app.get("/slow")
async def slow(seconds: float, connection: Connection) -> str:
    await connection.execute("SELECT pg_sleep($1)", seconds)
    return "done"
