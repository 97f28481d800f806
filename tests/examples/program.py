"""Programs of docs/examples: started as a user starts them, talked to, stopped, and judged by what they leave."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import psycopg

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = [
    "EXAMPLES",
    "POLITELY",
    "Answer",
    "EndedSessions",
    "Program",
    "copy_with",
    "ended_sessions",
    "get",
    "run",
    "running_queries",
    "sessions_in",
    "started",
    "until",
]

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
# Nothing needs a tenth of this on a machine with nothing else to do.
DEADLINE_SECONDS = 100.0


class Answer(NamedTuple):
    """What a server has answered to a request."""

    status: int
    text: str


class EndedSessions(NamedTuple):
    """How many sessions of a database have ended otherwise than by the client's goodbye."""

    abandoned: int
    fatal: int
    killed: int


POLITELY = EndedSessions(0, 0, 0)


class Program:
    """A program that runs, as the leader of a process group of its own, and what it has written."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log

    def output(self) -> str:
        """Everything that it and its workers have written, to either stream."""
        return self._log.read_text()

    def wait_until_listening(self, port: int) -> None:
        """Return when something accepts connections on *port* of 127.0.0.1."""
        until(lambda: self._accepts(port), lambda: f"nothing listens on port {port}:\n{self.output()}")

    def _accepts(self, port: int) -> bool:
        assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.output()}"
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    def wait_until_written(self, text: str, times: int = 1) -> None:
        """Return when *text* stands in the output so many times."""
        until(lambda: self.output().count(text) >= times, lambda: f"{text!r} not written:\n{self.output()}")

    def ask_to_stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send the signal to the process that was started, and to none of its workers."""
        self.process.send_signal(number)

    def ended(self) -> int:
        """Wait until it has ended, and the last of its workers too; its exit code."""
        until(lambda: self.process.poll() is not None, lambda: f"it has not ended:\n{self.output()}")
        until(lambda: not self.has_processes(), lambda: f"processes are left:\n{self.output()}")
        return self.process.returncode

    def has_processes(self) -> bool:
        """Whether it, or any process that it has started, still runs."""
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return False
        return True


def until(condition: Callable[[], object], message: Callable[[], str]) -> None:
    """Wait until *condition()* is true; fail with *message()* when that takes too long."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, message()
        time.sleep(0.02)


def copy_with(source: Path, folder: Path, changes: Mapping[str, str]) -> Path:
    """Copy a program, or a folder of them, with texts replaced: for the same program on another pool."""
    target = folder / source.name
    (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    left = set(changes)
    for file in target.rglob("*.py") if target.is_dir() else [target]:
        text = file.read_text()
        for old, new in changes.items():
            if old in text:
                left.discard(old)
                text = text.replace(old, new)
        file.write_text(text)
    assert not left, f"not in {source.name}: {left}"
    return target


@contextmanager
def started(*arguments: object, folder: Path = EXAMPLES, **environment: object) -> Iterator[Program]:
    """
    Start `python arguments...` in *folder*, with those variables in its environment.

    What still runs of it at the end is killed, so ask for `ended()` before.
    """
    with tempfile.TemporaryDirectory(prefix="loopaware-example-") as scratch:
        log = Path(scratch, "output")
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, *map(str, arguments)],
                cwd=folder,
                env=_environment(scratch, environment),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        program = Program(process, log)
        try:
            yield program
        finally:
            if program.has_processes():
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def run(*arguments: object, folder: Path = EXAMPLES, **environment: object) -> tuple[int, str]:
    """Run `python arguments...` in *folder* to its end; its exit code and what it has written."""
    with started(*arguments, folder=folder, **environment) as program:
        return program.ended(), program.output()


def _environment(scratch: str, more: Mapping[str, object]) -> dict[str, str]:
    # No file is left beside the programs, in the home or among temporary files. What is written is there at once.
    places = {"TMPDIR": scratch, "XDG_RUNTIME_DIR": scratch}
    own = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"} | places
    return os.environ | own | {name: str(value) for name, value in more.items()}


def get(port: int, path: str, method: str = "GET") -> Answer:
    """Ask a server on 127.0.0.1, on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_SECONDS)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return Answer(response.status, response.read().decode())
    finally:
        connection.close()


def sessions_in(database_url: str) -> int:
    """How many sessions of others the database has."""
    query = """SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()"""
    with psycopg.connect(database_url) as connection:
        return connection.execute(query).fetchone()[0]


def running_queries(database_url: str) -> int:
    """
    How many queries of others sleep in the database.

    A query that is only being prepared is active, too. A cancel request that comes then changes nothing: the server
    does not remember it for the query that follows.
    """
    query = """SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND state = 'active' AND wait_event = 'PgSleep'"""
    with psycopg.connect(database_url) as connection:
        return connection.execute(query).fetchone()[0]


def ended_sessions(database_url: str) -> EndedSessions:
    """Wait until no session of others is left in the database; how they have ended, by the server's count."""
    until(lambda: not sessions_in(database_url), lambda: f"{sessions_in(database_url)} sessions are left")
    query = """SELECT sessions_abandoned, sessions_fatal, sessions_killed FROM pg_stat_database
        WHERE datname = current_database()"""
    with psycopg.connect(database_url) as connection:
        return EndedSessions(*connection.execute(query).fetchone())
