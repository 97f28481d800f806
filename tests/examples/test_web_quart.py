"""Quart under hypercorn: background tasks, on the server's loop and in threads with loops of their own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from between import own_port
from examples.program import (
    EXAMPLES,
    POLITELY,
    Answer,
    copy_with,
    ended_sessions,
    get,
    running_queries,
    started,
    until,
)

pytestmark = pytest.mark.examples

ON_ASYNCPGS_POOL = {"from loopaware_pool import": "from asyncpg import", ', name="orders"': ""}
MADE_BY_THE_LIFESPAN = ON_ASYNCPGS_POOL | {
    "pool = create_pool(": "def make_pool():\n    return create_pool(",
    "    async with pool:\n": "    global pool\n    async with make_pool() as pool:\n",
}


@pytest.fixture
def orders(database_url):
    """The orders that are shipped, in order, when it is called."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE orders (number int, shipped bool)")

    def shipped():
        with psycopg.connect(database_url) as connection:
            return [n for (n,) in connection.execute("SELECT number FROM orders WHERE shipped ORDER BY number")]

    return shipped


def hypercorn(port, worker_class, **more):
    command = ["-m", "hypercorn", "--bind", f"127.0.0.1:{port}", "--worker-class", worker_class]
    return started(*command, "quart_background:app", **more)


@pytest.mark.parametrize("worker_class", ["asyncio", "uvloop"])
def test_a_server_that_is_asked_to_stop_finishes_its_background_tasks(worker_class, database_url, orders, tmp_path):
    """They hold connections, on the server's loop and on others; then the pool is closed, and no session is left."""
    copy_with(EXAMPLES / "quart_background.py", tmp_path, {"pg_sleep(0.5)": "pg_sleep(2)"})
    with (
        own_port() as port,
        hypercorn(port, worker_class, folder=tmp_path, DATABASE_URL=database_url) as program,
        ThreadPoolExecutor(4) as clients,
    ):
        program.wait_until_listening(port)
        answers = list(clients.map(lambda number: get(port, f"/orders/{number}", "POST"), range(4)))
        assert answers == [Answer(202, f'{{"order":{number}}}\n') for number in range(4)]
        until(lambda: orders() == [0, 1, 2, 3], program.output)
        answers = list(clients.map(lambda number: get(port, f"/orders/{number}", "POST"), range(4, 8)))
        until(lambda: running_queries(database_url), program.output)
        program.ask_to_stop()
        assert program.ended() == 0
        assert orders() == list(range(8))
        assert "Traceback" not in program.output()
        assert ended_sessions(database_url) == POLITELY


def test_hypercorn_does_not_start_with_a_module_level_pool_of_asyncpgs(database_url, tmp_path):
    """It belongs to the loop of the moment when the module was imported."""
    copy_with(EXAMPLES / "quart_background.py", tmp_path, ON_ASYNCPGS_POOL)
    with own_port() as port, hypercorn(port, "asyncio", folder=tmp_path, DATABASE_URL=database_url) as program:
        program.ended()  # with 0 or 1
        assert "attached to a different loop" in program.output()


def test_asyncpgs_pool_fails_in_the_task_that_has_a_loop_of_its_own(database_url, orders, tmp_path):
    """The task on the server's loop is served; the other is told of another loop, and its order is not shipped."""
    copy_with(EXAMPLES / "quart_background.py", tmp_path, MADE_BY_THE_LIFESPAN)
    with own_port() as port, hypercorn(port, "asyncio", folder=tmp_path, DATABASE_URL=database_url) as program:
        program.wait_until_listening(port)
        assert get(port, "/orders/1", "POST").status == 202
        until(lambda: orders() == [1], program.output)
        assert get(port, "/orders/2", "POST").status == 202
        program.wait_until_written("Traceback")
        program.ask_to_stop()
        assert program.ended() == 0
        assert "attached to a different loop" in program.output()
        assert orders() == [1]
