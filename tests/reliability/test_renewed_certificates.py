"""Client certificates that are renewed on disk while a pool lives: which one the next connection shows."""

from __future__ import annotations

import ssl
from urllib.parse import parse_qsl, urlsplit

import pytest

from rotating import FLAVOURS, Asked, refusal

pytestmark = [pytest.mark.usefixtures("zero_fd_delta"), pytest.mark.both_drivers]

SERIAL = "SELECT client_serial::text FROM pg_stat_ssl WHERE pid = pg_backend_pid()"


def context_of(server):
    """What a program makes of the files."""
    context = ssl.create_default_context(cafile=server.trusted)
    context.load_cert_chain(*server.files)
    return context


def without_options(dsn):
    return urlsplit(dsn)._replace(query="").geturl()


def named_files(server):
    return dict(parse_qsl(urlsplit(server.dsn).query))


async def serials(client, server):
    """The certificate a connection has shown, the one that the next shows after a renewal, and the renewed one."""
    before = await client.value(SERIAL)
    renewed = server.renew()
    assert await client.value(SERIAL) == before, "a connection that is open goes on"
    await client.expire()
    return before, await client.value(SERIAL), renewed


@pytest.mark.parametrize("flavour", ["asyncpg", "psycopg"])
def test_files_that_a_connection_string_names_are_read_at_each_connect(certified_server, run, flavour):
    """By asyncpg and by libpq."""

    async def main():
        first = certified_server.renew()
        async with FLAVOURS[flavour](certified_server.dsn) as client:
            before, after, renewed = await serials(client, certified_server)
        assert (before, after) == (first, renewed)
        assert first != renewed

    run(main())


@pytest.mark.parametrize("flavour", ["sqlalchemy-psycopg", "psycopg"])
def test_files_that_arguments_name_are_read_at_each_connect(certified_server, run, flavour):
    """libpq's parameters, with SQLAlchemy, too."""
    keyword = "kwargs" if flavour == "psycopg" else "connect_args"

    async def main():
        first = certified_server.renew()
        options = {keyword: named_files(certified_server)}
        async with FLAVOURS[flavour](without_options(certified_server.dsn), **options) as client:
            before, after, renewed = await serials(client, certified_server)
        assert (before, after) == (first, renewed)

    run(main())


@pytest.mark.parametrize("flavour", ["asyncpg", "sqlalchemy-asyncpg"])
def test_a_context_keeps_the_certificate_that_it_has_loaded(certified_server, run, flavour):
    """Until the program has it load the files again; the same object then shows the new one."""

    async def main():
        first = certified_server.renew()
        context = context_of(certified_server)
        options = {"connect_args": {"ssl": context}} if "sqlalchemy" in flavour else {"ssl": context}
        async with FLAVOURS[flavour](without_options(certified_server.dsn), **options) as client:
            before, after, renewed = await serials(client, certified_server)
            assert before == after == first != renewed
            context.load_cert_chain(*certified_server.files)
            await client.expire()
            assert await client.value(SERIAL) == renewed

    run(main())


@pytest.mark.parametrize("flavour", ["asyncpg", "sqlalchemy-asyncpg"])
def test_a_function_makes_a_context_for_each_connect(certified_server, run, flavour):
    """As one of the arguments that it returns."""
    asked = Asked(lambda: {"ssl": context_of(certified_server)})
    keyword = "connect_args" if "sqlalchemy" in flavour else "credentials"

    async def main():
        first = certified_server.renew()
        options = {keyword: asked.plain}
        async with FLAVOURS[flavour](without_options(certified_server.dsn), **options) as client:
            before, after, renewed = await serials(client, certified_server)
        assert (before, after) == (first, renewed)
        assert asked.calls == 2

    run(main())


@pytest.mark.parametrize("flavour", ["asyncpg", "psycopg"])
def test_a_certificate_without_its_key_is_a_connect_that_failed(certified_server, run, flavour):
    """In between two writes the files do not fit each other: the connect is tried again, and the caller is served."""

    async def main():
        certified_server.renew()
        async with FLAVOURS[flavour](certified_server.dsn) as client:
            assert await client.value("SELECT current_user") == "certified"
            key = certified_server.files.key.read_text()
            certified_server.renew()
            fitting = certified_server.files.key.read_text()
            certified_server.files.key.write_text(key)
            await client.expire()
            await refusal(client, "connecting failed last")
            certified_server.files.key.write_text(fitting)
            assert await client.value("SELECT current_user") == "certified"

    run(main())


@pytest.mark.parametrize("flavour", ["asyncpg", "psycopg"])
def test_a_client_without_a_certificate_is_refused(certified_server, run, flavour):
    """The server of these tests means it."""

    async def main():
        options = {"ssl": "require"} if flavour == "asyncpg" else {"kwargs": {"sslmode": "require"}}
        async with FLAVOURS[flavour](without_options(certified_server.dsn), **options) as client:
            await refusal(client, "requires a valid client certificate")

    run(main())
