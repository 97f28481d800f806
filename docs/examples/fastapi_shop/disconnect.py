"""Starlette and FastAPI: cancel a block of a handler when the client goes away."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import Request


@asynccontextmanager
async def ends_with_client(request: Request) -> AsyncIterator[None]:
    """Cancel the block, once, when the client goes away. The handler goes on behind it, for nobody."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        scope.reschedule(asyncio.get_running_loop().time())

    try:
        async with asyncio.timeout(None) as scope:
            watcher = asyncio.create_task(watch())
            yield
    except TimeoutError:
        if not scope.expired():
            raise
    finally:
        watcher.cancel()
