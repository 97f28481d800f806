"""Celery: real workers, which fork, run the tasks of docs/examples; the broker is a real Redis."""

from __future__ import annotations

from contextlib import contextmanager

import psutil
import pytest

from examples.processes import connections_to, fds_of, processes_of
from examples.program import EXAMPLES, copy_with, sessions_in, started, until
from examples.redis_server import redis_server

pytestmark = pytest.mark.examples

TO_ASYNCPG = {"from loopaware_pool import create_pool": "from asyncpg import create_pool"}
TO_SQLALCHEMY = {"from loopaware_pool.sqlalchemy import": "from sqlalchemy.ext.asyncio import"}
# The pool is made in each process, on the loop that it will be used on.
MADE_ON_THE_LOOP = {
    "pool = create_pool(": "make_pool = lambda: create_pool(",
    "    await pool\n": "    global pool\n    pool = await make_pool()\n",
}
SECONDS = 60
# What somebody adds to a module of tasks who wants the pool to be warm when the worker starts.
WARM_UP = """
loop = asyncio.new_event_loop()
loop.run_until_complete(sum_of_squares(1))
print("warm in", os.getpid(), flush=True)
"""

# Keeps a process busy until as many run at once as there are, so that each of them gets one.
BUSY = """
@app.task
def busy(number, at_once):
    import pathlib, time
    pathlib.Path(f"busy-{number}").touch()
    while len(list(pathlib.Path().glob("busy-*"))) < at_once:
        time.sleep(0.01)
    return asyncio.run(sum_of_squares(2))
"""
# Tells that `stop` has run: both are called when a process ends, in their order.
TELL = """
@worker_process_shutdown.connect
def tell(**_):
    os.write(1, f"closed: {pool.is_closing()}\\n".encode())  # what is printed, Celery takes apart
"""
SLOW = """
@app.task
def slow():
    return runner.run(wait_in_the_server())


async def wait_in_the_server():
    print("in the server", flush=True)
    return await pool.fetchval("SELECT 'done' FROM pg_sleep(1)")
"""


@pytest.fixture
def redis_url():
    with redis_server() as url:
        yield url


@pytest.fixture
def at_work(database_url, redis_url, tmp_path):
    """Start a worker on a copy of a program; gives its process, and what sends tasks to it."""

    @contextmanager
    def at_work(name, *options, changes=None, appended=""):
        from celery import Celery

        program = copy_with(EXAMPLES / f"{name}.py", tmp_path, changes or {})
        program.write_text(program.read_text() + appended)
        arguments = ["-m", "celery", "-A", name, "worker", "--loglevel=INFO", "--concurrency=2", *options]
        environment = {"DATABASE_URL": database_url, "REDIS_URL": redis_url}
        with started(*arguments, folder=tmp_path, **environment) as worker, Celery(broker=redis_url) as client:
            client.conf.result_backend = redis_url
            worker.wait_until_written("ready.")
            yield worker, Sender(client, name)

    return at_work


class Sender:
    """Sends tasks by name, as a program that does not import them."""

    def __init__(self, client, module):
        self._client, self._module = client, module

    def send(self, task, *arguments, times=1):
        """Send a task so many times; what became of each, in their order."""
        sent = [self.start(task, *arguments) for _ in range(times)]
        return [result.get(timeout=SECONDS, propagate=False) for result in sent]

    def start(self, task, *arguments):
        """Send it, and wait for nothing."""
        return self._client.send_task(f"{self._module}.{task}", arguments)


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_tasks_run_on_one_pool_each_in_a_loop_of_its_own(at_work, database_url, pool):
    """In forked processes as in threads; between tasks no connection is open, and no fd is left at the end."""
    with at_work("celery_tasks", "--pool", pool, appended=BUSY) as (worker, sender):
        sent = [sender.start("busy", number, 1 if pool == "solo" else 2) for number in range(2)]
        assert [result.get(timeout=SECONDS) for result in sent] == [5] * 2
        before = fds_of(processes_of(worker))
        assert sender.send("squares", 10, times=20) == [385] * 20
        until(lambda: not sessions_in(database_url), lambda: f"sessions are left:\n{worker.output()}")
        until(lambda: fds_of(processes_of(worker)) == before, lambda: f"fds are left: {before}")
        until(lambda: not connections_to(database_url, processes_of(worker)), lambda: "connections are left")
        worker.ask_to_stop()
        assert worker.ended() == 0
        assert "Traceback" not in worker.output()


def test_on_asyncpgs_pool_every_task_fails(at_work):
    """It belongs to the loop that was current when the module was imported, and none of `asyncio.run` is that."""
    with at_work("celery_tasks", changes=TO_ASYNCPG) as (_, sender):
        failed = sender.send("squares", 10, times=4)
        assert [type(error) for error in failed] == [RuntimeError] * 4
        assert all("different loop" in str(error) or "different event loop" in str(error) for error in failed)


def test_connections_opened_before_the_fork_stay_the_parents(at_work, database_url):
    """The children open their own, and end neither the parent's sessions nor share them."""
    with at_work("celery_tasks", appended=WARM_UP) as (worker, sender):
        warm = sessions_in(database_url)
        assert warm == len(connections_to(database_url, [psutil.Process(worker.process.pid)])) > 0
        assert sender.send("squares", 10, times=20) == [385] * 20
        until(lambda: sessions_in(database_url) == warm, lambda: f"not the parent's alone:\n{worker.output()}")
        until(
            lambda: {pid for pid, _ in connections_to(database_url, processes_of(worker))} == {worker.process.pid},
            lambda: "children have connections",
        )


def test_on_asyncpgs_pool_a_kept_loop_does_not_help(at_work):
    """The pool was made when the module was imported, before there was that loop."""
    with at_work("celery_runner", changes=TO_ASYNCPG) as (_, sender):
        failed = sender.send("backend", times=4)
        assert all("different loop" in str(error) or "different event loop" in str(error) for error in failed)


@pytest.mark.parametrize("changes", [{}, TO_ASYNCPG | MADE_ON_THE_LOOP], ids=["ours", "asyncpgs-made-on-the-loop"])
def test_a_loop_for_each_process_keeps_its_connections(at_work, database_url, changes):
    """A process asks the same session at each of its tasks; on asyncpg's pool, if it is made on that loop."""
    with at_work("celery_runner", changes=changes) as (worker, sender):
        seen = {tuple(pair) for pair in sender.send("backend", times=20)}
        assert len(seen) == len({pid for pid, _ in seen}) == len({backend for _, backend in seen})
        worker.ask_to_stop()
        assert worker.ended() == 0
        assert "Traceback" not in worker.output()
    until(lambda: not sessions_in(database_url), lambda: "sessions are left")


def test_a_process_that_is_replaced_leaves_nothing(at_work, database_url):
    """Each process ends after three tasks, and closes its pool before."""
    with at_work("celery_runner", "--max-tasks-per-child", "3", appended=TELL) as (worker, sender):
        seen = {tuple(pair) for pair in sender.send("backend", times=12)}
        assert len({pid for pid, _ in seen}) >= 4
        until(
            lambda: sessions_in(database_url) == len(connections_to(database_url, processes_of(worker))) <= 2,
            lambda: f"more sessions than the processes have connections:\n{worker.output()}",
        )
        worker.ask_to_stop()
        assert worker.ended() == 0
        assert worker.output().count("closed: True") >= 4
    until(lambda: not sessions_in(database_url), lambda: "sessions are left")


def test_a_warm_shutdown_waits_for_the_task_that_runs(at_work, database_url):
    """What it asks the server for is answered, and then everything is closed."""
    with at_work("celery_runner", appended=SLOW + TELL) as (worker, sender):
        sent = sender.start("slow")
        worker.wait_until_written("in the server")
        worker.ask_to_stop()
        assert sent.get(timeout=SECONDS) == "done"
        assert worker.ended() == 0
        assert worker.output().count("closed: True") == 2
    until(lambda: not sessions_in(database_url), lambda: "sessions are left")


def test_an_engine_serves_all_tasks(at_work, database_url):
    """In forked processes; between tasks no connection is open."""
    with at_work("celery_sqlalchemy") as (worker, sender):
        assert sender.send("square", 7, times=20) == [49] * 20
        until(lambda: not sessions_in(database_url), lambda: f"sessions are left:\n{worker.output()}")
        until(lambda: not connections_to(database_url, processes_of(worker)), lambda: "connections are left")
        worker.ask_to_stop()
        assert worker.ended() == 0
        assert "Traceback" not in worker.output()


def test_on_sqlalchemys_pool_the_second_task_of_a_process_fails(at_work):
    """It is given the connection that the first one has opened on its loop."""
    with at_work("celery_sqlalchemy", "--concurrency=1", changes=TO_SQLALCHEMY) as (_, sender):
        first, second = sender.send("square", 7, times=2)
        assert first == 49
        assert "attached to a different loop" in str(second) or "Event loop is closed" in str(second)
