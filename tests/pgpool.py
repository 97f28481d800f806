"""A real pgpool-II in front of a server."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import between
from debian import command_of, environment_for, find_program

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["find_pgpool", "pgpool"]

_DEADLINE_SECONDS = 20.0


def find_pgpool() -> Path:
    """The installed one, or Debian's."""
    libraries = r"libpgpool\S*|libmemcached\S*|libhashkit\S*|libpq5|libldap\S*|libsasl2-2"
    return find_program("pgpool2", program="pgpool", libraries=libraries)


@contextmanager
def pgpool(program: Path, server_dsn: str, **options: object) -> Iterator[str]:
    """
    A pgpool-II in raw mode that lets everybody in as the user `postgres`; gives the DSN of the way through it.

    Args:
        program: The program.
        server_dsn: The server, over TCP, on 127.0.0.1.
        options: Settings of `pgpool.conf`.
    """
    with (
        between.own_port() as port,
        between.own_port() as pcp_port,
        _pgpool_on(port, program, server_dsn, {"pcp_port": pcp_port} | options) as dsn,
    ):
        yield dsn


@contextmanager
def _pgpool_on(port: int, program: Path, server_dsn: str, options: dict[str, Any]) -> Iterator[str]:
    folder = Path(tempfile.mkdtemp(prefix="loopaware-pgpool-"))
    parts = urlsplit(server_dsn)
    settings: dict[str, Any] = {
        "backend_clustering_mode": "raw",
        "backend_hostname0": "127.0.0.1",
        "backend_port0": parts.port,
        "listen_addresses": "127.0.0.1",
        "port": port,
        "socket_dir": folder,
        "pcp_listen_addresses": "127.0.0.1",
        "pcp_socket_dir": folder,
        "pid_file_name": folder / "pgpool.pid",
        "logdir": folder,
        "work_dir": folder,
        "num_init_children": 16,
        "max_pool": 2,
        "enable_pool_hba": "on",
        "pool_passwd": "pool_passwd",
        "use_watchdog": "off",
    } | options
    (folder / "pgpool.conf").write_text("".join(f"{name} = '{value}'\n" for name, value in settings.items()))
    (folder / "pool_hba.conf").write_text("host all all 127.0.0.1/32 trust\n")
    (folder / "pool_passwd").write_text(f"{parts.username}:TEXT{parts.password}\n")
    for name in ("pcp.conf", "pool_key"):
        (folder / name).touch(mode=0o600)
    files = ["-f", folder / "pgpool.conf", "-a", folder / "pool_hba.conf", "-F", folder / "pcp.conf"]
    command = [*command_of(program), "-n", *map(str, files), "-k", str(folder / "pool_key")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment_for(program), cwd=folder, stdout=log, stderr=log)
    try:
        between.wait_until_it_listens(process, port)
        yield f"postgresql://{parts.username}@127.0.0.1:{port}/postgres"
    finally:
        process.send_signal(signal.SIGQUIT)  # at once, with its children
        try:
            process.wait(_DEADLINE_SECONDS)
        finally:
            process.kill()
            process.wait()
            shutil.rmtree(folder)
