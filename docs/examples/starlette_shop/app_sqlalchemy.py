"""The same with SQLAlchemy's async engine on our pool."""

import os

from sqlalchemy import literal, make_url, select
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from loopaware_pool.sqlalchemy import create_async_engine

url = make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+asyncpg")
engine = create_async_engine(url, pool_size=5, max_overflow=0, name="shop")


async def double(request: Request) -> JSONResponse:
    async with engine.connect() as connection:
        return JSONResponse(await connection.scalar(select(literal(request.path_params["number"]) * 2)))


app = Starlette(routes=[Route("/double/{number:int}", double)])
