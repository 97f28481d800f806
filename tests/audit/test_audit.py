"""The audit finds what is left behind, by number and kind, and calls nothing left that is not."""

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

import psycopg
import pytest

import leaks
from loopaware_pool.audit import (
    FdAudit,
    assert_zero_fd_delta,
)

pytestmark = [pytest.mark.thorough, pytest.mark.both_pythons, pytest.mark.both_drivers]
SHORT_SECONDS = 0.1


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
def test_whole_loops_are_clean_too(program, dsn, run):
    """What a loop opens for itself is gone when it is closed."""
    for _ in range(5):
        with assert_zero_fd_delta(trace=True):
            run(program(dsn))


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
