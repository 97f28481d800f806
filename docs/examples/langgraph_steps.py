"""langgraph's checkpoints on our pool: each line of the input names a thread, and takes it a step further."""

import asyncio
import os
import sys

import loopaware_pool

loopaware_pool.install()  # before psycopg_pool is imported, here and in langgraph

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

pool = AsyncConnectionPool(
    os.environ["DATABASE_URL"],
    kwargs={"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row},
    check=AsyncConnectionPool.check_connection,
    min_size=1,
    max_size=4,
    timeout=5,
    open=False,
)


async def prepare() -> None:
    await pool.open()
    await AsyncPostgresSaver(pool).setup()


async def take_step(thread: str) -> int:
    saver = AsyncPostgresSaver(pool)
    config: RunnableConfig = {"configurable": {"thread_id": thread, "checkpoint_ns": ""}}
    last = await saver.aget_tuple(config)
    step = last.metadata["step"] + 1 if last else 1
    await saver.aput(config, empty_checkpoint(), {"source": "loop", "step": step, "parents": {}}, {})
    return step


if __name__ == "__main__":
    asyncio.run(prepare())
    print("ready", flush=True)
    for line in sys.stdin:
        print(asyncio.run(take_step(line.strip())), flush=True)
