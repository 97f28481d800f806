"""What the connection itself does, lent or not, as psycopg's does: it ends, tells of its end, and can be cancelled."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import psycopg
import pytest
from psycopg import pq
from psycopg.waiting import Ready, Wait

import helpers
import servers
from loopaware_pool.fds import duplicate, local_address, peek
from loopaware_pool.psycopg import AsyncConnectionPool
from loopaware_pool.psycopg_watch import SocketWatch
from psycopg_pools import make_pool
from running import eventually_async

HERE = Path(__file__).parent

pytestmark = [pytest.mark.both_pythons, pytest.mark.both_drivers, pytest.mark.usefixtures("zero_fd_delta")]


# ---- a session that the server ends ----


async def many_rows(connection):
    rows = [(60, "x" * 100_000)] + [(0, "x" * 100_000)] * 300
    await connection.cursor().executemany("SELECT pg_sleep(%s), length(%s)", rows)


async def pipeline(connection):
    async with connection.pipeline():
        await connection.execute("SELECT pg_sleep(60)")
        for _ in range(300):
            await connection.execute("SELECT length(%s)", ["x" * 100_000])


async def large_parameter(connection):
    await connection.execute("SELECT length(%s)", ["x" * 60_000_000])


@pytest.mark.parametrize("work", [many_rows, pipeline, large_parameter])
def test_a_session_that_ends_while_its_socket_waits_to_be_writable_ends_the_task(dsn, run, work):
    """With the server's error; and the connection is replaced."""

    async def main():
        async with make_pool(AsyncConnectionPool, dsn, min_size=1) as pool:
            connection = await pool.getconn()
            task = asyncio.create_task(work(connection))
            await eventually_async(lambda: connection.watch._is_writing or task.done(), "a socket that is full")
            assert not task.done(), "the socket took it all"
            helpers.kill_sessions(dsn, pool.name)
            await asyncio.wait([task], timeout=10)
            assert task.done(), "the task hangs"
            assert isinstance(task.exception(), psycopg.OperationalError)
            await pool.putconn(connection)
            async with pool.connection() as connection:
                await connection.execute("SELECT 1")

    run(main())


def connection_of(sock):
    """What stands for libpq's connection: its socket and its status."""
    return SimpleNamespace(socket=sock.fileno(), status=pq.ConnStatus.OK)


def fill(sock):
    """Write until the socket takes no more."""
    sock.setblocking(False)
    try:
        while True:
            sock.send(bytes(65536))
    except BlockingIOError:
        pass


@pytest.fixture
def tcp_pair():
    """Two ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = socket.create_connection(server.getsockname())
        there, _ = server.accept()
    with here, there:
        yield here, there


def test_an_fd_that_is_closed_in_a_step_that_waits_for_both_directions_ends_the_wait(run, tcp_pair):
    """libpq closes it by itself. asyncio's selector then refuses to change what it has of it."""
    here, there = tcp_pair
    reports = []

    def work():
        yield Wait.RW
        pgconn.status = pq.ConnStatus.BAD
        here.close()
        return "the end"

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, report: reports.append(report))
        watch = SocketWatch(pgconn, loop)
        fill(here)
        loop.call_soon(there.send, b"!")
        async with asyncio.timeout(5):
            assert await watch.drive(work()) == "the end"
        await helpers.spin(3)

    pgconn = connection_of(here)
    run(main())
    assert reports == []


def test_a_socket_in_error_is_told_of_as_long_as_somebody_waits(run, tcp_pair):
    """uvloop calls once for an error, and what is registered from within that call may not be called at all."""
    here, there = tcp_pair
    readiness = []

    def work():
        readiness.append((yield Wait.RW))
        with pytest.raises(ConnectionResetError):
            here.recv(1)
        readiness.append((yield Wait.R))
        readiness.append((yield Wait.R))

    async def main():
        watch = SocketWatch(connection_of(here), asyncio.get_running_loop())
        fill(here)
        asyncio.get_running_loop().call_soon(reset)
        async with asyncio.timeout(5):
            await watch.drive(work())
        watch.detach()

    def reset():
        there.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        there.close()

    run(main())
    assert all(ready & Ready.R for ready in readiness), readiness


@pytest.mark.parametrize("look", [duplicate, peek, local_address])
def test_an_fd_that_is_no_socket_is_left_as_it_is(look):
    """The number that was made to look at it is closed again."""
    here, there = os.pipe()
    before = os.listdir("/proc/self/fd")
    with suppress(OSError):
        look(here)
    assert os.listdir("/proc/self/fd") == before
    os.close(here)
    os.close(there)


# ---- cancelling with libpq before version 17 ----


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize(
    ("answers", "outcome"),
    [("silent", "cancelled, in time, closed"), ("awake", "cancelled, in time, open, 1")],
)
def test_an_old_libpq_cancels_a_query_in_time(dsn, loop, answers, outcome):
    """Its blocking request holds up neither the task, nor the end of the loop, nor that of the program."""
    try:
        libpq = servers.postgresql(15).parent / "lib" / "libpq.so.5"
    except servers.ServerUnavailable as reason:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(reason))
    path = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, HERE / "old_libpq.py", dsn, loop, answers],
        env=os.environ | {"PSYCOPG_IMPL": "python", "LOOPAWARE_TEST_LIBPQ": str(libpq), "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.strip() == outcome, done.stderr
