"""FastAPI: a query ends when the client that asked for it goes away."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse

from loopaware_pool import create_pool

pool = create_pool(os.environ["DATABASE_URL"], min_size=1, max_size=2, name="reports")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with pool:
        yield


app = FastAPI(lifespan=lifespan)


@asynccontextmanager
async def ends_with_client(request: Request) -> AsyncIterator[None]:
    """Cancel the block when the client goes away. Starlette does that for streamed responses only."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        yield
        group.cancel_scope.cancel()


@app.get("/slow")
async def slow(seconds: float, request: Request) -> Response:
    answer = None  # for a client that has gone: nobody reads it
    async with ends_with_client(request), pool.acquire() as connection:
        answer = await connection.fetchval("SELECT 'done' FROM pg_sleep($1)", seconds)
    return Response(answer)


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
