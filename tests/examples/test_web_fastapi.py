"""FastAPI under uvicorn and gunicorn: requests, clients that go away, and the end of a server with leases out."""

from __future__ import annotations

import contextlib
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from examples.program import (
    EXAMPLES,
    POLITELY,
    Answer,
    copy_with,
    ended_sessions,
    free_port,
    get,
    running_queries,
    sessions_in,
    started,
    until,
)

pytestmark = pytest.mark.examples

UPSTREAM = {
    "fastapi_app.py": {
        "from loopaware_pool import create_pool": "from asyncpg import create_pool",
        ', name="shop"': "",
    },
    "fastapi_sqlalchemy.py": {
        "from loopaware_pool.sqlalchemy import": "from sqlalchemy.ext.asyncio import",
        ', name="shop"': "",
    },
}
UPSTREAM["fastapi_disconnect.py"] = {
    "from loopaware_pool import create_pool": "from asyncpg import create_pool",
    ', name="reports"': "",
}
MADE_BY_THE_LIFESPAN = {
    "pool = create_pool(": "def make_pool():\n    return create_pool(",
    "    async with pool:\n": "    global pool\n    async with make_pool() as pool:\n",
}
UVICORN = ["-m", "uvicorn", "--host", "127.0.0.1", "--port"]
GUNICORN = ["-m", "gunicorn", "--worker-class", "uvicorn.workers.UvicornWorker", "--bind"]
GUNICORN_ASGI = ["-m", "gunicorn", "--worker-class", "asgi", "--bind"]
# The command, its workers, and its exit code: without workers, uvicorn ends by the signal once all is closed.
SERVERS = {
    "uvicorn, asyncio": ([*UVICORN, "{port}", "--loop", "asyncio"], 1, -15),
    "uvicorn, uvloop": ([*UVICORN, "{port}", "--loop", "uvloop"], 1, -15),
    "uvicorn, 4 workers": ([*UVICORN, "{port}", "--workers", "4"], 4, 0),
    "gunicorn": ([*GUNICORN, "127.0.0.1:{port}", "--workers", "4"], 4, 0),
    "gunicorn --preload": ([*GUNICORN, "127.0.0.1:{port}", "--workers", "4", "--preload"], 4, 0),
    "gunicorn's asgi": ([*GUNICORN_ASGI, "127.0.0.1:{port}", "--workers", "4"], 4, 0),
    "gunicorn's asgi --preload": ([*GUNICORN_ASGI, "127.0.0.1:{port}", "--workers", "4", "--preload"], 4, 0),
}
SERVERS_FOR_SQLALCHEMY = ["uvicorn, asyncio", "uvicorn, uvloop", "gunicorn --preload"]
CASES = [(how, "fastapi_app.py") for how in SERVERS] + [
    (how, "fastapi_sqlalchemy.py") for how in SERVERS_FOR_SQLALCHEMY
]


def program(name, folder, *more, upstream=False):
    """The folder to start it in: where it is, or where it is a copy on the drivers' own pool."""
    changes = UPSTREAM[name] if upstream else {}
    for changed in more:
        changes = changes | changed
    if not changes:
        return EXAMPLES
    copy_with(EXAMPLES / name, folder, changes)
    return folder


@contextlib.contextmanager
def served(how, name, database_url, folder=EXAMPLES):
    """The program, once all of its workers serve; and its port."""
    command, workers, _ = SERVERS[how]
    port = free_port()
    arguments = [word.format(port=port) for word in command]
    with started(*arguments, f"{name.removesuffix('.py')}:app", folder=folder, DATABASE_URL=database_url) as running:
        running.wait_until_listening(port)
        if "asgi" not in how:  # it says nothing when it is ready
            running.wait_until_written("Application startup complete", workers)
        yield running, port


def until_queries_run(database_url, count):
    until(lambda: running_queries(database_url) == count, lambda: f"{running_queries(database_url)} queries run")


@pytest.mark.parametrize(("how", "name"), CASES)
def test_a_server_that_is_asked_to_stop_finishes_requests_and_closes_the_pool(how, name, database_url):
    """Whoever waits for a query gets its answer, and no session is left on the server when the process has gone."""
    with served(how, name, database_url) as (running, port), ThreadPoolExecutor(8) as clients:
        assert list(clients.map(lambda n: get(port, f"/double/{n}").text, range(20))) == [str(2 * n) for n in range(20)]
        under_way = [clients.submit(get, port, "/slow?seconds=1") for _ in range(3)]
        until_queries_run(database_url, 3)
        running.ask_to_stop()
        assert [request.result() for request in under_way] == [Answer(200, '"done"')] * 3
        assert running.ended() == SERVERS[how][2]
        assert "Traceback" not in running.output()
        assert ended_sessions(database_url) == POLITELY


@pytest.mark.parametrize(
    "how", ["uvicorn, asyncio", "uvicorn, uvloop", "gunicorn", "gunicorn --preload", "gunicorn's asgi --preload"]
)
def test_a_module_level_pool_of_asyncpgs_belongs_to_a_loop_that_never_runs(how, database_url, tmp_path):
    """The module is imported before the server's loop is there, so no worker starts."""
    command, _, _ = SERVERS[how]
    arguments = [word.format(port=free_port()) for word in command]
    folder = program("fastapi_app.py", tmp_path, upstream=True)
    with started(*arguments, "fastapi_app:app", folder=folder, DATABASE_URL=database_url) as running:
        assert running.ended() in (1, 3)
        assert "attached to a different loop" in running.output()


@pytest.mark.parametrize("how", ["uvicorn, 4 workers", "gunicorn's asgi"])
def test_a_module_level_pool_of_asyncpgs_works_where_the_loop_imports_the_module(how, database_url, tmp_path):
    """Which server does so is not told by its name, and changes with its options."""
    folder = program("fastapi_app.py", tmp_path, upstream=True)
    with served(how, "fastapi_app.py", database_url, folder) as (_, port):
        assert get(port, "/double/21") == Answer(200, "42")


def test_a_pool_of_asyncpgs_that_the_lifespan_makes_works(database_url, tmp_path):
    """There is one loop in each worker, so this program needs no other pool."""
    folder = program("fastapi_app.py", tmp_path, MADE_BY_THE_LIFESPAN, upstream=True)
    with served("uvicorn, asyncio", "fastapi_app.py", database_url, folder) as (running, port):
        assert get(port, "/double/21") == Answer(200, "42")
        running.ask_to_stop()
        assert running.ended() == -15
        assert ended_sessions(database_url) == POLITELY


def test_sqlalchemys_own_pool_serves_one_loop(database_url, tmp_path):
    """The engine connects when it is first used, on the server's loop."""
    folder = program("fastapi_sqlalchemy.py", tmp_path, upstream=True)
    with served("uvicorn, asyncio", "fastapi_sqlalchemy.py", database_url, folder) as (_, port):
        assert get(port, "/double/21") == Answer(200, "42")


def ask_and_leave(port, path, *, after):
    """Send a request, and hang up once *after(connection)* returns."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
        after(connection)


@pytest.mark.parametrize("how", ["uvicorn, asyncio", "uvicorn, uvloop", "gunicorn's asgi"])
def test_a_query_ends_when_its_client_goes_away(how, database_url):
    """At once on the server too, and its connection serves the next request."""
    with served(how, "fastapi_disconnect.py", database_url) as (running, port):
        for _ in range(5):
            ask_and_leave(port, "/slow?seconds=60", after=lambda _: until_queries_run(database_url, 1))
            until_queries_run(database_url, 0)
        assert sessions_in(database_url) <= 2 * SERVERS[how][1]
        assert get(port, "/slow?seconds=0") == Answer(200, "done")
        running.ask_to_stop()
        assert running.ended() == SERVERS[how][2]
        assert "Traceback" not in running.output()
        assert ended_sessions(database_url) == POLITELY


@pytest.mark.parametrize("how", ["uvicorn, asyncio", "uvicorn, uvloop"])
def test_a_stream_that_its_client_leaves_gives_its_connection_back(how, database_url):
    """In the middle of a cursor, in a transaction."""
    with served(how, "fastapi_disconnect.py", database_url) as (running, port):
        for _ in range(5):
            ask_and_leave(port, "/numbers?count=100000000", after=lambda connection: connection.recv(100_000))
        until(lambda: all_idle(port), lambda: get(port, "/pool").text)
        waiting = [threading.Thread(target=get, args=(port, "/slow?seconds=0.5")) for _ in range(2)]
        for thread in waiting:
            thread.start()
        until_queries_run(database_url, 2)
        for thread in waiting:
            thread.join()
        running.ask_to_stop()
        assert running.ended() == -15
        assert "Traceback" not in running.output()
        assert ended_sessions(database_url) == POLITELY


def all_idle(port):
    text = get(port, "/pool").text
    return text.split('"idle":')[1].rstrip("}") == text.split('"open":')[1].split(",")[0]
