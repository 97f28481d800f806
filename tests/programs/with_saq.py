"""saq: a job is enqueued, and a worker runs it. The queue makes a pool of psycopg_pool's at import time."""

from __future__ import annotations

import asyncio
import os
import sys

from restart import end_sessions
from saq import Queue, Worker

queue = Queue.from_url(os.environ["DSN"])


async def add(_, *, a, b):
    return a + b


async def work(number):
    worker = Worker(queue, functions=[add], concurrency=2, dequeue_timeout=0.2)
    working = asyncio.create_task(worker.start())
    print("add", await queue.apply("add", a=number, b=2, timeout=5))
    await worker.stop()
    await working


async def main():
    await queue.connect()
    await work(1)
    await queue.disconnect()


async def enqueue(number):
    await queue.connect()  # does nothing when it is connected
    job = await queue.enqueue("add", a=number, b=2)
    print("enqueued", (await queue.job(job.key)).kwargs)


if __name__ == "__main__":
    if sys.argv[1:] == ["loops"]:
        queue.pool.timeout = 3  # for the program as it is: the default of 30 seconds is long to wait for an error
        for number in (1, 2, 3):
            asyncio.run(enqueue(number))
            end_sessions()
    else:
        asyncio.run(main())
