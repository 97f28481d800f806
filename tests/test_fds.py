"""Sockets and registrations: none is left over, none is stale, and an idle connection has none."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import asyncpg
import psycopg
import pytest

import helpers
from loopaware_pool import errors
from loopaware_pool.testing.embedded_server import EmbeddedServer
from running import DEADLINE_SECONDS, eventually_async, make_pool, no_socket_left, until_server_waits

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.both_pythons, pytest.mark.both_drivers]


@pytest.fixture(autouse=True)
def _without_collector(server):
    """The collector may not help: what is left behind stays."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()
    gc.collect()  # what it has to say, it says of this test


@pytest.fixture
def runner(runner_factory):
    with runner_factory() as runner:
        yield runner


async def ask(pool, query="SELECT 1", **options):
    async with pool.acquire(**options) as connection:
        return await connection.fetchval(query)


# ---- no socket is left over ----


class Scene(NamedTuple):
    """Something that happens to a pool of two connections."""

    play: Callable[[Stage], Any]
    options: dict[str, Any]


class Stage(NamedTuple):
    """What a scene has to do with."""

    pool: Any
    dsn: str
    kept: list[BaseException]

    async def fails(self, work, *kinds):
        """Await *work*, which raises, and keep what it raised."""
        try:
            await work
        except (*kinds,) as error:
            self.kept.append(error)
        else:
            pytest.fail("it did not fail")


class HookError(Exception):
    pass


SCENES: dict[str, Scene] = {}


def scene(**options):
    def add(play):
        SCENES[play.__name__] = Scene(play, options)
        return play

    return add


async def fail(*args, **kwargs):
    raise HookError


@scene()
async def use(stage):
    assert await asyncio.gather(*[ask(stage.pool) for _ in range(5)]) == [1] * 5


@scene()
async def fail_a_query(stage):
    await stage.fails(ask(stage.pool, "SELECT 1 / 0"), asyncpg.DivisionByZeroError)


@scene()
async def leave_a_transaction_open(stage):
    async with stage.pool.acquire() as connection:
        await connection.execute("BEGIN")
    await stage.pool.settled()


@scene()
async def cancel_a_query(stage):
    query = asyncio.create_task(ask(stage.pool, "SELECT pg_sleep(60)"))
    await until_server_waits(stage.dsn, stage.pool)
    query.cancel()
    await stage.fails(query, asyncio.CancelledError)


@scene()
async def time_a_query_out(stage):
    async with stage.pool.acquire() as connection:
        # A request to cancel may reach the server before the query does, and then comes to nothing.
        await stage.fails(connection.execute("SELECT pg_sleep(1)", timeout=0.01), TimeoutError)


@scene(max_size=1)
async def time_an_acquire_out(stage):
    async with stage.pool.acquire():
        await stage.fails(stage.pool.acquire(timeout=0.01), errors.PoolTimeout)


@scene(max_size=1)
async def cancel_an_acquire_that_waits(stage):
    async with stage.pool.acquire():
        waiter = asyncio.create_task(ask(stage.pool))
        await eventually_async(lambda: stage.pool.stats().waiting, "a waiter")
        waiter.cancel()
        await stage.fails(waiter, asyncio.CancelledError)


@scene()
async def cancel_an_acquire_that_connects(stage):
    waiter = asyncio.create_task(ask(stage.pool))
    await asyncio.sleep(0)
    assert stage.pool.stats().connecting
    waiter.cancel()
    await stage.fails(waiter, asyncio.CancelledError)


@scene(init=fail)
async def fail_in_init(stage):
    await stage.fails(ask(stage.pool), HookError)


@scene(setup=fail)
async def fail_in_setup(stage):
    await stage.fails(ask(stage.pool), HookError)


@scene(reset=fail)
async def fail_in_reset(stage):
    await stage.fails(ask(stage.pool), HookError)


@scene()
async def terminate_while_a_query_runs(stage):
    query = asyncio.create_task(ask(stage.pool, "SELECT pg_sleep(60)"))
    await until_server_waits(stage.dsn, stage.pool)
    stage.pool.terminate()
    await stage.fails(query, asyncpg.PostgresConnectionError, asyncpg.InterfaceError)


@scene()
async def close_connections_by_hand(stage):
    async with stage.pool.acquire() as one, stage.pool.acquire() as other:
        await one.close()
        other.terminate()


@scene()
async def expire(stage):
    await ask(stage.pool)
    await stage.pool.expire_connections()
    await ask(stage.pool)


@scene(max_inactive_connection_lifetime=0.01)
async def idle_for_too_long(stage):
    await ask(stage.pool)
    await eventually_async(lambda: not stage.pool.get_size(), "an empty pool")


@scene(max_queries=1)
async def wear_out(stage):
    for _ in range(3):
        await ask(stage.pool)


@scene()
async def lose_the_server(stage):
    async with stage.pool.acquire() as one, stage.pool.acquire() as other:
        pids = [await connection.fetchval("SELECT pg_backend_pid()") for connection in (one, other)]
    await stage.pool.settled()
    async with stage.pool.acquire() as lent:
        with psycopg.connect(stage.dsn) as killer:
            for pid in pids:
                killer.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])
        await stage.fails(lent.execute("SELECT 1"), asyncpg.PostgresError, asyncpg.InterfaceError, OSError)
    await ask(stage.pool)


@scene()
async def release_in_another_thread(stage):
    connection = await stage.pool.acquire()
    thread = threading.Thread(target=lambda: asyncio.run(stage.pool.release(connection)))
    thread.start()
    await asyncio.get_running_loop().run_in_executor(None, thread.join)
    await ask(stage.pool)


async def close(pool):
    await asyncio.wait_for(pool.close(), DEADLINE_SECONDS)


async def terminate(pool):
    pool.terminate()


def registrations(loop):
    """What asyncio's selector has; nothing for uvloop, which does not show it."""
    return helpers.selector_fds(loop) if hasattr(loop, "_selector") else set()


@pytest.mark.parametrize("end", [close, terminate])
@pytest.mark.parametrize("name", SCENES)
def test_nothing_is_left_when_a_pool_has_ended(name, end, dsn, runner):
    """Whatever happened: after `close` and `terminate` the sockets and the registrations are those of before."""
    scene, kept = SCENES[name], []

    async def main():
        loop = asyncio.get_running_loop()
        sockets, registered = helpers.open_sockets(), registrations(loop)
        pool = make_pool(dsn, **scene.options)
        await pool
        await scene.play(Stage(pool, dsn, kept))
        await end(pool)
        if end is terminate:  # which does not wait, not even for the next iteration
            await eventually_async(lambda: len(helpers.open_sockets()) <= len(sockets), "the sockets are closed")
        assert helpers.open_sockets() == sockets
        assert registrations(loop) == registered

    runner.run(main())


@pytest.mark.parametrize("name", SCENES)
def test_nothing_is_left_when_the_loop_has_ended(name, dsn, run):
    """Whatever happened: a loop that ends without `close` leaves no socket of the pool's behind."""
    scene, kept = SCENES[name], []
    pool = make_pool(dsn, **scene.options)

    async def main():
        await pool
        await scene.play(Stage(pool, dsn, kept))

    with no_socket_left():
        run(main())


# ---- connects that fail ----


@pytest.fixture(scope="module")
def strict_server():
    """A server that wants a password."""
    with EmbeddedServer() as server:
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute("CREATE ROLE guarded LOGIN PASSWORD 'right'")
        yield server


FAILURES = {
    "wrong password": ({"user": "guarded", "password": "wrong"}, asyncpg.InvalidPasswordError),
    "no such user": ({"user": "no_such_user"}, asyncpg.InvalidAuthorizationSpecificationError),
    "no such database": ({"database": "no_such_database"}, asyncpg.InvalidCatalogNameError),
    "no such setting": ({"server_settings": {"no_such_setting": "1"}}, asyncpg.UndefinedObjectError),
    "closed port": ({"port": 1}, OSError),
    "failing connect": ({"connect": fail}, HookError),
    "failing init": ({"init": fail}, HookError),
    "no TLS there": ({"ssl": "require"}, (asyncpg.PostgresError, OSError)),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_pool_that_cannot_be_opened_leaves_nothing(failure, strict_server, runner):
    """`await pool` raises what the connect raised, and the sockets and the registrations are those of before."""
    options, expected = FAILURES[failure]
    kept = []

    async def main():
        loop = asyncio.get_running_loop()
        sockets, registered = helpers.open_sockets(), registrations(loop)
        pool = make_pool(strict_server.dsn, min_size=3, max_size=3, **options)
        with pytest.raises(expected) as caught:
            await pool
        kept.append(caught.value)
        await asyncio.sleep(0)  # asyncio closes a transport at the next iteration
        assert helpers.open_sockets() == sockets
        assert registrations(loop) == registered

    runner.run(main())


@pytest.mark.parametrize("failure", FAILURES)
def test_an_acquire_that_cannot_connect_leaves_nothing(failure, strict_server, runner):
    """An acquire raises what the connect raised; none of its attempts leaves a socket or a registration."""
    options, expected = FAILURES[failure]
    kept = []

    async def main():
        loop = asyncio.get_running_loop()
        pool = await make_pool(strict_server.dsn, **options)
        sockets, registered = helpers.open_sockets(), registrations(loop)
        outcomes = await asyncio.gather(*[pool.fetchval("SELECT 1") for _ in range(3)], return_exceptions=True)
        kept.extend(outcomes)
        assert all(isinstance(outcome, expected) for outcome in outcomes), outcomes
        await eventually_async(lambda: not pool.stats().connecting, "no attempt in flight")
        await asyncio.sleep(0)
        assert helpers.open_sockets() == sockets
        assert registrations(loop) == registered
        await pool.close()

    runner.run(main())


# ---- who watches what ----


@pytest.fixture(params=["TCP", "Unix socket", "TLS"])
def place(request):
    """Keyword arguments that reach a server in one of three ways."""
    if request.param == "TLS":
        tls = request.getfixturevalue("tls_server")
        return {"dsn": tls.dsn, "ssl": tls.ssl_context}
    server = request.getfixturevalue("server")
    if request.param == "TCP":
        return {"dsn": server.dsn}
    if not isinstance(server, EmbeddedServer):
        pytest.skip("LOOPAWARE_TEST_DSN names no Unix socket")
    return {"dsn": server.unix_dsn}


def fds_of(pool, state):
    return {row.identity.fd for row in pool.fd_report() if row.state == state}


def test_an_idle_connection_is_in_no_selector(place):
    """On asyncio, neither the selector's map nor the kernel's list has the fd of a connection that is settled."""

    async def main():
        loop = asyncio.get_running_loop()
        async with make_pool(**place) as pool:
            for _ in range(2):
                async with pool.acquire() as one, pool.acquire() as other:
                    await asyncio.gather(one.execute("SET work_mem = '1MB'"), other.fetchval("SELECT 1"))
                    assert fds_of(pool, "lent") <= helpers.selector_fds(loop)
                await pool.settled()
                idle = fds_of(pool, "idle")
                assert len(idle) == 2
                assert not idle & helpers.selector_fds(loop)
                assert not idle & helpers.kernel_watched_fds()
                assert [row.registered for row in pool.fd_report()] == [False, False]

    asyncio.run(main())


def test_a_new_connection_that_nobody_wants_is_in_no_selector(place):
    """That holds for connections which were opened ahead of demand, too."""

    async def main():
        async with make_pool(min_size=2, **place) as pool:
            await pool.settled()
            idle = fds_of(pool, "idle")
            assert len(idle) == 2
            assert not idle & (helpers.selector_fds(asyncio.get_running_loop()) | helpers.kernel_watched_fds())

    asyncio.run(main())


def test_a_connection_that_waits_for_an_answer_is_watched(place, runner):
    """While a query runs, the kernel watches the connection's fd, on asyncio and uvloop alike."""

    async def main():
        async with make_pool(max_size=1, **place) as pool:
            await ask(pool)
            await pool.settled()
            query = asyncio.create_task(ask(pool, "SELECT pg_sleep(60)"))
            await until_server_waits(place["dsn"], pool)
            assert fds_of(pool, "lent") <= helpers.kernel_watched_fds()
            assert [row.registered for row in pool.fd_report()] in ([True], [None])  # uvloop does not tell
            query.cancel()
            with suppress(asyncio.CancelledError):
                await query

    runner.run(main())


def test_a_parked_connection_costs_uvloop_no_more_than_one_event(server, dsn, runner):
    """Where libuv forgets a parked fd only at its next event, that event ends it: a dead idle fd does not spin."""

    async def main():
        async with make_pool(dsn, max_size=1) as pool:
            pid = await ask(pool, "SELECT pg_backend_pid()")
            await pool.settled()
            (fd,) = fds_of(pool, "idle")
            with psycopg.connect(dsn) as killer:
                killer.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])
            await eventually_async(lambda: fd not in helpers.kernel_watched_fds(), "nobody watches it")
            assert await ask(pool, "SELECT pg_backend_pid()") != pid

    runner.run(main())


async def end_politely(stage, connection):
    await stage.pool.expire_connections()
    await stage.pool.release(connection)
    await stage.pool.settled()


async def end_by_hand(stage, connection):
    await connection.close()


async def end_hard(stage, connection):
    connection.terminate()
    await asyncio.sleep(0)


async def end_under_a_query(stage, connection):
    query = asyncio.create_task(connection.execute("SELECT pg_sleep(60)"))
    await until_server_waits(stage.dsn, stage.pool)
    connection.terminate()
    await stage.fails(query, asyncpg.PostgresConnectionError, asyncpg.InterfaceError)


async def end_parked(stage, connection):
    await stage.pool.release(connection)
    await stage.pool.settled()
    stage.pool.terminate()
    await asyncio.sleep(0)


@pytest.mark.parametrize("end", [end_politely, end_by_hand, end_hard, end_under_a_query, end_parked])
def test_the_number_of_a_closed_connection_is_as_good_as_new(end, dsn, runner):
    """The next socket that gets a closed connection's fd number is watched properly: no old entry is in its way."""

    async def main():
        loop = asyncio.get_running_loop()
        pool = await make_pool(dsn, max_size=1)
        connection = await pool.acquire()
        (fd,) = fds_of(pool, "lent")
        await end(Stage(pool, dsn, []), connection)
        await eventually_async(lambda: not is_open(fd), "the fd is closed")
        assert fd not in registrations(loop)
        ours, theirs = sorted(socket.socketpair(), key=lambda end: end.fileno() != fd)  # either may have the number
        with on_number(ours, fd) as successor, theirs:
            fired = asyncio.Event()
            loop.add_reader(successor, fired.set)
            theirs.send(b"x")
            await asyncio.wait_for(fired.wait(), DEADLINE_SECONDS)
            loop.remove_reader(successor)
        pool.terminate()

    runner.run(main())


def is_open(fd):
    return any(number == fd for number in helpers.open_sockets().values())


def on_number(sock, fd):
    """Move *sock* to the number *fd*."""
    if sock.fileno() != fd:
        os.dup2(sock.fileno(), fd)
        sock.close()
        sock = socket.socket(fileno=fd)
    sock.setblocking(False)
    return sock
