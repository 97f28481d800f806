"""The audit names the line that has opened what is left."""

from __future__ import annotations

import asyncio
import socket
import sys
from contextlib import AsyncExitStack

import psycopg
import pytest
import uvloop

import leaks
from loopaware_pool.audit import (
    FdAudit,
    tracing,
)

pytestmark = [pytest.mark.both_pythons, pytest.mark.both_drivers]


def test_tracing_leaves_no_patch_behind():
    """Not even when audits overlap and end in any order."""
    before = [dict(vars(kind)) for kind in (socket.socket, asyncio.BaseEventLoop, uvloop.Loop)]
    one, other = FdAudit(trace=True), FdAudit(trace=True)
    one.start()
    other.start()
    assert dict(vars(socket.socket)) != before[0]
    one.finish()
    with socket.socket() as sock:
        assert f"{__file__}:" in tracing.opened_at(sock.fileno())
    other.finish()
    other.finish()
    assert [dict(vars(kind)) for kind in (socket.socket, asyncio.BaseEventLoop, uvloop.Loop)] == before
    assert tracing.opened_at(0) is None


def test_a_library_that_connects_in_tasks_of_its_own_is_named_by_who_called_it(dsn, runner):
    """asyncpg's pool opens all but its first connection in tasks: they count as opened by `create_pool`'s caller."""

    async def main():
        async with AsyncExitStack() as kept, FdAudit(trace=True, grace_seconds=0) as audit:
            await leaks.pool_not_closed(dsn, kept)
            assert len(audit.leaked) == 2
            assert {fd.opened_at for fd in audit.leaked} == {leaks.line_of("pool_not_closed") + "in pool_not_closed"}

    runner.run(main())


def test_whoever_runs_the_loop_is_not_who_opened_it(dsn, loop_factory):
    """The line that runs a loop is below a task's frames on the stack, and has no part in it."""
    loop = loop_factory()

    async def main():
        async with AsyncExitStack() as kept, FdAudit(trace=True, grace_seconds=0) as audit:
            await leaks.pool_not_closed(dsn, kept)
            assert {fd.opened_at for fd in audit.leaked} == {leaks.line_of("pool_not_closed") + "in pool_not_closed"}

    loop.run_until_complete(main())
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


def test_a_library_is_known_wherever_it_is_installed(tmp_path):
    """By the record of its installation; the program beside it is the user's."""
    (tmp_path / "driver-1.0.dist-info").mkdir()
    (tmp_path / "driver-1.0.dist-info" / "RECORD").write_text("driver/__init__.py,,\nsingle.py,,\n")
    assert tracing._is_library(str(tmp_path / "driver" / "deep" / "connect.py"))
    assert tracing._is_library(str(tmp_path / "single.py"))
    assert not tracing._is_library(str(tmp_path / "main.py"))


def test_a_socket_made_in_c_has_no_line(dsn):
    """psycopg's, here: nothing is guessed."""
    with FdAudit(trace=True, grace_seconds=0) as audit:
        connection = psycopg.connect(dsn)
    connection.close()
    assert [fd.opened_at for fd in audit.leaked] == [None]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
def test_an_eager_task_is_named_by_who_made_it():
    """Its first step runs within the call that makes it. (uvloop has none on Python 3.13.)"""

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_task_factory(asyncio.eager_task_factory)
        with FdAudit(trace=True, grace_seconds=0) as audit, socket.create_server(("127.0.0.1", 0)) as server:
            _, writer = await asyncio.create_task(asyncio.open_connection(*server.getsockname()))
            assert [f"{__file__}:" in fd.opened_at for fd in audit.leaked] == [True, True]
            writer.close()
            await writer.wait_closed()

    asyncio.run(main())
