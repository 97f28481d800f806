"""A listener that fails costs the pool no connection, and its caller gets an error that says what has happened."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import event, exc

from engines import ask, hold

pytestmark = [pytest.mark.both_pythons, pytest.mark.both_drivers]


def test_a_cancellation_that_a_connect_listener_raises_is_an_error_of_the_connect(engines, run):
    """Nobody has cancelled the caller. The next one is served."""

    async def main():
        engine = engines.make()
        strays = [asyncio.CancelledError()]

        @event.listens_for(engine.sync_engine, "connect")
        def raise_once(*_):
            if strays:
                raise strays.pop()

        with pytest.raises(exc.InvalidRequestError, match="raised CancelledError while a connection was opened"):
            await ask(engine)
        assert len(await hold(engine, 2)) == 2
        await engine.dispose()

    run(main())
