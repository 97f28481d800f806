"""An engine's pool is seen by the live view, `top`, the audit and the leak report, as pools of other flavours are."""

from __future__ import annotations

import asyncio
import json
import sys

import pytest

import helpers
from engines import ask, hold, pid
from loopaware_pool.audit import assert_zero_fd_delta
from loopaware_pool.live import serve_live
from loopaware_pool.stats import LeaseOverdue, LeaseReturned


def test_top_shows_an_engine_and_who_holds_its_connections(engines, run, tmp_path):
    """By name, with the line that acquired them."""
    socket = tmp_path / "live.sock"

    async def main():
        engine = engines.make(name="orders", leak_threshold=60)
        with serve_live([engine.pool], str(socket)):
            async with engine.connect() as connection:
                await pid(connection)
                top = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "loopaware_pool", "top", "--once", "--json", "--timeout=60", str(socket)),
                    stdout=asyncio.subprocess.PIPE,
                )
                told, _ = await top.communicate()
        await engine.dispose()
        assert top.returncode == 0
        return told

    told = run(main())
    assert b"orders" in told
    assert "test_engine_views.py" in json.dumps(json.loads(told))


def test_a_lease_that_lasts_too_long_is_reported_with_its_line(engines, run):
    """And its return."""
    found = []

    async def main():
        engine = engines.make(leak_threshold=0.05, on_event=found.append)
        async with engine.connect() as connection:
            await pid(connection)
            await helpers.eventually(lambda: any(isinstance(event, LeaseOverdue) for event in found))
        await engine.dispose()

    run(main())
    (overdue,) = [event for event in found if isinstance(event, LeaseOverdue)]
    assert "test_engine_views.py" in overdue.lease.where
    assert any(isinstance(event, LeaseReturned) for event in found)


def test_the_audit_finds_nothing_that_an_engine_leaves(engines, run):
    """After `dispose()`, and after the end of a loop without it."""

    async def main():
        engine = engines.make()
        async with assert_zero_fd_delta():
            await hold(engine, 2)
            await engine.dispose()

    run(main())


@pytest.mark.usefixtures("zero_fd_delta")
def test_an_engine_that_no_one_disposes_of_leaves_nothing_at_the_end_of_its_loop(engines, run):
    """The engine itself lives on."""
    engine = engines.make()
    assert run(ask(engine)) == 42
