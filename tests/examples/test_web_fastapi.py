"""FastAPI under uvicorn and gunicorn: requests, clients that go away, and the end of a server with leases out."""

from __future__ import annotations

import contextlib
import json
import socket
from concurrent.futures import ThreadPoolExecutor

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
    sessions_in,
    started,
    until,
)

pytestmark = pytest.mark.examples

FOLDER = EXAMPLES / "fastapi_shop"
UVICORN = ["uvicorn", "--host", "127.0.0.1", "--port", "{port}"]
GUNICORN = ["gunicorn", "--bind", "127.0.0.1:{port}", "--workers", "4", "--worker-class"]
GUNICORN_UVICORN, GUNICORN_ASGI = [*GUNICORN, "uvicorn.workers.UvicornWorker"], [*GUNICORN, "asgi"]
# The command, its workers, and its exit code: without workers, uvicorn ends by the signal once all is closed.
SERVERS = {
    "uvicorn": ([*UVICORN, "--loop", "asyncio"], 1, -15),
    "uvicorn, uvloop": ([*UVICORN, "--loop", "uvloop"], 1, -15),
    "uvicorn, 4 workers": ([*UVICORN, "--loop", "asyncio", "--workers", "4"], 4, 0),
    "uvicorn, 4 workers, uvloop": ([*UVICORN, "--loop", "uvloop", "--workers", "4"], 4, 0),
    "gunicorn": (GUNICORN_UVICORN, 4, 0),
    "gunicorn --preload": ([*GUNICORN_UVICORN, "--preload"], 4, 0),
    "gunicorn's asgi": (GUNICORN_ASGI, 4, 0),
    "gunicorn's asgi --preload": ([*GUNICORN_ASGI, "--preload"], 4, 0),
}
# They import the program before there is a loop.
WITHOUT_A_LOOP = ["uvicorn", "uvicorn, uvloop", "gunicorn", "gunicorn --preload", "gunicorn's asgi --preload"]
SOME_SERVERS = ["uvicorn", "uvicorn, uvloop", "gunicorn --preload"]
ON_THEIR_POOLS = {
    "from loopaware_pool import": "from asyncpg import",
    "from loopaware_pool.psycopg import": "from psycopg_pool import",
    "from loopaware_pool.sqlalchemy import": "from sqlalchemy.ext.asyncio import",
    ', name="shop"': "",
    ', name="reports"': "",
}
MADE_BY_THE_LIFESPAN = ON_THEIR_POOLS | {
    "pool = create_pool(": "def make_pool():\n    return create_pool(",
    "    async with pool:\n": "    global pool\n    async with make_pool() as pool:\n",
}


@contextlib.contextmanager
def starting(how, module, database_url, folder=FOLDER):
    """A module's `app`: the program that runs, and the port that it will serve."""
    with own_port() as port:
        command = [word.format(port=port) for word in SERVERS[how][0]]
        with started("-m", *command, f"{module}:app", folder=folder, DATABASE_URL=database_url) as program:
            yield program, port


@contextlib.contextmanager
def served(how, module, database_url, folder=FOLDER):
    """The program, once all of its workers serve; and its port."""
    with starting(how, module, database_url, folder) as (program, port):
        program.wait_until_listening(port)
        ready = "ASGI server listening" if "asgi" in how else "Application startup complete"
        program.wait_until_written(ready, SERVERS[how][1])
        yield program, port


def stop(program, how, database_url):
    """Ask it to stop; it ends as it should, and so do its sessions on the server."""
    program.ask_to_stop()
    assert program.ended() == SERVERS[how][2]
    assert "Traceback" not in program.output()
    assert ended_sessions(database_url) == POLITELY


def until_queries_run(database_url, count):
    until(lambda: running_queries(database_url) == count, lambda: f"{running_queries(database_url)} queries run")


@pytest.mark.parametrize(
    ("how", "module"),
    [
        *((how, "app") for how in SERVERS),
        *((how, "app_psycopg") for how in SOME_SERVERS),
        *((how, "app_sqlalchemy") for how in SOME_SERVERS),
    ],
)
def test_a_server_that_is_asked_to_stop_finishes_requests_and_closes_the_pool(how, module, database_url):
    """Whoever waits for a query gets its answer, and every session on the server is ended by a goodbye."""
    with served(how, module, database_url) as (program, port), ThreadPoolExecutor(8) as clients:
        assert list(clients.map(lambda n: get(port, f"/double/{n}").text, range(20))) == [str(2 * n) for n in range(20)]
        under_way = [clients.submit(get, port, "/slow?seconds=4") for _ in range(3)]
        until_queries_run(database_url, 3)
        stop(program, how, database_url)
        assert [request.result() for request in under_way] == [Answer(200, '"done"')] * 3


@pytest.mark.parametrize("how", WITHOUT_A_LOOP)
def test_a_module_level_pool_of_asyncpgs_belongs_to_a_loop_that_never_runs(how, database_url, tmp_path):
    """The module is imported before the server's loop is there, so no worker starts."""
    folder = copy_with(FOLDER, tmp_path, ON_THEIR_POOLS)
    with starting(how, "app", database_url, folder) as (program, _):
        assert program.ended() in (1, 3)
        assert "attached to a different loop" in program.output()


@pytest.mark.parametrize("how", ["uvicorn, 4 workers", "uvicorn, 4 workers, uvloop", "gunicorn's asgi"])
def test_a_module_level_pool_of_asyncpgs_works_where_the_loop_imports_the_module(how, database_url, tmp_path):
    """Which server does so is not told by its name, and changes with its options."""
    with served(how, "app", database_url, copy_with(FOLDER, tmp_path, ON_THEIR_POOLS)) as (_, port):
        assert get(port, "/double/21") == Answer(200, "42")


@pytest.mark.parametrize("how", WITHOUT_A_LOOP)
def test_a_pool_of_asyncpgs_that_the_lifespan_makes_works(how, database_url, tmp_path):
    """There is one loop in each worker, so this program needs no other pool."""
    with served(how, "app", database_url, copy_with(FOLDER, tmp_path, MADE_BY_THE_LIFESPAN)) as (program, port):
        assert get(port, "/double/21") == Answer(200, "42")
        stop(program, how, database_url)


@pytest.mark.parametrize("module", ["app_psycopg", "app_sqlalchemy"])
@pytest.mark.parametrize("how", ["uvicorn", "gunicorn --preload"])
def test_module_level_pools_of_psycopg_and_sqlalchemy_serve_one_loop(how, module, database_url, tmp_path):
    """They connect when they are opened, or first used: on the server's loop."""
    with served(how, module, database_url, copy_with(FOLDER, tmp_path, ON_THEIR_POOLS)) as (program, port):
        assert get(port, "/double/21") == Answer(200, "42")
        stop(program, how, database_url)


def ask_and_leave(port, path, *, after):
    """Send a request, and hang up once *after(connection)* returns."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
        after(connection)


def until_a_row_comes(connection):
    """
    Read until the cursor has answered.

    The head of the answer comes sooner, while the handler may still wait for a connection that is being opened. With
    asyncpg's pool, its end is the end of that connection, which the server has not been told of.
    """
    received = b""
    while b"\r\n1\n" not in received:
        more = connection.recv(100_000)
        assert more, received
        received += more


def leave_queries(port, database_url, times):
    """Go away in the middle of a query, so often; each is ended on the server, too."""
    for _ in range(times):
        ask_and_leave(port, "/slow?seconds=60", after=lambda _: until_queries_run(database_url, 1))
        until_queries_run(database_url, 0)


def test_a_plain_handler_is_not_told_that_its_client_has_gone(database_url):
    """Its query runs on, for nobody."""
    with served("uvicorn", "app", database_url) as (_, port):
        ask_and_leave(port, "/slow?seconds=600", after=lambda _: until_queries_run(database_url, 1))
        assert [get(port, "/double/21").status for _ in range(10)] == [200] * 10
        assert running_queries(database_url) == 1


@pytest.mark.parametrize("module", ["reports", "app_psycopg", "app_sqlalchemy"])
@pytest.mark.parametrize("how", ["uvicorn", "uvicorn, uvloop", "gunicorn's asgi"])
def test_a_query_ends_when_its_client_goes_away(how, module, database_url):
    """More often than the pool has places: each is free for the next request."""
    with served(how, module, database_url) as (program, port):
        leave_queries(port, database_url, 8)
        assert get(port, "/slow?seconds=0") == Answer(200, '"done"')
        stop(program, how, database_url)


@pytest.mark.parametrize("changes", [{}, MADE_BY_THE_LIFESPAN], ids=["ours", "asyncpg"])
@pytest.mark.parametrize("how", ["uvicorn", "uvicorn, uvloop"])
def test_a_stream_that_its_client_leaves_gives_its_connection_back(how, changes, database_url, tmp_path):
    """In the middle of a cursor, in a transaction; asyncpg's pool, made by the lifespan, does it too."""
    folder = copy_with(FOLDER, tmp_path, changes)
    with served(how, "reports", database_url, folder) as (program, port), ThreadPoolExecutor(2) as clients:
        for _ in range(5):
            ask_and_leave(port, "/numbers?count=100000000", after=until_a_row_comes)
        until(lambda: all_are_idle(port), program.output)
        leave_queries(port, database_url, 5)
        both = [clients.submit(get, port, "/slow?seconds=4") for _ in range(2)]
        until_queries_run(database_url, 2)
        assert [request.result().status for request in both] == [200, 200]
        assert sessions_in(database_url) <= 2
        stop(program, how, database_url)


def all_are_idle(port):
    connections = json.loads(get(port, "/pool").text)
    return connections["open"] == connections["idle"]
