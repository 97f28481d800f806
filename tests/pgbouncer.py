"""A real PgBouncer in front of a server."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from servers import CACHE, ServerUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["find_pgbouncer", "pgbouncer"]

_DEADLINE_SECONDS = 20.0
_LIBRARIES = re.compile(r"Depends: (libevent\S*|libc-ares\S*)")


def find_pgbouncer() -> Path:
    """The installed one, or Debian's, downloaded once per machine and unpacked in a folder of ours."""
    for folder in (None, "/usr/sbin"):
        if installed := shutil.which("pgbouncer", path=folder):
            return Path(installed)
    home = CACHE / "pgbouncer"
    if not home.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            unpacked = _download(Path(scratch))
            try:
                unpacked.rename(home)
            except OSError:  # somebody else was faster
                if not home.is_dir():
                    raise
    return home / "usr/sbin/pgbouncer"


def _download(scratch: Path) -> Path:
    for folder in ("lists", "cache/archives", "packages"):
        (scratch / folder).mkdir(parents=True)
    # Lists and packages of our own: nothing of the system's is changed, and nobody needs to be root.
    options = [f"Dir::State::Lists={scratch}/lists", f"Dir::Cache={scratch}/cache", "APT::Sandbox::User=root"]
    flags = ["-qq", *(word for option in options for word in ("-o", option))]
    _run(scratch, "apt-get", *flags, "update")
    libraries = _LIBRARIES.findall(_run(scratch, "apt-cache", *flags, "depends", "pgbouncer"))
    _run(scratch / "packages", "apt-get", *flags, "download", "pgbouncer", *libraries)
    for package in (scratch / "packages").glob("*.deb"):
        _run(scratch, "dpkg-deb", "-x", str(package), str(scratch / "unpacked"))
    return scratch / "unpacked"


def _run(folder: Path, *command: str) -> str:
    try:
        return subprocess.run(
            command, cwd=folder, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        reason = (getattr(error, "stderr", "") or str(error)).strip()[-200:]
        raise ServerUnavailable(f"PgBouncer is not installed, and could not be downloaded: {reason}") from None


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
    libraries = ":".join(str(path) for path in program.parents[2].glob("usr/lib/*-linux-*"))
    environment = os.environ | {"LD_LIBRARY_PATH": libraries} if program.is_relative_to(CACHE) else None
    process = subprocess.Popen([program, "-q", *account, settings], env=environment, stderr=subprocess.DEVNULL)
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
