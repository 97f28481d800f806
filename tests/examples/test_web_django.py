"""Django's async views, and sync views that call through asgiref, under ASGI and WSGI servers."""

from __future__ import annotations

import contextlib
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
    started,
    until,
)

pytestmark = pytest.mark.examples

FOLDER = EXAMPLES / "django_shop"
GUNICORN = ["gunicorn", "--bind", "127.0.0.1:{port}", "--workers", "2"]
# The command, and its exit code: without workers, uvicorn ends by the signal once all is closed.
SERVERS = {
    "uvicorn": (["uvicorn", "--port", "{port}", "project:asgi"], -15),
    "gunicorn, ASGI": ([*GUNICORN, "--worker-class", "uvicorn.workers.UvicornWorker", "project:asgi"], 0),
    "gunicorn, WSGI": ([*GUNICORN, "project:wsgi"], 0),
    "gunicorn, WSGI, threads": ([*GUNICORN, "--threads", "4", "project:wsgi"], 0),
}
WITH_ERRORS_SHOWN = {"ALLOWED_HOSTS=": "DEBUG=True, ALLOWED_HOSTS="}
ON_ASYNCPGS_POOL = {"from loopaware_pool import": "from asyncpg import", ', name="shop"': "", **WITH_ERRORS_SHOWN}
# As programs do that have met the error of a pool that the module makes.
MADE_BY_THE_FIRST_REQUEST = ON_ASYNCPGS_POOL | {
    "pool = create_pool(": "made = []\n\n\nasync def opened():\n"
    "    made[:] = made or [await make_pool()]\n    return made[0]\n\n\ndef make_pool():\n    return create_pool(",
    "(await pool)": "(await opened())",
}


@pytest.fixture
def serve(database_url, tmp_path):
    """Starts a server, and gives the program that runs, once all of its workers serve, and its port."""
    hooks = tmp_path / "hooks.py"
    hooks.write_text("def post_worker_init(worker):\n    worker.log.info('Ready to serve')\n")

    @contextlib.contextmanager
    def serve(how, folder=FOLDER):
        environment = {"DATABASE_URL": database_url, "GUNICORN_CMD_ARGS": f"--config {hooks}"}
        with own_port() as port:
            command = [word.format(port=port) for word in SERVERS[how][0]]
            with started("-m", *command, folder=folder, **environment) as program:
                program.wait_until_listening(port)
                if "gunicorn" in how:
                    program.wait_until_written("Ready to serve", 2)
                yield program, port

    return serve


@pytest.mark.parametrize("how", SERVERS)
def test_views_of_either_kind_share_the_pool(how, serve, database_url):
    """On the server's loop, on loops that last for a request, and from threads; a request under way is finished."""
    with serve(how) as (program, port), ThreadPoolExecutor(8) as clients:
        for path in ("/double/{}", "/double/{}/in-sync"):
            answers = list(clients.map(lambda number, path=path: get(port, path.format(number)), range(20)))
            assert answers == [Answer(200, f'{{"answer": {2 * number}}}') for number in range(20)]
        under_way = clients.submit(get, port, "/slow?seconds=4")
        until(lambda: running_queries(database_url) == 1, program.output)
        program.ask_to_stop()
        assert under_way.result() == Answer(200, '{"answer": "done"}')
        assert program.ended() == SERVERS[how][1]
        assert "Traceback" not in program.output()
        assert ended_sessions(database_url) == POLITELY


@pytest.mark.parametrize("how", ["uvicorn", "gunicorn, ASGI", "gunicorn, WSGI"])
def test_a_module_level_pool_of_asyncpgs_fails_each_request(how, serve, tmp_path):
    """It belongs to the loop of the moment when the module was imported."""
    with serve(how, copy_with(FOLDER, tmp_path, ON_ASYNCPGS_POOL)) as (_, port):
        for path in ("/double/1", "/double/1/in-sync"):
            status, text = get(port, path)
            assert (status, "attached to a different loop" in text) == (500, True)


def test_a_pool_of_asyncpgs_that_the_first_request_makes_serves_one_loop(serve, tmp_path):
    """So it works under ASGI; under WSGI each worker serves one request."""
    folder = copy_with(FOLDER, tmp_path, MADE_BY_THE_FIRST_REQUEST)
    with serve("gunicorn, ASGI", folder) as (_, port):
        assert {get(port, f"/double/{number}").status for number in range(10)} == {200}
    with serve("gunicorn, WSGI", folder) as (_, port):
        answers = [get(port, f"/double/{number}") for number in range(10)]
        assert sum(answer.status == 200 for answer in answers) <= 2
        assert "Event loop is closed" in answers[-1].text
