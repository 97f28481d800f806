"""Starlette with a pool that the module makes: it serves whichever loop a request comes on."""

import os

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from loopaware_pool import create_pool

pool = create_pool(os.environ["DATABASE_URL"], min_size=0, max_size=5, name="shop")


async def double(request: Request) -> JSONResponse:
    async with (await pool).acquire() as connection:  # the first `await pool` opens it
        return JSONResponse(await connection.fetchval("SELECT $1::int * 2", request.path_params["number"]))


app = Starlette(routes=[Route("/double/{number:int}", double)])
