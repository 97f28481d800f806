from __future__ import annotations

import pytest

from dialects import DialectServer
from loopaware_pool.testing import LoopThread


@pytest.fixture
def serve(loop_factory):
    """Serves a dialect on a loop of its own, for the time of the test."""
    with LoopThread(loop_factory) as there:
        servers = []

        def serve(dialect):
            server = DialectServer(dialect)
            there.run(server.__aenter__())
            servers.append(server)
            return server

        yield serve
        for server in servers:
            there.run(server.__aexit__())
