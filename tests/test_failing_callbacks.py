"""A connect or a callback that fails is told to whom it concerns, and costs no place in the pool."""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl

import asyncpg
import psycopg
import pytest

import helpers
from loopaware_pool.asyncpg import create_pool
from loopaware_pool.psycopg import AsyncConnectionPool, AsyncNullConnectionPool
from loopaware_pool.stats import ResetFailed
from running import NOWHERE

pytestmark = pytest.mark.both_drivers


# ---- connects that fail of the program ----


def failing_with(error):
    async def connect(*_, **__):
        raise error

    return connect


def no_password():
    raise LookupError("no password is left")


FAULTS = {
    "arguments": (lambda: {"max_cached_statement_lifetime": "long"}, TypeError),
    "an argument's value": (lambda: {"statement_cache_size": -1}, ValueError),
    "a password's callback": (lambda: {"password": no_password}, LookupError),
    "configuration": (lambda: {"target_session_attrs": "best"}, asyncpg.exceptions.ClientConfigurationError),
    "a callback's TypeError": (lambda: {"connect": failing_with(TypeError("a slip"))}, TypeError),
    "a callback's RecursionError": (lambda: {"connect": failing_with(RecursionError("a slip"))}, RecursionError),
    "a callback's KeyError": (lambda: {"connect": failing_with(KeyError("a slip"))}, KeyError),
    "a callback's ValueError": (lambda: {"connect": failing_with(ValueError("a slip"))}, ValueError),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_connect_that_fails_of_the_program_is_told_at_once(dsn, run, fault):
    """To each caller, with the error itself; it is not tried again until the caller's time is up, as an outage is."""
    options, kind = FAULTS[fault]

    async def main():
        async with create_pool(dsn, min_size=0, max_size=2, acquire_timeout=60, **options()) as pool:
            async with asyncio.timeout(20):
                callers = [asyncio.create_task(pool.fetchval("SELECT 1")) for _ in range(3)]
                told = await asyncio.gather(*callers, return_exceptions=True)
            assert [type(error) for error in told] == [kind] * 3
            assert all(str(error) for error in told)

    run(main())


@pytest.mark.parametrize("error", [ssl.SSLCertVerificationError("certificate verify failed"), MemoryError()], ids=repr)
def test_an_error_that_may_pass_is_not_taken_for_the_programs(dsn, run, error):
    """A certificate that is not accepted is a `ValueError`, too; the next attempt may find another, or memory."""
    attempts = []

    async def connect(*args, **kwargs):
        attempts.append(args)
        if len(attempts) == 1:
            raise error
        return await asyncpg.connect(*args, **kwargs)

    async def main():
        async with create_pool(dsn, min_size=0, max_size=1, acquire_timeout=20, connect=connect) as pool:
            assert await pool.fetchval("SELECT 1") == 1

    run(main())


def test_a_second_positional_argument_is_refused():
    """`create_pool` takes the DSN alone by position, as asyncpg's does."""
    with pytest.raises(TypeError, match="positional"):
        create_pool(NOWHERE, 10)


# ---- a server that refuses ----


def outcome_of(kind, *args, **options):
    """What opening a pool ends in: the error's type, and whether the pool is closed then."""

    async def main():
        pool = kind(*args, **options)
        try:
            await pool
        except (Exception, asyncio.CancelledError) as error:
            return type(error), str(error)
        await pool.close()
        return None

    return asyncio.run(main())


@pytest.mark.parametrize(
    "change",
    [
        {"dsn": "postgresql://postgres@127.0.0.1:1/postgres"},
        {"dsn": "mysql://root@localhost/x"},
        {"dsn": "nonsense"},
        {"host": "127.0.0.1", "port": 1},
        {"host": "/nonexistent", "port": 1},
        {"database": "no_such_database"},
        {"user": "no_such_user"},
        {"timeout": "soon"},
        {"command_timeout": -1},
        {"statement_cache_size": -1},
        {"server_settings": {"no_such_setting": "1"}},
        {"ssl": "no-such-mode"},
        {"port": 123456789, "host": "127.0.0.1"},
    ],
    ids=repr,
)
def test_what_asyncpg_cannot_connect_to_is_told_at_the_opening(dsn, zero_fd_delta, change):
    """Opening fails as asyncpg's own pool does, by the same error; the pool is closed then, without a socket."""
    options = {"dsn": dsn, "min_size": 2, "max_size": 3, **change}
    if "host" in change:
        del options["dsn"]
    expected = outcome_of(asyncpg.create_pool, **options)
    assert expected is not None

    async def main():
        pool = create_pool(**options)
        with pytest.raises(expected[0]) as caught:
            await pool
        assert (type(caught.value), str(caught.value)) == expected
        assert pool.is_closing()
        assert pool.stats().size == 0
        with pytest.raises(asyncpg.InterfaceError, match="pool is closed"):
            await pool.acquire()

    asyncio.run(main())


# ---- callbacks ----


@pytest.mark.parametrize("error", [ZeroDivisionError("mine"), asyncio.CancelledError("mine")], ids=repr)
@pytest.mark.parametrize("kind", ["init", "connect"])
def test_a_callback_that_raises_while_opening_is_told(dsn, run, zero_fd_delta, kind, error):
    """What `init` or `connect` raises comes out of `await pool`, and the pool is closed without a socket."""

    async def hook(*args, **kwargs):
        raise error

    async def main():
        pool = create_pool(dsn, min_size=2, max_size=2, **{kind: hook})
        with pytest.raises((type(error), asyncpg.InterfaceError)):
            await pool
        assert pool.is_closing()
        assert pool.stats().size == 0

    run(main())


@pytest.mark.parametrize("create_pool", [asyncpg.create_pool, create_pool], ids=["upstream", "ours"])
def test_an_acquire_whose_setup_failed_may_be_entered_again(create_pool, dsn, run):
    """It has acquired nothing. One that is entered has."""
    fails = True

    async def setup(connection):
        if fails:
            raise ZeroDivisionError("mine")

    async def main():
        nonlocal fails
        async with create_pool(dsn, min_size=0, max_size=1, setup=setup) as pool:
            lease = pool.acquire()
            for _ in range(2):
                with pytest.raises(ZeroDivisionError):
                    await lease.__aenter__()
            fails = False
            async with lease as connection:
                assert await connection.fetchval("SELECT 1") == 1
                with pytest.raises(asyncpg.InterfaceError, match="already acquired"):
                    await lease.__aenter__()

    run(main())


# How soon, in seconds, a caller without a time limit is told, and how often a pool may connect in that time.
TOLD_SECONDS, FEW = 10, 12


@pytest.mark.parametrize("kind", ["init", "connect"])
def test_a_callback_that_raises_a_cancellation_of_its_own_is_told_and_not_repeated_in_a_storm(dsn, run, kind):
    """Nothing has cancelled the connect or the caller: it is an error like others, told once, with its cause."""
    attempts = []

    async def hook(*args, **kwargs):
        attempts.append(args)
        raise asyncio.CancelledError("mine")

    async def main():
        async with create_pool(dsn, min_size=0, max_size=2, **{kind: hook}) as pool, asyncio.timeout(TOLD_SECONDS):
            with pytest.raises(asyncpg.InterfaceError, match="CancelledError") as told:
                await pool.acquire()
            assert isinstance(told.value.__cause__, asyncio.CancelledError)
            assert len(attempts) == 1
            with pytest.raises((asyncpg.InterfaceError, TimeoutError)):
                await pool.acquire(timeout=0.5)
            assert len(attempts) <= FEW

    run(main())


@pytest.mark.parametrize("callback", ["configure", "conninfo", "kwargs"])
@pytest.mark.parametrize("cls", [AsyncConnectionPool, AsyncNullConnectionPool])
@pytest.mark.parametrize("min_size", [0, 1])
def test_a_callback_of_psycopgs_that_raises_a_cancellation_of_its_own_fails_a_connect(
    dsn, run, cls, callback, min_size
):
    """And connects follow each other as after any failure."""
    attempts = []

    async def hook(*args):
        attempts.append(args)
        raise asyncio.CancelledError("mine")

    async def main():
        sizes = {} if cls is AsyncNullConnectionPool else {"min_size": min_size}
        async with cls(**{"conninfo": dsn, "max_size": 2, "open": False, callback: hook} | sizes) as pool:
            assert isinstance(await cause_of_failure(pool), asyncio.CancelledError)
            assert 1 <= len(attempts) <= FEW

    run(main())


async def cause_of_failure(pool):
    """Why a connect has failed, as a caller hears, whose time may be up before the first one has."""
    while True:
        with pytest.raises(psycopg.OperationalError) as told:
            await pool.getconn(timeout=0.5)
        error = told.value if isinstance(pool, AsyncNullConnectionPool) else told.value.__cause__
        if error is not None and error.__cause__ is not None:
            return error.__cause__


class Outcome(BaseException):
    """As test frameworks raise it: no `Exception`, so that no code of the program catches it."""


def raising_outcomes(attempts):
    """A callback of any kind, which raises an `Outcome`, and counts in *attempts*."""

    async def hook(*args, **kwargs):
        attempts.append(args)
        raise Outcome

    return hook


@pytest.mark.parametrize("kind", ["init", "connect", "credentials", "password", "dsn", "setup", "reset"])
def test_a_callback_that_raises_what_is_no_exception_is_told_and_not_repeated(dsn, run, kind):
    """As asyncpg's pool does. A caller without a time limit would else wait for ever, while the pool connects."""
    attempts = []

    async def main():
        given = {"dsn": dsn, kind: raising_outcomes(attempts)}
        async with create_pool(**given, min_size=0, max_size=1) as pool, asyncio.timeout(TOLD_SECONDS):
            for told in (1, 2):
                with pytest.raises(Outcome):
                    await pool.execute("SELECT 1")
                assert len(attempts) == told
                assert pool.stats().size == 0

    run(main())


@pytest.mark.parametrize("callback", ["configure", "conninfo", "kwargs", "reset"])
def test_a_callback_of_psycopgs_that_raises_what_is_no_exception_is_told(dsn, run, callback):
    """`reset` to a listener, as no release waits for it; the others to the caller that connects."""
    attempts, failures = [], []

    def tell(event):
        if isinstance(event, ResetFailed):
            failures.append(event.error)

    async def main():
        given = {"conninfo": dsn, callback: raising_outcomes(attempts)}
        async with AsyncConnectionPool(**given, min_size=0, max_size=1, open=False, on_event=tell) as pool:
            with contextlib.nullcontext() if callback == "reset" else pytest.raises(Outcome):
                async with asyncio.timeout(TOLD_SECONDS), pool.connection():
                    pass
            await pool.settled()
            assert pool.stats().size == 0
            assert len(attempts) == 1
            assert [type(error) for error in failures] == [Outcome] * (callback == "reset")

    run(main())


@pytest.mark.parametrize("kind", ["init", "setup", "reset", "connect"])
@pytest.mark.parametrize("size", [1, 2])
def test_a_callback_that_raises_costs_no_place(dsn, run, kind, size):
    """What a callback raises reaches the caller as it is, and afterwards every place is there."""
    fails = True

    async def hook(*args, **kwargs):
        if fails:
            raise ZeroDivisionError("mine")
        if kind == "connect":
            return await asyncpg.connect(*args, **kwargs)
        return "ignored"

    async def main():
        nonlocal fails
        async with asyncio.timeout(30), create_pool(dsn, min_size=0, max_size=size, **{kind: hook}) as pool:
            for _ in range(size + 2):
                with pytest.raises(ZeroDivisionError, match=r"^mine$"):
                    async with pool.acquire():
                        pass
            outcomes = await asyncio.gather(*[pool.fetchval("SELECT 1") for _ in range(6)], return_exceptions=True)
            assert all(isinstance(outcome, ZeroDivisionError) for outcome in outcomes)
            fails = False
            leases = [await pool.acquire() for _ in range(size)]
            for con in leases:
                assert await con.fetchval("SELECT 1") == 1
                await pool.release(con)

    run(main())


@pytest.mark.parametrize("result", [None, 7, "con", object], ids=repr)
def test_a_connect_callback_that_returns_something_else_is_told(dsn, run, result):
    """What `connect` returns must be a connection of the pool's class; asyncpg's words say what came instead."""

    async def connect(*args, **kwargs):
        return result

    async def main():
        words = "expected pool connect callback to return an instance of 'asyncpg.connection.Connection', got "
        pool = create_pool(dsn, min_size=1, max_size=1, connect=connect)
        with pytest.raises(asyncpg.InterfaceError, match=re.escape(f"{words}'{type(result).__name__}'")):
            await pool
        pool = await create_pool(dsn, min_size=0, max_size=1, connect=connect)
        with pytest.raises(asyncpg.InterfaceError, match=re.escape(words)):
            await pool.acquire()
        assert pool.stats().connecting == 0
        await pool.close()

    run(main())


@pytest.mark.parametrize("kind", ["init", "setup", "reset"])
def test_a_callback_that_is_no_coroutine_function_costs_no_place(dsn, run, kind):
    """A plain function given as a callback fails when its result is awaited, as in asyncpg, and no place is lost."""

    def hook(con):
        return None

    async def main():
        async with asyncio.timeout(30), create_pool(dsn, min_size=0, max_size=1, **{kind: hook}) as pool:
            for _ in range(3):
                with pytest.raises(TypeError, match="await"):
                    async with pool.acquire():
                        pass
            assert pool.stats().lent == 0

    run(main())


@pytest.mark.parametrize("kind", ["init", "setup", "reset"])
def test_a_callback_that_closes_the_connection_costs_no_place(dsn, run, kind):
    """A callback may close the connection it was given; the next caller gets another."""
    closes = True

    async def hook(con):
        if closes:
            await con.close()

    async def main():
        nonlocal closes
        async with asyncio.timeout(30), create_pool(dsn, min_size=0, max_size=1, **{kind: hook}) as pool:
            for _ in range(3):
                with contextlib.suppress(asyncpg.InterfaceError, asyncpg.PostgresConnectionError):
                    async with pool.acquire() as con:
                        await con.fetchval("SELECT 1")
            closes = False
            assert await pool.fetchval("SELECT 1") == 1
            assert pool.stats().size == 1

    run(main())


@pytest.mark.parametrize("how", ["close", "terminate"])
def test_a_lease_that_closes_its_connection_costs_no_place(dsn, run, how):
    """A caller may close what it was lent; its place is free at once, and the release is ignored."""

    async def main():
        async with asyncio.timeout(30), create_pool(dsn, min_size=0, max_size=1) as pool:
            for _ in range(3):
                async with pool.acquire() as con:
                    waiter = asyncio.create_task(pool.fetchval("SELECT 1"))
                    await helpers.spin(2)
                    await con.close() if how == "close" else con.terminate()
                    assert await waiter == 1
            assert pool.stats().size == 1

    run(main())
