"""What the operating system knows of the processes of a program."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psutil

if TYPE_CHECKING:
    from examples.program import Program

__all__ = ["connections_to", "fds_of", "processes_of"]


def processes_of(program: Program) -> list[psutil.Process]:
    """The one that was started, and those that it has forked."""
    parent = psutil.Process(program.process.pid)
    return [parent, *parent.children(recursive=True)]


def connections_to(dsn: str, processes: list[psutil.Process]) -> list[tuple[int, int]]:
    """The pid and fd of each socket of those processes that leads to the server; none of one that has ended."""
    port = urlsplit(dsn).port
    return [
        (process.pid, connection.fd)
        for process in processes
        for connection in _connections(process)
        if connection.raddr and connection.raddr.port == port
    ]


def _connections(process: psutil.Process) -> list[Any]:
    try:
        return process.net_connections("tcp")
    except psutil.NoSuchProcess:
        return []


def fds_of(processes: list[psutil.Process]) -> dict[int, int]:
    """How many fds each of them has, by its pid."""
    return {process.pid: process.num_fds() for process in processes}
