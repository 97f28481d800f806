"""asyncpg's own tests of its pool, run on ours, and of its connection, run on those that ours lends."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit
from xml.etree import ElementTree as ET

import pytest

import servers

pytestmark = [pytest.mark.thorough, pytest.mark.both_drivers]

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
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
    home = servers.CACHE / f"asyncpg-{VERSION}"
    if not home.is_dir():
        servers.CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=servers.CACHE) as scratch:
            unpacked = download(Path(scratch))
            try:
                unpacked.rename(home)
            except OSError:  # somebody was quicker
                assert home.is_dir()
    return home


def download(scratch):
    """Fetch and check the source distribution, and unpack its tests. Its wheel has none."""
    requirements = scratch / "requirements.txt"
    requirements.write_text(locked_requirement())
    completed = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
            *("--no-deps", "--no-binary=asyncpg", "--require-hashes"),
            *(f"--requirement={requirements}", f"--dest={scratch}"),
        ],
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    if completed.returncode:
        reason = f"asyncpg's tests could not be downloaded: {completed.stderr.strip()[-200:]}"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    with tarfile.open(next(scratch.glob("*.tar.gz"))) as archive:
        root = f"asyncpg-{VERSION}"
        members = [member for member in archive if member.name.startswith(f"{root}/tests/")]
        archive.extractall(scratch / "unpacked", members, filter="data")
    return scratch / "unpacked" / root


def locked_requirement():
    """What the lock files say of the installed asyncpg: the version and the hashes."""
    for lock in sorted(REPOSITORY.glob("requirements*.lock")):
        found = re.search(rf"^asyncpg=={re.escape(VERSION)} .*(?:\n .*)*", lock.read_text(), re.MULTILINE)
        if found:
            return found[0] + "\n"
    pytest.skip(f"asyncpg {VERSION} is in no lock file")


def environment(dsn, loop):
    """Say to asyncpg's tests which server and which loop to use."""
    where = urlsplit(dsn)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "PYTEST", "USE_UVLOOP"))}
    path = [str(HERE), *(folder for folder in sys.path if folder and Path(folder) != REPOSITORY)]
    return {
        **kept,
        "PGHOST": where.hostname,
        "PGPORT": str(where.port),
        "PGUSER": where.username,
        "PGPASSWORD": where.password or "",
        "PGDATABASE": where.path.strip("/"),
        "PYTHONPATH": os.pathsep.join(path),
        "PYTHONDONTWRITEBYTECODE": "1",
        **({"USE_UVLOOP": "1"} if loop == "uvloop" else {}),
    }


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_asyncpgs_own_tests_pass(loop, dsn, asyncpg_tests, tmp_path):
    """Every test that asyncpg has for its pool passes on ours, but for those named above with a reason."""
    passed, others, output = run_tests(asyncpg_tests, FILES, "ours_for_asyncpg", environment(dsn, loop), tmp_path)
    excluded = EXCLUDED | (EXCLUDED_OLD if VERSION.startswith("0.31.") else EXCLUDED_NEW)
    assert others - RACES.keys() == excluded.keys(), output
    assert len(passed) > 50, output


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_asyncpgs_tests_of_its_connection_pass_on_one_that_is_lent(loop, dsn, asyncpg_tests, tmp_path):
    """Made as they are by `loop.run_until_complete(con.execute(...))`, its coroutines among them."""
    passed, others, output = run_tests(
        asyncpg_tests, CONNECTION_FILES, "lent_by_ours", environment(dsn, loop), tmp_path, without=(*ENDED, *TIMED)
    )
    assert not others, output
    assert len(passed) > 60, output


def run_tests(asyncpg_tests, files, plugin, env, tmp_path, *, without=()):
    """Run tests of asyncpg's with a plugin; tell which passed, which did not, and what was printed."""
    report = tmp_path / "report.xml"
    completed = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", asyncpg_tests),
            *("-p", "no:cacheprovider", "-p", "no:asyncio", "-p", plugin, f"--junitxml={report}"),
            *("-k", " and ".join(f"not {name}" for name in without) or "test"),
            *(asyncpg_tests / "tests" / name for name in files),
        ],
        cwd=asyncpg_tests,
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    output = completed.stdout + completed.stderr
    assert report.is_file(), output
    return *read(report), output


def read(report):
    """Tell which tests passed, and which did anything else."""
    passed, others = set(), set()
    for case in ET.parse(report).iter("testcase"):
        name = f"{case.get('classname').rpartition('.')[2]}.{case.get('name')}"
        failed = any(child.tag in ("failure", "error", "skipped") for child in case)
        (others if failed else passed).add(name)
    return passed - others, others
