"""Starlette's test client: each client, or each request, has a loop of its own."""

from __future__ import annotations

import textwrap

import pytest

from examples.program import EXAMPLES, POLITELY, copy_with, ended_sessions, run

pytestmark = pytest.mark.examples

FOLDER = EXAMPLES / "starlette_shop"
PYTEST = ["-m", "pytest", "-p", "no:cacheprovider", "-o", "asyncio_default_fixture_loop_scope=function", "test_app.py"]
WITH_SQLALCHEMY = {"from app import app": "from app_sqlalchemy import app"}
WITH_PSYCOPG = {"from app import app": "from app_psycopg import app"}
ON_ASYNCPGS_POOL = {"from loopaware_pool import": "from asyncpg import", ', name="shop"': ""}
ON_SQLALCHEMYS_POOL = {
    "from loopaware_pool.sqlalchemy import": "from sqlalchemy.ext.asyncio import",
    ', name="shop"': "",
}
ON_PSYCOPG_POOL = {"from loopaware_pool.psycopg": "from psycopg_pool"}
# The second loop needs one connection more than the first has opened.
GROWTH_ON_A_SECOND_LOOP = """
    import asyncio, contextlib, os
    from psycopg_pool import AsyncConnectionPool

    pool = AsyncConnectionPool(os.environ["DATABASE_URL"], min_size=0, max_size=5, timeout=2, open=False)

    async def hold(number):
        await pool.open()
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(number):
                await stack.enter_async_context(pool.connection())

    asyncio.run(hold(1))
    asyncio.run(hold(1))
    print("served", flush=True)
    asyncio.run(hold(2))
"""


@pytest.mark.parametrize("changes", [{}, WITH_PSYCOPG, WITH_SQLALCHEMY], ids=["asyncpg", "psycopg", "sqlalchemy"])
def test_one_pool_serves_all_loops_and_leaves_no_fd(changes, database_url, tmp_path):
    """The program's tests pass, the check of their fds included, and every session was ended by a goodbye."""
    code, output = run(*PYTEST, folder=copy_with(FOLDER, tmp_path, changes), DATABASE_URL=database_url)
    assert code == 0, output
    assert "7 passed" in output
    assert "warning" not in output.lower()
    assert ended_sessions(database_url) == POLITELY


def test_asyncpgs_pool_fails_in_each_of_these_tests(database_url, tmp_path):
    """It belongs to the loop of the moment when the module was imported."""
    folder = copy_with(FOLDER, tmp_path, ON_ASYNCPGS_POOL)
    code, output = run(*PYTEST, folder=folder, DATABASE_URL=database_url)
    assert (code, "7 failed" in output) == (1, True), output
    assert output.count("attached to a different loop") >= 7


def test_sqlalchemys_pool_serves_the_first_loop_only(database_url, tmp_path):
    """What it keeps from the first client's loop is lent to the second, and the first test's check finds it open."""
    folder = copy_with(FOLDER, tmp_path, WITH_SQLALCHEMY | ON_SQLALCHEMYS_POOL)
    code, output = run(*PYTEST, folder=folder, DATABASE_URL=database_url)
    assert (code, "6 failed, 1 passed, 1 error" in output) == (1, True), output
    assert "attached to a different loop" in output
    assert "another operation is in progress" in output
    assert "1 fd left open" in output


def test_psycopg_pool_lends_what_another_loop_has_opened_and_opens_nothing(database_url, tmp_path):
    """Its connections can be used on another loop, its workers cannot; and the first test's check finds one open."""
    folder = copy_with(FOLDER, tmp_path, WITH_PSYCOPG | ON_PSYCOPG_POOL)
    code, output = run(*PYTEST, folder=folder, DATABASE_URL=database_url)
    assert (code, "7 passed, 1 error" in output) == (1, True), output
    assert "1 fd left open" in output
    for module, lines in (("psycopg_pool", "PoolTimeout: couldn't get a connection"), ("loopaware_pool.psycopg", "")):
        text = textwrap.dedent(GROWTH_ON_A_SECOND_LOOP).replace("psycopg_pool", module)
        code, output = run("-c", text, DATABASE_URL=database_url)
        assert output.startswith("served\n")
        assert (code, lines in output) == (int(module == "psycopg_pool"), True)
