"""Leaks per so many calls; and how fds are listed on other platforms."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys

import psutil
import pytest

from loopaware_pool.audit import (
    AuditUnavailable,
    FdAudit,
    fd_leak_per,
    open_files,
)
from loopaware_pool.audit.open_files import open_fds

pytestmark = [pytest.mark.thorough, pytest.mark.both_pythons, pytest.mark.both_drivers]


# ---- per so many ----


def test_a_leak_is_measured_per_10_000():
    """One fd in four runs is 2,500 in 10,000."""
    opened, numbers = [], iter(range(1000))

    async def leak():
        if next(numbers) % 4 == 0:
            opened.append(socket.socket())

    assert asyncio.run(fd_leak_per(10_000, leak, runs=100)) == 2500
    assert asyncio.run(fd_leak_per(10_000, lambda: None)) == 0
    for one in opened:
        one.close()


@pytest.mark.parametrize("per_leak", [50, 100, 150])
def test_a_slow_leak_is_told_from_a_pool_that_grows(per_leak):
    """A pool grows while it is first used, in no time that is known; a leak goes on."""
    kept, runs = [], iter(range(100_000))

    def grow_and_leak():
        run = next(runs)
        if (10 < run < 250 and run % 20 == 0) or run % per_leak == per_leak - 1:
            kept.append(socket.socket())

    try:
        assert asyncio.run(fd_leak_per(10_000, grow_and_leak, runs=300, tasks=5)) == 10_000 / per_leak
    finally:
        for sock in kept:
            sock.close()


def test_a_pool_that_grows_leaks_nothing(dsn):
    """Fifty tasks that find two connections have it open more, some of them late."""

    async def measure():
        from loopaware_pool import create_pool

        async with create_pool(dsn, min_size=2, max_size=20) as pool:
            return await fd_leak_per(10_000, lambda: pool.fetchval("SELECT 1"), runs=1000, tasks=50)

    assert [asyncio.run(measure()) for _ in range(5)] == [0] * 5


def test_what_a_pool_keeps_is_no_leak(dsn, runner):
    """Connections that are open before the count starts are not counted."""

    async def main():
        from loopaware_pool import create_pool

        async with create_pool(dsn, min_size=5, max_size=5) as pool:
            assert await fd_leak_per(10_000, lambda: pool.fetchval("SELECT 1"), runs=500, tasks=5) == 0

    runner.run(main())


@pytest.mark.parametrize("options", [{"count": 0}, {"count": 1, "runs": 0}, {"count": 1, "tasks": -1}])
def test_numbers_that_make_no_sense_are_refused(options):
    """By name."""
    with pytest.raises(ValueError, match=r"(count|runs|tasks) must be at least 1, not"):
        asyncio.run(fd_leak_per(operation=lambda: None, **options))


# ---- platforms ----


def test_dev_fd_shows_the_same_as_proc(pair):
    """The way of macOS and BSD, tried here: the same numbers, kinds and peers."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        proc = {fd.fd: (fd.kind, fd.peer) for fd in open_files._read_proc().values() if fd.kind in ("socket", "pipe")}
        dev = {fd.fd: (fd.kind, fd.peer) for fd in open_files._read_dev_fd().values() if fd.kind in ("socket", "pipe")}
    assert proc == dev


def test_numbers_that_dev_fd_does_not_list_are_tried(pair, monkeypatch):
    """FreeBSD without fdescfs lists three."""
    listed = open_files._read_dev_fd()
    monkeypatch.setattr(open_files, "_lists_all", lambda: False)
    assert open_files._read_dev_fd() == listed


def test_psutil_shows_sockets(monkeypatch):
    """The way of Windows, tried here: sockets that have an address."""
    monkeypatch.setattr(open_files, "_reader", lambda: open_files._read_windows)
    with FdAudit(trace=True, grace_seconds=0) as audit:
        server = socket.create_server(("127.0.0.1", 0))
    server.close()
    assert [fd.kind for fd in audit.leaked] == ["socket"]
    assert "on Windows only sockets with an address are seen" in audit.report()


def test_windows_without_psutil_says_what_to_do(monkeypatch):
    """One line."""
    monkeypatch.setattr(open_files, "_reader", lambda: open_files._read_windows)
    monkeypatch.setitem(sys.modules, "psutil", None)
    with pytest.raises(AuditUnavailable, match="pip install psutil"), FdAudit():
        pass


def test_an_exhausted_process_is_told_so():
    """Looking takes an fd; without one, nothing is guessed."""
    code = """
import os, resource
from loopaware_pool.audit import AuditUnavailable, FdAudit
resource.setrlimit(resource.RLIMIT_NOFILE, (50, 50))
try:
    while True:
        os.dup(0)
except OSError:
    pass
try:
    FdAudit().start()
except AuditUnavailable as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "ulimit -n" in done.stdout


def test_looking_opens_nothing():
    """The audit's own fds are not among what it sees, and gone afterwards."""
    before = psutil.Process().num_fds()
    seen = open_fds()
    assert psutil.Process().num_fds() == before
    assert all(os.fstat(fd.fd) for fd in seen.values())
