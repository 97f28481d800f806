"""`FixedAsyncPGPool` on a real server."""

from __future__ import annotations

import asyncio
from urllib.parse import parse_qs, unquote, urlsplit

import asyncpg
import pytest

import helpers
from loopaware_pool.compat import FixedAsyncPGPool

pytestmark = [pytest.mark.both_pythons, pytest.mark.both_drivers]


@pytest.fixture
def address(dsn):
    """The server as the constructor wants it."""
    parts = urlsplit(dsn)
    return {
        "host": parts.hostname or parse_qs(parts.query)["host"][0],
        "port": parts.port or 5432,
        "user": unquote(parts.username or "postgres"),
        "password": None if parts.password is None else unquote(parts.password),
        "database": unquote(parts.path.lstrip("/")) or "postgres",
    }


@pytest.fixture
def nobody_there():
    """An address where nothing listens, nor will."""
    return {"host": "127.0.0.1", "port": 1, "user": "u", "password": None, "database": "d"}


@pytest.fixture
def make_pool(address):
    """Makes a pool on the real server with the options given."""
    return lambda **options: FixedAsyncPGPool(**address, **options)


async def query(pool):
    connection = await pool.acquire()
    try:
        return await connection.fetchval("SELECT 1")
    finally:
        await pool.release(connection)


async def query_many(pool, tasks):
    await pool.init()
    async with asyncio.timeout(60):
        return sum(await asyncio.gather(*(query(pool) for _ in range(tasks))))


async def query_many_and_close(pool, tasks):
    try:
        return await query_many(pool, tasks)
    finally:
        await pool.close()


@pytest.mark.usefixtures("zero_fd_delta")
def test_5000_tasks_on_10_connections_all_finish(make_pool, runner_factory):
    """Every one of 5,000 tasks on 10 connections gets its answer, and no socket is left after close()."""
    with runner_factory() as runner:
        before = helpers.socket_count()
        assert runner.run(query_many_and_close(make_pool(max_connections=10), 5000)) == 5000
        assert helpers.socket_count() == before


def test_no_more_than_max_connections_are_open_at_once(make_pool):
    """With 100 tasks on 3 connections the server sees 3 different sessions at most."""

    async def session_of_one_task(pool):
        connection = await pool.acquire()
        try:
            return await connection.fetchval("SELECT pg_backend_pid()")
        finally:
            await pool.release(connection)

    async def sessions():
        pool = make_pool(max_connections=3)
        await pool.init()
        try:
            return set(await asyncio.gather(*(session_of_one_task(pool) for _ in range(100))))
        finally:
            await pool.close()

    assert 1 <= len(asyncio.run(sessions())) <= 3


@pytest.mark.usefixtures("zero_fd_delta")
def test_one_pool_serves_one_loop_after_another(make_pool, run):
    """A pool that is never closed serves three loops in turn and leaves no socket behind."""
    pool = make_pool(max_connections=3)
    for _ in range(3):
        assert run(query_many(pool, 20)) == 20


@pytest.mark.usefixtures("zero_fd_delta")
def test_a_task_cancelled_while_it_waits_takes_no_connection_with_it(make_pool):
    """After 50 waiting tasks were cancelled, the only connection still serves the next task."""

    async def scenario():
        pool = make_pool(max_connections=1)
        await pool.init()
        held = await pool.acquire()
        waiting = [asyncio.create_task(pool.acquire()) for _ in range(50)]
        await asyncio.sleep(0)
        for task in waiting:
            task.cancel()
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        await pool.release(held)
        try:
            return outcomes, await query(pool)
        finally:
            await pool.close()

    outcomes, answer = asyncio.run(scenario())
    assert {type(outcome) for outcome in outcomes} == {asyncio.CancelledError}
    assert answer == 1


@pytest.mark.usefixtures("zero_fd_delta")
def test_init_opens_min_connections_and_may_be_repeated(make_pool):
    """Calling init() twice opens `min_connections` sockets, once."""

    async def opened():
        before = helpers.socket_count()
        pool = make_pool(min_connections=4)
        await pool.init()
        await pool.init()
        try:
            return helpers.socket_count() - before
        finally:
            await pool.close()

    assert asyncio.run(opened()) == 4


@pytest.mark.usefixtures("zero_fd_delta")
def test_a_second_release_of_a_connection_is_ignored(make_pool):
    """Releasing twice leaves a pool of one connection with one connection to lend."""

    async def scenario():
        pool = make_pool(max_connections=1)
        await pool.init()
        connection = await pool.acquire()
        await pool.release(connection)
        await pool.release(connection)
        held = await pool.acquire()
        second = asyncio.create_task(pool.acquire())
        await asyncio.sleep(0.05)
        is_waiting = not second.done()
        await pool.release(held)
        await pool.release(await second)
        await pool.close()
        return is_waiting

    assert asyncio.run(scenario())


@pytest.mark.usefixtures("zero_fd_delta")
def test_a_failed_init_leaves_nothing_and_may_be_tried_again(make_pool, nobody_there, address):
    """Once the server is there, init() succeeds on the pool whose first init() could not connect."""

    async def scenario():
        pool = FixedAsyncPGPool(**nobody_there)
        with pytest.raises(OSError, match=r"refused|Connect call failed"):
            await pool.init()
        with pytest.raises(asyncpg.InterfaceError, match=r"acquire\(\) before init\(\)"):
            await pool.acquire()
        pool._make_pool.keywords.update(address)
        return await query_many_and_close(pool, 5)

    assert asyncio.run(scenario()) == 5


def test_acquire_before_init_says_what_to_call(make_pool):
    """Without init(), acquire() fails at once and names init()."""
    with pytest.raises(asyncpg.InterfaceError, match=r"acquire\(\) before init\(\): call `await pool.init\(\)` first"):
        asyncio.run(make_pool().acquire())


@pytest.mark.usefixtures("zero_fd_delta")
def test_a_closed_pool_says_so(make_pool):
    """After close(), acquire() and init() fail and a second close() does nothing."""

    async def scenario():
        pool = make_pool()
        await pool.init()
        await pool.close()
        await pool.close()
        with pytest.raises(asyncpg.InterfaceError, match="pool is closed"):
            await pool.acquire()
        with pytest.raises(asyncpg.InterfaceError, match=r"init\(\) after close\(\): make a new pool"):
            await pool.init()

    asyncio.run(scenario())


def test_close_before_init_does_nothing(make_pool):
    """A pool that never opened anything can be closed."""
    asyncio.run(make_pool().close())


@pytest.mark.usefixtures("zero_fd_delta")
def test_a_connection_of_another_pool_is_refused(make_pool):
    """Releasing a stranger's connection fails, and the stranger keeps it."""

    async def scenario():
        ours, other = make_pool(), make_pool()
        await ours.init()
        await other.init()
        connection = await other.acquire()
        with pytest.raises(asyncpg.InterfaceError, match="is not a member of this pool"):
            await ours.release(connection)
        answer = await connection.fetchval("SELECT 1")
        await other.release(connection)
        await ours.close()
        await other.close()
        return answer

    assert asyncio.run(scenario()) == 1


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ({"host": ""}, ValueError, "host='': expected a non-empty string"),
        ({"user": 7}, TypeError, "user=7: expected a non-empty string"),
        ({"database": None}, TypeError, "database=None: expected a non-empty string"),
        ({"port": 0}, ValueError, "port=0: expected a port, 1 to 65535"),
        ({"port": 70000}, ValueError, "port=70000: expected a port, 1 to 65535"),
        ({"port": "5432"}, TypeError, "port='5432': expected a port, 1 to 65535"),
        ({"min_connections": -1}, ValueError, "min_connections=-1: expected a whole number, 0 or more"),
        ({"max_connections": 0}, ValueError, "max_connections=0: expected a whole number, 1 or more"),
        ({"max_connections": 2.5}, TypeError, "max_connections=2.5: expected a whole number, 1 or more"),
        ({"max_connections": True}, TypeError, "max_connections=True: expected a whole number, 1 or more"),
        (
            {"min_connections": 5, "max_connections": 2},
            ValueError,
            "min_connections=5, max_connections=2: expected min_connections <= max_connections",
        ),
        ({"loop": "main"}, TypeError, "loop='main': expected an event loop, or None"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_a_bad_argument_is_named_with_its_value(bad, error, message):
    """A wrong argument fails in the constructor, with its name, its value and what is expected."""
    good = {"host": "127.0.0.1", "port": 5432, "user": "u", "password": "p", "database": "d"}
    with pytest.raises(error) as caught:
        FixedAsyncPGPool(**{**good, **bad})
    assert str(caught.value) == message


def test_a_password_of_the_wrong_type_is_not_repeated():
    """The error of a password that is not a string tells its type, not its value."""
    with pytest.raises(TypeError) as caught:
        FixedAsyncPGPool("127.0.0.1", 5432, "u", b"secret", "d")
    assert str(caught.value) == "password is of type bytes: expected a string, or None for none"
