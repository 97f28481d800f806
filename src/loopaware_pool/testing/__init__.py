"""For tests: loops, a driver without a server, a server that follows a script, a proxy that fails on demand."""

from __future__ import annotations

from loopaware_pool.testing.fake_driver import FakeDriver, FakeSession
from loopaware_pool.testing.fake_server import FakeClient, FakeServer
from loopaware_pool.testing.fault_proxy import FaultProxy
from loopaware_pool.testing.loop_harness import LoopThread, end_abruptly, end_politely, loop_factories

__all__ = [
    "FakeClient",
    "FakeDriver",
    "FakeServer",
    "FakeSession",
    "FaultProxy",
    "LoopThread",
    "end_abruptly",
    "end_politely",
    "loop_factories",
]
