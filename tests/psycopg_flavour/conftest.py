from __future__ import annotations

import asyncio

import pytest


@pytest.fixture
def run(loop_factory):
    """Runs a coroutine on a loop of its own."""

    def work(coroutine):
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            return runner.run(coroutine)

    return work
