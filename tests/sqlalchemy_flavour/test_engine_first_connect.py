"""The connection that initialises SQLAlchemy's dialect, when its loop shuts down meanwhile."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import event
from sqlalchemy.util import await_only

from engines import ask
from running import DEADLINE_SECONDS

pytestmark = [pytest.mark.both_pythons, pytest.mark.both_drivers]


@pytest.mark.usefixtures("zero_fd_delta")
@pytest.mark.parametrize("iterations", [0, 20, 40, 60])
def test_a_loop_may_shut_down_in_the_middle_of_the_first_connect(engines, runner_factory, iterations):
    """Neither the loop nor the interpreter complains, and the next loop initialises the dialect."""
    complaints = []

    async def begin(engine):
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(context["message"]))
        asking.append(loop.create_task(ask(engine)))
        for _ in range(iterations):
            await asyncio.sleep(0)

    engine, asking = engines.make(), []
    with runner_factory() as runner:
        runner.run(begin(engine))
    assert asking[0].cancelled() or asking[0].result() == 42
    with runner_factory() as runner:
        assert runner.run(ask(engine)) == 42
    assert complaints == []


@pytest.mark.usefixtures("zero_fd_delta")
def test_a_connect_that_initialises_the_dialect_is_cancelled_with_the_other_tasks(engines, runner_factory):
    """It does not go on while the loop closes its async generators."""
    engine, seen = engines.make(), []

    @event.listens_for(engine.sync_engine.pool, "connect")
    def stay(*_):
        if not seen:
            seen.append("begun")
            try:
                await_only(asyncio.sleep(60))
            except asyncio.CancelledError:
                seen.append("cancelled")
                raise

    async def begin():
        asking.append(asyncio.create_task(ask(engine)))
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not seen:
                await asyncio.sleep(0.001)

    asking = []
    with runner_factory() as runner:
        runner.run(begin())
    assert asking[0].cancelled()
    assert seen == ["begun", "cancelled"]
    with runner_factory() as runner:
        assert runner.run(ask(engine)) == 42
