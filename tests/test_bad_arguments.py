"""Arguments that make no sense are refused at once, by an error that says what and why; nothing is opened or lost."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import re

import asyncpg
import pytest

import helpers
from loopaware_pool.asyncpg import Pool, create_pool
from running import NOWHERE

pytestmark = pytest.mark.both_drivers
NAN, INFINITY = float("nan"), float("inf")
REQUIRED = {"min_size": 0, "max_size": 1, "max_queries": 1, "max_inactive_connection_lifetime": 0}
TAKEN = ("loop", "connection_class", "record_class")
# ---- arguments of create_pool ----

SIZES = [
    ({"max_size": 0}, "max_size is expected to be greater than zero"),
    ({"max_size": -1}, "max_size is expected to be greater than zero"),
    ({"min_size": -1}, "min_size is expected to be greater or equal to zero"),
    ({"min_size": 3, "max_size": 2}, "min_size is greater than max_size"),
    ({"max_size": 5}, "min_size is greater than max_size"),
    ({"init_size": -1}, "init_size is expected to be greater or equal to zero"),
    ({"init_size": 11}, "init_size is greater than max_size"),
    ({"init_size": 1, "min_size": 2}, "init_size is smaller than min_size"),
    ({"max_queries": 0}, "max_queries is expected to be greater than zero"),
    ({"max_queries": -5}, "max_queries is expected to be greater than zero"),
    (
        {"max_inactive_connection_lifetime": -0.1},
        "max_inactive_connection_lifetime is expected to be greater or equal to zero",
    ),
]


@pytest.mark.parametrize(("options", "complaint"), SIZES)
def test_sizes_are_refused_in_asyncpgs_words(options, complaint):
    """Sizes that asyncpg refuses are refused by the same error and message."""
    before = helpers.socket_count()
    with pytest.raises(ValueError) as caught:
        create_pool(NOWHERE, **options)
    assert str(caught.value) == complaint
    assert helpers.socket_count() == before


@pytest.mark.parametrize(("options", "complaint"), [case for case in SIZES if "init_size" not in case[0]])
def test_those_are_asyncpgs_words(options, complaint):
    """The installed asyncpg refuses the same sizes with the same message."""

    async def main():
        with pytest.raises(ValueError) as caught:
            asyncpg.create_pool(NOWHERE, **options)
        assert str(caught.value) == complaint

    asyncio.run(main())


COUNTS = ["min_size", "init_size", "max_size", "max_waiting", "max_connecting"]
TIMES = [
    *("max_lifetime", "keepalive", "max_inactive_connection_lifetime"),
    *("acquire_timeout", "shed_after", "leak_threshold", "fd_check", "close_timeout"),
]
# Which values are wrong for which arguments, and by which error they are refused.
WRONG = [
    (COUNTS, [1.5, "3", True, NAN, [], 2.0], (TypeError, ValueError)),
    (["min_size", "max_size", "max_waiting"], [None], TypeError),
    (["max_queries"], ["3", [], NAN, None], (TypeError, ValueError)),
    (["max_waiting", "max_connecting"], [-1], ValueError),
    (["max_connecting"], [0], ValueError),
    (TIMES, ["1", True, [], b"1", 1j], TypeError),
    (["max_lifetime", "keepalive", "max_inactive_connection_lifetime"], [None], TypeError),
    (TIMES, [-1, -0.001, NAN, -INFINITY], ValueError),
    (
        ["max_lifetime", "keepalive", "acquire_timeout", "shed_after", "leak_threshold", "fd_check", "close_timeout"],
        [INFINITY],
        ValueError,
    ),
    (["fd_check"], [0, 0.0], ValueError),
    (["lifetime_jitter"], [-0.1, 1, 1.5, NAN, "0.1", None, True], (TypeError, ValueError)),
    (["name"], [7, "", b"name", ["name"]], TypeError),
    (["on_event"], [7, "print", []], TypeError),
    (["session_reset"], ["sometimes", None, True, "", "Pipelined", ["never"]], (TypeError, ValueError)),
]
CASES = [
    pytest.param(name, value, kind, id=f"{name}={value!r}")
    for names, values, kind in WRONG
    for name in names
    for value in values
]


@pytest.mark.parametrize(("name", "value", "kind"), CASES)
def test_an_argument_that_makes_no_sense_is_named_with_its_value(name, value, kind):
    """Each wrong argument gets one error that names it, and shows the value unless asyncpg's words are used."""
    options = {"min_size": 0, name: value}
    before = helpers.socket_count()
    with pytest.raises(kind) as caught:
        create_pool(NOWHERE, **options)
    complaint = str(caught.value)
    assert name in complaint, complaint
    assert repr(value) in complaint or complaint in {words for _, words in SIZES}, complaint
    assert "expected" in complaint
    assert helpers.socket_count() == before


@pytest.mark.parametrize("argument", ["max_inactive_connection_lifetime", "max_queries"])
def test_infinity_means_never_where_asyncpg_takes_it_so(dsn, run, argument):
    """What asyncpg's pool accepts as "never" is accepted."""

    async def main():
        for kind in (asyncpg.create_pool, create_pool):
            async with kind(dsn, min_size=0, max_size=1, **{argument: INFINITY}) as pool:
                for _ in range(3):
                    assert await pool.fetchval("SELECT 1") == 1

    run(main())


@pytest.mark.parametrize("argument", ["connection_class", "record_class"])
@pytest.mark.parametrize("value", [int, object])
def test_classes_are_refused_in_asyncpgs_words(argument, value):
    """A class that is no subclass of asyncpg's is refused as asyncpg does it."""
    with pytest.raises(TypeError, match=f"{argument} is expected to be a subclass of asyncpg.*, got {value!r}"):
        create_pool(NOWHERE, **{argument: value})


MISSPELT = {
    "max_lifetme": "max_lifetime",
    "acquire_timout": "acquire_timeout",
    "minsize": "min_size",
    "pasword": "password",
    "statement_cache": "statement_cache_size",
}


@pytest.mark.parametrize("make", [create_pool, functools.partial(Pool, **REQUIRED)], ids=["create_pool", "Pool"])
@pytest.mark.parametrize("name", MISSPELT)
def test_an_unknown_argument_is_refused_with_the_one_that_is_meant(make, name):
    """At once, and without its value, which may be a password."""
    with pytest.raises(TypeError, match=f"{name!r}.*did you mean {MISSPELT[name]!r}") as caught:
        make(NOWHERE, **{name: "secret"})
    assert "secret" not in str(caught.value)


def test_an_unknown_argument_like_no_other_is_refused():
    """Nothing is suggested then."""
    with pytest.raises(TypeError, match="unexpected argument 'xyzzy'") as caught:
        create_pool(NOWHERE, xyzzy=1)
    assert "did you mean" not in str(caught.value)


def test_each_argument_of_asyncpgs_connect_is_taken():
    """By `create_pool`, and by `set_connect_args`."""
    names = [name for name in inspect.signature(asyncpg.connect).parameters if name not in ("dsn", *TAKEN)]
    pool = create_pool(NOWHERE, **dict.fromkeys(names))
    pool.set_connect_args(NOWHERE, **dict.fromkeys(names))
    assert pool._connect_kwargs == dict.fromkeys(names)


@pytest.mark.parametrize("name", ["pasword", "max_lifetime", *TAKEN])
def test_connect_arguments_that_are_unknown_or_the_pools_change_nothing(name):
    """`set_connect_args` refuses them, and the pool connects as before."""
    pool = create_pool(NOWHERE, password="as before")
    with pytest.raises(TypeError, match=name):
        pool.set_connect_args(NOWHERE, **{name: "secret"})
    assert pool._connect_kwargs == {"password": "as before"}


@pytest.mark.parametrize("password", [5, b"CANARY", ["CANARY"]], ids=repr)
def test_a_password_of_another_type_is_refused_at_once_and_not_shown(password, run):
    """asyncpg refuses it only where the server asks for one, by an `InternalClientError`."""
    says = f"password: expected a string, a function that returns one, or None, not {type(password).__name__}"
    with pytest.raises(TypeError, match=f"^{says}$"):
        create_pool(NOWHERE, password=password)
    pool = create_pool(NOWHERE, min_size=0, credentials=lambda: {"password": password})
    with pytest.raises(TypeError, match=f"^{says}$"):
        pool.set_connect_args(NOWHERE, password=password)

    async def main():
        async with pool:
            with pytest.raises(TypeError, match=f"^credentials: {says}$"):
                await pool.acquire(timeout=10)

    run(main())


def test_a_port_that_cannot_be_is_told_at_once():
    """Another connect would fail, too. uvloop takes it for another port."""

    async def main():
        async with create_pool("postgresql://app@127.0.0.1:99999/shop", min_size=0) as pool:
            with pytest.raises(OverflowError, match="port must be 0-65535"):
                await pool.acquire(timeout=10)

    asyncio.run(main())


def test_a_connect_callback_takes_what_it_likes(dsn, run):
    """Its arguments are its own."""
    given = []

    async def connect(dsn, *, tenant, **options):
        given.append(tenant)
        return await asyncpg.connect(dsn, **options)

    async def main():
        async with create_pool(dsn, min_size=1, max_size=1, connect=connect, tenant="a") as pool:
            pool.set_connect_args(dsn, tenant="b")
            await pool.expire_connections()
            assert await pool.fetchval("SELECT 1") == 1
        assert given == ["a", "b"]

    run(main())


def test_a_traced_connect_that_tells_no_arguments_is_asked_for_none(monkeypatch):
    """A tracer's function that passes all on: what is unknown shows when it is called."""
    original = asyncpg.connect

    def traced(*args, **kwargs):
        return original(*args, **kwargs)

    monkeypatch.setattr(asyncpg, "connect", traced)
    create_pool(NOWHERE, no_such_option=1)


# ---- arguments of calls ----


@pytest.mark.parametrize("timeout", ["1", True, [], b"1", 1j], ids=repr)
def test_a_timeout_that_is_no_number_is_refused_before_anything_is_taken(dsn, run, timeout):
    """`acquire` names the timeout it cannot use, and takes no connection."""

    async def main():
        async with create_pool(dsn, min_size=0, max_size=1) as pool:
            with pytest.raises(TypeError, match=f"timeout={re.escape(repr(timeout))}: expected a number of seconds"):
                await pool.acquire(timeout=timeout)
            assert pool.stats().size == 0
            assert await pool.fetchval("SELECT 1") == 1

    run(main())


def test_a_timeout_that_is_not_a_number_is_refused(dsn, run):
    """NaN is no time to wait."""

    async def main():
        async with create_pool(dsn, min_size=0, max_size=1) as pool:
            with pytest.raises(ValueError, match="timeout=nan: expected"):
                await pool.acquire(timeout=NAN)
            assert await pool.fetchval("SELECT 1") == 1

    run(main())


def test_an_endless_timeout_is_none(dsn, run):
    """Infinity is a time to wait, for as long as it takes."""

    async def main():
        async with create_pool(dsn, min_size=0, max_size=1) as pool:
            con = await pool.acquire(timeout=INFINITY)
            task = asyncio.create_task(fetch(pool))
            await helpers.spin(3)
            assert pool.stats().waiting == 1
            await pool.release(con, timeout=INFINITY)
            assert await task == 1

    async def fetch(pool):
        async with pool.acquire(timeout=INFINITY) as con:
            return await con.fetchval("SELECT 1")

    run(main())


@pytest.mark.parametrize("timeout", ["1", NAN], ids=repr)
@pytest.mark.parametrize("session_reset", ["pipelined", "awaited"])
def test_a_release_with_a_wrong_timeout_is_refused(dsn, run, timeout, session_reset):
    """`release` names the timeout it cannot use; the connection can still be released, and is not lost."""

    async def main():
        async with create_pool(dsn, min_size=0, max_size=1, session_reset=session_reset) as pool:
            con = await pool.acquire()
            with pytest.raises((TypeError, ValueError), match=f"timeout={re.escape(repr(timeout))}: expected"):
                await pool.release(con, timeout=timeout)
            await pool.release(con)
            assert await pool.fetchval("SELECT 1") == 1

    run(main())


@pytest.mark.parametrize("what", ["foreign", "foreign-asyncpg", "raw", "bare", None, 7, "string"])
def test_what_is_not_of_this_pool_cannot_be_released(dsn, run, what):
    """Another pool's connection, a bare one, or no connection at all is refused in asyncpg's words, and unharmed."""

    async def main():
        async with contextlib.AsyncExitStack() as stack:
            pool = await stack.enter_async_context(create_pool(dsn, min_size=0, max_size=1))
            lent = await stack.enter_async_context(pool.acquire())
            if what == "foreign":
                other = await stack.enter_async_context(create_pool(dsn, min_size=0, max_size=1))
                wrong = await stack.enter_async_context(other.acquire())
            elif what == "foreign-asyncpg":
                other = await stack.enter_async_context(asyncpg.create_pool(dsn, min_size=0, max_size=1))
                wrong = await stack.enter_async_context(other.acquire())
            elif what == "raw":
                wrong = await asyncpg.connect(dsn)
                stack.push_async_callback(wrong.close)
            elif what == "bare":
                wrong = lent._con
            else:
                wrong = what
            complaint = f"Pool.release() received invalid connection: {wrong!r} is not a member of this pool"
            with pytest.raises(asyncpg.InterfaceError, match=re.escape(complaint)):
                await pool.release(wrong)
            if isinstance(wrong, asyncpg.Connection):
                assert await wrong.fetchval("SELECT 1") == 1
            assert await lent.fetchval("SELECT 1") == 1

    run(main())


def test_releasing_twice_is_releasing_once(dsn, run):
    """A connection that was released is ignored, also while somebody else has it by now."""

    async def main():
        async with create_pool(dsn, min_size=0, max_size=1) as pool:
            con = await pool.acquire()
            await pool.release(con)
            await pool.release(con)
            async with pool.acquire() as other:
                await pool.release(con)
                assert await other.fetchval("SELECT 1") == 1
                assert pool.stats().lent == 1
                with pytest.raises(asyncpg.InterfaceError, match="has been released back to the pool"):
                    await con.fetchval("SELECT 1")

    run(main())


def test_an_acquire_context_is_for_one_use(dsn, run):
    """What `acquire` gives can be entered once."""

    async def main():
        async with create_pool(dsn, min_size=0, max_size=2) as pool:
            context = pool.acquire()
            async with context:
                with pytest.raises(asyncpg.InterfaceError, match="a connection is already acquired"):
                    await context.__aenter__()
            with pytest.raises(asyncpg.InterfaceError, match="a connection is already acquired"):
                async with context:
                    pass
            assert pool.stats().lent == 0

    run(main())
