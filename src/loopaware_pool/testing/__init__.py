"""For tests: a driver without a server, and a proxy that makes the way to a server fail."""

from __future__ import annotations

from loopaware_pool.testing.fake_driver import FakeDriver, FakeSession
from loopaware_pool.testing.fault_proxy import FaultProxy

__all__ = ["FakeDriver", "FakeSession", "FaultProxy"]
