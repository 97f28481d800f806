"""SQLAlchemy's own tests of its async engine, and of its pool, run on ours."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import psycopg
import pytest

from upstream.own_tests import base_environment, run_pytest, unpacked

pytestmark = [pytest.mark.thorough, pytest.mark.both_drivers, pytest.mark.timeout(900)]

ENGINE_TESTS = "test/ext/asyncio"
POOL_TESTS = "test/engine/test_pool.py"

NEXT_ITERATION = "the loop lets go of a dropped connection in its next iteration, not inside the garbage collector"
NO_LOOP = "calls the pool in threads that run no loop"
PRIVATE = "compares all private attributes of the pool with those of another"
IS_CLOSED = "wants a connection that was lent during `dispose()` to join the pool again; here it is closed"
CLASS_NAME = "compares an error's text, which has the name of the class"
CAN_TERMINATE = "wants psycopg's dialect to be unable to terminate; here it is able, so that no connection is left open"
TERMINATES_ITSELF = "is left out on the other pool for that reason; psycopg's adapter has no `terminate()` of its own"

# Tests that fail on ours only, and why.
ENGINE_DIFFERENT = {"test_engine.AsyncEngineTest.test_cant_use_async_pool_w_create_engine": CLASS_NAME}
PSYCOPG_DIFFERENT = {
    **ENGINE_DIFFERENT,
    "test_cancellation.AsyncCancellationTest.test_dialect_supports_terminate": CAN_TERMINATE,
    "test_engine.AsyncEngineTest.test_dbapi_terminate": TERMINATES_ITSELF,
}
DROPPED = "test_pool.PoolEventsTest.test_checkin_event_gc"
POOL_DIFFERENT = {
    f"{DROPPED}[not_invalidate_conn_rec-has_terminate-is_asyncio]": NEXT_ITERATION,
    f"{DROPPED}[not_invalidate_conn_rec-not_has_terminate-is_asyncio]": NEXT_ITERATION,
    "test_pool.PoolTest.test_recreate_state[AsyncAdaptedQueuePool-pool_args0]": PRIVATE,
    "test_pool.PoolTest.test_recreate_state[AsyncAdaptedQueuePool-pool_args1]": PRIVATE,
    "test_pool.QueuePoolTest.test_dispose_closes_pooled": IS_CLOSED,
    "test_pool.QueuePoolTest.test_hanging_connect_within_overflow": NO_LOOP,
    "test_pool.QueuePoolTest.test_max_overflow": NO_LOOP,
    "test_pool.QueuePoolTest.test_no_overflow": NO_LOOP,
}
# In threads that run no loop, it passes or not as they take turns, on either pool.
RACES = {"test_pool.QueuePoolTest.test_recycle_pool_no_race"}


@pytest.fixture(scope="session")
def sqlalchemy_source():
    """The folder that holds the tests of the installed SQLAlchemy."""
    return unpacked("sqlalchemy", "test", "lib/sqlalchemy/testing/plugin", "setup.cfg", "pyproject.toml")


@pytest.fixture
def database(dsn):
    """A database as SQLAlchemy's tests want it. They drop all that is in it."""
    name = "sqlalchemy_own_tests"
    of_its_own = urlsplit(dsn)._replace(path=f"/{name}").geturl()
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    with psycopg.connect(of_its_own) as connection:
        connection.execute("CREATE SCHEMA test_schema")
        connection.execute("CREATE SCHEMA test_schema_2")
    yield of_its_own
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.parametrize(
    ("driver", "different"),
    [("asyncpg", ENGINE_DIFFERENT), ("psycopg_async", PSYCOPG_DIFFERENT)],
    ids=["asyncpg", "psycopg"],
)
def test_sqlalchemys_own_tests_of_its_async_engine_pass(driver, different, database, sqlalchemy_source, tmp_path):
    """Sessions, streams, events and cancellation at every await."""
    stock, ours = on_both(ENGINE_TESTS, driver, database, sqlalchemy_source, tmp_path)
    assert ours.failed - stock.failed == different.keys(), ours.output
    assert len(ours.passed) > 200, ours.output


def test_sqlalchemys_own_tests_of_its_pool_pass(database, sqlalchemy_source, tmp_path):
    """Nearly all of them have a mock for a driver. They are written for the sync pool, and run in greenlets here."""
    stock, ours = on_both(POOL_TESTS, "asyncpg", database, sqlalchemy_source, tmp_path)
    assert ours.failed - stock.failed - RACES == POOL_DIFFERENT.keys(), ours.output
    assert len(ours.passed) > 100, ours.output


def on_both(tests, driver, database, source, tmp_path):
    """Run tests on SQLAlchemy's own pool, and on ours."""
    url = urlsplit(database)._replace(scheme=f"postgresql+{driver}").geturl()
    return [run_tests(pool, tests, url, source, tmp_path) for pool in ("stock", "ours")]


def run_tests(pool, tests, url, source, tmp_path):
    """Run tests of SQLAlchemy's on one pool."""
    return run_pytest(
        *("-o", "addopts=", "-p", "ours_for_sqlalchemy", f"--dburi={url}", source / tests),
        cwd=source,
        env={**base_environment(), "POOL_UNDER_TEST": pool},
        report=tmp_path / f"{pool}.xml",
        name_of=plain_name,
        interpreter=("-s",),  # else its `conftest.py` looks for SQLAlchemy in the source
    )


def plain_name(test_class, name):
    """Name a test by its module, its class, and itself, without what a run adds to them."""
    module, _, own = re.sub(r"_postgresql\+.*", "", test_class).rpartition(".")
    name = name.replace("LoopAwareQueuePool", "AsyncAdaptedQueuePool")
    return f"{module.rpartition('.')[2]}.{own}.{name}"
