"""langgraph-checkpoint-postgres: a store that makes a pool of psycopg_pool's, and a checkpointer that is given one."""

from __future__ import annotations

import asyncio
import os
import sys

from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.store.postgres.aio import AsyncPostgresStore
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool
from restart import end_sessions

dsn = os.environ["DSN"]


def make_pool():
    options = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
    check = AsyncConnectionPool.check_connection
    return AsyncConnectionPool(dsn, kwargs=options, check=check, min_size=1, max_size=3, timeout=3, open=False)


async def checkpoint(saver, number):
    config = {"configurable": {"thread_id": f"thread {number}", "checkpoint_ns": ""}}
    await saver.aput(config, empty_checkpoint(), {"source": "input", "step": number, "parents": {}}, {})
    print("step", (await saver.aget_tuple(config)).metadata["step"])


async def main():
    async with make_pool() as pool:
        saver = AsyncPostgresSaver(pool)
        await saver.setup()
        await checkpoint(saver, 1)
    async with AsyncPostgresStore.from_conn_string(dsn, pool_config={"min_size": 1, "max_size": 3}) as store:
        await store.setup()
        await asyncio.gather(*(store.aput(("users", "1"), f"key {number}", {"n": number}) for number in range(5)))
        print((await store.aget(("users", "1"), "key 3")).value, len(await store.asearch(("users",))))


async def start(pool):
    await pool.open()
    await AsyncPostgresSaver(pool).setup()


async def again(pool, number):
    await checkpoint(AsyncPostgresSaver(pool), number)


if __name__ == "__main__":
    if sys.argv[1:] == ["loops"]:
        pool = make_pool()
        asyncio.run(start(pool))
        for number in (1, 2, 3):
            asyncio.run(again(pool, number))
            end_sessions()
    else:
        asyncio.run(main())
