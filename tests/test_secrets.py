"""Nothing secret is said: not by a log, an error, an event, a report, a repr or a command."""

from __future__ import annotations

import asyncio
import copy
import functools
import logging
import pickle
import subprocess
import sys
import traceback
from pathlib import Path

import asyncpg
import psycopg
import pytest

from loopaware_pool._platform.conninfo import MISREAD, hide_passwords, may_be_misread
from loopaware_pool.asyncpg import create_pool
from loopaware_pool.credentials import RenewedSecret
from loopaware_pool.errors import PoolTimeout
from loopaware_pool.psycopg import AsyncConnectionPool
from loopaware_pool.stats import AcquireFailed, ConnectFailed, LeaseDropped, LeaseOverdue
from rotating import WAYS, ask_by
from running import DEADLINE_SECONDS, eventually_async
from servers import dsn_of_role

pytestmark = pytest.mark.both_drivers

ROOT = Path(__file__).parents[1]


async def until_refused(acquire, is_refused):
    """Have a caller wait until a connect has failed: with any less time, its time might be up before that."""
    waiting = asyncio.ensure_future(acquire(timeout=DEADLINE_SECONDS))
    await eventually_async(is_refused, "a connect that fails")
    waiting.cancel()
    await asyncio.wait([waiting])


def has_failed(heard):
    return any(isinstance(event, ConnectFailed) for event in heard)


def in_full(error):
    """All that can be read of an error, and of those behind it, whether a traceback shows them or not."""
    said, pending = [], [error]
    while pending:
        one = pending.pop()
        if one is not None:
            said += [str(one), repr(one), *traceback.format_exception(one)]
            pending += [one.__cause__, one.__context__]
    return "\n".join(said)


# ---- connection strings that mean something else than was meant ----

MISTAKES = {
    "slash": "postgresql://me:CAN/ARY@127.0.0.1:1/db",
    "hash": "postgresql://me:CAN#ARY@127.0.0.1:1/db",
    "question mark": "postgresql://me:CAN?ARY@127.0.0.1:1/db",
    "at": "postgresql://me:CAN@ARY@127.0.0.1:1/db",
    "at and option": "postgresql://me:CAN@ARY@127.0.0.1:1/db?connect_timeout=5",
    "percent": "postgresql://me:CAN%ARY@127.0.0.1:1/db",
    "no hexadecimal": "postgresql://me:CAN%zzARY@127.0.0.1:1/db",
    "bracket": "postgresql://me:CAN[ARY@127.0.0.1:1/db",
    "brackets": "postgresql://me:[CANARY]@127.0.0.1:1/db",
    "space": "postgresql://me:CAN ARY@127.0.0.1:1/db",
    "other scheme": "postgresql+asyncpg://me:CANARY@127.0.0.1:1/db",
    "unquoted space": "host=127.0.0.1 port=1 user=me password=CAN ARY",
    "unquoted space and sign": "host=127.0.0.1 port=1 user=me password=CAN ARY=",
    "open quote": "host=127.0.0.1 port=1 user=me password='CANARY",
    "right": "postgresql://me:CANARY@127.0.0.1:1/db",
    "right, other form": "host=127.0.0.1 port=1 user=me password=CANARY",
}


def assert_silent(said):
    assert "CAN" not in said
    assert "ARY" not in said


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_a_password_that_is_taken_for_something_else_is_not_repeated_by_asyncpg(mistake, caplog):
    """Whatever part of it asyncpg complains of, the caller is told what is wrong without it."""

    async def main():
        with pytest.raises((OSError, ValueError)) as caught:
            await create_pool(mistake, min_size=1, timeout=5)
        return in_full(caught.value)

    caplog.set_level(0)
    assert_silent(asyncio.run(main()))
    assert_silent(caplog.text)


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_a_password_that_is_taken_for_something_else_is_not_repeated_by_psycopg(mistake, caplog):
    """Neither by the log, which tells of each failure to connect, nor by the error behind a timeout."""

    async def main():
        heard = []
        async with AsyncConnectionPool(mistake, min_size=1, on_event=heard.append) as pool:
            with pytest.raises((PoolTimeout, psycopg.ProgrammingError)) as caught:
                await pool.getconn(timeout=1)
            await eventually_async(lambda: "error connecting in" in caplog.text, "a connect that fails")
        assert heard
        return in_full(caught.value) + repr(heard)

    caplog.set_level(0)
    assert_silent(asyncio.run(main()))
    assert "error connecting in" in caplog.text
    assert_silent(caplog.text)


@pytest.mark.parametrize("answer", ["CANARY", "CANARY:x", "CANARY=x", "CANARY://x"])
def test_a_password_that_is_returned_as_a_connection_string_is_not_repeated(answer, caplog):
    """As by a function that was given for the wrong argument."""
    heard = []

    async def by_asyncpg():
        for options in ({"dsn": lambda: answer}, {"credentials": lambda: {"dsn": answer}}):
            with pytest.raises(ValueError) as caught:
                await create_pool(min_size=1, on_event=heard.append, **options)
            assert "canary" not in in_full(caught.value).lower()

    async def by_psycopg():
        async with AsyncConnectionPool(lambda: answer, min_size=0, max_size=1, on_event=heard.append) as pool:
            with pytest.raises(psycopg.ProgrammingError) as caught:
                await pool.getconn(timeout=20)
        assert "canary" not in in_full(caught.value).lower()

    caplog.set_level(0)
    asyncio.run(by_asyncpg())
    asyncio.run(by_psycopg())
    assert heard
    assert "canary" not in (caplog.text + repr(heard)).lower()


def test_what_is_wrong_with_a_connection_string_is_told():
    """In words that help, by an error of the type that the driver raises."""

    async def by_asyncpg():
        with pytest.raises(ValueError, match="percent-encoded") as caught:
            await create_pool(MISTAKES["slash"], min_size=1)
        assert str(caught.value) == MISREAD

    async def by_psycopg():
        async with AsyncConnectionPool(MISTAKES["other scheme"], min_size=0, max_size=1) as pool:
            with pytest.raises(psycopg.ProgrammingError) as caught:
                await pool.getconn(timeout=20)
        assert str(caught.value) == MISREAD

    asyncio.run(by_asyncpg())
    asyncio.run(by_psycopg())


@pytest.mark.parametrize(
    ("dsn", "expected"),
    [
        ("postgresql://me:secret@host:5432/db", False),
        ("postgresql://me:p%40ss%2F@host/db?sslmode=require", False),
        ("postgres://host/db", False),
        ("postgresql://host:5432/db?user=me@corp", False),
        ("postgresql://host/db?user=me@corp", False),
        ("postgresql://", False),
        ("host=here password=a@b", False),
        ("", False),
        ("postgresql://me:p@ss@host/db", True),
        ("postgresql://me:p/ss@host/db", True),
        ("postgresql://me:p?ss@host/db", True),
        ("postgresql://me:1/ss@host/db", True),
        ("mysql://me:secret@host/db", True),
        ("postgresql+psycopg://host/db", True),
    ],
)
def test_which_connection_strings_may_be_misread(dsn, expected):
    """Those in which a character that ends a password stands before the end of it, and those for somebody else."""
    assert may_be_misread(dsn, "/?#@") is expected


def test_passwords_are_hidden():
    """In a URI all before the host, which may be part of the password; elsewhere the password's value."""
    hidden = hide_passwords("no such thing: postgresql://me:s@cret@host/db --x password='a b' PASSWORD=c")
    assert hidden == "no such thing: postgresql://***@host/db --x password=***"


SLIPS = {
    "unknown option": ["--server", "postgresql://me:CANARY@127.0.0.1:1/db"],
    "two": ["postgresql://me:CANARY@127.0.0.1:1/db", "postgresql://me:CANARY@127.0.0.1:1/db"],
    "form": ["host=127.0.0.1 port=1 user=me password=CANARY"],
    "choice": ["--only", "postgresql://me:CANARY@127.0.0.1:1/db"],
    "folder": ["--out=postgresql://me:CANARY@127.0.0.1:1/db"],
    **{f"dsn, {name}": [mistake] for name, mistake in MISTAKES.items()},
    **{f"--dsn, {name}": ["--dsn", mistake] for name, mistake in MISTAKES.items()},
}


@pytest.mark.parametrize("module", ["loopaware_pool.cli.demo.command", "benchmarks"])
def test_a_slip_on_the_command_line_shows_no_password(module):
    """Whatever a command is given by mistake, it does not repeat a password."""
    code = """
import contextlib, io, runpy, sys
for line in sys.stdin:
    sys.argv[1:] = eval(line)
    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(said):
        try:
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=False)
        except SystemExit as end:
            code = end.code
    print(code, repr(said.getvalue()))
"""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.argv[0] = {module!r}\n{code}"],
        cwd=ROOT,
        input="".join(f"{slip!r}\n" for slip in SLIPS.values()),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == len(SLIPS)
    for slip, line in zip(SLIPS, lines, strict=True):
        assert line.startswith("2 "), slip
        assert_silent(line)
    assert_silent(done.stderr)


# ---- what a caller's own errors say ----


def test_what_a_callers_block_failed_with_is_in_no_log(dsn, run, caplog):
    """The server's words may quote what was given to a query; they are the caller's, though a release fails, too."""

    async def refuse(_):
        raise ValueError("not this one")

    def listen(event):
        raise ValueError(f"do not tell me of {type(event).__name__}")

    async def main():
        async with create_pool(dsn, min_size=0, max_size=1, reset=refuse, on_event=listen) as pool:
            with pytest.raises(asyncpg.UniqueViolationError) as caught:
                async with pool.acquire() as connection:
                    await connection.execute("CREATE TEMP TABLE pairs (name text PRIMARY KEY)")
                    for _ in range(2):
                        await connection.execute("INSERT INTO pairs VALUES ($1)", "CANARY")
        assert "CANARY" in str(caught.value)

    caplog.set_level(0)
    run(main())
    assert "CANARY" not in caplog.text
    for told in ("releasing a connection failed", "not this one", "ConnectionClosed"):
        assert told in caplog.text


def test_the_listeners_error_is_told_without_the_callers(dsn, run, caplog):
    """Where a connection is closed at once, the listener is called in the middle of the caller's error."""

    def listen(event):
        raise ValueError(f"do not tell me of {type(event).__name__}")

    async def main():
        async with create_pool(dsn, min_size=0, max_size=1, on_event=listen) as pool:
            with pytest.raises(asyncpg.InvalidTextRepresentationError, match="CANARY"):
                async with pool.acquire() as connection:
                    try:
                        await connection.execute("SELECT 'CANARY'::int")
                    except asyncpg.InvalidTextRepresentationError:
                        connection.terminate()
                        raise

    caplog.set_level(0)
    run(main())
    assert "ConnectionClosed" in caplog.text
    assert "CANARY" not in caplog.text


@pytest.mark.parametrize("hook", ["configure", "reset"])
def test_a_function_that_leaves_a_transaction_is_named_without_what_it_is_bound_to(dsn, run, caplog, hook):
    """A partial function, or a method of a dataclass, would show its arguments."""

    async def open_transaction(connection, secret):
        await connection.execute("SELECT 1")

    async def main():
        options = {hook: functools.partial(open_transaction, secret="CANARY")}
        async with AsyncConnectionPool(dsn, min_size=0, max_size=1, **options) as pool:
            if hook == "reset":
                async with pool.connection():
                    pass
                return
            await until_refused(pool.getconn, lambda: f"by {hook} function partial" in caplog.text)
            with pytest.raises(PoolTimeout) as caught:
                await pool.getconn(timeout=0.01)
            assert "by configure function partial" in str(caught.value.__cause__)

    caplog.set_level(0)
    run(main())
    assert f"by {hook} function partial" in caplog.text
    assert "CANARY" not in caplog.text


# ---- tracebacks that show variables ----


def with_variables(error):
    """What a report shows that has the variables of each frame, of *error* and those behind it; of ours and below."""
    said, pending = [], [error]
    while pending:
        one = pending.pop()
        if one is None:
            continue
        pending += [one.__cause__, one.__context__]
        for frame, _ in traceback.walk_tb(one.__traceback__):
            if frame.f_code.co_filename != __file__:
                said.append(repr(frame.f_locals))
    return "\n".join(said)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2"], ids=["refused by the server", "nobody there"])
@pytest.mark.parametrize("is_function", [False, True])
def test_no_variable_of_a_failed_connect_shows_the_password(dsn, run, host, is_function):
    """Of asyncpg's and psycopg's own functions neither: an error that is kept lets go of what they had."""
    uri = dsn_of_role(dsn, "postgres", "CANARY").replace("127.0.0.1", host)
    password = {"password": lambda: "CANARY"} if is_function else {}

    async def main():
        ours_heard, theirs_heard = [], []
        ours = create_pool(uri, min_size=0, on_event=ours_heard.append, **password)
        options = {"min_size": 0, "max_size": 1, "open": False, "on_event": theirs_heard.append}
        theirs = AsyncConnectionPool((lambda: uri) if is_function else uri, **options)
        for pool, acquire, heard in ((ours, ours.acquire, ours_heard), (theirs, theirs.getconn, theirs_heard)):
            async with pool:
                await until_refused(acquire, functools.partial(has_failed, heard))
                with pytest.raises((PoolTimeout, TimeoutError)) as refused:
                    await acquire(timeout=0.01)
            assert refused.value.__cause__ is not None
            assert "CANARY" not in with_variables(refused.value)

    run(main())


@pytest.mark.parametrize("way", WAYS, ids="-".join)
@pytest.mark.parametrize("fails", ["refused by the server", "nobody there", "of a wrong type", "raised"])
def test_no_variable_shows_what_a_function_has_returned(dsn, run, way, fails):
    """For a password or for all arguments, in every flavour; nor what the function itself had in its variables."""
    host = "127.0.0.2" if fails == "nobody there" else "127.0.0.1"
    without_password = dsn_of_role(dsn, "postgres").replace("127.0.0.1", host)
    answers = {
        "password": "CANARY",
        "dsn": dsn_of_role(dsn, "postgres", "CANARY").replace("127.0.0.1", host),
        "all": {"password": "CANARY"},
    }
    namespace = {"answer": ["CANARY"] if fails == "of a wrong type" else answers[way[1]], "fails": fails}
    # In a file of its own: variables of this one are not looked at.
    exec(compile(FUNCTION, "function.py", "exec"), namespace)

    async def main():
        async with ask_by(*way, without_password, namespace["function"]) as client:
            with pytest.raises((Exception, ExceptionGroup)) as refused:
                await client.value("SELECT 1", timeout=0.2)
            assert "CANARY" not in with_variables(refused.value)
            assert "CANARY" not in in_full(refused.value)
            assert "CANARY" not in repr(client.pool)

    run(main())


FUNCTION = """
async def function():
    secret = answer
    if fails == "raised":
        raise RuntimeError
    return secret
"""


@pytest.mark.parametrize("fails", ["refused by the server", "raised"])
def test_no_variable_shows_what_a_renewed_secret_has(dsn, run, fails):
    """Although the pool keeps the helper, and the helper the secret."""
    namespace = {"answer": "CANARY", "fails": fails}
    exec(compile(FUNCTION, "function.py", "exec"), namespace)
    secret = RenewedSecret(namespace["function"], lifetime=900)
    all_heard = []

    async def main():
        for way in WAYS:
            if way[1] != "password":
                continue
            heard = []
            async with ask_by(*way, dsn_of_role(dsn, "postgres"), secret, on_event=heard.append) as client:
                with pytest.raises(Exception) as refused:
                    await client.value("SELECT 1", timeout=0.2)
                await eventually_async(functools.partial(has_failed, heard), "a connect that fails")
            assert "CANARY" not in with_variables(refused.value) + in_full(refused.value)
            all_heard.extend(heard)
        for event in all_heard:
            assert "CANARY" not in repr(event)
            if (error := getattr(event, "error", None)) is not None:
                assert "CANARY" not in with_variables(error) + in_full(error)

    run(main())


# ---- copies ----


@pytest.mark.parametrize("duplicate", [pickle.dumps, copy.copy, copy.deepcopy])
def test_pools_and_connections_are_not_pickled_or_copied(dsn, run, duplicate):
    """A copy would share the pool's connections, or outlive its lease; a pickle would carry the password along."""

    async def main():
        ours = create_pool(dsn, name="mine", min_size=0, max_size=1)
        theirs = AsyncConnectionPool(dsn, name="mine", min_size=1, open=False)
        async with ours, theirs:
            for pool in (ours, theirs):
                with pytest.raises(TypeError, match="pool 'mine' cannot be pickled or copied"):
                    duplicate(pool)
            async with ours.acquire() as mine, theirs.connection() as yours:
                for connection in (mine, yours):
                    with pytest.raises(TypeError, match="cannot be pickled or copied"):
                        duplicate(connection)

    run(main())


# ---- everything there is to read of a pool ----


async def everything_said_of_a_lease(pool, take, ask, told):
    """What can be read of a pool, its events and its errors, in the course of a lease that goes wrong in every way."""
    said = [repr(pool), str(pool)]
    connection = await take()
    await ask(connection, "CANARY")
    while not any(isinstance(event, LeaseOverdue) for event in told):
        await asyncio.sleep(0.005)
    with pytest.raises(PoolTimeout) as late:
        await take(timeout=0.01)
    said += [in_full(late.value), repr(late.value.held_by_this_task), repr(late.value.holders), repr(late.value.stats)]
    said += [repr(pool), repr(pool._core.fd_report()), repr(pool._core.stats()), pool._core.stats().summary()]
    said += [repr(slot) for slot in pool._core.slots()] + [repr(pool._core.shared.config), repr(pool._driver)]
    del connection
    del late
    await take()
    assert any(isinstance(event, LeaseDropped) for event in told)
    return said


def all_said(events, said, caplog):
    for event in events:
        said += [repr(event), str(event)]
        if (error := getattr(event, "error", None)) is not None:
            said.append(in_full(error))
    return "\n".join([*said, caplog.text])


@pytest.fixture
def canary_dsn(dsn):
    """A connection string with a password that is looked for."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE ROLE canary LOGIN PASSWORD 'CANARY'")
        yield dsn_of_role(dsn, "canary", "CANARY")
        connection.execute("DROP ROLE canary")


def test_nothing_that_an_asyncpg_pool_says_has_a_secret(canary_dsn, run, caplog):
    """Neither its password, nor its connection string, nor what a query was given."""
    told = []

    async def main():
        uri = canary_dsn
        options = {"leak_threshold": 0.01, "on_event": told.append, "close_timeout": 0}
        async with create_pool(uri, min_size=0, max_size=1, **options) as pool:
            said = await everything_said_of_a_lease(
                pool, pool.acquire, lambda con, value: con.fetchval("SELECT length($1::text)", value), told
            )
            assert uri not in "\n".join(said)
        async with create_pool(uri.replace("127.0.0.1", "127.0.0.2"), min_size=0, on_event=told.append) as pool:
            await until_refused(pool.acquire, lambda: has_failed(told))
            with pytest.raises(PoolTimeout) as refused:
                await pool.acquire(timeout=0.01)
            return [*said, in_full(refused.value), repr(pool)]

    caplog.set_level(logging.INFO)
    said = run(main())
    assert {type(event) for event in told} >= {LeaseOverdue, LeaseDropped, AcquireFailed, ConnectFailed}
    assert "CANARY" not in all_said(told, said, caplog)
    assert "postgresql://" not in all_said(told, said, caplog)


def test_nothing_that_a_psycopg_pool_says_has_a_secret(canary_dsn, run, caplog):
    """Neither its password, nor its connection string, nor what a query was given."""
    told = []
    dsn = dsn_of_role(canary_dsn, "canary")

    async def main():
        options = {"min_size": 0, "max_size": 1, "open": False, "on_event": told.append}
        kwargs = {"password": "CANARY", "autocommit": True}
        async with AsyncConnectionPool(dsn, leak_threshold=0.01, kwargs=kwargs, **options) as pool:
            said = await everything_said_of_a_lease(
                pool, pool.getconn, lambda con, value: con.execute("SELECT length(%s)", [value]), told
            )
        elsewhere = dsn.replace("127.0.0.1", "127.0.0.2")
        async with AsyncConnectionPool(elsewhere, kwargs=kwargs, **options) as pool:
            await until_refused(pool.getconn, lambda: has_failed(told))
            with pytest.raises(PoolTimeout) as refused:
                await pool.getconn(timeout=0.01)
            return [*said, in_full(refused.value), repr(pool)]

    caplog.set_level(logging.INFO)
    said = run(main())
    assert {type(event) for event in told} >= {LeaseOverdue, LeaseDropped, AcquireFailed, ConnectFailed}
    assert "CANARY" not in all_said(told, said, caplog)
    assert "postgresql://" not in all_said(told, said, caplog)
