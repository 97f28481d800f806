"""Libraries that make pools deep inside: the programs of docs/examples are given line after line."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from examples.program import EXAMPLES, copy_with, sessions_in, until
from examples.sessions import end_all_sessions
from running import child_process

pytestmark = pytest.mark.examples

# Each program with lines of input, and what it answers to each.
PROGRAMS = {
    "procrastinate_jobs": {"1 2": "3", "3 4": "7", "5 6": "11"},
    "langgraph_steps": {"a": "1", "b": "1", " a": "2"},
    "tortoise_people": {"Ada": "1", "Grace": "2", "Barbara": "3"},
}
NOT_INSTALLED = {"loopaware_pool.install()": "pass"}


class Conversation:
    """A program that answers lines."""

    def __init__(self, process):
        self._process = process

    def ask(self, line):
        """Give it a line. When the line's loop is over, return what it answered; nothing if it has ended."""
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline().strip()
        until(lambda: not has_loop(self._process.pid), lambda: "its loop goes on")
        return answer

    def end(self):
        """End its input; its exit code, and what it has complained of."""
        complaints = self._process.communicate(timeout=30)[1]
        return self._process.returncode, complaints


def has_loop(pid):
    """Whether a process has a loop of asyncio's, as far as its fds tell."""
    for fd in Path(f"/proc/{pid}/fd").glob("*"):
        with suppress(OSError):  # it has been closed
            if "eventpoll" in os.readlink(fd):
                return True
    return False


@pytest.fixture
def conversation(database_url, tmp_path):
    """Start a copy of a program that reads lines."""

    @contextmanager
    def conversation(name, changes=None):
        copy = copy_with(EXAMPLES / f"{name}.py", tmp_path, changes or {})
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        environment = {**os.environ, "DATABASE_URL": database_url}
        with child_process([sys.executable, copy], env=environment, text=True, **pipes) as process:
            assert process.stdout.readline() == "ready\n"
            yield Conversation(process)

    return conversation


@pytest.mark.parametrize("name", PROGRAMS)
def test_each_line_is_served_in_a_loop_of_its_own(conversation, database_url, name):
    """Between two lines no session is left, and what the server does then is not noticed."""
    with conversation(name) as program:
        for line, answer in PROGRAMS[name].items():
            assert program.ask(line) == answer
            until(lambda: not sessions_in(database_url), lambda: "sessions are left")
        code, complaints = program.end()
        assert code == 0, complaints


@pytest.mark.parametrize(
    ("name", "error"), [("procrastinate_jobs", "ConnectorException"), ("langgraph_steps", "PoolTimeout")]
)
def test_on_psycopgs_pool_nothing_works_once_the_server_has_ended_a_session(conversation, database_url, name, error):
    """The tasks that open new connections have ended with the first loop."""
    first, second, *_ = PROGRAMS[name].items()
    with conversation(name, NOT_INSTALLED) as program:
        assert program.ask(first[0]) == first[1]
        assert end_all_sessions(database_url) > 0
        program.ask(second[0])
        code, complaints = program.end()
        assert code == 1
        assert error in complaints


def test_on_asyncpgs_pool_each_loop_leaves_a_session(conversation, database_url):
    """tortoise makes a new pool for each loop, and closes none."""
    with conversation("tortoise_people", NOT_INSTALLED) as program:
        for number, (line, answer) in enumerate(PROGRAMS["tortoise_people"].items(), 1):
            assert program.ask(line) == answer
            assert sessions_in(database_url) >= number
        assert program.end()[0] == 0
