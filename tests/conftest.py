from __future__ import annotations

import asyncio
import gc
import os
from collections import Counter
from importlib.metadata import version
from typing import TYPE_CHECKING

import pytest
import uvloop
from psycopg import pq

import helpers
import pgbouncer
import servers
from loopaware_pool.cli.server import EmbeddedServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


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
    """PostgreSQL 18, or the server that LOOPAWARE_TEST_DSN names."""
    dsn = os.environ.get("LOOPAWARE_TEST_DSN")
    if dsn:
        yield servers.external_server(dsn)
        return
    with EmbeddedServer() as embedded:
        yield embedded


@pytest.fixture(scope="session")
def dsn(server: EmbeddedServer | servers.ExternalServer) -> str:
    return server.dsn


@pytest.fixture(scope="session")
def pg17_binaries() -> Path:
    try:
        return servers.postgresql_17()
    except servers.ServerUnavailable as reason:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def pg17_server(pg17_binaries: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(bindir=pg17_binaries) as embedded:
        yield embedded


@pytest.fixture(scope="session")
def tls_server(pg17_binaries: Path) -> Iterator[servers.TlsServer]:
    """PostgreSQL 17 with TLS, which the binaries of PostgreSQL 18 here are built without."""
    with servers.tls_server(pg17_binaries) as secured:
        yield secured


@pytest.fixture(scope="session")
def pgbouncer_program() -> Path:
    try:
        return pgbouncer.find_pgbouncer()
    except servers.ServerUnavailable as reason:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(reason))


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def loop_factory(request: pytest.FixtureRequest) -> Callable[[], asyncio.AbstractEventLoop]:
    """Makes a new event loop: for tests that own their loops, as in `asyncio.Runner(loop_factory=...)`."""
    return request.param


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
