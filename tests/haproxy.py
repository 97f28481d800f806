"""A real HAProxy in front of one or two servers, in TCP mode."""

from __future__ import annotations

import socket
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import between
from debian import command_of, environment_for, find_program
from running import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["HAProxy", "find_haproxy", "haproxy"]


def find_haproxy() -> Path:
    """The installed one, or Debian's."""
    return find_program("haproxy", libraries=r"liblua\S*|libopentracing\S*|libpcre2-8-0")


class HAProxy:
    """
    A running HAProxy.

    Attributes:
        dsn: The way through it, as the first server's user.
        port: Where it listens, on 127.0.0.1.
        names: The servers' names: `one`, `two`, and so on. Those after the first are backups.
    """

    def __init__(self, folder: Path, port: int, server_dsns: tuple[str, ...], idle: str, options: str) -> None:
        self.port = port
        parts = urlsplit(server_dsns[0])
        self.dsn = parts._replace(netloc=f"{parts.username}:{parts.password}@127.0.0.1:{self.port}").geturl()
        self.names = ["one", "two", "three"][: len(server_dsns)]
        self.settings = folder / "haproxy.cfg"
        self._socket = folder / "admin.sock"
        self.settings.write_text(
            f"global\n stats socket {self._socket} mode 600 level admin\n stats timeout 30s\n"
            f"defaults\n mode tcp\n timeout connect 2s\n timeout client {idle}\n timeout server {idle}\n"
            f"listen postgres\n bind 127.0.0.1:{self.port}\n{options}"
            " default-server inter 50ms fastinter 50ms downinter 50ms fall 1 rise 1\n"
            + "".join(
                f" server {name} 127.0.0.1:{urlsplit(dsn).port} check{' backup' if number else ''}\n"
                for number, (name, dsn) in enumerate(zip(self.names, server_dsns, strict=True))
            )
        )

    def tell(self, command: str) -> str:
        """Run a command of its runtime API."""
        with socket.socket(socket.AF_UNIX) as api:
            api.connect(str(self._socket))
            api.sendall(command.encode() + b"\n")
            return b"".join(iter(lambda: api.recv(65536), b"")).decode().strip()

    def set_state(self, name: str, state: str) -> None:
        """Have a server be `ready`, in `drain`, or in `maint`, and wait until it is."""
        assert self.tell(f"set server postgres/{name} state {state}") == ""
        status = {"ready": "UP", "drain": "DRAIN", "maint": "MAINT"}[state]
        eventually(lambda: self.status(name) == status, f"{name} to be {status}")

    def status(self, name: str) -> str:
        """What it holds of a server: UP, DOWN, DRAIN, MAINT."""
        return self._row(name)[17].partition(" ")[0]

    def connections(self) -> int:
        """How many clients' connections there are through it."""
        return int(self._row("FRONTEND")[4])

    def _row(self, name: str) -> list[str]:
        rows = (line.split(",") for line in self.tell("show stat").splitlines())
        return next(cells for cells in rows if cells[:2] == ["postgres", name])

    def shut_down_sessions(self, name: str) -> None:
        """Close every connection to a server."""
        assert self.tell(f"shutdown sessions server postgres/{name}") == ""


@contextmanager
def haproxy(program: Path, *server_dsns: str, idle: str = "60s", options: str = "") -> Iterator[HAProxy]:
    """
    An HAProxy that checks its servers twenty times a second.

    Args:
        program: The program.
        server_dsns: The servers, over TCP, on 127.0.0.1; those after the first are backups.
        idle: After how long without data it closes a connection: `timeout client` and `timeout server`.
        options: More lines of its `listen` section, as in `" option pgsql-check user postgres\\n"`.
    """
    with tempfile.TemporaryDirectory(prefix="loopaware-haproxy-") as folder, between.own_port() as port:
        running = HAProxy(Path(folder), port, server_dsns, idle, options)
        command = [*command_of(program), "-db", "-q", "-f", str(running.settings)]
        process = subprocess.Popen(command, env=environment_for(program), stderr=subprocess.DEVNULL)
        try:
            between.wait_until_it_listens(process, running.port)
            yield running
        finally:
            process.kill()
            process.wait()
