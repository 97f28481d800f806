"""asyncpg's own tests of its pool, run on ours, and of its connection, run on those that ours lends."""

from __future__ import annotations

import os
from importlib.metadata import version
from urllib.parse import urlsplit

import pytest

from upstream.own_tests import base_environment, run_pytest, unpacked

pytestmark = [pytest.mark.thorough, pytest.mark.both_drivers]

VERSION = version("asyncpg")
FILES = ["test_pool.py", "test_listeners.py", "test_cache_invalidation.py"]

MANAGED = "needs a server that the test itself starts, stops or configures"
OWN_SLEEP = "replaces `asyncio.sleep` in asyncpg.pool, for a task that only asyncpg's pool has"
FLOOR = "wants idle connections closed below min_size, which asyncpg has kept open since 0.32"

EXCLUDED = {
    "TestPool.test_pool_auth": MANAGED,
    "TestPoolReconnectWithTargetSessionAttrs.test_full_reconnect_on_node_change_role": MANAGED,
    "TestHotStandby.test_standby_cursors": MANAGED,
    "TestHotStandby.test_standby_pool_01": MANAGED,
    "TestConnectionTerminationListener.test_connection_termination_callback_called_on_local": MANAGED,
    "TestConnectionTerminationListener.test_connection_termination_callback_called_on_remote": MANAGED,
}
EXCLUDED_NEW = {"TestPool.test_pool_min_size_backs_off_on_target_attribute_mismatch": OWN_SLEEP}
# On ours the first connection that opens may have served all callers while the others are still being opened.
RACES = {"TestPool.test_pool_min_size_restored_after_multiple_losses": "has each caller wait for a connect of its own"}
EXCLUDED_OLD = {"TestPool.test_pool_max_inactive_time_02": FLOOR, "TestPool.test_pool_max_inactive_time_05": FLOOR}


CONNECTION_FILES = ["test_cursor.py", "test_execute.py", "test_prepare.py", "test_transaction.py"]
# They end the connection, and then look at it: a pooled one is given back by that, with asyncpg's own pool, too.
ENDED = (
    *("test_execute_script_interrupted_by_server", "test_execute_script_interrupted_close"),
    *("test_execute_script_interrupted_terminate", "test_prepare_06_interrupted_close"),
    *("test_prepare_07_interrupted_terminate", "test_prepare_10_stmt_lru"),
)
# It wants the server's error before 4 MB are written: on a busy machine asyncpg's bare connection fails it, too.
TIMED = ("test_executemany_server_failure_during_writes",)


@pytest.fixture(scope="session")
def asyncpg_tests():
    """The folder that holds the `tests` of the installed asyncpg, downloaded once per machine and version."""
    return unpacked("asyncpg", "tests")


def environment(dsn, loop):
    """Say to asyncpg's tests which server and which loop to use."""
    where = urlsplit(dsn)
    return {
        **base_environment(),
        "PGHOST": where.hostname,
        "PGPORT": str(where.port),
        "PGUSER": where.username,
        "PGPASSWORD": where.password or "",
        "PGDATABASE": where.path.strip("/"),
        **({"USE_UVLOOP": "1"} if loop == "uvloop" else {}),
    }


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_asyncpgs_own_tests_pass(loop, dsn, asyncpg_tests, tmp_path):
    """Every test that asyncpg has for its pool passes on ours, but for those named above with a reason."""
    outcome = run_tests(asyncpg_tests, FILES, "ours_for_asyncpg", environment(dsn, loop), tmp_path)
    excluded = EXCLUDED | (EXCLUDED_OLD if VERSION.startswith("0.31.") else EXCLUDED_NEW)
    assert (outcome.failed | outcome.skipped) - RACES.keys() == excluded.keys(), outcome.output
    assert len(outcome.passed) > 50, outcome.output


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_asyncpgs_tests_of_its_connection_pass_on_one_that_is_lent(loop, dsn, asyncpg_tests, tmp_path):
    """Made as they are by `loop.run_until_complete(con.execute(...))`, its coroutines among them."""
    outcome = run_tests(
        asyncpg_tests, CONNECTION_FILES, "lent_by_ours", environment(dsn, loop), tmp_path, without=(*ENDED, *TIMED)
    )
    assert not outcome.failed | outcome.skipped, outcome.output
    assert len(outcome.passed) > 60, outcome.output


def run_tests(asyncpg_tests, files, plugin, env, tmp_path, *, without=()):
    """Run tests of asyncpg's with a plugin."""
    return run_pytest(
        *("-c", os.devnull, "--rootdir", asyncpg_tests, "-p", plugin),
        *("-k", " and ".join(f"not {name}" for name in without) or "test"),
        *(asyncpg_tests / "tests" / name for name in files),
        cwd=asyncpg_tests,
        env=env,
        report=tmp_path / "report.xml",
        name_of=lambda test_class, name: f"{test_class.rpartition('.')[2]}.{name}",
    )
