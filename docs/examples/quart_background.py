"""Quart: requests answer at once, and background tasks do the work, on the server's loop or on one of their own."""

import asyncio
import os
from collections.abc import AsyncGenerator

from quart import Quart

from loopaware_pool import create_pool

app = Quart(__name__)
pool = create_pool(os.environ["DATABASE_URL"], min_size=1, max_size=5, name="orders")


@app.while_serving
async def lifespan() -> AsyncGenerator[None, None]:
    async with pool:
        yield


async def ship(number: int) -> None:
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("UPDATE orders SET shipped = true WHERE number = $1", number)
        await connection.execute("SELECT pg_sleep(0.5)")


def ship_from_a_thread(number: int) -> None:
    """What is not a coroutine function runs in a thread. This one calls async code, on a loop of its own."""
    asyncio.run(ship(number))


@app.post("/orders/<int:number>")
async def order(number: int) -> tuple[dict[str, int], int]:
    await pool.execute("INSERT INTO orders VALUES ($1, false)", number)
    app.add_background_task(ship if number % 2 else ship_from_a_thread, number)
    return {"order": number}, 202
