"""FastAPI with SQLAlchemy's async engine on our pool: a session for each request that asks."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from disconnect import ends_with_client
from fastapi import Depends, FastAPI, Request
from sqlalchemy import func, literal, make_url, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from loopaware_pool.sqlalchemy import create_async_engine

url = make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+asyncpg")
engine = create_async_engine(url, pool_size=5, max_overflow=0, name="shop")
new_session = async_sessionmaker(engine, expire_on_commit=False)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    await engine.dispose()


async def begin() -> AsyncIterator[AsyncSession]:
    async with new_session.begin() as session:
        yield session


Session = Annotated[AsyncSession, Depends(begin, scope="function")]
app = FastAPI(lifespan=lifespan)


@app.get("/double/{number}")
async def double(number: int, session: Session) -> int:
    return (await session.scalars(select(literal(number) * 2))).one()


@app.get("/slow")
async def slow(seconds: float, request: Request) -> str:
    async with ends_with_client(request), new_session.begin() as session:
        await session.execute(select(func.pg_sleep(seconds)))
    return "done"
