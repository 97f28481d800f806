"""RQ: real workers run the jobs of docs/examples, forked for each job or not; the broker is a real Redis."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from examples.processes import connections_to, fds_of, processes_of
from examples.program import EXAMPLES, copy_with, run, sessions_in, started, until
from examples.redis_server import redis_server

pytestmark = pytest.mark.examples

TO_ASYNCPG = {"from loopaware_pool import create_pool": "from asyncpg import create_pool"}
TO_SQLALCHEMY = {"from loopaware_pool.sqlalchemy import": "from sqlalchemy.ext.asyncio import"}
FORKING = ["rq_worker.py"]
COMMAND = ["-m", "rq.cli", "worker", "--worker-class"]
IN_ONE_PROCESS = [*COMMAND, "rq.SimpleWorker"]


@pytest.fixture
def redis_url():
    with redis_server() as url:
        yield url


@pytest.fixture
def at_work(database_url, redis_url, tmp_path):
    """Start a worker on copies of the programs; gives its process, and what sends jobs to it."""

    @contextmanager
    def at_work(name, worker, changes=None):
        from redis import Redis
        from rq import Queue

        copy_with(EXAMPLES / f"{name}.py", tmp_path, changes or {})
        copy_with(EXAMPLES / "rq_worker.py", tmp_path, {})
        environment = {"DATABASE_URL": database_url, "REDIS_URL": redis_url, "RQ_REDIS_URL": redis_url}
        with (
            started(*worker, folder=tmp_path, PYTHONPATH=tmp_path, **environment) as process,
            Redis.from_url(redis_url) as redis,
        ):
            process.wait_until_written("Listening on default")
            yield process, Sender(Queue(connection=redis), name)

    return at_work


class Sender:
    """Sends jobs by name, as a program that does not import them."""

    def __init__(self, queue, module):
        self._queue, self._module = queue, module

    def send(self, function, *arguments, times=1):
        """Send a job so many times; the result of each, in their order, or the end of its traceback."""
        jobs = [self._queue.enqueue(f"{self._module}.{function}", *arguments) for _ in range(times)]
        return [self._outcome(job) for job in jobs]

    @staticmethod
    def _outcome(job):
        until(lambda: job.get_status() in ("finished", "failed"), lambda: f"the job is {job.get_status()}")
        result = job.latest_result()
        return result.exc_string.strip().splitlines()[-1] if result.exc_string else result.return_value


@pytest.mark.parametrize("worker", [FORKING, [*COMMAND, "rq.Worker"], IN_ONE_PROCESS], ids=["own", "forks", "simple"])
def test_jobs_run_on_one_pool_each_in_a_loop_of_its_own(at_work, database_url, worker):
    """Forked for each job or not, imported before the fork or not; after a job nothing is left of it."""
    with at_work("rq_jobs", worker) as (process, sender):
        assert sender.send("squares", 10, times=2) == [385] * 2
        until(lambda: len(processes_of(process)) == 1, lambda: "the fork of a job is left")
        before = fds_of(processes_of(process))
        assert sender.send("squares", 10, times=6) == [385] * 6
        until(lambda: not sessions_in(database_url), lambda: f"sessions are left:\n{process.output()}")
        until(lambda: fds_of(processes_of(process)) == before, lambda: f"fds are left: {before}")
        assert connections_to(database_url, processes_of(process)) == []
        process.ask_to_stop()
        assert process.ended() == 0
        assert "Traceback" not in process.output()


@pytest.mark.parametrize("worker", [[*COMMAND, "rq.Worker"], IN_ONE_PROCESS], ids=["forks", "simple"])
def test_on_asyncpgs_pool_every_job_fails(at_work, worker):
    """It belongs to the loop that was current when the module was imported, and none of `asyncio.run` is that."""
    with at_work("rq_jobs", worker, changes=TO_ASYNCPG) as (_, sender):
        failed = sender.send("squares", 1, times=2)
        assert all("different loop" in line or "different event loop" in line for line in failed)


def test_on_asyncpgs_pool_a_worker_cannot_ask_the_database_first(database_url, tmp_path):
    """It ends before it has connected to the broker."""
    copy_with(EXAMPLES / "rq_jobs.py", tmp_path, TO_ASYNCPG)
    copy_with(EXAMPLES / "rq_worker.py", tmp_path, {})
    code, output = run("rq_worker.py", folder=tmp_path, DATABASE_URL=database_url, REDIS_URL="redis://127.0.0.1:1")
    assert code == 1
    assert "attached to a different loop" in output


def test_an_engine_serves_all_jobs(at_work, database_url):
    """In one process, where SQLAlchemy's pool would lend the connection of a loop that has ended."""
    with at_work("rq_sqlalchemy", IN_ONE_PROCESS) as (process, sender):
        assert sender.send("square", 7, times=4) == [49] * 4
        until(lambda: not sessions_in(database_url), lambda: f"sessions are left:\n{process.output()}")
        process.ask_to_stop()
        assert process.ended() == 0


def test_on_sqlalchemys_pool_the_second_job_of_a_process_fails(at_work):
    """It is given the connection that the first one has opened on its loop."""
    with at_work("rq_sqlalchemy", IN_ONE_PROCESS, changes=TO_SQLALCHEMY) as (_, sender):
        first, second = sender.send("square", 7, times=2)
        assert first == 49
        assert "attached to a different loop" in second or "Event loop is closed" in second
