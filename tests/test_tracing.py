"""Spans for callers that wait: what `trace_acquires` makes of them, in all flavours."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from contextlib import asynccontextmanager

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

import flavours
from engines import Engines, ask
from loopaware_pool.asyncpg import create_pool
from loopaware_pool.errors import PoolTimeout
from loopaware_pool.tracing import trace_acquires
from running import DEADLINE_SECONDS, NOWHERE, eventually_async

pytestmark = [pytest.mark.both_drivers, pytest.mark.both_pythons]


class Seen:
    """A tracer provider, and the spans that it was given."""

    def __init__(self):
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("program")

    def acquires(self):
        return [span for span in self.exporter.get_finished_spans() if span.name == "loopaware_pool.acquire"]

    def waited_for(self):
        return [span.attributes["loopaware_pool.waited_for"] for span in self.acquires()]


@pytest.fixture
def seen():
    return Seen()


@asynccontextmanager
async def engine_flavour(dsn, *, name="traced"):
    """An engine's pool, by the names that the other flavours have."""
    engine = Engines(dsn, "asyncpg").make(
        pool_size=1, max_overflow=0, pool_timeout=DEADLINE_SECONDS, pool_logging_name=name
    )
    try:
        yield flavours.Client(engine.pool, lambda timeout=None: engine.connect(), None, None)
    finally:
        await engine.dispose()


FLAVOURS = {
    "asyncpg": lambda dsn: flavours.asyncpg_flavour(dsn, name="traced", max_size=1),
    "psycopg": lambda dsn: flavours.psycopg_flavour(dsn, name="traced", max_size=1),
    "sqlalchemy": engine_flavour,
}


@pytest.fixture(params=FLAVOURS)
def flavour(request):
    return FLAVOURS[request.param]


async def in_queue(client):
    await eventually_async(lambda: sum(loop.waiting for loop in client.pool.stats().loops), "a caller in the queue")


def test_only_an_acquire_that_waits_has_a_span(dsn, run, flavour, seen):
    """One for the connection that is opened for it; none once one is idle; none before it is asked for."""

    async def main():
        async with flavour(dsn) as client:
            async with client.lend():
                pass
            assert seen.acquires() == []
        async with flavour(dsn) as client:
            trace_acquires(client.pool, seen.provider)
            trace_acquires(client.pool, seen.provider)  # makes no second span
            for _ in range(3):
                async with client.lend():
                    pass
                await client.pool.settled()

    run(main())
    assert seen.waited_for() == ["connect"]


def test_a_wait_for_another_caller_is_told_from_one_for_the_server(dsn, run, flavour, seen):
    """Its span belongs to the caller's, names the pool, and ends when the connection is there."""

    async def wait(client, number):
        with seen.tracer.start_as_current_span(f"request {number}"):
            async with client.lend():
                assert trace.get_current_span().name == f"request {number}"

    async def main():
        async with flavour(dsn) as client:
            async with client.lend():
                trace_acquires(client.pool, seen.provider)
                waiters = []
                for number in range(2):
                    waiters.append(asyncio.create_task(wait(client, number)))
                    await eventually_async(
                        lambda: sum(loop.waiting for loop in client.pool.stats().loops) == len(waiters), "in the queue"
                    )
                assert seen.acquires() == []
            await asyncio.gather(*waiters)
            return client.pool.stats().name

    name = run(main())
    assert seen.waited_for() == ["queue", "queue"]
    spans = {span.context.span_id: span for span in seen.exporter.get_finished_spans()}
    assert [spans[span.parent.span_id].name for span in seen.acquires()] == ["request 0", "request 1"]
    assert [span.attributes["loopaware_pool.waiting"] for span in seen.acquires()] == [0, 1]
    assert {span.attributes["db.client.connection.pool.name"] for span in seen.acquires()} == {name}
    assert {span.status.status_code for span in seen.acquires()} == {StatusCode.UNSET}


def test_a_connection_that_was_opened_for_another_caller_is_waited_for_in_the_queue(dsn, run, flavour, seen):
    """Although it was opened meanwhile."""

    async def use(client):
        async with client.lend():
            pass

    async def main():
        async with flavour(dsn) as client:
            trace_acquires(client.pool, seen.provider)
            await asyncio.gather(use(client), use(client))

    run(main())
    assert seen.waited_for() == ["connect", "queue"]


def test_a_cancelled_wait_is_no_error(dsn, run, flavour, seen):
    """It says that it was cancelled."""

    async def wait(client):
        async with client.lend():
            pytest.fail("served although cancelled")

    async def main():
        async with flavour(dsn) as client, client.lend():
            trace_acquires(client.pool, seen.provider)
            waiter = asyncio.create_task(wait(client))
            await in_queue(client)
            waiter.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiter

    run(main())
    (span,) = seen.acquires()
    assert span.attributes["error.type"] == "CancelledError"
    assert span.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize("flavour", ["asyncpg", "psycopg"], indirect=True)
def test_a_timeout_is_an_error_and_names_the_callers_own_line(dsn, run, flavour, seen):
    """The span's status says it, and the exception is what it is without spans."""

    async def main():
        async with flavour(dsn) as client, client.lend():
            trace_acquires(client.pool, seen.provider)
            with pytest.raises(PoolTimeout) as raised:
                async with client.lend(timeout=0.01):
                    pass
            return str(raised.value)

    said = run(main())
    assert __file__ in said
    (span,) = seen.acquires()
    assert span.attributes["loopaware_pool.waited_for"] == "queue"
    assert span.attributes["error.type"] == "PoolTimeout"
    assert span.status.status_code is StatusCode.ERROR
    assert [event.name for event in span.events] == ["exception"]


def test_a_server_that_cannot_be_reached_is_what_was_waited_for(run, seen):
    """Also in a timeout, as connecting is tried again meanwhile."""

    async def main():
        async with create_pool(NOWHERE, min_size=0, max_size=1) as pool:
            trace_acquires(pool, seen.provider)
            with pytest.raises(PoolTimeout):
                await pool.acquire(timeout=0.05)

    run(main())
    assert seen.waited_for() == ["connect"]


def test_a_pool_is_traced_on_every_loop(dsn, seen):
    """It was made before any of them."""
    pool = create_pool(dsn, min_size=0, max_size=1)
    trace_acquires(pool, seen.provider)

    async def main():
        async with pool.acquire():
            pass

    async def first():
        await pool
        await main()

    asyncio.run(first())
    asyncio.run(main())
    asyncio.run(pool.close())
    assert seen.waited_for() == ["connect", "connect"]


def test_an_engine_that_was_disposed_of_is_to_be_traced_again(dsn, run, seen):
    """It has another pool then."""

    async def main():
        engine = Engines(dsn, "psycopg").make()
        trace_acquires(engine.pool, seen.provider)
        for is_traced in (True, False, True):
            if is_traced:
                trace_acquires(engine.pool, seen.provider)
            await ask(engine)
            await engine.dispose()

    run(main())
    assert seen.waited_for() == ["connect", "connect"]


def test_without_a_provider_the_global_one_is_used(dsn, run, monkeypatch, seen):
    """As OpenTelemetry's own instrumentors do."""
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", seen.provider)

    async def main():
        async with create_pool(dsn, min_size=0, max_size=1) as pool:
            trace_acquires(pool)
            await pool.fetchval("SELECT 1")

    run(main())
    assert seen.waited_for() == ["connect"]


def test_only_our_pools_are_traced():
    """The message names what it got."""
    with pytest.raises(TypeError, match="expected a pool of loopaware_pool, got object"):
        trace_acquires(object())


def test_pools_do_not_import_opentelemetry():
    """It is optional, and slow to import."""
    code = (
        "import sys, loopaware_pool.asyncpg, loopaware_pool.psycopg, loopaware_pool.sqlalchemy; "
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_a_wait_that_ends_with_its_loop_ends_its_span(dsn, seen, caplog):
    """Its coroutine is closed outside the context that it ran in, so it must not have changed that."""

    async def leave_waiting():
        pool = await create_pool(dsn, min_size=0, max_size=1)
        trace_acquires(pool, seen.provider)
        left = [pool, await pool.acquire(), asyncio.ensure_future(pool.acquire())]
        await eventually_async(lambda: pool.stats().waiting == 1, "a caller in the queue")
        return left

    loop = asyncio.new_event_loop()
    left = loop.run_until_complete(leave_waiting())
    loop.close()
    del left
    gc.collect()
    assert seen.waited_for() == ["connect", "queue"]
    assert [record for record in caplog.records if record.name.startswith("opentelemetry")] == []
