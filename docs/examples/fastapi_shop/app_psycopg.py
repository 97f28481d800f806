"""FastAPI with psycopg: one pool in each worker, a connection for each request that asks."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from disconnect import ends_with_client
from fastapi import Depends, FastAPI, Request
from psycopg import AsyncConnection

from loopaware_pool.psycopg import AsyncConnectionPool

pool = AsyncConnectionPool(os.environ["DATABASE_URL"], min_size=1, max_size=5, name="shop", open=False)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with pool:
        yield


async def lend() -> AsyncIterator[AsyncConnection]:
    async with pool.connection() as connection:
        yield connection


Connection = Annotated[AsyncConnection, Depends(lend, scope="function")]
app = FastAPI(lifespan=lifespan)


@app.get("/double/{number}")
async def double(number: int, connection: Connection) -> int | None:
    cursor = await connection.execute("SELECT %s::int * 2", [number])
    row = await cursor.fetchone()
    return row[0] if row else None


@app.get("/slow")
async def slow(seconds: float, request: Request) -> str:
    async with ends_with_client(request), pool.connection() as connection:
        await connection.execute("SELECT pg_sleep(%s)", [seconds])
    return "done"
