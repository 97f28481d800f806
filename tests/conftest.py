from __future__ import annotations

import asyncio
import gc
import os
from collections import Counter
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pytest
import uvloop
from psycopg import pq

import haproxy
import helpers
import pgbouncer
import pgpool
import prometheus_server
import servers
from loopaware_pool.testing.embedded_server import EmbeddedServer

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from pathlib import Path

# No test needs a tenth of this.
RUN_SECONDS = 60


def pytest_configure() -> None:
    """Have another PostgreSQL, if `LOOPAWARE_TEST_POSTGRES` names one."""
    major = os.environ.get("LOOPAWARE_TEST_POSTGRES")
    if major is None:
        return
    if major not in map(str, servers.OLDER_MAJORS):
        expected = ", ".join(map(str, servers.OLDER_MAJORS))
        raise pytest.UsageError(f"LOOPAWARE_TEST_POSTGRES={major}: expected one of {expected}, or unset for the newest")
    servers.use_older_binaries(int(major))


def pytest_report_header() -> str:
    return f"asyncpg {version('asyncpg')}, psycopg {version('psycopg')} ({pq.__impl__}), uvloop {version('uvloop')}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Add up what tests have counted."""
    counted: Counter[str] = Counter()
    for report in terminalreporter.getreports("passed"):
        for name, count in report.user_properties:
            counted[name] += count
    for name, count in counted.items():
        terminalreporter.write_line(f"{name}: {count:,}")


@pytest.fixture(scope="session")
def server() -> Iterator[EmbeddedServer | servers.ExternalServer]:
    """PostgreSQL 18, the version that LOOPAWARE_TEST_POSTGRES names, or the server that LOOPAWARE_TEST_DSN does."""
    dsn = os.environ.get("LOOPAWARE_TEST_DSN")
    if dsn:
        yield servers.external_server(dsn)
        return
    with EmbeddedServer() as embedded:
        yield embedded


@pytest.fixture(scope="session")
def dsn(server: EmbeddedServer | servers.ExternalServer) -> str:
    return server.dsn


def older_binaries(major: int) -> Path:
    try:
        return servers.postgresql(major)
    except servers.ServerUnavailable as reason:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def pg15_server() -> Iterator[EmbeddedServer]:
    with EmbeddedServer(bindir=older_binaries(15)) as embedded:
        yield embedded


@pytest.fixture(scope="session")
def pg16_server() -> Iterator[EmbeddedServer]:
    with EmbeddedServer(bindir=older_binaries(16)) as embedded:
        yield embedded


@pytest.fixture(scope="session")
def pg17_server() -> Iterator[EmbeddedServer]:
    with EmbeddedServer(bindir=older_binaries(17)) as embedded:
        yield embedded


@pytest.fixture(scope="session")
def tls_server() -> Iterator[servers.TlsServer]:
    """PostgreSQL 17 with TLS, which the binaries of PostgreSQL 18 here are built without."""
    with servers.tls_server(older_binaries(17)) as secured:
        yield secured


@pytest.fixture(scope="session")
def certified_server() -> Iterator[servers.CertifiedServer]:
    """PostgreSQL 17 that knows its clients by their certificates."""
    with servers.certified_server(older_binaries(17)) as certified:
        yield certified


def found_program(find: Callable[[], Path]) -> Path:
    try:
        return find()
    except servers.ServerUnavailable as reason:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def pgbouncer_program() -> Path:
    return found_program(pgbouncer.find_pgbouncer)


@pytest.fixture(scope="session")
def newer_pgbouncer_program() -> Path:
    return found_program(pgbouncer.find_newer_pgbouncer)


@pytest.fixture(scope="session")
def haproxy_program() -> Path:
    return found_program(haproxy.find_haproxy)


@pytest.fixture(scope="session")
def pgpool_program() -> Path:
    return found_program(pgpool.find_pgpool)


@pytest.fixture(scope="session")
def prometheus_program() -> Path:
    return found_program(prometheus_server.find_prometheus)


@pytest.fixture(
    params=[
        pytest.param(asyncio.new_event_loop, id="asyncio"),
        pytest.param(uvloop.new_event_loop, id="uvloop", marks=pytest.mark.thorough),
    ]
)
def loop_factory(request: pytest.FixtureRequest) -> Callable[[], asyncio.AbstractEventLoop]:
    """Makes a new event loop: for tests that own their loops, as in `asyncio.Runner(loop_factory=...)`."""
    return request.param


@pytest.fixture
def runner_factory(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> Callable[[], asyncio.Runner]:
    """Makes a runner of a new loop: for tests that run one loop several times, or several loops."""
    return lambda: asyncio.Runner(loop_factory=loop_factory)


@pytest.fixture
def run(runner_factory: Callable[[], asyncio.Runner]) -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Runs a coroutine on a loop of its own, which ends with it, and returns its result; fails after a minute."""

    def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
        async def bounded() -> Any:
            async with asyncio.timeout(RUN_SECONDS):
                return await coroutine

        with runner_factory() as runner:
            return runner.run(bounded())

    return run


@pytest.fixture
def zero_fd_delta() -> Iterator[None]:
    """Fail if the test leaves a socket open that was not; the garbage collector may not help it."""
    gc.collect()
    before = helpers.open_sockets()
    gc.disable()
    try:
        yield
        after = helpers.open_sockets()
        left = [helpers.describe_socket(fd) for identity, fd in after.items() if identity not in before]
    finally:
        gc.enable()
    if left:
        pytest.fail("sockets left open:\n" + "\n".join(left), pytrace=False)
