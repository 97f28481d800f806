"""The audit finds what is left behind, by number, kind and line, and calls nothing left that is not."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import AsyncExitStack, ExitStack

import psutil
import psycopg
import pytest
import uvloop

import leaks
from loopaware_pool.audit import (
    AuditUnavailable,
    FdAudit,
    assert_zero_fd_delta,
    fd_leak_per,
    open_files,
    registrations,
    stale_registrations,
    tracing,
)
from loopaware_pool.audit.open_files import open_fds

pytestmark = [pytest.mark.both_pythons, pytest.mark.both_drivers]

SHORT_SECONDS = 0.1


@pytest.fixture
def runner(loop_factory):
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        yield runner


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def small_heap():
    """Keeps the collector's work to what a test makes, for tests that have it run often."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


# ---- what is planted is found ----


@pytest.mark.parametrize("way", leaks.WAYS, ids=lambda way: way.__name__)
def test_a_planted_leak_is_named_with_its_line(way, dsn, runner):
    """Whatever way it came about, on asyncio and uvloop."""

    async def main():
        async with AsyncExitStack() as kept:
            with pytest.raises(AssertionError) as caught:
                async with assert_zero_fd_delta(trace=True, grace_seconds=SHORT_SECONDS):
                    await way(dsn, kept)
        assert leaks.line_of(way.__name__) in str(caught.value)

    runner.run(main())


def test_a_loop_that_is_closed_early_is_named_with_the_line():
    """asyncio leaves the sockets of its transports open; uvloop closes them itself."""
    with ExitStack() as kept:
        with pytest.raises(AssertionError) as caught, assert_zero_fd_delta(trace=True, grace_seconds=SHORT_SECONDS):
            leaks.loop_closed_early(kept, asyncio.new_event_loop)
        assert leaks.line_of("loop_closed_early") in str(caught.value)
        assert "1 fd left open" in str(caught.value)


@pytest.mark.parametrize("way", leaks.WAYS, ids=lambda way: way.__name__)
def test_a_planted_leak_is_found_without_tracing(way, dsn, runner):
    """Only the line is not known then, and the message says how to know it."""

    async def main():
        async with AsyncExitStack() as kept:
            async with FdAudit(grace_seconds=SHORT_SECONDS) as audit:
                await way(dsn, kept)
            assert audit.leaked or audit.registrations
            assert "trace=True" in audit.report()
            assert not any(fd.opened_at for fd in audit.leaked)

    runner.run(main())


def test_what_was_left_is_described(runner):
    """By fd, kind, inode and peer; before and after are there too, and the delta."""

    async def main():
        with socket.create_server(("127.0.0.1", 0)) as server:
            async with FdAudit(grace_seconds=0) as audit:
                sock = socket.create_connection(server.getsockname())
            with sock:
                (leaked,) = audit.leaked
                assert (leaked.fd, leaked.inode) == (sock.fileno(), os.fstat(sock.fileno()).st_ino)
                assert (leaked.kind, leaked.peer) == ("socket", f"127.0.0.1:{server.getsockname()[1]}")
                assert audit.delta == len(audit.after) - len(audit.before) == 1
                assert not audit.is_clean
                assert str(leaked) in repr(audit)

    runner.run(main())


@pytest.mark.parametrize(
    ("open_two", "kind"),
    [
        (os.pipe, "pipe"),
        (lambda: (os.open("/", os.O_RDONLY), os.open("/dev/null", os.O_RDONLY)), "file"),
        (lambda: (os.eventfd(0), os.eventfd(0)), "eventfd"),
    ],
    ids=["pipe", "file", "eventfd"],
)
def test_what_is_no_socket_counts_too(open_two, kind):
    """A pipe, a file and an eventfd are fds like any other."""
    with FdAudit(grace_seconds=0) as audit:
        ends = open_two()
    for end in ends:
        os.close(end)
    assert [fd.kind for fd in audit.leaked] == [kind, kind]


def test_a_tolerance_allows_so_many_fds(pair):
    """And not one more; registrations it never allows."""
    with assert_zero_fd_delta(tolerance=1, grace_seconds=0):
        one = socket.socket()
    with (
        one,
        pytest.raises(AssertionError, match=r"2 fds left open"),
        assert_zero_fd_delta(tolerance=1, grace_seconds=0),
    ):
        others = socket.socket(), socket.socket()
    for other in others:
        other.close()
    with pytest.raises(ValueError, match="tolerance is a number of fds, 0 or more, not -1"):
        assert_zero_fd_delta(-1)


def test_the_error_of_the_block_comes_first(pair):
    """An audit does not hide what went wrong in it."""
    with pytest.raises(ZeroDivisionError), assert_zero_fd_delta():
        one = socket.socket()
        1 / 0  # noqa: B018
    one.close()


def test_a_cancelled_block_is_cancelled(runner):
    """Nor does it swallow a cancellation, or wait."""

    async def main():
        sockets = []

        async def work():
            async with assert_zero_fd_delta(grace_seconds=60):
                sockets.append(socket.socket())
                await asyncio.sleep(60)

        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 20)
        sockets.pop().close()

    runner.run(main())


# ---- what is not left is not called left ----


@pytest.mark.usefixtures("small_heap")
def test_a_clean_program_is_called_clean_200_times_in_a_row(dsn, runner):
    """asyncpg, psycopg and one that knows no PostgreSQL; a thread always has some other socket open."""
    done = threading.Event()

    def come_and_go():
        present = socket.create_server(("127.0.0.1", 0))
        while not done.wait(0.001):
            successor = socket.create_server(("127.0.0.1", 0))
            present.close()
            present = successor
        present.close()

    async def main(number):
        async with assert_zero_fd_delta(trace=True, grace_seconds=20):
            await leaks.CLEAN[number % len(leaks.CLEAN)](dsn)

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        for number in range(100):  # twice: once for each loop
            runner.run(main(number))
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("program", leaks.CLEAN, ids=lambda program: program.__name__)
def test_whole_loops_are_clean_too(program, dsn, loop_factory):
    """What a loop opens for itself is gone when it is closed."""
    for _ in range(5):
        with assert_zero_fd_delta(trace=True), asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(program(dsn))


def test_garbage_is_not_left_behind():
    """A socket that only waits for the collector is not taken for a leak, unless asked."""

    def drop():
        ring = [socket.socket()]
        ring.append(ring)

    gc.disable()
    try:
        strict = FdAudit(collect_garbage=False, grace_seconds=0)
        strict.start()
        drop()
        assert strict.delta == 1
        with pytest.warns(ResourceWarning):
            gc.collect()
        assert strict.delta == 0
        strict.finish()
        with pytest.warns(ResourceWarning), FdAudit(grace_seconds=0) as lenient:
            drop()
        assert lenient.is_clean
    finally:
        gc.enable()


def test_a_transport_that_is_being_closed_is_not_left_behind(runner):
    """asyncio closes its socket in the loop's next turn, which a sync audit in a coroutine cannot wait for."""

    async def main():
        async def hang_up(reader, writer):
            writer.close()

        async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
            reader, peer = await asyncio.open_connection(*server.sockets[0].getsockname())
            await reader.read()
            async with assert_zero_fd_delta():
                _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
                writer.close()
            peer.close()
            await peer.wait_closed()

    runner.run(main())


def test_the_grace_begins_when_the_garbage_is_collected(runner, monkeypatch):
    """Which takes its time in a large program on a busy machine: the loop has its turns all the same."""
    collect = gc.collect

    def collect_slowly():
        time.sleep(0.2)
        return collect()

    async def main():
        with socket.create_server(("127.0.0.1", 0)) as server:
            async with assert_zero_fd_delta(grace_seconds=0.1):
                _, writer = await asyncio.open_connection(*server.getsockname())
                writer.close()
            await writer.wait_closed()

    monkeypatch.setattr(gc, "collect", collect_slowly)
    runner.run(main())


def test_a_sync_audit_sees_that_a_transport_is_closing():
    """For asyncio tells; uvloop does not."""

    async def main():
        with socket.create_server(("127.0.0.1", 0)) as server:
            with assert_zero_fd_delta():
                loop = asyncio.get_running_loop()
                sock = socket.create_connection(server.getsockname())
                transport, _ = await loop.create_connection(asyncio.Protocol, sock=sock)
                transport.close()
            await asyncio.sleep(0.01)

    asyncio.run(main())


def test_a_connection_in_another_ones_place_is_not_one_more(dsn):
    """Here one replaces another, as pools do; a second would count."""
    old = psycopg.connect(dsn)
    with assert_zero_fd_delta():
        new = psycopg.connect(dsn)
        old.close()
    with pytest.raises(AssertionError, match="1 fd left open"), assert_zero_fd_delta(grace_seconds=0):
        new.close()
        others = psycopg.connect(dsn), psycopg.connect(dsn)
    for other in others:
        other.close()


def test_a_place_is_not_taken_by_something_else(pair):
    """What was closed does not make up for what was left open, if they have nothing in common."""
    with pytest.raises(AssertionError, match=r"1 fd left open:\n  fd \d+: socket TCP"), assert_zero_fd_delta():
        pair[0].close()
        other = socket.socket()
    other.close()


def test_what_another_thread_closes_soon_is_not_left_behind():
    """The grace is for that."""
    opened, sockets = threading.Event(), []

    def work():
        with socket.socket():
            opened.set()
            sockets.append(finish.wait(20))

    finish = threading.Event()
    thread = threading.Thread(target=work)
    with assert_zero_fd_delta(grace_seconds=20):
        thread.start()
        opened.wait()
        threading.Timer(0.05, finish.set).start()
    thread.join()
    assert sockets == [True]


def test_what_is_excluded_is_not_counted():
    """As a server that is started for all tests."""
    with assert_zero_fd_delta(grace_seconds=0) as audit:
        with audit.excluding():
            server = socket.socket()
        assert audit.delta == 0
        with socket.socket():
            assert audit.delta == 1
    server.close()


FIRST_USE = """
import asyncio, socket, sys
from loopaware_pool.audit import assert_zero_fd_delta

async def main():
    await asyncio.sleep(0)

with assert_zero_fd_delta(grace_seconds=0):
    {}
"""


@pytest.mark.parametrize(
    "use",
    [
        "import uvloop; uvloop.run(main())",
        "import multiprocessing.resource_tracker as tracker; tracker.ensure_running()",
        "asyncio.run(main())",
        "socket.getaddrinfo('localhost', 80)",
        "import ssl, sqlite3, urllib.request; ssl.create_default_context()",
    ],
)
def test_what_is_opened_once_for_the_life_of_a_process_is_no_leak(use):
    """Nor is the first use of anything in the standard library."""
    subprocess.run([sys.executable, "-c", FIRST_USE.format(use)], check=True, timeout=60)


def test_a_pipe_beside_uvloops_own_is_a_leak():
    """What uvloop keeps is known by what is in it; another pipe is not excused by it."""
    use = "import os, uvloop; print(*os.pipe()); uvloop.run(main())"
    done = subprocess.run([sys.executable, "-c", FIRST_USE.format(use)], capture_output=True, text=True, timeout=60)
    assert "2 fds left open" in done.stderr
    assert [f"fd {fd}: pipe" in done.stderr for fd in done.stdout.split()] == [True, True]


# ---- lines ----


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


# ---- registrations ----


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


def test_a_loop_that_is_busy_in_another_thread_is_not_suspected(dsn, loop_factory):
    """It adds and removes readers while it is looked at."""
    done = threading.Event()

    async def work():
        while not done.is_set():
            await leaks.use_psycopg(dsn)

    def run():
        with asyncio.Runner(loop_factory=loop_factory) as runner:
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


def test_a_stale_reader_is_found_before_its_loop_is_closed(loop_factory):
    """With tracing; afterwards there is nothing to be seen of it."""

    async def main():
        async with AsyncExitStack() as kept:
            await leaks.reader_left(None, kept)
            kept.pop_all()

    def run():
        with asyncio.Runner(loop_factory=loop_factory) as runner:
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
def test_a_clean_program_orphans_nothing(program, dsn, loop_factory):
    """Nor does a loop's own machinery count."""
    with FdAudit(trace=True) as audit, asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(program(dsn))
    assert audit.orphaned == ()


# ---- per so many ----


def test_a_leak_is_measured_per_10_000():
    """One fd in four runs is 2,500 in 10,000."""
    opened, numbers = [], iter(range(1000))

    async def leak():
        if next(numbers) % 4 == 0:
            opened.append(socket.socket())

    assert asyncio.run(fd_leak_per(10_000, leak, runs=100)) == 2500
    assert asyncio.run(fd_leak_per(10_000, lambda: None)) == 0
    for one in opened:
        one.close()


@pytest.mark.parametrize("per_leak", [50, 100, 150])
def test_a_slow_leak_is_told_from_a_pool_that_grows(per_leak):
    """A pool grows while it is first used, in no time that is known; a leak goes on."""
    kept, runs = [], iter(range(100_000))

    def grow_and_leak():
        run = next(runs)
        if (10 < run < 250 and run % 20 == 0) or run % per_leak == per_leak - 1:
            kept.append(socket.socket())

    try:
        assert asyncio.run(fd_leak_per(10_000, grow_and_leak, runs=300, tasks=5)) == 10_000 / per_leak
    finally:
        for sock in kept:
            sock.close()


def test_a_pool_that_grows_leaks_nothing(dsn):
    """Fifty tasks that find two connections have it open more, some of them late."""

    async def measure():
        from loopaware_pool import create_pool

        async with create_pool(dsn, min_size=2, max_size=20) as pool:
            return await fd_leak_per(10_000, lambda: pool.fetchval("SELECT 1"), runs=1000, tasks=50)

    assert [asyncio.run(measure()) for _ in range(5)] == [0] * 5


def test_what_a_pool_keeps_is_no_leak(dsn, runner):
    """Connections that are open before the count starts are not counted."""

    async def main():
        from loopaware_pool import create_pool

        async with create_pool(dsn, min_size=5, max_size=5) as pool:
            assert await fd_leak_per(10_000, lambda: pool.fetchval("SELECT 1"), runs=500, tasks=5) == 0

    runner.run(main())


@pytest.mark.parametrize("options", [{"count": 0}, {"count": 1, "runs": 0}, {"count": 1, "tasks": -1}])
def test_numbers_that_make_no_sense_are_refused(options):
    """By name."""
    with pytest.raises(ValueError, match=r"(count|runs|tasks) must be at least 1, not"):
        asyncio.run(fd_leak_per(operation=lambda: None, **options))


# ---- platforms ----


def test_dev_fd_shows_the_same_as_proc(pair):
    """The way of macOS and BSD, tried here: the same numbers, kinds and peers."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        proc = {fd.fd: (fd.kind, fd.peer) for fd in open_files._read_proc().values() if fd.kind in ("socket", "pipe")}
        dev = {fd.fd: (fd.kind, fd.peer) for fd in open_files._read_dev_fd().values() if fd.kind in ("socket", "pipe")}
    assert proc == dev


def test_numbers_that_dev_fd_does_not_list_are_tried(pair, monkeypatch):
    """FreeBSD without fdescfs lists three."""
    listed = open_files._read_dev_fd()
    monkeypatch.setattr(open_files, "_lists_all", lambda: False)
    assert open_files._read_dev_fd() == listed


def test_psutil_shows_sockets(monkeypatch):
    """The way of Windows, tried here: sockets that have an address."""
    monkeypatch.setattr(open_files, "_reader", lambda: open_files._read_windows)
    with FdAudit(trace=True, grace_seconds=0) as audit:
        server = socket.create_server(("127.0.0.1", 0))
    server.close()
    assert [fd.kind for fd in audit.leaked] == ["socket"]
    assert "on Windows only sockets with an address are seen" in audit.report()


def test_windows_without_psutil_says_what_to_do(monkeypatch):
    """One line."""
    monkeypatch.setattr(open_files, "_reader", lambda: open_files._read_windows)
    monkeypatch.setitem(sys.modules, "psutil", None)
    with pytest.raises(AuditUnavailable, match="pip install psutil"), FdAudit():
        pass


def test_an_exhausted_process_is_told_so():
    """Looking takes an fd; without one, nothing is guessed."""
    code = """
import os, resource
from loopaware_pool.audit import AuditUnavailable, FdAudit
resource.setrlimit(resource.RLIMIT_NOFILE, (50, 50))
try:
    while True:
        os.dup(0)
except OSError:
    pass
try:
    FdAudit().start()
except AuditUnavailable as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "ulimit -n" in done.stdout


def test_looking_opens_nothing():
    """The audit's own fds are not among what it sees, and gone afterwards."""
    before = psutil.Process().num_fds()
    seen = open_fds()
    assert psutil.Process().num_fds() == before
    assert all(os.fstat(fd.fd) for fd in seen.values())
