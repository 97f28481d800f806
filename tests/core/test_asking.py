"""`Asking`: the functions that users give in place of an argument, and which of them are asked at the moment."""

from __future__ import annotations

import asyncio

import pytest

from forking import in_child
from loopaware_pool._core.asking import Asking
from running import eventually_async


def test_an_error_that_is_raised_again_names_its_argument_once(run):
    """A function may keep an error and raise it at each call."""
    kept = OSError("unreachable")

    def fail():
        raise kept

    async def main():
        asking = Asking(RuntimeError)
        for _ in range(3):
            with pytest.raises(OSError, match="unreachable"):
                await asking.ask("password", fail, str, "a string")

    run(main())
    assert kept.__notes__ == ["raised by the function given as password"]


def test_a_forked_child_waits_for_no_function_of_its_parents(run):
    async def main():
        asking = Asking(RuntimeError)

        async def never():
            await asyncio.get_running_loop().create_future()

        def child():
            asking.forked()
            return asking.unanswered

        task = asyncio.create_task(asking.ask("password", never, str, "a string"))
        await eventually_async(lambda: asking.unanswered == ["password"], "it is asked")
        assert in_child(child) == []
        assert asking.unanswered == ["password"]
        task.cancel()
        await asyncio.wait([task])
        assert asking.unanswered == []

    run(main())
