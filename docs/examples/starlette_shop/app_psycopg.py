"""The same with psycopg."""

import os

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from loopaware_pool.psycopg import AsyncConnectionPool

pool = AsyncConnectionPool(os.environ["DATABASE_URL"], min_size=0, max_size=5, name="shop", open=False)


async def double(request: Request) -> JSONResponse:
    await pool.open()  # the first call opens it
    async with pool.connection() as connection:
        cursor = await connection.execute("SELECT %s::int * 2", [request.path_params["number"]])
        return JSONResponse((await cursor.fetchone() or [None])[0])


app = Starlette(routes=[Route("/double/{number:int}", double)])
