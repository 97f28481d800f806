"""
taskiq-postgres: a task is kicked, and a receiver runs it. The broker and its results make pools of asyncpg's.

With "workers", two worker processes of taskiq's own run the task.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys

from taskiq import TaskiqResultTimeoutError
from taskiq.api import run_receiver_task
from taskiq_pg.asyncpg import AsyncpgBroker, AsyncpgResultBackend

dsn = os.environ["DSN"]
broker = AsyncpgBroker(dsn).with_result_backend(AsyncpgResultBackend(dsn))


@broker.task("add")
async def add(a, b):
    return a + b


async def main():
    broker.is_worker_process = True
    await broker.startup()
    receiver = asyncio.create_task(run_receiver_task(broker))
    await asyncio.sleep(0)
    task = await add.kiq(1, 2)
    print("add", (await task.wait_result(timeout=10)).return_value)
    receiver.cancel()
    await asyncio.gather(receiver, return_exceptions=True)
    await broker.shutdown()


async def ask_workers():
    await broker.startup()
    while True:  # until a worker listens
        task = await add.kiq(1, 2)
        try:
            print("add", (await task.wait_result(timeout=1)).return_value)
            break
        except TaskiqResultTimeoutError:
            continue
    await broker.shutdown()


def with_workers():
    here = os.path.dirname(os.path.abspath(__file__))
    command = [sys.executable, "-m", "taskiq", "worker", "with_taskiq:broker", "--workers", "2"]
    with subprocess.Popen(command, cwd=here) as workers:
        asyncio.run(ask_workers())
        workers.send_signal(signal.SIGINT)


async def start():
    await broker.startup()


async def kick(number):
    task = await add.kiq(number, 2)
    print("kicked", number, await task.is_ready())


if __name__ == "__main__":
    if sys.argv[1:] == ["loops"]:
        asyncio.run(start())
        for number in (1, 2, 3):
            asyncio.run(kick(number))
    elif sys.argv[1:] == ["workers"]:
        with_workers()
    else:
        asyncio.run(main())
