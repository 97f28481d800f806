"""FastAPI: a query, or a stream of rows, ends when the client that asked for it goes away."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from disconnect import ends_with_client
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from loopaware_pool import create_pool

pool = create_pool(os.environ["DATABASE_URL"], min_size=1, max_size=2, name="reports")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with pool:
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/slow")
async def slow(seconds: float, request: Request) -> str:
    async with ends_with_client(request), pool.acquire() as connection:
        await connection.execute("SELECT pg_sleep($1)", seconds)
    return "done"


@app.get("/numbers")
async def numbers(count: int) -> StreamingResponse:
    async def lines() -> AsyncIterator[str]:
        async with pool.acquire() as connection, connection.transaction():
            async for row in connection.cursor("SELECT generate_series(1, $1::int)", count):
                yield f"{row[0]}\n"

    return StreamingResponse(lines(), media_type="text/plain")


@app.get("/pool")
async def connections() -> dict[str, int]:
    return {"open": pool.get_size(), "idle": pool.get_idle_size()}
