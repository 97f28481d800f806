"""A function that is frozen between its calls: its loop stands still, or is another each time."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time

import pytest

import helpers
from flavours import both
from running import child_process

pytestmark = [pytest.mark.usefixtures("zero_fd_delta")]
both_flavours = pytest.mark.parametrize("open_pool", both.values(), ids=both)

FROZEN = """
import asyncio, sys
from loopaware_pool import create_pool

pool = create_pool(sys.argv[1], min_size=0, max_size=3, keepalive=0.05, max_inactive_connection_lifetime=0.1)

async def handle():
    await pool
    return sum(await asyncio.gather(*(pool.fetchval("SELECT 1") for _ in range(9))))

with asyncio.Runner() as runner:
    while sys.stdin.readline():
        print(runner.run(handle()), flush=True)
    runner.run(pool.close())
"""


@both_flavours
def test_a_call_after_a_freeze_does_not_notice_that_the_server_has_hung_up(dsn, runner_factory, open_pool):
    """The loop has not run since the last call, and nobody has heard of the end of the connections."""
    with runner_factory() as runner:
        context = open_pool(dsn, max_size=3)
        client = runner.run(context.__aenter__())
        for _ in range(3):
            assert runner.run(ask(client)) == [1] * 9
            assert helpers.kill_sessions(dsn, client.pool.name) > 0
        runner.run(context.__aexit__(None, None, None))


async def ask(client):
    return await asyncio.gather(*(client.value("SELECT 1") for _ in range(9)))


def test_a_process_that_was_stopped_goes_on_as_if_nothing_had_been(dsn):
    """Its timers are long overdue when it is thawed, and its server is not who it was."""
    with child_process(
        [sys.executable, "-c", FROZEN, f"{dsn}?application_name=frozen"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        for _ in range(3):
            assert call(process) == "9"
            os.kill(process.pid, signal.SIGSTOP)
            assert helpers.kill_sessions(dsn, "frozen") > 0
            time.sleep(0.2)  # longer than connections may be idle
            os.kill(process.pid, signal.SIGCONT)
        assert call(process) == "9"
        process.stdin.close()
        assert process.wait(30) == 0


def call(process):
    process.stdin.write("\n")
    process.stdin.flush()
    return process.stdout.readline().strip()
