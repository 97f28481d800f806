"""A loop ends in the middle of anything, politely or not, or loses its pool."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import warnings
from contextlib import contextmanager
from urllib.parse import urlsplit

import asyncpg
import psycopg
import pytest

import helpers
from flavours import both
from running import (
    DEADLINE_SECONDS,
    ask,
    end_abruptly,
    end_politely,
    eventually,
    eventually_async,
    make_pool,
    no_session_left,
    no_socket_left,
    take_all,
    until_server_waits,
)

pytestmark = [pytest.mark.both_pythons, pytest.mark.both_drivers]


# ---- loops that end ----


class Gate:
    """A callback that holds up whoever calls it, for ever, while it is shut."""

    def __init__(self, then=None):
        self.is_shut = True
        self.entered = 0
        self._then = then

    async def __call__(self, *args, **kwargs):
        self.entered += 1
        while self.is_shut:
            await asyncio.sleep(DEADLINE_SECONDS)
        return await self._then(*args, **kwargs) if self._then is not None else None

    async def wait_for_victim(self):
        await eventually_async(lambda: self.entered, "somebody at the gate")


class Scene:
    """What a pool is doing on a loop at the moment at which that loop ends."""

    def __init__(self, **options):
        self.options = options
        self.kept = []

    def start(self, work):
        """Begin *work*, and leave it unfinished."""
        task = asyncio.get_running_loop().create_task(work)
        task._log_destroy_pending = False
        self.kept.append(task)

    async def play(self, pool):
        raise NotImplementedError

    def over(self):
        """Let the pool do as it likes."""


class Idle(Scene):
    async def play(self, pool):
        await asyncio.gather(ask(pool), ask(pool))
        # One connection may have served both; then the other is still being opened.
        await eventually_async(lambda: not pool.stats().connecting, "connections that are open")


class JustReleased(Scene):
    async def play(self, pool):
        connection = await pool.acquire()
        await pool.release(connection)


class Lent(Scene):
    async def play(self, pool):
        self.kept.append(await pool.acquire())


class Querying(Scene):
    async def play(self, pool):
        self.name = pool.name
        self.start(ask(pool, "SELECT pg_sleep(60)"))
        await until_server_waits(self.dsn, pool)

    def over(self):
        helpers.kill_sessions(self.dsn, self.name)


class Waiting(Scene):
    async def play(self, pool):
        self.kept += [await pool.acquire() for _ in range(pool.get_max_size())]
        self.start(ask(pool))
        await eventually_async(lambda: pool.stats().waiting, "a waiter")


class Connecting(Scene):
    def __init__(self):
        self.gate = Gate(asyncpg.connect)
        super().__init__(connect=self.gate)

    async def play(self, pool):
        self.start(ask(pool))
        await self.gate.wait_for_victim()

    def over(self):
        self.gate.is_shut = False


class Initialising(Connecting):
    def __init__(self):
        self.gate = Gate()
        Scene.__init__(self, init=self.gate)


class Resetting(Connecting):
    def __init__(self):
        self.gate = Gate()
        Scene.__init__(self, reset=self.gate)


class SettingUp(Connecting):
    def __init__(self):
        self.gate = Gate()
        Scene.__init__(self, setup=self.gate)


class SayingGoodbye(Scene):
    async def play(self, pool):
        connection = await pool.acquire()
        await pool.expire_connections()
        await pool.release(connection)
        await asyncio.sleep(0)  # the goodbye has been said, and the server has not closed


SCENES = [Idle, JustReleased, Lent, Querying, Waiting, Connecting, Initialising, SettingUp, Resetting, SayingGoodbye]


@pytest.mark.parametrize("end", [end_politely, end_abruptly])
@pytest.mark.parametrize("scene", SCENES)
def test_a_loop_that_ends(scene, end, dsn, loop_factory, runner_factory):
    """Whatever a pool is doing on a loop that ends: nothing stays open, and another loop has the pool to itself."""
    scene = scene()
    scene.dsn = dsn
    pool = make_pool(dsn, **scene.options)

    async def main():
        await pool
        await scene.play(pool)

    with no_socket_left():
        end(loop_factory, main())
    assert pool.fd_report() == []
    scene.over()
    with no_socket_left(), runner_factory() as runner:
        runner.run(take_all(pool))
    no_session_left(dsn, pool)


@pytest.fixture
def private_dsn(dsn):
    """A database that nobody else uses, so that what the server counts there is ours."""
    name = f"private_{os.getpid()}"
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        yield urlsplit(dsn)._replace(path=name).geturl()
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def abandoned_sessions(dsn):
    """How many sessions of a database ended without a goodbye, from outside it."""
    where = urlsplit(dsn)
    query = "SELECT sessions_abandoned FROM pg_stat_database WHERE datname = %s"
    with psycopg.connect(where._replace(path="postgres").geturl()) as connection:
        return connection.execute(query, [where.path.strip("/")]).fetchone()[0]


@pytest.mark.parametrize("scene", [Idle, JustReleased, Lent, Waiting])
def test_a_loop_that_ends_politely_says_goodbye(scene, private_dsn, loop_factory):
    """While a loop shuts down, the server is told of each connection that ends; none just breaks off."""
    pool = make_pool(private_dsn)
    scene = scene()

    async def main():
        await pool
        await scene.play(pool)

    end_politely(loop_factory, main())
    no_session_left(private_dsn, pool)
    assert abandoned_sessions(private_dsn) == 0


def test_the_server_counts_who_leaves_without_a_goodbye(private_dsn):
    """What the test before this one trusts: a connection that breaks off is counted."""

    async def break_off():
        connection = await asyncpg.connect(private_dsn)
        connection._transport.abort()
        await asyncio.sleep(0)

    asyncio.run(break_off())
    eventually(lambda: abandoned_sessions(private_dsn) == 1, "the server has noticed")


@contextmanager
def server_that_never_answers():
    """What listens but does not talk; gives its DSN, and what takes the next client's end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        yield f"postgresql://nobody@127.0.0.1:{port}/none", listener


@pytest.mark.parametrize("end", [end_politely, end_abruptly])
def test_a_loop_that_ends_in_the_middle_of_a_handshake(end, dsn, loop_factory, runner_factory):
    """A connect that the server has not answered yet ends with its loop, and its socket is closed."""
    kept = []

    async def main():
        await pool
        task = asyncio.get_running_loop().create_task(ask(pool))
        task._log_destroy_pending = False
        kept.append(task)
        await eventually_async(lambda: is_readable(listener), "a client")
        client_end, _ = listener.accept()
        kept.append(client_end)
        await eventually_async(lambda: is_readable(client_end), "its first message")

    with server_that_never_answers() as (mute_dsn, listener):
        pool = make_pool(mute_dsn, ssl=False)
        with no_socket_left():
            end(loop_factory, main())
            with kept.pop() as client_end:
                assert is_disconnected(client_end)
    pool.set_connect_args(dsn)
    with no_socket_left(), runner_factory() as runner:
        runner.run(take_all(pool))


def is_readable(sock):
    return bool(select.select([sock], [], [], 0)[0])


def is_disconnected(sock):
    sock.settimeout(DEADLINE_SECONDS)
    try:
        while sock.recv(4096):
            pass
    except ConnectionResetError:
        pass
    return True


# ---- pools that are dropped ----


async def drop(kept):
    """Let go of what is in the list, and wait for a socket to be closed for it."""
    before = helpers.socket_count()
    kept.clear()
    await eventually_async(lambda: helpers.socket_count() < before, "the socket is closed")


def test_a_pool_dropped_while_its_loop_goes_on(dsn, runner_factory):
    """A pool that nobody has any more is closed by its loop, and Python says that it was not closed."""

    async def main():
        kept = [make_pool(dsn)]
        name = kept[0].name
        await kept[0]
        await ask(kept[0])
        with pytest.warns(ResourceWarning, match=f"unclosed pool '{name}'"):
            await drop(kept)
        return name

    with no_socket_left(), runner_factory() as runner:
        name = runner.run(main())
    eventually(lambda: not helpers.server_sessions(dsn, name), "no session left")


def test_a_pool_dropped_after_its_loop(dsn, runner_factory):
    """A pool whose loops have ended may be dropped without a word."""
    with no_socket_left():
        pool = make_pool(dsn)
        with runner_factory() as runner:
            runner.run(take_all_of(pool))
        del pool


async def take_all_of(pool):
    await pool
    await take_all(pool)


def test_a_lease_keeps_its_pool_alive(dsn, runner_factory):
    """A pool that is dropped while a connection is lent stays, for its borrower, until that is released."""

    async def borrow_from_nobody():
        before = helpers.socket_count()
        async with (await make_pool(dsn)).acquire() as connection:
            await asyncio.sleep(0)
            assert await connection.fetchval("SELECT 1") == 1
        del connection
        await eventually_async(lambda: helpers.socket_count() == before, "the socket is closed")

    async def main():
        with pytest.warns(ResourceWarning, match="unclosed pool"):
            await borrow_from_nobody()

    with no_socket_left(), runner_factory() as runner:
        runner.run(main())


@pytest.mark.parametrize("flavour", both)
def test_a_loop_that_comes_to_the_pool_while_it_shuts_down_leaves_nothing(dsn, run, runner_factory, flavour):
    """Its first acquire is in another async generator's `finally`; nobody would tell the pool of the end any more."""
    opening = both[flavour](dsn, max_size=1)

    async def generate(client):
        try:
            yield
        finally:
            for _ in range(2):
                assert await client.value("SELECT 1", timeout=DEADLINE_SECONDS) == 1
                await client.do("SET application_name = 'changed'")

    async def begin(generator):
        await anext(generator)

    with warnings.catch_warnings(record=True) as told, no_socket_left():
        warnings.simplefilter("always")
        with runner_factory() as home:
            client = home.run(opening.__aenter__())
            generator = generate(client)
            run(begin(generator))
            home.run(opening.__aexit__(None, None, None))
    assert [str(warning.message) for warning in told] == []
