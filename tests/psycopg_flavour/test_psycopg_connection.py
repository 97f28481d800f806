"""What the connection itself does, lent or not, as psycopg's does: it ends, tells of its end, and can be cancelled."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from time import monotonic
from types import SimpleNamespace

import psycopg
import psycopg_pool
import pytest
from psycopg import pq
from psycopg.waiting import Ready, Wait

import helpers
import servers
from loopaware_pool._platform.sockets import duplicate, local_address, peek
from loopaware_pool.psycopg import AsyncConnectionPool, AsyncNullConnectionPool, LoopAwareConnection
from loopaware_pool.psycopg.socket_waiter import ConnectionUse, SocketWaiter
from loopaware_pool.testing.fake_server import WELCOME, FakeClient, error, message
from psycopg_pools import busy, make_pool
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
    with duplicate(connection.pgconn.socket) as own:  # a server that does not sleep may read as fast as this is written
        own.sendall(message(b"Q", b"SELECT pg_sleep(60)\0"))
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
            assert "the connection is closed" not in str(task.exception()), "what ended it is hidden"
            await pool.putconn(connection)
            async with pool.connection() as connection:
                await connection.execute("SELECT 1")

    run(main())


@pytest.mark.parametrize("connection_class", [LoopAwareConnection, psycopg.AsyncConnection], ids=["ours", "theirs"])
def test_a_session_whose_end_is_read_in_pieces_under_a_large_parameter_ends_the_task(run, connection_class):
    """First the server's last word, then the reset: libpq closes its socket while that waits to be read and written."""

    async def serve(reader, writer):
        await FakeClient(reader, writer).startup()
        writer.write(WELCOME)
        writers.put_nowait(writer)

    async def main():
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            dsn = f"postgresql://me@127.0.0.1:{port}/db?sslmode=disable&gssencmode=disable"
            connection = await connection_class.connect(dsn, autocommit=True)
            writer = await writers.get()
            task = asyncio.create_task(connection.execute("SELECT length(%s)", ["x" * 30_000_000]))
            await asyncio.sleep(0.1)  # the server reads a little, and then no more
            writer.write(error("57P01", "FATAL"))
            await asyncio.sleep(0.1)
            assert not task.done(), "the socket took it all"
            reset_when_closed(writer.get_extra_info("socket"))
            writer.transport.abort()
            await asyncio.wait([task], timeout=10)
            assert task.done(), "the task hangs"
            assert isinstance(task.exception(), psycopg.OperationalError)
            await connection.close()

    writers = asyncio.Queue()
    run(main())


def empty(sock):
    """Read until nothing more has come."""
    sock.settimeout(0.05)
    try:
        while sock.recv(1 << 20):
            pass
    except TimeoutError:
        sock.settimeout(None)


def reset_when_closed(sock):
    """Have the other end told that the connection is reset, not that it has ended."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


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


@pytest.mark.parametrize("is_writable_too", [False, True])
def test_an_fd_that_is_closed_in_a_step_that_waits_for_both_directions_ends_the_wait(run, tcp_pair, is_writable_too):
    """libpq closes it by itself. asyncio's selector then refuses to change what it has of it, or calls once more."""
    here, there = tcp_pair
    reports = []

    def work():
        yield Wait.RW
        pgconn.status = pq.ConnStatus.BAD
        here.close()
        return "the end"

    def answer():
        if is_writable_too:
            empty(there)
        there.send(b"!")

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, report: reports.append(report))
        watch = SocketWaiter(pgconn, loop)
        fill(here)
        loop.call_soon(answer)
        async with asyncio.timeout(5):
            assert await watch.drive(work()) == "the end"
        await helpers.spin(3)

    pgconn = connection_of(here)
    run(main())
    assert reports == []


@pytest.mark.parametrize("is_closed_by_libpq", [True, False])
def test_whatever_the_removal_of_a_registration_raises_ends_no_wait_and_keeps_no_socket(
    run, tcp_pair, monkeypatch, is_closed_by_libpq
):
    """The task is woken, the socket is closed, and its number is forgotten."""
    here, there = tcp_pair
    reports = []

    def remove(loop, fd):
        loop.remove_reader(fd)
        loop.remove_writer(fd)
        raise LookupError("no such registration")

    def work():
        yield Wait.R
        pgconn.status = pq.ConnStatus.BAD
        return "the end"

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, report: reports.append(report["exception"]))
        watch = SocketWaiter(pgconn, loop)
        watch.use = ConnectionUse.USED
        waiting = asyncio.create_task(watch.drive(work()))
        await asyncio.sleep(0)
        async with asyncio.timeout(5):
            if is_closed_by_libpq:
                there.send(b"!")
                assert await waiting == "the end"
            else:
                with pytest.raises(LookupError):
                    watch.finish("closed")
                with pytest.raises(psycopg.OperationalError, match="closed while a query was running"):
                    await waiting
        assert watch.fd == -1

    monkeypatch.setattr("loopaware_pool.psycopg.socket_waiter.unregister", remove)
    finished = []
    pgconn = connection_of(here)
    pgconn.finish = lambda: finished.append(True)
    run(main())
    assert [type(error) for error in reports] == ([LookupError] if is_closed_by_libpq else [])
    assert finished == ([] if is_closed_by_libpq else [True])


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
        watch = SocketWaiter(connection_of(here), asyncio.get_running_loop())
        fill(here)
        asyncio.get_running_loop().call_soon(reset)
        async with asyncio.timeout(5):
            await watch.drive(work())
        watch.detach()

    def reset():
        reset_when_closed(there)
        there.close()

    run(main())
    assert all(ready & Ready.R for ready in readiness), readiness


def test_a_connection_whose_number_a_transport_has_by_now_can_be_returned(dsn):
    """Its libpq connection was ended past it, and another socket opened: that one is left alone."""

    async def main():
        async with make_pool(AsyncConnectionPool, dsn, min_size=1, max_size=1) as pool:
            connection = await pool.getconn()
            await connection.execute("SELECT 1")
            fd = connection.pgconn.socket
            connection.pgconn.finish()
            ends = socket.socketpair()
            mine = next(end for end in ends if end.fileno() == fd)
            _, writer = await asyncio.open_connection(sock=mine)
            await pool.putconn(connection)
            writer.close()
            await writer.wait_closed()
            for end in ends:
                end.close()
            async with pool.connection() as connection:
                await connection.execute("SELECT 1")

    asyncio.run(main())


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


# ---- what is the pool's own is not done by means of the user's ----


class Picky(psycopg.AsyncCursor):
    """A cursor that executes nothing but what its user means to."""

    async def execute(self, query, params=None, **kwargs):
        assert params == ["mine"], f"{query} is not mine"
        return await super().execute(query, params, **kwargs)


def picky_rows(cursor):
    raise AssertionError("these rows are not mine")


class Odd(psycopg.adapt.Loader):
    def load(self, data):
        return "odd"


@pytest.mark.parametrize("cursor_factory", [psycopg.AsyncRawCursor, psycopg.AsyncClientCursor, Picky])
@pytest.mark.parametrize("role", [None, "it's \u00e4 role"])
def test_a_reset_does_without_the_users_cursors_rows_and_adapters(dsn, run, cursor_factory, role):
    """The session is reset, and used again, whatever they make of a query."""

    async def configure(connection):
        for kind in ("text", "name", "bool"):
            connection.adapters.register_loader(kind, Odd)
        if role is not None:
            cursor = psycopg.AsyncCursor(connection, row_factory=psycopg.rows.tuple_row)
            await cursor.execute(psycopg.sql.SQL("SET ROLE {}").format(psycopg.sql.Identifier(role)))

    async def lease(pool):
        async with pool.connection() as connection:
            cursor = psycopg.AsyncClientCursor(connection, row_factory=psycopg.rows.tuple_row)
            await cursor.execute("SELECT current_user, current_setting('work_mem'), pg_backend_pid()")
            found = [cursor.pgresult.get_value(0, number).decode() for number in range(3)]
            await cursor.execute("SET work_mem = '3MB'; RESET ROLE; SET client_encoding = 'LATIN1'")
            return found

    async def main():
        if role is not None:
            with psycopg.connect(dsn, autocommit=True) as admin, suppress(psycopg.errors.DuplicateObject):
                admin.execute(psycopg.sql.SQL("CREATE ROLE {}").format(psycopg.sql.Identifier(role)))
        kwargs = {"cursor_factory": cursor_factory, "row_factory": picky_rows}
        async with make_pool(
            AsyncConnectionPool, dsn, min_size=1, session_reset="awaited", configure=configure, kwargs=kwargs
        ) as pool:
            first = await lease(pool)
            assert role in (None, first[0])
            assert await lease(pool) == first
            assert await lease(pool) == first

    run(main())


# ---- a connection that has ended, or is another's by now ----


USES = {
    "execute": lambda connection: connection.execute("SELECT 1"),
    "commit": lambda connection: connection.commit(),
    "rollback": lambda connection: connection.rollback(),
    "notifies": lambda connection: anext(connection.notifies()),
    "set_autocommit": lambda connection: connection.set_autocommit(True),
    "copy": lambda connection: connection.cursor().copy("COPY pg_class TO STDOUT").__aenter__(),
    "transaction": lambda connection: connection.transaction().__aenter__(),
    "wait": lambda connection: connection.wait(connection._commit_gen()),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("cls", [AsyncNullConnectionPool, psycopg_pool.AsyncNullConnectionPool], ids=["ours", "theirs"])
def test_a_connection_that_was_closed_after_its_return_says_that_it_is_closed(dsn, run, cls, use):
    """As psycopg's does; job queues catch that to connect anew."""

    async def main():
        async with make_pool(cls, dsn, min_size=0, max_size=1) as pool:
            connection = await pool.getconn()
            await pool.putconn(connection)
        assert connection.closed
        with pytest.raises(psycopg.OperationalError, match="the connection is closed"):
            await USES[use](connection)

    run(main())


@pytest.mark.parametrize("use", USES)
def test_a_closed_connection_says_so_on_another_loop_too(dsn, run, use):
    """It belongs to no loop any more."""

    async def first():
        async with make_pool(AsyncNullConnectionPool, dsn) as pool:
            connection = await pool.getconn()
            await connection.close()
            await pool.putconn(connection)
            return connection

    async def second(connection):
        with pytest.raises(psycopg.OperationalError, match="the connection is closed"):
            await USES[use](connection)

    run(second(run(first())))


# ---- a generator that looks at the clock ----


@pytest.mark.parametrize("connection_class", [LoopAwareConnection, psycopg.AsyncConnection], ids=["ours", "theirs"])
def test_a_generator_is_told_of_silence_ten_times_a_second(dsn, run, connection_class):
    """Unless it asks for another interval; and only of silence."""

    def looks(times):
        told = []
        while len(told) < times:
            told.append((yield Wait.R))
        return told

    async def main():
        async with await connection_class.connect(dsn) as connection:
            with suppress(TimeoutError):
                async with asyncio.timeout(0.01):
                    await connection.wait(looks(1), interval=60)
            for more in ({}, {}, {"interval": 0.01}, {"interval": 0.3}, {}):
                began = monotonic()
                async with asyncio.timeout(10):
                    told = await connection.wait(looks(2), **more)
                assert [int(ready) for ready in told] == [0, 0]
                assert monotonic() - began >= 2 * more.get("interval", 0.1) - 0.01

    run(main())


def test_a_query_that_takes_longer_than_the_interval_is_waited_for(dsn, run):
    """And what is asked in between does not shift the time at which silence is told of."""

    async def main():
        async with make_pool(AsyncConnectionPool, dsn, min_size=1) as pool, pool.connection() as connection:
            for seconds in (0.25, 0.01, 0.12):
                await connection.execute("SELECT pg_sleep(%s)", [seconds])

    run(main())


@pytest.mark.parametrize(
    ("malformed", "outcome"),
    [
        (lambda: iter([]), None),
        (lambda: iter([Wait.W]), AttributeError),
        (lambda: iter([0]), psycopg.InternalError),
        (lambda: iter(["R"]), TypeError),
        (lambda: 5, TypeError),
    ],
    ids=["nothing", "an iterator", "no wait", "a text", "a number"],
)
@pytest.mark.parametrize("connection_class", [LoopAwareConnection, psycopg.AsyncConnection], ids=["ours", "theirs"])
def test_what_is_no_generator_is_refused_and_leaves_the_connection_as_it_was(
    dsn, run, connection_class, malformed, outcome
):
    """With the error it has with psycopg."""

    async def main():
        async with await connection_class.connect(dsn) as connection:
            async with asyncio.timeout(5):
                if outcome is None:
                    assert await connection.wait(malformed()) is None
                else:
                    with pytest.raises(outcome):
                        await connection.wait(malformed())
                await connection.execute("SELECT 1")

    run(main())


# ---- what psycopg's connection does, too ----


@pytest.mark.parametrize("connection_class", [LoopAwareConnection, psycopg.AsyncConnection], ids=["ours", "theirs"])
def test_handlers_run_as_the_task_whose_query_brings_the_message(dsn, run, connection_class):
    """So that what looks at the current task, as tracers do, finds it."""
    tasks = []

    def note(_):
        tasks.append(asyncio.current_task())

    async def query(connection):
        await connection.execute("DO $$ BEGIN PERFORM pg_sleep(0.02); RAISE NOTICE 'hear'; END $$")
        await connection.execute("NOTIFY news; SELECT pg_sleep(0.02)")
        return asyncio.current_task()

    async def main():
        async with await connection_class.connect(dsn, autocommit=True) as connection:
            connection.add_notice_handler(note)
            connection.add_notify_handler(note)
            await connection.execute("LISTEN news")
            expected = await asyncio.create_task(query(connection))
            assert tasks == [expected] * 2
            assert asyncio.current_task() is not expected

    run(main())


def test_a_connection_closed_on_another_loop_says_at_once_that_it_is_closed(dsn, run):
    """Though its own loop closes the socket, when it comes to it."""

    async def main():
        connection = await LoopAwareConnection.connect(dsn)

        async def close():
            await connection.close()
            return connection.closed

        with ThreadPoolExecutor(1) as thread:
            assert thread.submit(asyncio.run, close()).result()  # this loop stands still meanwhile
        await eventually_async(lambda: connection.pgconn.status == pq.ConnStatus.BAD, "a socket that is closed")

    run(main())


@pytest.mark.parametrize("kind", [LoopAwareConnection, psycopg.AsyncConnection], ids=["ours", "theirs"])
@pytest.mark.parametrize("is_busy", [False, True], ids=["idle", "in a query"])
def test_a_lent_connection_closed_on_another_loop_says_at_once_that_it_is_closed(dsn, run, kind, is_busy):
    """There and here, though its own loop runs and is to end the query first; and it counts no more once it is back."""

    async def close(connection):
        await connection.close()
        return connection.closed

    async def main():
        async with make_pool(AsyncConnectionPool, dsn, min_size=0, max_size=1, connection_class=kind) as pool:
            connection = await pool.getconn()
            query = asyncio.create_task(connection.execute("SELECT pg_sleep(60)" if is_busy else "SELECT 1"))
            await (busy(connection) if is_busy else query)
            assert await asyncio.to_thread(asyncio.run, close(connection))
            assert connection.closed
            if is_busy:
                with pytest.raises(psycopg.OperationalError):
                    await query
            await pool.putconn(connection)
            async with pool.connection() as another:
                assert another is not connection

    run(main())


def test_a_connection_that_is_closed_into_its_pool_in_its_own_block_stays_there(dsn, run):
    """The end of the block leaves it alone: it is not the caller's any more."""

    async def main():
        async with make_pool(AsyncConnectionPool, dsn, min_size=1, close_returns=True) as pool:
            async with await pool.getconn() as connection:
                pid = connection.info.backend_pid
                await connection.close()
            async with pool.connection() as connection:
                assert connection.info.backend_pid == pid
                await connection.execute("SELECT 1")

    run(main())


@pytest.mark.parametrize("cls", [AsyncConnectionPool, psycopg_pool.AsyncConnectionPool], ids=["ours", "theirs"])
def test_the_log_tells_of_requests_and_of_growth(dsn, run, cls, caplog):
    """In the words that psycopg_pool has for them."""

    async def main():
        async with make_pool(cls, dsn, min_size=1, max_size=2, name="told") as pool:
            await pool.wait()
            async with pool.connection():
                caplog.clear()
                async with pool.connection():
                    pass

    caplog.set_level("INFO", "psycopg.pool")
    run(main())
    told = [record.getMessage() for record in caplog.records]
    expected = [
        "connection requested from 'told'",
        "growing pool 'told' to 2",
        "adding new connection to the pool",
        "connection given by 'told'",
        "returning connection to 'told'",
    ]
    assert [line for line in told if line in expected][: len(expected)] == expected
