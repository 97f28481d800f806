"""A real PgBouncer in front of a server."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psycopg
from psycopg.rows import dict_row

import between
from debian import command_of, environment_for, find_program

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["PgBouncer", "find_newer_pgbouncer", "find_pgbouncer", "pgbouncer", "running_pgbouncer"]


def find_pgbouncer() -> Path:
    """The installed one, or Debian's."""
    return find_program("pgbouncer", libraries=r"libevent\S*|libc-ares\S*")


def find_newer_pgbouncer() -> Path:
    """Debian 13's, 1.24: it follows prepared statements from session to session (`max_prepared_statements`)."""
    return find_program("pgbouncer", libraries=r"lib\S+", release="trixie")


class PgBouncer:
    """
    A running PgBouncer that lets everybody in as the user `postgres`.

    Attributes:
        dsn: The way through it.
        port: Where it listens, on 127.0.0.1.
    """

    def __init__(self, program: Path, folder: Path, server_dsn: str, port: int, options: dict[str, object]) -> None:
        self._server_dsn = server_dsn
        self.port = port
        self.dsn = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        parts = urlsplit(server_dsn)
        settings = folder / "pgbouncer.ini"
        settings.write_text(
            f"[databases]\n* = host=127.0.0.1 port={parts.port} user=postgres password={parts.password}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\n"
            f"listen_port = {self.port}\nunix_socket_dir =\nauth_type = any\nadmin_users = postgres\n"
            + "".join(f"{name} = {value}\n" for name, value in options.items())
        )
        account = ["-u", "nobody"] if os.geteuid() == 0 else []  # it refuses to run as root
        if account:
            shutil.chown(folder, "nobody")
        self._command = [*command_of(program), "-q", *account, str(settings)]
        self._environment = environment_for(program)
        self._process: Any = None

    def start(self) -> None:
        """Return when it listens."""
        self._process = subprocess.Popen(self._command, env=self._environment, stderr=subprocess.DEVNULL)
        between.wait_until_it_listens(self._process, self.port)

    def kill(self) -> None:
        """End it, and every connection through it; asked politely, newer ones wait for their clients."""
        self._process.kill()
        self._process.wait()

    def restart(self) -> None:
        """End it, and start it anew on the same port."""
        self.kill()
        self.start()

    def tell(self, command: str) -> list[dict[str, Any]]:
        """Run a command of its admin console, such as `PAUSE`, `RELOAD`, `KILL postgres` or `SHOW POOLS`."""
        console = self.dsn.rpartition("/")[0] + "/pgbouncer"
        with psycopg.connect(console, autocommit=True, row_factory=dict_row) as connection:
            cursor = connection.execute(command)  # type: ignore[call-overload]
            return cursor.fetchall() if cursor.description else []

    def clients(self) -> int:
        """How many clients it has, less its admin console's."""
        return sum(row["database"] != "pgbouncer" for row in self.tell("SHOW CLIENTS"))

    def server_pids(self) -> list[int]:
        """The processes of its sessions at the server."""
        return [row["remote_pid"] for row in self.tell("SHOW SERVERS")]

    def kill_server_sessions(self) -> None:
        """Have the server end them."""
        with psycopg.connect(self._server_dsn, autocommit=True) as connection:
            connection.execute("SELECT pg_terminate_backend(pid) FROM unnest(%s::int[]) AS pid", [self.server_pids()])


@contextmanager
def running_pgbouncer(program: Path, server_dsn: str, **options: object) -> Iterator[PgBouncer]:
    """A PgBouncer with these settings of its `[pgbouncer]` section."""
    folder = Path(tempfile.mkdtemp(prefix="loopaware-pgbouncer-"))
    try:
        with between.own_port() as port:
            running = PgBouncer(program, folder, server_dsn, port, options)
            running.start()
            try:
                yield running
            finally:
                running.kill()
    finally:
        shutil.rmtree(folder)


@contextmanager
def pgbouncer(program: Path, server_dsn: str, **options: object) -> Iterator[str]:
    """The same; gives the DSN of the way through it."""
    with running_pgbouncer(program, server_dsn, **options) as running:
        yield running.dsn
