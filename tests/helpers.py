"""What the operating system and the server know, as against what the pool says of itself."""

from __future__ import annotations

import asyncio
import inspect
import os
import socket
import time
from typing import TYPE_CHECKING, Any

import psycopg

from loopaware_pool.asyncpg.sql_effects import is_known_to_leave_session_unchanged

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

__all__ = [
    "describe_socket",
    "duplicate_of",
    "eventually",
    "kernel_watched_fds",
    "kill_sessions",
    "local_ports",
    "make_known",
    "open_sockets",
    "selector_fds",
    "server_sessions",
    "socket_count",
    "spin",
]


def open_sockets() -> dict[str, int]:
    """Every socket this process holds: identity in the kernel (`socket:[inode]`) -> its fd."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue
        if target.startswith("socket:"):
            found[target] = int(name)
    return found


def make_known(*statements: str) -> None:
    """Have texts come often enough to be judged: a new one counts as one that may leave something."""
    for statement in statements * 2:
        is_known_to_leave_session_unchanged(statement)


def socket_count() -> int:
    """How many sockets this process holds."""
    return len(open_sockets())


def duplicate_of(name: str, fd: int) -> socket.socket | None:
    """Make a second socket object of an open socket, by its identity and fd; None if that fd is no longer it."""
    try:
        copy = os.dup(fd)
    except OSError:
        return None
    if os.readlink(f"/proc/self/fd/{copy}") != name:
        os.close(copy)
        return None
    return socket.socket(fileno=copy)


def local_ports() -> set[int]:
    """The ports that this process' TCP sockets have on its side."""
    found = set()
    for name, fd in open_sockets().items():
        duplicate = duplicate_of(name, fd)
        if duplicate is not None:
            with duplicate:
                if duplicate.family == socket.AF_INET:
                    found.add(duplicate.getsockname()[1])
    return found


def describe_socket(fd: int) -> str:
    """One line on an open socket, for the message of a failed test."""
    with socket.socket(fileno=os.dup(fd)) as duplicate:
        try:
            peer: Any = duplicate.getpeername()
        except OSError as error:
            peer = error.strerror
        return f"fd {fd}: {duplicate.family.name} {duplicate.getsockname()!r} -> {peer!r}"


def selector_fds(loop: AbstractEventLoop) -> set[int]:
    """The fds in the selector map of an asyncio loop, less the loop's own wake-up socket."""
    return set(loop._selector.get_map()) - {loop._ssock.fileno()}


def kernel_watched_fds() -> set[int]:
    """The fd numbers that any epoll set of this process watches, whichever library made the set."""
    watched: set[int] = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{fd}") != "anon_inode:[eventpoll]":
                continue
            with open(f"/proc/self/fdinfo/{fd}") as info:
                watched.update(int(line.split()[1]) for line in info if line.startswith("tfd:"))
        except FileNotFoundError:
            continue
    return watched


def server_sessions(dsn: str, application_name: str) -> int:
    """How many sessions of that application name the server has."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s"
    with psycopg.connect(dsn, application_name="server_sessions") as connection:
        return connection.execute(query, [application_name]).fetchone()[0]


def open_sessions(dsn: str, application_name: str) -> tuple[int, int]:
    """
    How many sessions of that application name the server has, and how many of them still have a socket in this process.

    A busy server ends a session some time after its socket was closed, and sees the next one meanwhile.
    """
    query = "SELECT client_port FROM pg_stat_activity WHERE application_name = %s"
    with psycopg.connect(dsn, application_name="open_sessions") as connection:
        ports = {port for (port,) in connection.execute(query, [application_name])}
    return len(ports), len(ports & local_ports())


async def eventually(condition: Any, seconds: float = 20.0) -> Any:
    """Wait until *condition*, plain or a coroutine function, is true; fail once *seconds* have passed."""
    deadline = time.monotonic() + seconds
    while True:
        outcome = condition()
        if inspect.isawaitable(outcome):
            outcome = await outcome
        if outcome:
            return outcome
        assert time.monotonic() < deadline, f"not within {seconds} s"
        await asyncio.sleep(0.005)


async def spin(iterations: int) -> None:
    """Let the loop go round so many times."""
    for _ in range(iterations):
        await asyncio.sleep(0)


def kill_sessions(dsn: str, application_name: str) -> int:
    """End the sessions of that name, and return when they are gone; how many that were."""
    query = "SELECT count(pg_terminate_backend(pid, 60000)) FROM pg_stat_activity WHERE application_name = %s"
    with psycopg.connect(dsn, autocommit=True) as connection:
        row: tuple[int] = connection.execute(query, [application_name]).fetchone()  # type: ignore[assignment]
        return row[0]
