"""
For pytest: a fixture, a marker and a setting that find what a test leaves open. The audit is imported at first use.

What fixtures of a wider scope open is not counted: it is meant to outlive the test. A test that fails is not checked,
because its traceback keeps alive what it used.
"""

from __future__ import annotations

import functools
import inspect
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

    from loopaware_pool.audit import FdAudit

__all__ = ["fd_audit"]

_audits = pytest.StashKey[list["FdAudit"]]()
_judge = pytest.StashKey["_Judge"]()
_was_judged = pytest.StashKey[bool]()


class _Judge:
    """Audits one test, its fixtures included."""

    def __init__(self, tolerance: int) -> None:
        from loopaware_pool.audit import FdAudit

        self.tolerance = tolerance
        self.has_failed = False
        self.audit = FdAudit(trace=True)

    def begin(self, *, collect_first: bool) -> str | None:
        """Start the audit. Returns why it cannot start, or None."""
        from loopaware_pool.audit import AuditUnavailable

        try:
            self.audit.start(collect_first=collect_first)
        except AuditUnavailable as error:
            return str(error)
        return None

    def pronounce(self) -> None:
        """End the audit, and fail the test if it left something behind."""
        if self.has_failed:
            self.audit.abandon()
            return
        self.audit.finish()
        try:
            self.audit.check(self.tolerance)
        except AssertionError as error:
            verdict = str(error)
        else:
            return
        pytest.fail(verdict, pytrace=False)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the setting `zero_fd_delta`."""
    parser.addini("zero_fd_delta", "fail every test that leaves an fd or a registration behind", "bool", default=False)


def pytest_configure(config: pytest.Config) -> None:
    """Add the marker `zero_fd_delta`."""
    config.stash[_audits] = []
    config.stash[_was_judged] = False
    config.addinivalue_line(
        "markers",
        "zero_fd_delta(tolerance=0): fail the test if it leaves more fds open than that, or a registration with a "
        "loop; None: do not look",
    )


@pytest.fixture
def fd_audit(request: pytest.FixtureRequest) -> Generator[FdAudit]:
    """A running `FdAudit`, with tracing: `assert fd_audit.delta == 0`."""
    from loopaware_pool.audit import FdAudit

    running = request.config.stash[_audits]
    with FdAudit(trace=True, grace_seconds=0) as audit:
        running.append(audit)
        try:
            yield audit
        finally:
            running.remove(audit)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, Any, Any]:
    """Begin before the first fixture."""
    complaint = _begin(item)
    result = yield
    if complaint is not None:  # only now, as other plugins rely on their own setup
        pytest.fail(complaint, pytrace=False)
    return result


def _begin(item: pytest.Item) -> str | None:
    """Start an audit if one is requested. Returns what is wrong if it cannot start."""
    tolerance = _tolerance(item)
    if tolerance is None:
        return None
    if tolerance < 0:
        return f"zero_fd_delta: tolerance is a number of fds, 0 or more, not {tolerance!r}"
    judge = _Judge(tolerance)
    # The previous test's audit has collected the garbage; collecting again for each test would take most of the time.
    complaint = judge.begin(collect_first=not item.config.stash[_was_judged])
    if complaint is None:
        item.stash[_judge] = judge
        item.config.stash[_audits].append(judge.audit)
    return complaint


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, Any, Any]:
    """Exclude what outlives the test."""
    running = request.config.stash[_audits]
    if not running or (fixturedef.scope == "function" and not _is_of_a_runner(fixturedef)):
        return (yield)
    with ExitStack() as stack:
        for audit in running:
            stack.enter_context(audit.excluding())
        return (yield)


def _is_of_a_runner(fixturedef: pytest.FixtureDef[Any]) -> bool:
    """Whether a plugin for async tests makes the event loop with this fixture."""
    return fixturedef.func.__module__.partition(".")[0] in ("anyio", "pytest_asyncio")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Exclude what a plugin opens between an async test's fixtures and its first line: its event loop."""
    running = item.config.stash[_audits]
    test = getattr(item, "obj", None)
    if not running or not inspect.iscoroutinefunction(test):
        return (yield)
    with ExitStack() as stack:
        for audit in running:
            stack.enter_context(audit.excluding())

        @functools.wraps(test)
        async def run(*arguments: Any, **fixtures: Any) -> Any:
            stack.close()
            return await test(*arguments, **fixtures)

        item.obj = run  # type: ignore[attr-defined] # of a pytest.Function
        try:
            return (yield)
        finally:
            item.obj = test  # type: ignore[attr-defined]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Generator[None, Any, Any]:
    """Note a failure."""
    judge = item.stash.get(_judge, None)
    if judge is not None and call.excinfo is not None:
        judge.has_failed = True
    return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, Any, Any]:
    """End after the last fixture."""
    try:
        result = yield
    except BaseException:
        _end(item, has_failed=True)
        raise
    _end(item)
    return result


def _end(item: pytest.Item, *, has_failed: bool = False) -> None:
    judge = item.stash.get(_judge, None)
    item.config.stash[_was_judged] = judge is not None and not (judge.has_failed or has_failed)
    if judge is None:
        return
    del item.stash[_judge]
    item.config.stash[_audits].remove(judge.audit)
    judge.has_failed |= has_failed
    judge.pronounce()


def _tolerance(item: pytest.Item) -> int | None:
    """Return how many fds *item* may leave open; None if it is not checked."""
    marker = item.get_closest_marker("zero_fd_delta")
    if marker is None:
        return 0 if item.config.getini("zero_fd_delta") else None
    return _tolerance_of(*marker.args, **marker.kwargs)


def _tolerance_of(tolerance: int | None = 0) -> int | None:
    return tolerance
