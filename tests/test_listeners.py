"""What a listener may do when the pool tells it of something: anything that the pool offers, on both flavours."""

from __future__ import annotations

import asyncio

import pytest

import flavours
import helpers
from loopaware_pool.errors import PoolClosed
from loopaware_pool.stats import ConnectionClosed, ConnectionOpened, LeaseDropped
from running import DEADLINE_SECONDS, eventually_async

pytestmark = [pytest.mark.both_drivers, pytest.mark.both_pythons]

NAME = "test-listeners"
SIZE = 4


@pytest.fixture(params=flavours.both)
def flavour(request):
    return flavours.both[request.param]


def terminate(client, tasks):
    client.pool._core.terminate()


def close(client, tasks):
    tasks.append(asyncio.get_running_loop().create_task(client.pool.close()))


def suspend(client, tasks):
    client.pool.suspend()
    asyncio.get_running_loop().call_later(0.05, client.pool.resume)


def expire(client, tasks):
    client.pool._core.expire()


def drain(client, tasks):
    client.pool._core.drain()


def resize(client, tasks):
    client.pool._core.resize(0, 2)
    client.pool._core.resize(1, SIZE)


def look(client, tasks):
    client.pool.stats()
    client.pool.fd_report()


def acquire(client, tasks):
    async def lease():
        async with client.lend():
            pass

    tasks.append(asyncio.get_running_loop().create_task(lease()))


def stumble(client, tasks):
    raise ValueError("a listener's own")


def stray(client, tasks):
    raise asyncio.CancelledError("of a future that a listener has asked")


@pytest.mark.parametrize("kind", [ConnectionClosed, ConnectionOpened, LeaseDropped], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("react", [terminate, close, suspend, expire, drain, resize, look, acquire, stumble, stray])
def test_a_listener_may_do_anything(dsn, loop_factory, flavour, kind, react, caplog):
    """All connections have died but one, which is dropped; the pool serves on, or is closed, and nobody stumbles."""

    async def main():
        complaints, tasks, heard, clients = [], [], [], []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))

        def listen(event):
            if type(event) is kind and clients and not heard:
                heard.append(event)
                react(clients[0], tasks)

        options = {"min_size": 1, "max_size": SIZE, "on_event": listen}
        async with flavour(f"{dsn}?application_name={NAME}", **options) as client:
            clients.append(client)
            dropped = [await client.lend().__aenter__()]
            await asyncio.gather(*(client.value("SELECT pg_sleep(0.01)") for _ in range(SIZE)), return_exceptions=True)
            helpers.kill_sessions(dsn, NAME)
            dropped.clear()
            try:
                assert await client.value("SELECT 42", DEADLINE_SECONDS) == 42
            except (PoolClosed, *flavours.DRIVER_ERRORS):
                assert react in (terminate, close)
            await eventually_async(lambda: heard, "the listener heard of it")
        await asyncio.gather(*tasks, return_exceptions=True)
        await eventually_async(lambda: client.pool._core.permits.in_use == 0, "every connect has ended")
        assert complaints == []

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(asyncio.wait_for(main(), 5 * DEADLINE_SECONDS))
    assert ("on_event raised" in caplog.text) == (react in (stumble, stray))
    assert "Traceback" not in caplog.text or react in (stumble, stray)
