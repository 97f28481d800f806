"""A pool to look at, and where to look."""

from __future__ import annotations

import pytest

from live_view import Face
from loopaware_pool._core.config import PoolConfig
from loopaware_pool._core.pool import PoolCore
from loopaware_pool.live import server as live
from loopaware_pool.testing import FakeDriver
from running import DEADLINE_SECONDS


@pytest.fixture(autouse=True)
def _patient_view(monkeypatch):
    """A client of a busy machine may take longer to ask than a client should."""
    monkeypatch.setattr(live, "REQUEST_SECONDS", DEADLINE_SECONDS)


@pytest.fixture
def core():
    """A pool on a driver without a server; nobody uses it."""
    return PoolCore(PoolConfig(name="orders", min_size=0, init_size=0, max_size=3), FakeDriver(), face=Face())


@pytest.fixture
def path(tmp_path):
    return tmp_path / "pool.sock"


@pytest.fixture(params=["unix", "tcp"])
def address(request, path):
    return path if request.param == "unix" else "127.0.0.1:0"
