"""The audit finds registrations with a loop that are stale, or orphaned."""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import AsyncExitStack

import pytest
import uvloop

import leaks
from loopaware_pool.audit import (
    FdAudit,
    assert_zero_fd_delta,
    registrations,
    stale_registrations,
)

pytestmark = [pytest.mark.thorough, pytest.mark.both_pythons, pytest.mark.both_drivers]


def test_a_reader_of_a_closed_fd_is_stale(runner, pair):
    """Its callback is named by where it is, not by what it is called with."""
    ours, _ = pair

    async def main():
        loop = asyncio.get_running_loop()
        fd = ours.fileno()
        loop.add_reader(fd, callback, "secret")
        await asyncio.sleep(0.01)
        assert stale_registrations(loop) == []
        ours.close()
        (stale,) = stale_registrations(loop)
        assert (stale.fd, stale.reason) == (fd, "closed")
        assert f"{__file__}:{callback.__code__.co_firstlineno} in callback" in str(stale)
        assert "secret" not in str(stale)
        assert stale_registrations() == [stale]
        loop.remove_reader(fd)
        assert stale_registrations(loop) == []

    runner.run(main())


def callback(_):
    pass


def test_a_reader_of_an_fd_that_is_another_by_now_is_stale(pair):
    """The kernel's list tells: the old file is not in it any more, and the new one not yet."""
    ours, theirs = pair

    async def main():
        loop = asyncio.get_running_loop()
        fd = ours.fileno()
        loop.add_reader(fd, callback, 1)
        os.dup2(theirs.fileno(), fd)
        assert [(stale.fd, stale.reason) for stale in stale_registrations(loop)] == [(fd, "reused")]
        loop.remove_reader(fd)

    asyncio.run(main())


def test_uvloop_needs_tracing_to_tell_that_an_fd_is_another_by_now(pair):
    """Without it, that is said to be unseen."""
    ours, theirs = pair

    async def main():
        loop = asyncio.get_running_loop()
        fd = ours.fileno()
        async with FdAudit(trace=True) as audit:
            loop.add_reader(fd, callback, 1)
            await asyncio.sleep(0.01)
            os.dup2(theirs.fileno(), fd)
            (stale,) = stale_registrations(loop)
            assert (stale.fd, stale.reason) == (fd, "reused")
            assert stale.added_at.startswith(__file__)
            loop.remove_reader(fd)
        assert audit.is_clean
        assert "uvloop does not show" in "".join(audit.unseen)

    uvloop.run(main())


def test_a_number_that_a_duplicate_keeps_in_the_kernels_list_is_stale(pair):
    """A closed fd whose socket is open under another number cannot even be unregistered."""
    ours, theirs = pair

    async def main():
        loop = asyncio.get_running_loop()
        fd = ours.fileno()
        loop.add_reader(fd, callback, 1)
        with ours.dup():
            ours.close()
            loop.remove_reader(fd)
            assert [(stale.fd, stale.reason) for stale in stale_registrations(loop)] == [(fd, "closed")]
            os.dup2(theirs.fileno(), fd)
            assert [(stale.fd, stale.reason) for stale in stale_registrations(loop)] == [(fd, "reused")]
            os.close(fd)

    asyncio.run(main())


def test_a_loop_that_is_busy_in_another_thread_is_not_suspected(dsn, runner_factory):
    """It adds and removes readers while it is looked at."""
    done = threading.Event()

    async def work():
        while not done.is_set():
            await leaks.use_psycopg(dsn)

    def run():
        with runner_factory() as runner:
            runner.run(work())

    thread = threading.Thread(target=run)
    thread.start()
    try:
        for _ in range(200):
            assert stale_registrations() == []
    finally:
        done.set()
        thread.join()


def test_an_entry_that_was_only_passing_by_is_not_suspected(monkeypatch):
    """One that looks the same at the second look is another."""
    loop, looks = asyncio.new_event_loop(), []

    def seen(_):
        looks.append(object())
        found = registrations.Registration(7, "reused", "a loop", None, None, None)
        return {(7, "reused"): registrations._Stale(looks[-1], found)}

    monkeypatch.setattr(registrations, "_stale_once", seen)
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        while not loop.is_running():
            pass
        assert stale_registrations(loop) == []
        assert len(looks) == 2
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_a_reader_that_somebody_waits_for_is_not_left(runner, pair):
    """A future that is yet to come tells; once it has come, the reader is left over."""
    ours, _ = pair

    async def main():
        loop = asyncio.get_running_loop()
        future = loop.create_future()

        def came():
            future.set_result(None)

        async with FdAudit(grace_seconds=0) as audit:
            loop.add_reader(ours, came)
            assert audit.is_clean
            future.set_result(None)
            assert [(left.fd, left.reason) for left in audit.registrations] == [(ours.fileno(), "left")]
            loop.remove_reader(ours)

    runner.run(main())


def test_a_stale_reader_is_found_before_its_loop_is_closed(runner_factory):
    """With tracing; afterwards there is nothing to be seen of it."""

    async def main():
        async with AsyncExitStack() as kept:
            await leaks.reader_left(None, kept)
            kept.pop_all()

    def run():
        with runner_factory() as runner:
            runner.run(main())

    with FdAudit(trace=True, grace_seconds=0) as audit:
        run()
    assert [leaks.line_of("reader_left") in str(left) for left in audit.registrations] == [True]
    with FdAudit(grace_seconds=0) as blind:
        run()
    assert blind.is_clean


def test_what_was_stale_before_is_not_the_blocks_fault(runner):
    """An audit tells what was added."""

    async def main():
        async with AsyncExitStack() as kept:
            await leaks.reader_left(None, kept)
            assert len(stale_registrations()) == 1
            async with assert_zero_fd_delta():
                await asyncio.sleep(0)

    runner.run(main())


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_a_loop_held_when_it_was_closed_is_orphaned(dsn):
    """With its line; that the collector closes it afterwards is why it is not left."""

    async def main():
        await leaks.pool_not_closed(dsn, AsyncExitStack())

    with FdAudit(trace=True) as audit:
        asyncio.run(main())
    assert audit.is_clean
    assert {fd.opened_at for fd in audit.orphaned} == {leaks.line_of("pool_not_closed") + "in pool_not_closed"}
    assert [fd.kind for fd in audit.orphaned] == ["socket", "socket"]


@pytest.mark.parametrize("program", leaks.CLEAN, ids=lambda program: program.__name__)
def test_a_clean_program_orphans_nothing(program, dsn, run):
    """Nor does a loop's own machinery count."""
    with FdAudit(trace=True) as audit:
        run(program(dsn))
    assert audit.orphaned == ()
