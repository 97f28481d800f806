"""
Sockets, registrations and their order: what psycopg and psycopg_pool leave behind, and we do not.

Each scenario is told once, for any pool, and returns its complaints: of theirs there are some, so that it can fail,
of ours none.
"""

from __future__ import annotations

import asyncio
import gc
import os
import socket
from contextlib import suppress

import psycopg
import psycopg_pool
import pytest
from psycopg.waiting import Wait

import helpers
from loopaware_pool.psycopg import AsyncConnectionPool, LoopAwareConnection, WrongLoop
from loopaware_pool.psycopg.socket_waiter import SocketWaiter
from psycopg_pools import HELD_UP, IS_PSYCOPG_3_2, busy, held_up, make_pool
from running import DEADLINE_SECONDS, LoopThread, eventually_async

pytestmark = [pytest.mark.both_pythons, pytest.mark.both_drivers]

SHORT_SECONDS = 0.25


class OfTheUsers(psycopg.AsyncConnection):
    """A connection class that is not ours."""


KINDS = {
    "theirs": (psycopg_pool.AsyncConnectionPool, {}),
    "ours": (AsyncConnectionPool, {}),
    "ours with a foreign class": (AsyncConnectionPool, {"connection_class": OfTheUsers}),
}


@pytest.fixture(params=list(KINDS))
def kind(request):
    return request.param


@pytest.fixture
def pool_of(dsn):
    """Makes a pool of a kind, for one connection, not opened."""

    def make(kind, **options):
        cls, more = KINDS[kind]
        return make_pool(cls, dsn, **{"min_size": 0, "max_size": 1} | more | options)

    return make


@pytest.fixture
def no_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()
    gc.collect()


def judge(kind, complaints):
    """There are complaints of theirs, and none of ours."""
    if kind == "theirs":
        assert complaints, "the scenario cannot fail any more"
    else:
        assert complaints == []


def watched(loop):
    """The fds in the loop's selector, or where it hides that, in the kernel's set."""
    return helpers.selector_fds(loop) if hasattr(loop, "_selector") else helpers.kernel_watched_fds()


async def give_back(pool, connection):
    await pool.putconn(connection)


async def close(pool, connection):
    await connection.close()


# ---- a connection that ends under a query ----


async def sleep_on(connection):
    """Run a query as psycopg does, in Python: its generators in C go on with what libpq has freed, and may crash."""

    def query(pgconn):
        pgconn.send_query(b"SELECT pg_sleep(60)")
        pgconn.flush()
        while pgconn.is_busy():
            yield Wait.R
            pgconn.consume_input()

    async with connection.lock:
        await connection.wait(query(connection.pgconn))


@pytest.mark.parametrize("end", [give_back, close])
def test_a_socket_that_gets_the_number_of_a_connection_ended_under_a_query_is_heard(pool_of, kind, end, run):
    """It fires, and stays registered whatever the query's task does; and that query ends with an error."""

    async def scenario():
        here, peer = socket.socketpair()
        with here, peer:
            return await end_under_query(here, peer)

    patience = SHORT_SECONDS if kind == "theirs" else DEADLINE_SECONDS / 5

    async def end_under_query(here, peer):
        complaints = []
        async with pool_of(kind) as pool:
            connection = await pool.getconn()
            fd = connection.pgconn.socket
            query = asyncio.create_task(sleep_on(connection))
            await busy(connection)
            await end(pool, connection)
            if not connection.closed:  # of another class: when its query has noticed
                await eventually_async(lambda: connection.closed, "a connection that is closed")
            complaints += await try_number(fd, here, peer, patience)
            await asyncio.wait([query], timeout=4 * patience)
            if not query.done():
                complaints.append("the query does not end")
                query.cancel()
            outcome = (await asyncio.gather(query, return_exceptions=True))[0]
            if not isinstance(outcome, psycopg.OperationalError):
                complaints.append(f"the query ends with {outcome!r}")
            if end is close:
                await pool.putconn(connection)
        return complaints

    judge(kind, run(scenario()))


async def try_number(fd, here, peer, patience):
    """Have *fd*, which is free, mean one end of a pair, and complain if what the other says is not heard, twice."""
    loop = asyncio.get_running_loop()
    complaints = []
    heard = asyncio.Event()
    os.dup2(here.fileno(), fd)
    os.set_blocking(fd, False)
    try:
        loop.add_reader(fd, heard.set)
        for when in ("at first", "later"):
            heard.clear()
            peer.send(b"!")
            with suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await heard.wait()
            if not heard.is_set():
                complaints.append(f"the next socket is not heard of {when}")
            os.read(fd, 1)
            await asyncio.sleep(0.15)  # psycopg's waits wake ten times a second
        loop.remove_reader(fd)
    except OSError as error:
        complaints.append(repr(error))
    finally:
        os.close(fd)
    return complaints


@pytest.mark.filterwarnings("ignore:coroutine 'Event.wait' was never awaited:RuntimeWarning")  # theirs, of psycopg 3.2
def test_a_loop_that_is_closed_under_a_query_takes_the_socket_along(pool_of, kind, dsn, loop_factory, no_collector):
    """Though the task that waits for it is never woken."""
    before = helpers.open_sockets()
    loop = loop_factory()
    loop.set_exception_handler(lambda *_: None)
    pool = pool_of(kind)
    connection = task = None

    async def begin():
        nonlocal connection, task
        if kind == "theirs":  # without a pool, whose workers would complain of the loop
            connection = await psycopg.AsyncConnection.connect(dsn)
        else:
            await pool.open()
            connection = await pool.getconn()
        task = asyncio.create_task(connection.execute("SELECT pg_sleep(60)"))
        await busy(connection)

    loop.run_until_complete(begin())
    loop.close()
    left = [fd for name, fd in helpers.open_sockets().items() if name not in before]
    connection.pgconn.finish()
    task._log_destroy_pending = False
    judge(kind, left)


@pytest.mark.parametrize("kind", ["theirs", "ours"])
def test_a_writer_that_cannot_be_added_leaves_no_reader(pool_of, kind, monkeypatch):
    """Neither is left when one of the two fails."""
    monkeypatch.setattr(psycopg.waiting, "_ready", lambda *_: 0, raising=False)
    monkeypatch.setattr(SocketWaiter, "_ready_now", lambda *_: 0)

    def fail(*_):
        raise OSError("no writer")

    def wants_both():
        yield psycopg.waiting.Wait.RW

    async def scenario():
        loop = asyncio.get_running_loop()
        async with pool_of(kind) as pool:
            connection = await pool.getconn()
            fd = connection.pgconn.socket
            loop.add_writer = fail
            with pytest.raises((psycopg.OperationalError, OSError)):
                await connection.wait(wants_both())
            del loop.add_writer
            left = [fd] if fd in helpers.selector_fds(loop) else []
            loop.remove_reader(fd)
            await pool.putconn(connection)
        return left

    judge(kind, asyncio.run(scenario()))


# ---- readers of the user's ----


def readers_that_may_outlive(end, kind, pool_of):
    """Whether a reader of the user's is left in the selector; the fd is taken out of it all the same."""

    async def scenario():
        complaints = []
        loop = asyncio.get_running_loop()
        async with pool_of(kind) as pool:
            connection = await pool.getconn()
            fd = connection.fileno()
            loop.add_reader(fd, lambda: None)
            await end(pool, connection)
            await helpers.spin(3)
            if fd in watched(loop):
                complaints.append("the reader is left")
            loop.remove_reader(fd)
            if end is close:
                await pool.putconn(connection)
        return complaints

    return scenario()


def test_a_reader_of_the_users_does_not_outlive_a_lease_that_is_returned(pool_of, kind, run):
    """Its fd is in no selector afterwards."""
    judge(kind, run(readers_that_may_outlive(give_back, kind, pool_of)))


def test_a_reader_of_the_users_does_not_outlive_a_connection_that_is_closed(pool_of, kind):
    """On asyncio, where it would stay in the selector's map. (uvloop ends the process when it meets such a one.)"""
    judge(kind, asyncio.run(readers_that_may_outlive(close, kind, pool_of)))


@pytest.mark.parametrize("kind", ["ours", "ours with a foreign class"])
def test_a_reader_of_the_users_on_a_connection_that_is_closed_does_no_harm(pool_of, kind, run):
    """On uvloop neither."""
    assert run(readers_that_may_outlive(close, kind, pool_of)) == []


def test_a_reader_for_a_number_found_elsewhere_does_not_outlive_the_lease_on_asyncio(pool_of):
    """The selector is looked at: `fileno()` was not asked."""

    async def main():
        loop = asyncio.get_running_loop()
        async with pool_of("ours") as pool:
            async with pool.connection() as connection:
                await connection.execute("SELECT 1")
                fd = connection.pgconn.socket
                loop.add_reader(fd, lambda: None)
                loop.add_writer(fd, lambda: None)
            assert fd not in helpers.selector_fds(loop)

    asyncio.run(main())


def test_queries_go_on_beside_a_reader_of_the_users(pool_of, run):
    """It has taken the place of ours, and the next wait takes it back."""

    async def main():
        loop = asyncio.get_running_loop()
        async with pool_of("ours") as pool, pool.connection() as connection, asyncio.timeout(5):
            await connection.execute("SELECT 1")
            loop.add_reader(connection.fileno(), lambda: None)
            await connection.execute("SELECT 1")
            await connection.execute("SELECT 1")

    run(main())


# ---- one reader per lease ----


def test_leases_that_follow_each_other_share_one_reader(pool_of):
    """However many queries each runs, while somebody waits for the connection; and none is left afterwards."""
    added = []

    async def main():
        loop = asyncio.get_running_loop()
        async with pool_of("ours") as pool:
            await pool.putconn(await pool.getconn())
            await pool.settled()
            add_reader = loop.add_reader
            loop.add_reader = lambda fd, *args: (added.append(fd), add_reader(fd, *args))

            async def lease():
                async with pool.connection() as connection:
                    for _ in range(5):
                        await connection.execute("SELECT 1")

            await asyncio.gather(*(lease() for _ in range(10)))
            await pool.settled()
            assert not helpers.selector_fds(loop)

    asyncio.run(main())
    assert len(added) == 1


def test_an_idle_connection_is_in_no_selector(pool_of, run):
    """Once nothing is in use the loop polls without it; asked of the kernel, too."""

    async def main():
        loop = asyncio.get_running_loop()
        async with pool_of("ours") as pool:
            async with pool.connection() as connection:
                await connection.execute("SELECT 1")
                fd = connection.pgconn.socket
                assert fd in watched(loop)
            await pool.settled()
            assert fd not in watched(loop)
            assert [row.registered for row in pool.fd_report()] in ([False], [None])

    run(main())


def test_an_idle_connection_leaves_the_selector_while_another_is_in_use(pool_of, run):
    """Within milliseconds: a lease that lasts an hour keeps nobody in."""

    async def main():
        loop = asyncio.get_running_loop()
        async with pool_of("ours", max_size=2) as pool:
            held = await pool.getconn()
            async with pool.connection() as connection:
                await connection.execute("SELECT 1")
                fd = connection.pgconn.socket
            await eventually_async(lambda: fd not in watched(loop), "an fd that is parked")
            await held.execute("SELECT 1")
            await pool.putconn(held)

    run(main())


def test_a_reader_that_fires_with_nobody_waiting_is_removed(pool_of, dsn, run):
    """A notification comes between two queries: the loop does not spin, and the notification is not lost."""

    async def main():
        loop = asyncio.get_running_loop()
        heard = []
        async with pool_of("ours") as pool, pool.connection() as connection:
            connection.add_notify_handler(heard.append)
            await connection.execute("LISTEN news")
            fd = connection.pgconn.socket
            assert fd in watched(loop)
            async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as other:
                await other.execute("NOTIFY news, 'hello'")
            await eventually_async(lambda: fd not in watched(loop), "a reader that is removed")
            await connection.execute("SELECT 1")
            assert [notify.payload for notify in heard] == ["hello"]

    run(main())


def test_a_server_that_ends_the_session_under_a_query_leaves_nothing(pool_of, dsn, run):
    """libpq closes the fd by itself; its registration is gone in the same step."""

    async def main():
        loop = asyncio.get_running_loop()
        async with pool_of("ours") as pool:
            connection = await pool.getconn()
            fd = connection.pgconn.socket
            query = asyncio.create_task(connection.execute("SELECT pg_sleep(60)"))
            await busy(connection)
            async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as other:
                await other.execute("SELECT pg_terminate_backend(%s)", [connection.info.backend_pid])
                with pytest.raises(psycopg.OperationalError):
                    await query
                assert connection.closed
                assert fd not in watched(loop)
            await pool.putconn(connection)
            async with pool.connection() as fresh:
                await fresh.execute("SELECT 1")

    run(main())


# ---- who may use a connection ----


@pytest.mark.parametrize("is_locked", [False, True])
def test_another_loop_is_told_at_once_and_nothing_is_sent(pool_of, dsn, run, loop_factory, is_locked):
    """The error names both loops; also where another query has the connection's lock."""

    async def main():
        async with pool_of("ours") as pool, pool.connection() as connection:

            async def trespass():
                await connection.execute("SELECT 2")

            with held_up(dsn):
                query = asyncio.create_task(connection.execute(HELD_UP if is_locked else "SELECT 1"))
                await (busy(connection) if is_locked else query)
                with pytest.raises(WrongLoop) as caught:
                    await asyncio.to_thread(other.run, trespass())
            assert str(caught.value).count("loop-") >= 2
            assert pool.name in str(caught.value)
            assert isinstance(caught.value, psycopg.InterfaceError)
            await query
            await connection.execute("SELECT 3")

    with LoopThread(loop_factory) as other:
        run(main())


def test_a_connection_that_was_returned_cannot_be_used(pool_of, run):
    """Until it is lent again: what is idle is nobody's."""

    async def main():
        async with pool_of("ours") as pool:
            async with pool.connection() as connection:
                pass
            with pytest.raises(psycopg.InterfaceError, match="returned to pool"):
                await connection.execute("SELECT 1")
            async with pool.connection() as again:
                assert again is connection
                await again.execute("SELECT 1")

    run(main())


def test_a_second_wait_beside_the_first_is_refused(pool_of, dsn, run):
    """Two generators cannot share a socket; the first is not disturbed."""

    def generator():
        yield psycopg.waiting.Wait.R

    async def main():
        async with pool_of("ours") as pool, pool.connection() as connection:
            with held_up(dsn):
                query = asyncio.create_task(connection.execute(HELD_UP))
                await busy(connection)
                with pytest.raises(psycopg.InterfaceError, match="another operation"):
                    await connection.wait(generator())
            await query

    run(main())


# ---- connects and hooks that end early ----


@pytest.fixture
def deaf():
    """The address of a listener that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        yield f"host=127.0.0.1 port={port} user=nobody dbname=nobody sslmode=disable gssencmode=disable"


CLASSES = {"theirs": psycopg.AsyncConnection, "ours": LoopAwareConnection}


@pytest.mark.parametrize("kind", CLASSES)
def test_a_connect_that_is_cancelled_closes_its_socket(deaf, kind, run, no_collector):
    """Though the exception be kept."""

    async def scenario():
        before = helpers.open_sockets()
        connect = asyncio.create_task(CLASSES[kind].connect(deaf))
        await eventually_async(lambda: helpers.open_sockets().keys() - before.keys(), "a socket of its own")
        connect.cancel()
        with pytest.raises(asyncio.CancelledError) as kept:
            await connect
        left = helpers.open_sockets().keys() - before.keys()
        assert kept
        return sorted(left)

    judge(kind, run(scenario()))


@pytest.mark.parametrize("kind", ["ours"] if IS_PSYCOPG_3_2 else CLASSES)  # 3.2 makes no cycle of it
def test_a_connect_that_times_out_closes_its_socket(deaf, kind, no_collector):
    """Without waiting for the collector of cycles."""

    async def scenario():
        before = helpers.open_sockets()
        with pytest.raises(psycopg.errors.ConnectionTimeout) as kept:
            await CLASSES[kind].connect(deaf, connect_timeout=1)
        left = helpers.open_sockets().keys() - before.keys()
        assert kept
        return sorted(left)

    judge(kind, asyncio.run(scenario()))


@pytest.mark.parametrize("how", ["fails", "is cancelled"])
def test_a_connection_that_configure_has_spoilt_is_closed(pool_of, kind, how, run):
    """Though the user's function keeps it."""
    kept = []

    async def configure(connection):
        kept.append(connection)
        if how == "fails":
            raise ZeroDivisionError
        await asyncio.sleep(60)

    async def scenario():
        pool = pool_of(kind, configure=configure)
        await pool.open()
        with pytest.raises(psycopg_pool.PoolTimeout):
            await pool.getconn(timeout=0.1)
        await eventually_async(lambda: kept, "a connection to configure")
        await pool.close(timeout=0.1)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await helpers.spin(5)
        left = [connection for connection in kept if not connection.closed]
        for connection in left:
            await connection.close()
        return left

    complaints = run(scenario())
    assert kept
    judge(kind, complaints)


def test_a_check_that_is_cancelled_is_cancelled_and_loses_nothing(kind, dsn, run):
    """`check()` ends, and the connection it had in hand is closed with the pool at the latest."""

    async def hang(_):
        await asyncio.sleep(60)

    async def scenario():
        complaints = []
        cls, more = KINDS[kind]
        hanging = type("Hanging", (cls,), {"check_connection": staticmethod(hang)})
        pool = make_pool(hanging, dsn, min_size=1, max_size=1, **more)
        await pool.open(wait=True)
        connection = await pool.getconn()
        await pool.putconn(connection)
        check = asyncio.create_task(pool.check())
        await asyncio.sleep(0.05)
        check.cancel()
        await asyncio.wait([check])
        if not check.cancelled():
            complaints.append("the cancellation was swallowed")
        await pool.close(timeout=0.1)
        if not connection.closed:
            complaints.append("the connection is open")
            await connection.close()
        return complaints

    judge(kind, run(scenario()))


def test_a_pool_can_be_closed_from_another_loop(pool_of, kind, run):
    """Its idle connections are closed, whichever loop they were opened on."""
    pool = pool_of(kind, min_size=1)
    idle = []

    async def use():
        await pool.open(wait=True)
        async with pool.connection() as connection:
            idle.append(connection)

    async def end():
        with suppress(asyncio.CancelledError, RuntimeError):
            await pool.close(timeout=0.5)

    run(use())
    run(end())
    left = [connection for connection in idle if not connection.closed]
    for connection in left:
        connection.pgconn.finish()
    judge(kind, left)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_connection_that_its_holder_drops_is_taken_back(pool_of, kind, run, caplog):
    """Its place is free again, its socket closed, and the log says so."""

    async def scenario():
        complaints = []
        pool = pool_of(kind)
        await pool.open()
        connection = await pool.getconn()
        await connection.execute("SELECT 1")
        del connection
        try:
            async with pool.connection(timeout=0.5 if kind == "theirs" else DEADLINE_SECONDS) as other:
                await other.execute("SELECT 1")
        except psycopg_pool.PoolTimeout:
            complaints.append("its place is lost")
        await pool.close()
        return complaints

    judge(kind, run(scenario()))
    assert ("dropped without being returned" in caplog.text) is (kind != "theirs")
