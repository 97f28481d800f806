"""AWS Lambda: handlers of docs/examples are called as its runtime calls them, and frozen and thawed in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import psutil
import pytest

from examples.processes import connections_to
from examples.program import EXAMPLES, copy_with, sessions_in
from examples.sessions import end_all_sessions
from running import child_process

pytestmark = pytest.mark.examples

TO_ASYNCPG = {"from loopaware_pool import create_pool": "from asyncpg import create_pool"}
TO_SQLALCHEMY = {"from loopaware_pool.sqlalchemy import": "from sqlalchemy.ext.asyncio import"}
WITH_THE_LOOP = {"max_size=1)": "max_size=1, loop=runner.get_loop())"}
# What Lambda's runtime does: it imports the module once, and calls the handler for each event.
RUNTIME = """
import importlib, json, sys
handler = importlib.import_module(sys.argv[1]).handler
for line in sys.stdin:
    try:
        answer = handler(json.loads(line), None)
    except Exception as error:
        answer = {"errorType": type(error).__name__, "errorMessage": str(error)}
    print(json.dumps(answer), flush=True)
"""


class Function:
    """A function whose process waits for events."""

    def __init__(self, process, database_url):
        self.process, self._database_url = process, database_url

    def call(self, **event):
        """Give it an event; what the handler returns, or how it fails."""
        self.process.stdin.write(json.dumps(event) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    @contextmanager
    def frozen(self):
        """Stop the process, as Lambda does between two events."""
        os.kill(self.process.pid, signal.SIGSTOP)
        yield
        os.kill(self.process.pid, signal.SIGCONT)

    def connections(self):
        return connections_to(self._database_url, [psutil.Process(self.process.pid)])

    def fds(self):
        return psutil.Process(self.process.pid).num_fds()


@pytest.fixture
def function(database_url, tmp_path):
    """Start a copy of a program that has a handler."""

    @contextmanager
    def function(name, changes=None):
        copy_with(EXAMPLES / f"{name}.py", tmp_path, changes or {})
        environment = {**os.environ, "DATABASE_URL": database_url, "PYTHONPATH": str(tmp_path)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with child_process([sys.executable, "-c", RUNTIME, name], env=environment, **pipes) as process:
            yield Function(process, database_url)
            process.stdin.close()
            assert process.wait(30) == 0

    return function


@pytest.mark.parametrize(
    ("name", "event", "body"),
    [("lambda_function", {"limit": 10}, 385), ("lambda_sqlalchemy", {"number": 7}, 49)],
    ids=["asyncpg", "sqlalchemy"],
)
def test_each_event_has_a_loop_of_its_own(function, name, event, body):
    """Between two events, and so while the process is frozen, nothing is open."""
    with function(name) as running:
        assert running.call(**event)["body"] == body
        before = running.fds()
        for _ in range(5):
            with running.frozen():
                assert running.connections() == []
            assert running.call(**event) == {"statusCode": 200, "body": body}
        assert running.fds() == before


def test_a_kept_loop_keeps_its_connections_over_a_freeze(function):
    """One that the server has left alone serves the next event."""
    with function("lambda_runner") as running:
        first = running.call()
        with running.frozen():
            pass
        assert running.call() == first


def test_a_connection_that_the_server_has_ended_meanwhile_is_not_noticed(function, database_url):
    """The first event after the thaw is served by a new one; the fds are as many as before."""
    with function("lambda_runner") as running:
        seen = [running.call()["body"]]
        before = running.fds()
        for _ in range(5):
            with running.frozen():
                assert end_all_sessions(database_url) == 1
            seen.append(running.call()["body"])
        assert len({*seen}) == len(seen)
        assert running.fds() == before
        assert sessions_in(database_url) == 1


@pytest.mark.parametrize(
    ("name", "event"), [("lambda_function", {"limit": 1}), ("lambda_runner", {})], ids=["each", "kept"]
)
def test_on_asyncpgs_pool_no_event_is_served(function, name, event):
    """It belongs to the loop that was current when the module was imported, and that is none of the handler's."""
    with function(name, TO_ASYNCPG) as running:
        for _ in range(2):
            message = running.call(**event)["errorMessage"]
            assert "different loop" in message or "different event loop" in message


def test_on_asyncpgs_pool_with_the_loop_given_the_first_event_after_a_thaw_fails(function, database_url):
    """It lends the connection that the server has closed; the event after that is served."""
    with function("lambda_runner", TO_ASYNCPG | WITH_THE_LOOP) as running:
        assert running.call()["statusCode"] == 200
        with running.frozen():
            assert end_all_sessions(database_url) == 1
        assert running.call()["errorType"] in ("AdminShutdownError", "ConnectionDoesNotExistError")
        assert running.call()["statusCode"] == 200


def test_on_sqlalchemys_pool_the_second_event_fails(function):
    """It is given the connection that the first one has opened on its loop."""
    with function("lambda_sqlalchemy", TO_SQLALCHEMY) as running:
        assert running.call(number=7)["body"] == 49
        message = running.call(number=7)["errorMessage"]
        assert "attached to a different loop" in message or "Event loop is closed" in message
