"""procrastinate on our pool: each line of the input is a job, in an `asyncio.run` of its own."""

import asyncio
import os
import sys

import loopaware_pool

loopaware_pool.install()  # before procrastinate is imported

import procrastinate

connector = procrastinate.PsycopgConnector(conninfo=os.environ["DATABASE_URL"], min_size=1, max_size=4, timeout=5)
app = procrastinate.App(connector=connector)


@app.task
def add(a: int, b: int) -> None:
    print(a + b, flush=True)


async def prepare() -> None:
    await app.open_async()
    await app.schema_manager.apply_schema_async()


async def defer_and_work(a: int, b: int) -> None:
    await add.defer_async(a=a, b=b)
    await app.run_worker_async(wait=False, install_signal_handlers=False, listen_notify=False)


if __name__ == "__main__":
    asyncio.run(prepare())
    print("ready", flush=True)
    for line in sys.stdin:
        a, b = map(int, line.split())
        asyncio.run(defer_and_work(a, b))
