"""procrastinate: a task is deferred, and a worker runs it. Its connector makes a pool of psycopg_pool's."""

from __future__ import annotations

import asyncio
import os
import sys

import procrastinate
from restart import end_sessions

# The timeout is for the program as it is: the default of 30 seconds is long to wait for an error.
app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=os.environ["DSN"], timeout=3))


@app.task(name="add")
def add(a, b):
    print("add", a + b)


async def prepare():
    await app.schema_manager.apply_schema_async()


async def defer_and_work(number):
    await add.defer_async(a=number, b=2)
    await app.run_worker_async(wait=False, install_signal_handlers=False, listen_notify=False)


async def main():
    async with app.open_async():
        await prepare()
        await defer_and_work(1)


async def each_in_a_loop_of_its_own(number):
    await app.open_async()  # does nothing when the app is open
    await defer_and_work(number)


if __name__ == "__main__":
    if sys.argv[1:] == ["loops"]:
        asyncio.run(main())
        for number in (1, 2, 3):
            asyncio.run(each_in_a_loop_of_its_own(number))
            end_sessions()
    else:
        asyncio.run(main())
