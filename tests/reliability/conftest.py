"""A server that the tests of failures may mistreat."""

from __future__ import annotations

import pytest

from failovers import sessions_of
from loopaware_pool.testing.embedded_server import EmbeddedServer
from running import eventually


@pytest.fixture(scope="module")
def small_server():
    with EmbeddedServer(settings={"max_connections": 6, "superuser_reserved_connections": 0}) as server:
        yield server


@pytest.fixture
def private_server(small_server):
    """A server that is full with six sessions, asks one role for a password, and may be mistreated."""
    eventually(lambda: not sessions_of(small_server), "the last test's sessions have ended")
    return small_server


@pytest.fixture
def pair():
    """A primary and its standby."""
    with EmbeddedServer() as primary, EmbeddedServer(standby_of=primary.dsn) as standby:
        yield primary, standby
