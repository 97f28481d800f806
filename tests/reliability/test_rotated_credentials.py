"""Passwords that change, and functions that are asked for them at each connect; docs/credentials.md is about it."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import threading
import time
from contextlib import AsyncExitStack
from types import SimpleNamespace

import pytest
from sqlalchemy import event
from sqlalchemy.util import await_only

from loopaware_pool import errors
from loopaware_pool._core import asking
from loopaware_pool.credentials import Expiring, RenewedSecret
from loopaware_pool.sqlalchemy import create_async_engine
from loopaware_pool.stats import ConnectFailed
from rotating import FLAVOURS, WAYS, Account, Asked, ask_by, refusal
from running import LoopThread, eventually_async

pytestmark = [pytest.mark.usefixtures("zero_fd_delta"), pytest.mark.both_drivers]

all_ways = pytest.mark.parametrize(("flavour", "way"), WAYS, ids=map("-".join, WAYS))
all_flavours = pytest.mark.parametrize("flavour", FLAVOURS)


@pytest.fixture(scope="module")
def account(dsn):
    made = Account(dsn)
    yield made
    made.drop()


@pytest.fixture
def role(account):
    """One whose password nobody knows yet."""
    account.rotate()
    return account


# ---- asked at each connect ----


@all_ways
@pytest.mark.parametrize("is_async", [False, True], ids=["plain", "async"])
def test_functions_are_asked_at_each_connect(role, run, flavour, way, is_async):
    """For a password, for the connection string, or for all arguments; what they returned before is forgotten."""
    asked = Asked(lambda: role.answer(way))

    async def main():
        function = asked.awaited if is_async else asked.plain
        async with ask_by(flavour, way, role.dsn, function) as client:
            first = await client.pid()
            assert await client.pid() == first
            assert asked.calls == 1
            role.rotate()
            assert await client.pid() == first, "connections that are open go on"
            await client.expire()
            assert await client.pid() != first
            assert asked.calls == 2

    run(main())


def test_set_connect_args_takes_functions(role, run):
    """In each of the three places; and leaves none of the former ones."""

    async def main():
        async with FLAVOURS["asyncpg"](role.dsn, password="wrong") as client:
            for way, arguments in (
                ("password", lambda f: {"dsn": role.dsn, "password": f}),
                ("dsn", lambda f: {"dsn": f}),
                ("all", lambda f: {"dsn": role.dsn, "credentials": f}),
            ):
                asked = Asked(lambda way=way: role.answer(way))
                client.pool.set_connect_args(**arguments(asked.awaited))
                await client.expire()
                assert await client.value("SELECT current_user") == role.role
                assert asked.calls == 1
            client.pool.set_connect_args(role.dsn, password="wrong")
            await client.expire()
            assert isinstance(await refusal(client, "password authentication failed"), errors.PoolTimeout)

    run(main())


def test_all_arguments_may_be_returned_and_replace_those_given(role, run):
    """Of asyncpg's connect; not those that the pool passes itself, nor unknown ones, which are named."""

    async def main():
        given = {"user": "nobody", "server_settings": {"application_name": "given"}, "command_timeout": 5}
        fresh = {"dsn": role.dsn, "user": role.role, "password": role.password}
        asked = Asked(lambda: fresh)
        async with FLAVOURS["asyncpg"]("postgresql://nowhere:1/none", credentials=asked.plain, **given) as client:
            assert await client.value("SELECT current_user") == role.role
            assert await client.value("SELECT current_setting('application_name')") == "given"
        for wrong in ("loop", "pasword", 5):
            asked = Asked(lambda wrong=wrong: {wrong: "CANARY"})
            async with FLAVOURS["asyncpg"](role.dsn, credentials=asked.plain) as client:
                with pytest.raises(TypeError, match=f"^credentials: .*{'names' if wrong == 5 else wrong}") as caught:
                    await client.value("SELECT 1")
                assert "CANARY" not in str(caught.value)
                assert asked.calls == 1

    run(main())


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_sqlalchemys_own_ways_work(role, run, driver):
    """Its event `do_connect`, which may wait for what it puts in place of the password, on both drivers."""
    secret = RenewedSecret(lambda: role.password, lifetime=900)

    async def main():
        engine = create_async_engine(role.dsn.replace("postgresql://", f"postgresql+{driver}://"), pool_size=1)

        @event.listens_for(engine.sync_engine, "do_connect")
        def give(dialect, record, args, params):
            params["password"] = await_only(secret())

        try:
            async with engine.connect() as connection:
                assert (await connection.exec_driver_sql("SELECT current_user")).scalar() == role.role
        finally:
            await engine.dispose()

    run(main())


def test_a_function_in_place_of_connect_args_needs_a_connect_of_ours():
    """An engine whose connections the caller makes has none that would ask."""
    for driver in ("asyncpg", "psycopg"):
        with pytest.raises(TypeError, match="connect_args: a function is not asked where"):
            create_async_engine(f"postgresql+{driver}://x/y", connect_args=dict, async_creator=print)
        with pytest.raises(TypeError, match="connect_args: expected a dict, or a function that returns one, not str"):
            create_async_engine(f"postgresql+{driver}://x/y", connect_args="CANARY")


# ---- as the providers do it ----


# How late a busy machine may use a token.
SLACK_SECONDS = 20.0


class Provider:
    """What they all do: a token is the role's password from now on, for a while."""

    def __init__(self, role: Account, lifetime: float) -> None:
        self.role, self.lifetime, self.issued = role, lifetime, 0

    def token(self) -> str:
        self.issued += 1
        return self.role.rotate(self.lifetime + SLACK_SECONDS)


class Rds(Provider):
    """A plain function that gives a token, which is known to live for a quarter of an hour."""

    def secret(self, **options):
        return RenewedSecret(self.token, lifetime=self.lifetime, **options)


class CloudSql(Provider):
    """Credentials that are refreshed in place, and have their end as a date in UTC without a time zone."""

    expiry = token_now = None

    def refresh(self, request):
        self.token_now = self.token()
        self.expiry = dt.datetime.now(dt.UTC).replace(tzinfo=None) + dt.timedelta(seconds=self.lifetime)

    def secret(self, **options):
        def fetch():
            self.refresh("request")
            return Expiring(self.token_now, expires_at=self.expiry.replace(tzinfo=dt.UTC))

        return RenewedSecret(fetch, **options)


class Entra(Provider):
    """An async function that gives a token with its end in whole seconds since 1970."""

    async def get_token(self, scope):
        token = await asyncio.to_thread(self.token)
        return SimpleNamespace(token=token, expires_on=int(time.time() + self.lifetime))

    def secret(self, **options):
        async def fetch():
            token = await self.get_token("scope")
            return Expiring(token.token, expires_at=token.expires_on)

        return RenewedSecret(fetch, **options)


@pytest.mark.parametrize(
    ("provider", "flavour"), [(Entra, "asyncpg"), *((one, name) for one in (Rds, CloudSql) for name in FLAVOURS)]
)
def test_tokens_are_renewed_when_they_run_out(role, run, provider, flavour):
    """No connect is refused, although the server takes no token that has run out, and none but the newest."""
    service = provider(role, lifetime=1.0 if provider is Entra else 0.2)
    secret = service.secret(renew_before=0)

    async def main():
        async with ask_by(flavour, "password", role.dsn, secret) as client:
            while service.issued < 3:
                assert await client.value("SELECT current_user") == role.role
                await client.expire()

    run(main())


class Vault:
    """Each lease of it is a user of its own, with a password of its own; the old ones live until they are revoked."""

    def __init__(self, dsn: str) -> None:
        self.dsn, self.accounts = dsn, []

    def fetch(self):
        self.accounts.append(Account(self.dsn))
        answer = {"lease_duration": 3600, "data": self.accounts[-1].answer("all")}
        return Expiring(answer["data"], lifetime=answer["lease_duration"])

    def drop(self):
        for one in self.accounts:
            one.drop()


@pytest.fixture
def vault(dsn):
    service = Vault(dsn)
    yield service
    service.drop()


@all_flavours
def test_user_and_password_change_together(dsn, vault, run, flavour):
    """A function returns both; connections that are opened after that are the new user's."""
    secret = RenewedSecret(vault.fetch)

    async def main():
        async with ask_by(flavour, "all", dsn, secret) as client:
            assert await client.value("SELECT current_user") == vault.accounts[0].role
            secret.expire()
            assert await client.value("SELECT current_user") == vault.accounts[0].role
            await client.expire()
            assert await client.value("SELECT current_user") == vault.accounts[1].role

    run(main())


@pytest.mark.parametrize(
    ("flavour", "options"), [("asyncpg", {}), ("psycopg", {"discard_expired": "always", "max_size": 1})]
)
def test_connections_end_before_their_user_is_revoked(dsn, vault, run, flavour, options):
    """With a `max_lifetime` that is no longer than `renew_before`; the lease here is a hundred times what it takes."""
    lease, renew_before, lifetime = 40.0, 39.6, 0.3
    issued = {}

    def fetch():
        answer = vault.fetch().value
        issued[answer["user"]] = time.monotonic()
        return Expiring(answer, lifetime=lease)

    async def main():
        secret = RenewedSecret(fetch, renew_before=renew_before)
        async with ask_by(flavour, "all", dsn, secret, max_lifetime=lifetime, **options) as client:
            while len(issued) < 3:
                user = await client.value("SELECT current_user")
                assert time.monotonic() - issued[user] < lease / 2
                await asyncio.sleep(0.01)

    run(main())


@pytest.mark.parametrize("flavour", ["asyncpg", "psycopg"])
def test_a_password_that_is_changed_ahead_of_time_is_fetched_when_the_old_one_is_refused(role, run, flavour):
    """By a listener that expires the secret; the caller that has met with the refusal is served."""
    secret = RenewedSecret(lambda: role.password, lifetime=900)

    def heard(event):
        if isinstance(event, ConnectFailed) and "authentication failed" in str(event.error):
            secret.expire()

    async def main():
        async with ask_by(flavour, "password", role.dsn, secret, on_event=heard) as client:
            assert await client.value("SELECT 1") == 1
            role.rotate()
            await client.expire()
            assert await client.value("SELECT current_user") == role.role

    run(main())


# ---- a rotation under load ----


async def loaded(client, callers, rotate, rounds):
    """Have callers lend connections without a pause while *rotate* is called so often; what they were served by."""
    is_over = False
    served = []

    async def work():
        before = len(served)
        await eventually_async(lambda: len(served) > before + callers or any(t.done() for t in tasks), "work")

    async def caller():
        while not is_over:
            served.append(await client.value("SELECT current_user || ' ' || pg_backend_pid() FROM pg_sleep(0.002)"))

    async def rotator():
        nonlocal is_over
        for _ in range(rounds):
            await work()
            await rotate()
            await client.expire()
        await work()
        is_over = True

    tasks = [asyncio.create_task(caller()) for _ in range(callers)]
    await rotator()
    await asyncio.gather(*tasks)
    return served


@pytest.mark.parametrize("flavour", ["asyncpg", "psycopg"])
def test_a_password_that_rotates_under_load_costs_no_caller_an_error(role, run, flavour):
    """A connect that has the old one is tried again; in the end nobody is served by a connection made with it."""

    async def main():
        async with ask_by(flavour, "password", role.dsn, lambda: role.password) as client:

            async def rotate():
                await asyncio.to_thread(role.rotate)

            await loaded(client, 6, rotate, 4)
            old = role.sessions()
            await rotate()
            await client.expire()
            pids = {await client.pid() for _ in range(4)}
            assert not pids & old

    run(main())


@all_flavours
def test_a_user_that_rotates_under_load_costs_no_caller_an_error(dsn, vault, run, flavour):
    """As the old one is valid until its connections are gone, that holds without another try, with SQLAlchemy, too."""
    secret = RenewedSecret(vault.fetch)

    async def main():
        async with ask_by(flavour, "all", dsn, secret) as client:

            async def rotate():
                secret.expire()

            served = await loaded(client, 6, rotate, 4)
            roles = list(dict.fromkeys(one.split()[0] for one in served))
            assert roles == [one.role for one in vault.accounts], "each was used, in order"
            assert len(roles) >= 5
            assert served[-1].split()[0] == roles[-1]
            await eventually_async(lambda: not vault.accounts[0].sessions(), "its connections are gone")

    run(main())


def test_loops_and_threads_share_a_secret_and_a_pool(role, loop_factory):
    """One fetch for all of them, however many connect at once."""
    fetched = []

    def fetch():
        fetched.append(1)
        return role.password

    secret = RenewedSecret(fetch, lifetime=900)

    async def main():
        async with ask_by("asyncpg", "password", role.dsn, secret, max_size=6) as client:
            with LoopThread(loop_factory) as one, LoopThread(loop_factory) as other:
                for _ in range(3):
                    secret.expire()
                    await client.expire()
                    asked = [loop.start(client.value("SELECT 1")) for loop in (one, other, one, other)]
                    assert [await asyncio.wrap_future(answer) for answer in asked] == [1] * 4
        assert len(fetched) == 3

    asyncio.run(main())


@all_flavours
def test_a_fetch_that_the_end_of_its_loop_cancels_is_not_begun_again_there(role, loop_factory, flavour):
    """A connect may outlive the other tasks for a moment; what it would begin, nobody would end."""
    begun = []

    async def fetch():
        begun.append(1)
        await asyncio.get_running_loop().create_future()

    secret = RenewedSecret(fetch, lifetime=900)
    stack = AsyncExitStack()

    async def main():
        client = await stack.enter_async_context(ask_by(flavour, "password", role.dsn, secret))
        waiting = asyncio.create_task(client.value("SELECT 1"))
        await eventually_async(lambda: begun, "it is asked")
        return waiting

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())
    assert secret._renewal._fetch.task.done()
    assert len(begun) == 1
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(stack.aclose())


# ---- functions that fail ----


@all_ways
def test_a_function_that_raises_at_random_is_asked_again(role, run, flavour, way):
    """As after a connect that the network has failed; SQLAlchemy's callers get the error, as of any connect."""
    asked = Asked(lambda: role.answer(way), *[ConnectionResetError(104, "Connection reset by peer") for _ in range(3)])

    async def main():
        async with ask_by(flavour, way, role.dsn, asked.awaited) as client:
            if "sqlalchemy" in flavour:
                for _ in range(3):
                    with pytest.raises(ConnectionResetError) as caught:
                        await client.value("SELECT 1")
                    assert caught.value.__notes__ == [f"raised by the function given as {WAYS[flavour, way]}"]
            assert await client.value("SELECT current_user") == role.role
            assert asked.calls == 4

    run(main())


@all_ways
def test_a_function_that_always_raises_is_named_within_the_callers_deadline(role, run, flavour, way):
    """With its error as the cause, without the error's text; and it is asked a few times a second, not in a spin."""
    asked = Asked(lambda: RuntimeError("CANARY"))
    name = WAYS[flavour, way]

    async def main():
        async with ask_by(flavour, way, role.dsn, asked.plain) as client:
            if "sqlalchemy" in flavour:
                with pytest.raises(RuntimeError) as caught:
                    await client.value("SELECT 1")
                assert caught.value.__notes__ == [f"raised by the function given as {name}"]
                assert asked.calls == 1
            else:
                with pytest.raises(errors.PoolTimeout) as caught:
                    await client.value("SELECT 1", timeout=0.4)
                assert f"RuntimeError (raised by the function given as {name})" in str(caught.value)
                assert "CANARY" not in str(caught.value)
                assert type(caught.value.__cause__) is RuntimeError
                assert asked.calls <= 6
            asked.then = lambda: role.answer(way)
            assert await client.value("SELECT current_user") == role.role

    run(main())


def takes_none(flavour, way):
    """asyncpg's `password` does, where the server asks for none."""
    return flavour.endswith("asyncpg") and way == "password"


@pytest.mark.parametrize(
    ("flavour", "way", "wrong"),
    [
        *((*key, None) for key in WAYS if not takes_none(*key)),
        *(pytest.param(*key, wrong, marks=pytest.mark.thorough) for key in WAYS for wrong in (5, b"CANARY")),
    ],
)
def test_a_function_that_returns_something_else_is_told_at_once(role, run, flavour, way, wrong):
    """By one `TypeError` that names the argument, and the type, not the value."""
    asked = Asked(lambda: wrong)
    expected = "a dict" if way == "all" else "a string"
    if takes_none(flavour, way):
        expected += ", or None where the server asks for no password"

    async def main():
        async with ask_by(flavour, way, role.dsn, asked.awaited) as client:
            with pytest.raises(TypeError) as caught:
                await client.value("SELECT 1")
            returned = type(wrong).__name__
            assert str(caught.value) == f"{WAYS[flavour, way]}: the function returned {returned}, expected {expected}"
            asked.then = lambda: role.answer(way)
            assert await client.value("SELECT current_user") == role.role

    run(main())


@pytest.mark.parametrize("flavour", ["asyncpg", "sqlalchemy-asyncpg"])
def test_no_password_is_one_for_a_server_that_asks_for_none(role, run, flavour, private_server):
    """As with asyncpg. If the server does ask, the refusal says that the function has returned none."""
    asked = Asked(lambda: None)
    name = WAYS[flavour, "password"]

    async def main():
        async with ask_by(flavour, "password", role.dsn, asked.plain) as client:
            refused = await refusal(client, "password authentication failed")
            note = f"the function given as {name} returned None"
            if flavour == "asyncpg":
                assert f"({note})" in str(refused)
            else:
                of_psycopg = refused.orig.__cause__ if hasattr(refused, "orig") else refused  # SQLAlchemy 2.0
                assert of_psycopg.__notes__ == [note]
        async with ask_by(flavour, "password", private_server.unix_dsn, asked.plain) as client:
            assert await client.value("SELECT 1") == 1

    run(main())


@all_ways
def test_a_function_that_hangs_is_named_and_loses_nothing(role, run, flavour, way, monkeypatch):
    """The caller keeps its deadline; the connect that hangs ends, and its place is free."""
    monkeypatch.setattr(asking, "ASK_SECONDS", 0.3)
    name = WAYS[flavour, way]

    def hang():
        return asyncio.get_running_loop().create_future()

    asked = Asked(hang)

    async def main():
        async with ask_by(flavour, way, role.dsn, asked.awaited) as client:
            if "sqlalchemy" in flavour:
                with pytest.raises(TimeoutError) as caught:
                    await client.value("SELECT 1")
                assert name in str(caught.value)
            else:
                with pytest.raises(errors.PoolTimeout) as caught:
                    await client.value("SELECT 1", timeout=0.1)
                assert f"(connecting waits for the function given as {name})" in str(caught.value)
                with pytest.raises(errors.PoolTimeout) as caught:
                    await client.value("SELECT 1", timeout=0.6)
                assert name in str(caught.value.__cause__)
            asked.then = lambda: role.answer(way)
            results = await asyncio.gather(*(client.value("SELECT current_user FROM pg_sleep(0.01)") for _ in range(4)))
            assert results == [role.role] * 4

    run(main())


@all_ways
def test_a_function_that_is_cancelled_by_itself_fails_one_connect(role, run, flavour, way):
    """As of a future that was cancelled; no caller is cancelled by that."""
    asked = Asked(lambda: role.answer(way), asyncio.CancelledError())

    async def main():
        async with ask_by(flavour, way, role.dsn, asked.awaited) as client:
            if "sqlalchemy" in flavour:
                with pytest.raises(Exception, match="raised CancelledError") as caught:
                    await client.value("SELECT 1")
                assert WAYS[flavour, way] in str(caught.value)
            assert await client.value("SELECT current_user") == role.role

    run(main())


@all_ways
def test_a_caller_that_is_cancelled_while_a_function_is_asked_loses_nothing(role, run, flavour, way):
    """And the function's answer opens a connection that the next caller gets, or it is cancelled with its connect."""
    go_on = asyncio.Event()

    async def slow():
        await go_on.wait()
        return role.answer(way)

    asked = Asked(slow)

    async def main():
        async with ask_by(flavour, way, role.dsn, asked.awaited) as client:
            waiting = asyncio.create_task(client.value("SELECT 1"))
            await eventually_async(lambda: asked.calls, "it is asked")
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            go_on.set()
            results = await asyncio.gather(*(client.value("SELECT current_user FROM pg_sleep(0.01)") for _ in range(4)))
            assert results == [role.role] * 4

    run(main())


@all_flavours
def test_a_function_that_uses_its_own_pool_is_told(role, run, flavour):
    """It waits for a connection, which waits for it: until its own deadline, and then the caller's."""
    options = {"pool_timeout": 0.1, "pool_size": 1} if "sqlalchemy" in flavour else {"max_size": 1}
    clients = []

    async def ask_the_pool():
        return await clients[0].value("SELECT 1", timeout=0.1)

    asked = Asked(ask_the_pool)

    async def main():
        async with ask_by(flavour, "password", role.dsn, asked.awaited, **options) as client:
            clients.append(client)
            with pytest.raises(errors.PoolTimeout) as caught:
                await client.value("SELECT 1", timeout=0.5)
            told = caught.value if "sqlalchemy" in flavour else caught.value.__cause__
            assert isinstance(told, errors.PoolTimeout)
            assert told.__notes__ == [f"raised by the function given as {WAYS[flavour, 'password']}"]
            asked.then = lambda: role.password
            assert await client.value("SELECT current_user") == role.role

    run(main())


@all_flavours
def test_a_function_that_stops_the_loop_costs_time_and_nothing_else(role, run, flavour):
    """Who is late by then is told, or served; the next are served."""

    def stop():
        threading.Event().wait(0.2)
        return role.password

    asked = Asked(stop)

    async def main():
        async with ask_by(flavour, "password", role.dsn, asked.plain) as client:
            outcomes = await asyncio.gather(
                *(client.value("SELECT 1", timeout=0.05) for _ in range(3)), return_exceptions=True
            )
            assert all(one == 1 or isinstance(one, errors.PoolTimeout) for one in outcomes)
            asked.then = lambda: role.password
            assert await client.value("SELECT current_user") == role.role

    run(main())


# ---- nothing is said ----


@all_ways
def test_a_refused_secret_is_in_no_log(role, run, flavour, way, caplog):
    """Nor in the error, or in what is logged of the pool."""
    asked = Asked(lambda: role.answer(way))
    valid, role.password = role.password, "CANARY-wrong"

    async def main():
        async with ask_by(flavour, way, role.dsn, asked.awaited) as client:
            assert "CANARY" not in str(await refusal(client, "password authentication failed")) + repr(client.pool)
            role.password = valid
            assert await client.value("SELECT 1") == 1

    caplog.set_level(logging.DEBUG)
    run(main())
    assert "CANARY" not in caplog.text
