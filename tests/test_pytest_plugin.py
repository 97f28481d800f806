"""The plugin finds what a test leaves behind, whatever runs the test, and costs nothing when it is not asked."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

import leaks

pytest_plugins = ["pytester"]
pytestmark = [pytest.mark.thorough, pytest.mark.both_pythons]

WAYS = """
import asyncio
from contextlib import AsyncExitStack
import pytest
import leaks

kept = AsyncExitStack()
DSN = {dsn!r}

@pytest.mark.{runner}
@pytest.mark.zero_fd_delta
@pytest.mark.parametrize("way", leaks.WAYS, ids=lambda way: way.__name__)
async def test_way(way):
    await way(DSN, kept)

@pytest.mark.zero_fd_delta(tolerance=0)
def test_sync():
    leaks.loop_closed_early(kept, asyncio.new_event_loop)
"""
CLEAN = """
import pytest
import leaks

DSN = {dsn!r}

@pytest.mark.{runner}
@pytest.mark.parametrize("program", leaks.CLEAN * {times}, ids=range(len(leaks.CLEAN) * {times}))
async def test_program(program):
    await program(DSN)
"""
INI = "[pytest]\nfilterwarnings = ignore::ResourceWarning\nasyncio_default_fixture_loop_scope = function\n"


@pytest.fixture
def run_pytest(pytester, monkeypatch):
    """Runs files by pytest in a process of its own, and returns its result."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)

    def run_pytest(source, *options, ini=INI, conftest=""):
        pytester.makeini(ini)
        pytester.makeconftest(conftest)
        pytester.makepyfile(source)
        return pytester.runpytest_subprocess("-q", "-p", "no:cacheprovider", *options, timeout=120)

    return run_pytest


@pytest.mark.parametrize("runner", ["asyncio", "anyio"])
def test_a_planted_leak_is_named_with_its_line(runner, dsn, run_pytest):
    """Whatever way it came about; with pytest-asyncio, with anyio, and in a plain test."""
    conftest = "import pytest\n@pytest.fixture\ndef anyio_backend(): return 'asyncio'\n"
    result = run_pytest(WAYS.format(dsn=dsn, runner=runner), conftest=conftest)
    result.assert_outcomes(passed=6, errors=6)
    for name in [*(way.__name__ for way in leaks.WAYS), "loop_closed_early"]:
        result.stdout.fnmatch_lines([f"*{leaks.line_of(name)}in *"])


@pytest.mark.parametrize("runner", ["asyncio", "anyio"])
def test_a_clean_suite_is_called_clean(runner, dsn, run_pytest):
    """Two hundred tests, by the setting alone."""
    conftest = "import pytest\n@pytest.fixture\ndef anyio_backend(): return 'asyncio'\n"
    times = 67 if runner == "asyncio" else 5
    source = CLEAN.format(dsn=dsn, runner=runner, times=times)
    run_pytest(source, ini=INI + "zero_fd_delta = true\n", conftest=conftest).assert_outcomes(passed=3 * times)


def test_uvloop_is_looked_at_as_well(dsn, run_pytest):
    """uvloop shows readers that were left; what a transport or a pool leaves open it closes with the loop."""
    conftest = """
import pytest, uvloop
@pytest.fixture(scope="session")
def event_loop_policy():
    return uvloop.EventLoopPolicy()
"""
    result = run_pytest(WAYS.format(dsn=dsn, runner="asyncio"), "-k", "reader or socket", conftest=conftest)
    result.assert_outcomes(passed=2, errors=2, deselected=4)
    result.stdout.fnmatch_lines([f"*Loop at * has a reader *{leaks.line_of('reader_left')}in *"])


def test_the_workers_of_xdist_look_too(dsn, run_pytest):
    """Each at its own process."""
    result = run_pytest(WAYS.format(dsn=dsn, runner="asyncio"), "-n", "2")
    result.assert_outcomes(passed=6, errors=6)


def test_the_articles_unit_test_has_three_lines(dsn, run_pytest):
    """No more fds after acquire and release than before."""
    source = f"""
    import pytest, pytest_asyncio
    from loopaware_pool import create_pool

    @pytest_asyncio.fixture
    async def pool():
        async with create_pool({dsn!r}, min_size=2, max_size=2) as pool:
            yield pool

    @pytest.mark.asyncio
    async def test_no_fd_is_leaked(pool, fd_audit):
        for _ in range(100):
            await pool.fetchval("SELECT 1")
        assert fd_audit.delta == 0
    """
    run_pytest(source).assert_outcomes(passed=1)


EMPTY = """
import asyncio, socket
import pytest

pytestmark = pytest.mark.{runner}

async def test_empty(fd_audit):
    assert fd_audit.delta == 0
    assert fd_audit.is_clean

async def test_that_waits(fd_audit):
    await asyncio.sleep(0.01)
    assert fd_audit.delta == 0

class TestMethods:
    @pytest.mark.parametrize("number", [1, 2])
    async def test_method(self, fd_audit, number):
        assert fd_audit.delta == 0

@pytest.fixture
def opened():
    with socket.socket() as sock:
        yield sock

async def test_own_fixture(fd_audit, opened):
    assert fd_audit.delta == 1

async def test_leak(fd_audit):
    sock = socket.socket()
    assert fd_audit.delta == 1
    loop = asyncio.new_event_loop()
    assert fd_audit.delta > 2
    loop.close()
    sock.close()
    assert fd_audit.delta == 0

@pytest.mark.zero_fd_delta
async def test_loop_left():
    global left
    left = asyncio.new_event_loop()

async def test_last():
    # A session's loop is closed behind this one: it would seem to have been replaced by the one that was left.
    pass
"""
POLICY = """
import pytest, uvloop
@pytest.fixture(scope="session")
def event_loop_policy():
    return uvloop.EventLoopPolicy()
"""
BACKEND = "import pytest\n@pytest.fixture\ndef anyio_backend(): return 'asyncio', {{'use_uvloop': {}}}\n"


@pytest.mark.parametrize("scope", ["function", "session"])
@pytest.mark.parametrize(
    ("runner", "conftest"),
    [("asyncio", ""), ("asyncio", POLICY), ("anyio", BACKEND.format(False)), ("anyio", BACKEND.format(True))],
    ids=["pytest-asyncio", "pytest-asyncio and uvloop", "anyio", "anyio and uvloop"],
)
def test_the_loop_that_an_async_test_runs_on_is_none_of_its_doing(runner, conftest, scope, run_pytest):
    """Whatever makes it, and whenever; what the test and its own fixtures open is counted, a loop of its own too."""
    ini = INI + f"asyncio_default_test_loop_scope = {scope}\n"
    result = run_pytest(EMPTY.format(runner=runner), conftest=conftest, ini=ini)
    result.assert_outcomes(passed=8, errors=1)
    result.stdout.fnmatch_lines(["*ERROR*test_loop_left*"])


def test_the_fixtures_message_names_the_line(run_pytest):
    """pytest shows the audit where its delta is compared."""
    result = run_pytest(
        "import socket\ndef test_it(fd_audit):\n    s = socket.socket()\n    assert fd_audit.delta == 0\n"
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*test_the_fixtures_message_names_the_line.py:3 in test_it*"])


SCOPES = """
import socket
import pytest

@pytest.fixture(scope="session")
def server():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server

@pytest.fixture(scope="module", params=[1, 2])
def client(server, request):
    with socket.create_connection(server.getsockname()) as client:
        yield client

@pytest.fixture
def own():
    with socket.socket() as own:
        yield own

def test_requested(client, own, fd_audit):
    assert fd_audit.delta == 0

def test_asked_for_meanwhile(request, fd_audit):
    request.getfixturevalue("server")
    assert fd_audit.delta == 0
"""


def test_what_wider_fixtures_open_is_not_counted(run_pytest):
    """They are meant to outlive the test, whether it asks for them in its signature or in its body."""
    run_pytest(SCOPES, ini=INI + "zero_fd_delta = true\n").assert_outcomes(passed=3)
    run_pytest(SCOPES, "-k", "meanwhile", ini=INI + "zero_fd_delta = true\n").assert_outcomes(passed=1, deselected=2)


def test_what_its_own_fixtures_leave_is_counted(run_pytest):
    """A fixture of function scope is a part of the test."""
    source = """
    import socket, pytest
    kept = []
    @pytest.fixture
    def leaky():
        kept.append(socket.socket())
    @pytest.mark.zero_fd_delta
    def test_it(leaky): pass
    """
    result = run_pytest(source)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*1 fd left open*", "*in leaky"])


MARKED = """
import socket, unittest
import pytest
kept = []

@pytest.mark.zero_fd_delta(tolerance=1)
def test_tolerated():
    kept.append(socket.socket())

@pytest.mark.zero_fd_delta(tolerance=None)
def test_not_looked_at():
    kept.append(socket.socket())

def test_failed():
    kept.append(socket.socket())
    assert False

def test_skipped():
    kept.append(socket.socket())
    pytest.skip("for a reason")

class TestOld(unittest.TestCase):
    def test_unittest(self):
        kept.append(socket.socket())

@pytest.mark.zero_fd_delta(-1)
def test_nonsense(): pass
"""


def test_the_marker_rules_over_the_setting(run_pytest):
    """A tolerance allows so many, None does not look; a test that failed or was skipped is not judged."""
    result = run_pytest(MARKED, ini=INI + "zero_fd_delta = true\n")
    result.assert_outcomes(passed=3, failed=1, skipped=1, errors=2)
    result.stdout.fnmatch_lines(["*in TestOld.test_unittest"])
    result.stdout.fnmatch_lines(["zero_fd_delta: tolerance is a number of fds, 0 or more, not -1"])


def test_the_marker_is_known_and_the_setting_documented(run_pytest):
    """`--markers` and `--help` name them; strict markers do not refuse it."""
    run_pytest("def test_it(): pass", "--markers").stdout.fnmatch_lines(["*zero_fd_delta(tolerance=0)*"])
    run_pytest("def test_it(): pass", "--help").stdout.fnmatch_lines(["*zero_fd_delta (bool)*"])


def test_it_imports_nothing_until_it_is_used(run_pytest):
    """A suite that does not use the plugin loads the plugin's own module, and no more of the library."""
    source = """
    import sys
    def test_it():
        ours = {name for name in sys.modules if name.startswith("loopaware_pool")}
        assert ours == {"loopaware_pool", "loopaware_pool.pytest_plugin"}
        assert "asyncpg" not in sys.modules
    """
    run_pytest(source, "-p", "no:asyncio", "-p", "no:anyio").assert_outcomes(passed=1)


def test_it_can_be_switched_off(run_pytest):
    """As any plugin can."""
    result = run_pytest("def test_it(fd_audit): pass", "-p", "no:loopaware_pool")
    result.assert_outcomes(errors=1)


@pytest.mark.skipif(sys.platform != "linux", reason="the platform is named by the test")
def test_where_nothing_can_be_known_that_is_said(run_pytest):
    """An error of the test's setup, in one line."""
    conftest = """
from loopaware_pool.audit import open_files
def cannot(): raise open_files.AuditUnavailable("on Windows the audit needs psutil: pip install psutil")
open_files._reader = lambda: cannot
"""
    result = run_pytest("def test_it(): pass", ini=INI + "zero_fd_delta = true\n", conftest=conftest)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["on Windows the audit needs psutil: pip install psutil"])
