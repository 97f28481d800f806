"""A real PgBouncer in front of a server."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from debian import environment_for, find_program

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["find_pgbouncer", "pgbouncer"]

_DEADLINE_SECONDS = 20.0


def find_pgbouncer() -> Path:
    """The installed one, or Debian's."""
    return find_program("pgbouncer", libraries=r"libevent\S*|libc-ares\S*")


@contextmanager
def pgbouncer(program: Path, server_dsn: str, **options: object) -> Iterator[str]:
    """A PgBouncer that lets everybody in as the user `postgres`; gives the DSN of the way through it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="loopaware-pgbouncer-"))
    parts = urlsplit(server_dsn)
    settings = folder / "pgbouncer.ini"
    settings.write_text(
        f"[databases]\n* = host=127.0.0.1 port={parts.port} user=postgres password={parts.password}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\n"
        f"listen_port = {port}\nunix_socket_dir =\nauth_type = any\n"
        + "".join(f"{name} = {value}\n" for name, value in options.items())
    )
    account = ["-u", "nobody"] if os.geteuid() == 0 else []  # it refuses to run as root
    if account:
        shutil.chown(folder, "nobody")
    command = [program, "-q", *account, settings]
    process = subprocess.Popen(command, env=environment_for(program), stderr=subprocess.DEVNULL)
    try:
        _wait_until_it_listens(process, port)
        yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
    finally:
        process.kill()  # asked politely, newer ones wait for their clients
        process.wait()
        shutil.rmtree(folder)


def _wait_until_it_listens(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + _DEADLINE_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            assert process.poll() is None, "PgBouncer has ended"
            assert time.monotonic() < deadline, "PgBouncer does not listen"
            time.sleep(0.01)
