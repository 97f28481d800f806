"""What makes no sense is refused at once, by an error that says what and why, and nothing is opened or lost."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import re
import ssl
import sys
import types

import asyncpg
import pytest

import helpers
from loopaware_pool.asyncpg import Pool, create_pool
from loopaware_pool.errors import PoolError, UnsupportedLoop

pytestmark = pytest.mark.both_drivers

NAN, INFINITY = float("nan"), float("inf")
NOWHERE = "postgresql://postgres@127.0.0.1:1/postgres"
REQUIRED = {"min_size": 0, "max_size": 1, "max_queries": 1, "max_inactive_connection_lifetime": 0}
TAKEN = ("loop", "connection_class", "record_class")


def run(loop_factory, main):
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(main())


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
def test_infinity_means_never_where_asyncpg_takes_it_so(dsn, loop_factory, argument):
    """What asyncpg's pool accepts as "never" is accepted."""

    async def main():
        for kind in (asyncpg.create_pool, create_pool):
            async with kind(dsn, min_size=0, max_size=1, **{argument: INFINITY}) as pool:
                for _ in range(3):
                    assert await pool.fetchval("SELECT 1") == 1

    run(loop_factory, main)


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


def test_a_connect_callback_takes_what_it_likes(dsn, loop_factory):
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

    run(loop_factory, main)


def test_a_traced_connect_that_tells_no_arguments_is_asked_for_none(monkeypatch):
    """A tracer's function that passes all on: what is unknown shows when it is called."""
    original = asyncpg.connect

    def traced(*args, **kwargs):
        return original(*args, **kwargs)

    monkeypatch.setattr(asyncpg, "connect", traced)
    create_pool(NOWHERE, no_such_option=1)


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
def test_a_connect_that_fails_of_the_program_is_told_at_once(dsn, loop_factory, fault):
    """To each caller, with the error itself; it is not tried again until the caller's time is up, as an outage is."""
    options, kind = FAULTS[fault]

    async def main():
        async with create_pool(dsn, min_size=0, max_size=2, acquire_timeout=60, **options()) as pool:
            async with asyncio.timeout(20):
                callers = [asyncio.create_task(pool.fetchval("SELECT 1")) for _ in range(3)]
                told = await asyncio.gather(*callers, return_exceptions=True)
            assert [type(error) for error in told] == [kind] * 3
            assert all(str(error) for error in told)

    run(loop_factory, main)


@pytest.mark.parametrize("error", [ssl.SSLCertVerificationError("certificate verify failed"), MemoryError()], ids=repr)
def test_an_error_that_may_pass_is_not_taken_for_the_programs(dsn, loop_factory, error):
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

    run(loop_factory, main)


def test_a_second_positional_argument_is_refused():
    """`create_pool` takes the DSN alone by position, as asyncpg's does."""
    with pytest.raises(TypeError, match="positional"):
        create_pool(NOWHERE, 10)


# ---- arguments of calls ----


@pytest.mark.parametrize("timeout", ["1", True, [], b"1", 1j], ids=repr)
def test_a_timeout_that_is_no_number_is_refused_before_anything_is_taken(dsn, loop_factory, timeout):
    """`acquire` names the timeout it cannot use, and takes no connection."""

    async def main():
        async with create_pool(dsn, min_size=0, max_size=1) as pool:
            with pytest.raises(TypeError, match=f"timeout={re.escape(repr(timeout))}: expected a number of seconds"):
                await pool.acquire(timeout=timeout)
            assert pool.stats().size == 0
            assert await pool.fetchval("SELECT 1") == 1

    run(loop_factory, main)


def test_a_timeout_that_is_not_a_number_is_refused(dsn, loop_factory):
    """NaN is no time to wait."""

    async def main():
        async with create_pool(dsn, min_size=0, max_size=1) as pool:
            with pytest.raises(ValueError, match="timeout=nan: expected"):
                await pool.acquire(timeout=NAN)
            assert await pool.fetchval("SELECT 1") == 1

    run(loop_factory, main)


def test_an_endless_timeout_is_none(dsn, loop_factory):
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

    run(loop_factory, main)


@pytest.mark.parametrize("timeout", ["1", NAN], ids=repr)
@pytest.mark.parametrize("session_reset", ["pipelined", "awaited"])
def test_a_release_with_a_wrong_timeout_is_refused(dsn, loop_factory, timeout, session_reset):
    """`release` names the timeout it cannot use; the connection can still be released, and is not lost."""

    async def main():
        async with create_pool(dsn, min_size=0, max_size=1, session_reset=session_reset) as pool:
            con = await pool.acquire()
            with pytest.raises((TypeError, ValueError), match=f"timeout={re.escape(repr(timeout))}: expected"):
                await pool.release(con, timeout=timeout)
            await pool.release(con)
            assert await pool.fetchval("SELECT 1") == 1

    run(loop_factory, main)


@pytest.mark.parametrize("what", ["foreign", "foreign-asyncpg", "raw", "bare", None, 7, "string"])
def test_what_is_not_of_this_pool_cannot_be_released(dsn, loop_factory, what):
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

    run(loop_factory, main)


def test_releasing_twice_is_releasing_once(dsn, loop_factory):
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

    run(loop_factory, main)


def test_an_acquire_context_is_for_one_use(dsn, loop_factory):
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

    run(loop_factory, main)


# ---- at the wrong time ----

USES = {
    "acquire": lambda pool: pool.acquire(),
    "fetch": lambda pool: pool.fetch("SELECT 1"),
    "execute": lambda pool: pool.execute("SELECT 1"),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_pool_that_was_not_opened_is_refused(dsn, loop_factory, zero_fd_delta, use):
    """Before it is awaited a pool serves nobody, and says so."""

    async def main():
        pool = create_pool(dsn)
        with pytest.raises(asyncpg.InterfaceError, match=r"^pool is not initialized: await it, "):
            await use(pool)
        with pytest.raises(asyncpg.InterfaceError, match=r"^pool is not initialized: await it, "):
            await pool.close()
        with pytest.raises(asyncpg.InterfaceError, match=r"^pool is not initialized: await it, "):
            pool.terminate()
        assert not pool.is_closing()

    run(loop_factory, main)


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("end", ["close", "terminate"])
def test_a_pool_that_was_closed_is_refused(dsn, loop_factory, zero_fd_delta, use, end):
    """After its end a pool serves nobody, and says so by an error that is asyncpg's and ours."""

    async def main():
        pool = await create_pool(dsn, min_size=1, max_size=1)
        await pool.close() if end == "close" else pool.terminate()
        with pytest.raises(asyncpg.InterfaceError, match=r"^pool is closed$") as caught:
            await use(pool)
        assert isinstance(caught.value, PoolError)
        await pool
        await pool.close()
        pool.terminate()
        assert pool.is_closing()

    run(loop_factory, main)


def test_a_pool_that_is_closing_is_refused(dsn, loop_factory, zero_fd_delta):
    """While it closes a pool serves nobody new, and says so."""

    async def main():
        pool = await create_pool(dsn, min_size=1, max_size=1)
        con = await pool.acquire()
        closing = asyncio.create_task(pool.close())
        await helpers.spin(2)
        for use in USES.values():
            with pytest.raises(asyncpg.InterfaceError, match=r"^pool is closing$"):
                await use(pool)
        await pool.release(con)
        await closing

    run(loop_factory, main)


def test_a_pool_that_is_being_opened_is_refused(dsn, loop_factory, zero_fd_delta):
    """While it is being opened a pool serves nobody, and is opened by one task at a time."""

    async def main():
        let_go, entered = asyncio.Event(), asyncio.Event()

        async def init(con):
            entered.set()
            await let_go.wait()

        pool = create_pool(dsn, min_size=1, max_size=1, init=init)
        opening = asyncio.ensure_future(pool)
        await entered.wait()
        with pytest.raises(asyncpg.InterfaceError, match=r"^pool is being initialized, but not yet ready: likely"):
            await pool.acquire()
        with pytest.raises(asyncpg.InterfaceError, match=r"^pool is being initialized in another task$"):
            await pool
        let_go.set()
        assert await opening is pool
        assert await pool.fetchval("SELECT 1") == 1
        await pool.close()

    run(loop_factory, main)


# ---- at the wrong place ----


def by_hand(coroutine):
    """Run a coroutine's first step without a loop."""
    try:
        coroutine.send(None)
    finally:
        coroutine.close()


def test_without_a_loop_a_pool_can_be_made_but_not_opened(dsn, zero_fd_delta):
    """Outside a loop, opening and acquiring say that a loop is what they need."""

    async def opened():
        return await create_pool(dsn, min_size=0, max_size=1, name="loopless")

    async def await_it(pool):
        await pool

    pool = create_pool(dsn, min_size=0, max_size=1, name="loopless")
    with pytest.raises(UnsupportedLoop, match="pool 'loopless': no event loop is running") as caught:
        by_hand(await_it(pool))
    assert isinstance(caught.value, RuntimeError)
    assert not pool.is_closing()

    async def main():
        async with pool:
            assert await pool.fetchval("SELECT 1") == 1

    asyncio.run(main())


def test_without_a_loop_an_open_pool_cannot_be_used(dsn):
    """An acquire by hand, outside a loop, is refused, and the pool goes on."""

    async def acquire():
        await pool.acquire()

    with asyncio.Runner() as runner:
        pool = create_pool(dsn, min_size=0, max_size=1)

        async def open_pool():
            await pool

        runner.run(open_pool())
        with pytest.raises(UnsupportedLoop, match="no event loop is running"):
            by_hand(acquire())
        assert runner.run(pool.fetchval("SELECT 1")) == 1
        runner.run(pool.close())


def test_a_loop_that_cannot_watch_sockets_is_refused(dsn, monkeypatch, zero_fd_delta):
    """On a proactor loop the pool says which loop to use instead, before it opens anything."""

    class ProactorEventLoop(asyncio.SelectorEventLoop):
        pass

    monkeypatch.setattr(asyncio, "ProactorEventLoop", ProactorEventLoop, raising=False)

    async def main():
        with pytest.raises(UnsupportedLoop, match=r"ProactorEventLoop cannot watch sockets: use asyncio\.run"):
            await create_pool(dsn, min_size=1, max_size=1)

    with asyncio.Runner(loop_factory=ProactorEventLoop) as runner:
        runner.run(main())


def test_trio_is_refused_by_name(dsn, monkeypatch, zero_fd_delta):
    """Under trio the pool says that the drivers need asyncio."""
    trio = types.ModuleType("trio")
    trio.lowlevel = types.SimpleNamespace(in_trio_run=lambda: True)
    monkeypatch.setitem(sys.modules, "trio", trio)

    async def await_it():
        await create_pool(dsn, min_size=1, max_size=1)

    with pytest.raises(UnsupportedLoop, match="trio's event loop is not supported"):
        by_hand(await_it())


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
def test_a_callback_that_raises_while_opening_is_told(dsn, loop_factory, zero_fd_delta, kind, error):
    """What `init` or `connect` raises comes out of `await pool`, and the pool is closed without a socket."""

    async def hook(*args, **kwargs):
        raise error

    async def main():
        pool = create_pool(dsn, min_size=2, max_size=2, **{kind: hook})
        with pytest.raises((type(error), asyncpg.InterfaceError)):
            await pool
        assert pool.is_closing()
        assert pool.stats().size == 0

    run(loop_factory, main)


@pytest.mark.parametrize("kind", ["init", "setup", "reset", "connect"])
@pytest.mark.parametrize("size", [1, 2])
def test_a_callback_that_raises_costs_no_place(dsn, loop_factory, kind, size):
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

    run(loop_factory, main)


@pytest.mark.parametrize("result", [None, 7, "con", object], ids=repr)
def test_a_connect_callback_that_returns_something_else_is_told(dsn, loop_factory, result):
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

    run(loop_factory, main)


@pytest.mark.parametrize("kind", ["init", "setup", "reset"])
def test_a_callback_that_is_no_coroutine_function_costs_no_place(dsn, loop_factory, kind):
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

    run(loop_factory, main)


@pytest.mark.parametrize("kind", ["init", "setup", "reset"])
def test_a_callback_that_closes_the_connection_costs_no_place(dsn, loop_factory, kind):
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

    run(loop_factory, main)


@pytest.mark.parametrize("how", ["close", "terminate"])
def test_a_lease_that_closes_its_connection_costs_no_place(dsn, loop_factory, how):
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

    run(loop_factory, main)
