"""Every lease begins with the role and the session authorization that the session was made with."""

from __future__ import annotations

import asyncio
import contextlib

import asyncpg
import psycopg
import pytest

from loopaware_pool.psycopg import AsyncConnectionPool, LoopAwareConnection
from servers import dsn_of_role
from session_state import (
    ACCENTED_ROLE,
    ODD_ROLE,
    PLAIN_ROLE,
    RESETS,
    TREACHEROUS_ROLES,
    leased_state,
    one_connection,
    pristine,
    state,
)

pytestmark = pytest.mark.both_drivers


def quoted(role):
    return '"' + role.replace('"', '""') + '"'


@pytest.mark.parametrize("session_reset", RESETS)
@pytest.mark.parametrize("role", [PLAIN_ROLE, ODD_ROLE, ACCENTED_ROLE])
@pytest.mark.parametrize(
    "statement",
    ["SELECT 1", "RESET ROLE", "SET ROLE NONE", "SET ROLE postgres", "SET SESSION AUTHORIZATION " + PLAIN_ROLE],
)
def test_the_role_that_init_set_is_restored(address, session_reset, role, statement):
    """Whatever role a lease takes on, the next lease has the one that `init` set, on the same backend."""

    async def init(con):
        await con.execute(f"SET ROLE {quoted(role)}")

    async def main():
        clean = await pristine(address, init)
        assert clean["who"] == role
        async with one_connection(address, session_reset=session_reset, init=init) as pool:
            for _ in range(3):
                async with pool.acquire() as con:
                    before = con.get_server_pid()
                    assert await con.fetchval("SELECT current_user::text") == role
                    await con.execute("RESET ROLE")
                    await con.execute(statement)
                async with pool.acquire() as con:
                    assert con.get_server_pid() == before
                    assert await state(con) == clean

    asyncio.run(main())


@pytest.mark.parametrize("conforming", ["on", "off"])
@pytest.mark.parametrize("session_reset", RESETS)
def test_a_treacherous_role_is_a_name(address, session_reset, conforming):
    """No name of the role that `init` sets ends what the pool quotes it with, however strings are read."""

    async def main(role):
        async def init(con):
            await con.execute(f"SET ROLE {quoted(role)}")

        clean = await pristine(address, init)
        assert clean["who"] == role
        async with one_connection(address, session_reset=session_reset, init=init) as pool:
            async with pool.acquire() as con:
                before = con.get_server_pid()
                await con.execute(
                    f"RESET ROLE; SET backslash_quote = on; SET escape_string_warning = off; "
                    f"SET standard_conforming_strings = {conforming}"
                )
            async with pool.acquire() as con:
                assert con.get_server_pid() == before
                assert await state(con) == clean

    for role in TREACHEROUS_ROLES:
        asyncio.run(main(role))


@pytest.mark.parametrize("conforming", ["on", "off"])
def test_a_treacherous_role_is_a_name_to_psycopg(address, conforming):
    """The flavour for psycopg restores it as a parameter of a function."""

    async def main(role):
        async def configure(con):
            await con.execute(psycopg.sql.SQL("SET ROLE {}").format(psycopg.sql.Identifier(role)))
            await con.commit()

        options = {"min_size": 1, "max_size": 1, "session_reset": "awaited", "configure": configure}
        async with asyncio.timeout(20), AsyncConnectionPool(address, **options) as pool:
            for statement in ("SELECT 1", "RESET ROLE", f"SET standard_conforming_strings = {conforming}"):
                async with pool.connection() as con:
                    assert (await (await con.execute("SELECT current_user")).fetchone())[0] == role
                    await con.execute("SET backslash_quote = on")
                    await con.execute(statement)

    for role in TREACHEROUS_ROLES:
        asyncio.run(main(role))


@pytest.mark.parametrize("session_reset", RESETS)
def test_a_role_outside_ascii_survives_a_change_of_encoding(address, session_reset):
    """A lease that changes the client's encoding cannot make the next one run under another role."""

    async def init(con):
        await con.execute(f"SET ROLE {quoted(ACCENTED_ROLE)}")

    async def main():
        clean = await pristine(address, init)
        async with one_connection(address, session_reset=session_reset, init=init) as pool:
            # The name is sent in UTF-8, so the server may refuse the reset; then the connection is closed.
            with contextlib.suppress(asyncpg.InvalidParameterValueError):
                async with pool.acquire() as con:
                    await con.execute("RESET ROLE; SET client_encoding = 'LATIN1'")
            with contextlib.suppress(asyncpg.PostgresConnectionError, asyncpg.InterfaceError):
                assert await leased_state(pool) == clean
            assert await leased_state(pool) == clean

    asyncio.run(main())


AFTERWARDS = ["SELECT 1", "RESET SESSION AUTHORIZATION", "SET SESSION AUTHORIZATION postgres", "SET ROLE NONE"]


@pytest.mark.parametrize("session_reset", RESETS)
@pytest.mark.parametrize("user", [PLAIN_ROLE, ODD_ROLE, ACCENTED_ROLE])
@pytest.mark.parametrize("role", [None, PLAIN_ROLE])
def test_the_session_authorization_that_init_set_is_restored(address, session_reset, user, role):
    """And the role with it: whatever a lease has changed, on the same backend. With asyncpg's own pool they stay."""

    async def init(con):
        await con.execute(f"SET SESSION AUTHORIZATION {quoted(user)}")
        if role is not None:
            await con.execute(f"SET ROLE {role}")

    async def main():
        clean = await pristine(address, init)
        assert (clean["authenticated"], clean["who"]) == (user, role or user)
        async with one_connection(address, session_reset=session_reset, init=init) as pool:
            for statement in AFTERWARDS:
                async with pool.acquire() as con:
                    before = con.get_server_pid()
                    assert await state(con) == clean
                    await con.execute(statement)
                async with pool.acquire() as con:
                    assert con.get_server_pid() == before
                    assert await state(con) == clean

    asyncio.run(main())


@pytest.mark.parametrize("user", [PLAIN_ROLE, ODD_ROLE, ACCENTED_ROLE])
@pytest.mark.parametrize("role", [None, PLAIN_ROLE])
def test_the_session_authorization_that_configure_set_is_restored(address, user, role):
    """The same in the flavour for psycopg."""

    async def configure(con):
        await con.execute(psycopg.sql.SQL("SET SESSION AUTHORIZATION {}").format(psycopg.sql.Identifier(user)))
        if role is not None:
            await con.execute(f"SET ROLE {role}")
        await con.commit()

    async def main():
        options = {"min_size": 1, "max_size": 1, "session_reset": "awaited", "configure": configure}
        async with asyncio.timeout(20), AsyncConnectionPool(address, **options) as pool:
            pids = set()
            for statement in [*AFTERWARDS, "SELECT 1"]:
                async with pool.connection() as con:
                    pids.add(con.info.backend_pid)
                    found = await (await con.execute("SELECT session_user, current_user")).fetchone()
                    assert found == (user, role or user)
                    await con.execute(statement)
            assert len(pids) == 1

    asyncio.run(main())


class SettingUser(LoopAwareConnection):
    """Connects as the login, and goes on as another user."""

    setting = ""

    @classmethod
    async def connect(cls, *args, **kwargs):
        con = await super().connect(*args, autocommit=True, **kwargs)
        await con.execute(f"SET {cls.setting} {PLAIN_ROLE}")
        return con


@pytest.mark.parametrize("setting", ["ROLE", "SESSION AUTHORIZATION"])
@pytest.mark.parametrize("is_configured", [False, True])
def test_the_user_that_a_connection_class_set_is_restored(address, setting, is_configured):
    """The next lease would else act as the login, which may do more."""

    async def configure(con):
        pass

    async def main():
        options = {"min_size": 1, "max_size": 1, "session_reset": "awaited"}
        options |= {"connection_class": type("Setting", (SettingUser,), {"setting": setting})}
        options |= {"configure": configure} if is_configured else {}
        async with asyncio.timeout(20), AsyncConnectionPool(address, **options) as pool:
            pids = set()
            for statement in [*AFTERWARDS, "SELECT 1"]:
                async with pool.connection() as con:
                    pids.add(con.info.backend_pid)
                    assert await (await con.execute("SELECT current_user")).fetchone() == (PLAIN_ROLE,)
                    await con.execute(statement)
            assert len(pids) == 1

    asyncio.run(main())


@pytest.mark.parametrize("session_reset", RESETS)
def test_a_session_authorization_given_by_connect_is_restored(address, session_reset):
    """One that the `connect` callback set counts as one that `init` set."""

    async def connect(*args, **kwargs):
        con = await asyncpg.connect(*args, **kwargs)
        await con.execute(f"SET SESSION AUTHORIZATION {PLAIN_ROLE}")
        return con

    async def main():
        async with one_connection(address, connect=connect, session_reset=session_reset) as pool:
            async with pool.acquire() as con:
                await con.execute("RESET SESSION AUTHORIZATION")
            assert (await leased_state(pool))["authenticated"] == PLAIN_ROLE

    asyncio.run(main())


@pytest.mark.parametrize("session_reset", RESETS)
def test_a_role_that_init_gave_up_does_not_come_back(address, session_reset):
    """Where the connection began with a role, and `init` has set none."""

    async def init(con):
        await con.execute("SET ROLE NONE")

    async def main():
        options = {"server_settings": {"role": PLAIN_ROLE}, "init": init, "session_reset": session_reset}
        async with one_connection(address, **options) as pool:
            for _ in range(3):
                async with pool.acquire() as con:
                    assert await con.fetchval("SELECT current_user::text") == "postgres"
                    await con.execute(f"SET ROLE {PLAIN_ROLE}")

    asyncio.run(main())


def test_a_role_that_configure_gave_up_does_not_come_back(address):
    """The same in the flavour for psycopg."""

    async def configure(con):
        await con.execute("SET ROLE NONE")
        await con.commit()

    async def main():
        kwargs = {"options": f"-c role={PLAIN_ROLE}"}
        options = {"min_size": 1, "max_size": 1, "session_reset": "awaited", "configure": configure, "kwargs": kwargs}
        async with asyncio.timeout(20), AsyncConnectionPool(address, **options) as pool:
            for _ in range(3):
                async with pool.connection() as con:
                    assert await (await con.execute("SELECT current_user")).fetchone() == ("postgres",)
                    await con.execute(f"SET ROLE {PLAIN_ROLE}")

    asyncio.run(main())


@pytest.mark.parametrize("session_reset", RESETS)
def test_a_session_authorization_that_may_not_be_restored_costs_the_connection(dirty_server, session_reset):
    """
    Where the right to it was taken away meanwhile, nobody gets the session of the last lease; the next caller is told.

    Up to PostgreSQL 16 the right is that of the login.
    """
    name = f"fallen_{session_reset}"

    async def init(con):
        await con.execute(f"SET SESSION AUTHORIZATION {PLAIN_ROLE}")

    async def main():
        dsn = dsn_of_role(dirty_server.dsn, name, name)
        async with one_connection(dsn, init=init, session_reset=session_reset) as pool:
            con = await pool.acquire()
            is_looked_at_once = con.get_server_version() < (17,)
            with psycopg.connect(dirty_server.dsn, autocommit=True) as admin:
                admin.execute(f"ALTER ROLE {name} NOSUPERUSER")
            await con.execute("RESET SESSION AUTHORIZATION")
            with contextlib.suppress(asyncpg.InsufficientPrivilegeError):
                await pool.release(con)
            if is_looked_at_once:
                assert (await leased_state(pool))["authenticated"] == PLAIN_ROLE
            else:
                with pytest.raises(asyncpg.InsufficientPrivilegeError, match="permission denied"):
                    await pool.acquire()

    with psycopg.connect(dirty_server.dsn, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {name} LOGIN SUPERUSER PASSWORD '{name}'")
    asyncio.run(main())


def test_a_role_given_by_connect_is_restored(address):
    """A role that the `connect` callback set counts as one that `init` set."""

    async def connect(*args, **kwargs):
        con = await asyncpg.connect(*args, **kwargs)
        await con.execute(f"SET ROLE {PLAIN_ROLE}")
        return con

    async def main():
        async with one_connection(address, connect=connect) as pool:
            async with pool.acquire() as con:
                await con.execute("RESET ROLE")
            assert (await leased_state(pool))["who"] == PLAIN_ROLE

    asyncio.run(main())


def test_a_role_given_in_server_settings_is_restored(address):
    """A role that the connection began with is the one it goes back to."""

    async def main():
        async with one_connection(address, server_settings={"role": PLAIN_ROLE}) as pool:
            async with pool.acquire() as con:
                assert await con.fetchval("SELECT current_user::text") == PLAIN_ROLE
                await con.execute("SET ROLE NONE")
            assert (await leased_state(pool))["who"] == PLAIN_ROLE

    asyncio.run(main())


def test_settings_given_to_connect_stay(address):
    """What `server_settings` gave a connection is its own, not a lease's."""

    async def main():
        options = {"server_settings": {"application_name": "mine", "work_mem": "7MB", "app.tenant": "9"}}
        async with one_connection(address, **options) as pool:
            async with pool.acquire() as con:
                await con.execute("SET application_name = 'x'; SET work_mem = '8MB'; SET app.tenant = '10'")
            async with pool.acquire() as con:
                query = "SELECT current_setting('application_name'), current_setting('work_mem'), app"
                row = await con.fetchrow(query + " FROM current_setting('app.tenant') app")
                assert tuple(row) == ("mine", "7MB", "9")
                assert con.get_settings().application_name == "mine"

    asyncio.run(main())
