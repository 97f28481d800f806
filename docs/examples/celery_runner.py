"""Celery tasks on one event loop for each worker process, which keeps its connections from task to task."""

import asyncio
import os

from celery import Celery
from celery.signals import worker_process_init, worker_process_shutdown

from loopaware_pool import create_pool

app = Celery("celery_runner", broker=os.environ["REDIS_URL"], backend=os.environ["REDIS_URL"])
pool = create_pool(os.environ["DATABASE_URL"], min_size=0, max_size=1)
runner = asyncio.Runner()  # makes its loop at the first run, and that is after the fork


async def open_pool() -> None:
    await pool


@worker_process_init.connect
def start(**_: object) -> None:
    runner.run(open_pool())


@worker_process_shutdown.connect
def stop(**_: object) -> None:
    runner.run(pool.close())
    runner.close()


async def ask_for_backend() -> int:
    return await pool.fetchval("SELECT pg_backend_pid()")


@app.task
def backend() -> tuple[int, int]:
    return os.getpid(), runner.run(ask_for_backend())
