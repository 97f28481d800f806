"""`fd_check`: what a pool finds of fds that have outlived their connections, and connections that have lost theirs."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
import warnings
import weakref
from contextlib import asynccontextmanager, contextmanager

import pytest

import flavours
from loopaware_pool._core.config import PoolConfig
from loopaware_pool._core.pool import PoolCore
from loopaware_pool._platform import sockets
from loopaware_pool._platform.sockets import SocketIdentity
from loopaware_pool.asyncpg.session import AsyncpgSession
from loopaware_pool.psycopg.session import PsycopgSession
from loopaware_pool.stats import ConnectionClosed, FdLeaked, FdLost, RegistrationLeft
from loopaware_pool.testing import FakeDriver, FakeSession
from running import LoopThread, end_abruptly, end_politely, eventually_async
from test_fork import in_child

pytestmark = [pytest.mark.both_pythons, pytest.mark.usefixtures("zero_fd_delta")]

SECONDS = 0.005
FINDINGS = (FdLeaked, FdLost, RegistrationLeft)


class SocketSession(FakeSession):
    """
    One that has a socket.

    Attributes:
        leaks: Whether closing it leaves the socket open.
    """

    says_goodbye = False

    def __init__(self, *, leaks):
        super().__init__()
        self.leaks = leaks
        self.sock = socket.socket()
        self.identity = SocketIdentity.of(self.sock.fileno())

    def abort(self):
        super().abort()
        if not self.leaks:
            self.sock.close()

    def discard(self, *, forked):
        super().discard(forked=forked)
        if not self.leaks:
            self.sock.close()


class SocketDriver(FakeDriver):
    """Makes such sessions; the next ones leak as `leaks` says."""

    leaks = False

    async def connect(self):
        made = await super().connect()
        session = SocketSession(leaks=self.leaks)
        self.sessions[self.sessions.index(made)] = session  # loops of other threads add theirs meanwhile
        return session


class Bench:
    """A pool on such a driver, and what it has told."""

    def __init__(self, **options):
        self.driver = SocketDriver()
        self.events = []
        self.tell = self.events.append
        sizes = {"min_size": 0, "init_size": 0, "max_size": 5, "name": "watched"}
        options = sizes | {"fd_check": SECONDS, "on_event": lambda event: self.tell(event)} | options
        self.core = PoolCore(PoolConfig(**options), self.driver, face=self)

    @property
    def found(self):
        return [event for event in self.events if isinstance(event, FINDINGS)]

    @property
    def counts(self):
        totals = self.core.stats().totals
        return totals.fds_leaked, totals.fds_lost, totals.registrations_left

    async def open(self, count):
        await self.core.open()
        for _ in range(count):
            await self.core.runner().open_one()

    async def replace(self, *, leaks):
        """Close every connection, and open another."""
        for session in self.driver.sessions:
            session.leaks = leaks
        self.core.drain()
        await self.open(1)

    async def looks(self, times=3):
        """Wait for so many more looks."""
        for _ in range(times):
            self.core.ledger.process_fds = None
            await eventually_async(lambda: self.core.ledger.process_fds, "a look")

    def end(self):
        self.core.terminate()
        for session in self.driver.sessions:
            session.sock.close()


@asynccontextmanager
async def bench(**options):
    made = Bench(**options)
    try:
        yield made
    finally:
        made.end()


def test_a_socket_that_outlives_its_connection_is_counted_told_and_logged_once(run, caplog):
    """Each with its fd and inode, the loop that had it, and why its connection was closed."""

    async def story():
        async with bench() as it:
            await it.open(2)
            identities = {session.identity for session in it.driver.sessions}
            await it.replace(leaks=True)
            await eventually_async(lambda: it.counts == (2, 0, 0), "two leaks")
            await it.looks()
            assert it.counts == (2, 0, 0)
            label = it.core.runner().label
            assert {(event.identity, event.owner, event.reason) for event in it.found} == {
                (identity, label, "expired") for identity in identities
            }
            assert len(it.found) == 2
            lines = [record.getMessage() for record in caplog.records if "still open" in record.getMessage()]
            assert len(lines) == 2
            assert all(any(f"fd {identity.fd} " in line for line in lines) for identity in identities)

    with caplog.at_level(logging.WARNING, "loopaware_pool"):
        run(story())


def test_a_socket_is_given_time_to_go(run):
    """One that is closed within an interval of its connection's end is no leak."""

    async def story():
        async with bench(fd_check=3600) as it:
            await it.open(1)
            await it.replace(leaks=True)
            check = it.core.runner()._leak_check
            check._look(3600)
            assert (it.counts, len(check._closed)) == ((0, 0, 0), 1)
            it.driver.sessions[0].sock.close()
            check._look(3600)
            assert (it.counts, len(check._closed)) == ((0, 0, 0), 0)

    run(story())


def test_sockets_that_go_with_their_connections_are_forgotten(run):
    """Nothing is found, and nothing is kept of them: the next file of that number is nobody's leak."""

    async def story():
        async with bench() as it:
            for _ in range(10):
                await it.open(1)
                await it.replace(leaks=False)
            await it.looks()
            assert it.found == []
            assert it.counts == (0, 0, 0)
            assert not it.core.runner()._leak_check._closed

    run(story())


def test_nothing_is_looked_at_unless_asked_for(run):
    """Then nothing is remembered of a connection that was closed."""

    async def story():
        async with bench(fd_check=None) as it:
            await it.open(1)
            await it.replace(leaks=True)
            await asyncio.sleep(4 * SECONDS)
            assert it.counts == (0, 0, 0)
            assert it.core.stats().process_fds is None
            assert not it.core.runner()._leak_check._closed

    run(story())


def test_a_driver_that_hides_its_sockets_has_nothing_counted(run):
    """What cannot be seen is not guessed."""

    async def story():
        async with bench() as it:
            it.driver.connect = lambda: FakeDriver.connect(it.driver)
            await it.open(1)
            it.core.drain()
            await asyncio.sleep(2 * SECONDS)
            assert it.counts == (0, 0, 0)
            it.driver.sessions.clear()

    run(story())


@pytest.mark.parametrize("reused", [False, True])
def test_an_idle_connection_without_its_socket_is_told_once(reused, run, caplog):
    """Whether its number is closed, or means another file by now. Nothing is done to that number."""

    async def story():
        async with bench(lends_dead=True) as it:
            await it.open(2)
            lost = it.driver.sessions[0]
            fd = lost.sock.detach()
            if reused:
                with open(os.devnull) as other:
                    os.dup2(other.fileno(), fd)
            else:
                os.close(fd)
            await eventually_async(lambda: it.counts == (0, 1, 0), "a lost fd")
            await it.looks()
            assert it.counts == (0, 1, 0)
            assert [(type(event), event.identity) for event in it.found] == [(FdLost, lost.identity)]
            assert f"fd {fd} of an idle connection" in caplog.text
            if reused:
                os.close(fd)

    run(story())


@pytest.mark.parametrize("loop_factory", [asyncio.SelectorEventLoop], ids=["asyncio"])
def test_a_registration_that_outlives_its_connection_is_told_once(run, caplog):
    """Also if its socket is gone. (uvloop does not show what it watches.)"""

    async def story():
        async with bench() as it:
            await it.open(1)
            fd = it.driver.sessions[0].identity.fd
            loop = asyncio.get_running_loop()
            loop.add_reader(fd, print)
            await it.replace(leaks=False)
            await eventually_async(lambda: it.counts == (0, 0, 1), "a registration")
            await it.looks()
            assert it.counts == (0, 0, 1)
            assert [type(event) for event in it.found] == [RegistrationLeft]
            assert f"still watches fd {fd}" in caplog.text
            loop.remove_reader(fd)

    run(story())


@pytest.mark.parametrize("loop_factory", [asyncio.SelectorEventLoop], ids=["asyncio"])
def test_a_registration_that_was_made_anew_is_its_makers(run):
    """The number belongs to another file by then."""

    async def story():
        async with bench(fd_check=3600) as it:  # no timer comes before the number has another registration
            await it.open(1)
            fd = it.driver.sessions[0].identity.fd
            loop = asyncio.get_running_loop()
            loop.add_reader(fd, print)
            await it.replace(leaks=False)
            loop.add_reader(fd, repr)
            it.core.runner()._leak_check._look(0)
            assert it.counts == (0, 0, 0)
            loop.remove_reader(fd)

    run(story())


@pytest.mark.parametrize("end", [end_politely, end_abruptly])
def test_what_a_loop_leaves_behind_is_found_by_the_next(end, loop_factory):
    """A loop that has ended looks no more; the next has the pool's number whole."""
    it = Bench()

    async def leak():
        await it.open(2)
        for session in it.driver.sessions:
            session.leaks = True

    async def find():
        await it.open(1)
        await eventually_async(lambda: it.counts == (2, 0, 0), "two leaks")
        await it.looks()

    end(loop_factory, leak())
    end_politely(loop_factory, find())
    assert it.counts == (2, 0, 0)
    assert len({event.owner for event in it.found}) == 1
    assert it.found[0].owner != it.found[0].loop
    it.end()


def test_loops_that_are_too_short_to_look_forget_what_has_gone(loop_factory):
    """Each looks once, at its first connection, so that nothing piles up."""
    it = Bench(fd_check=3600)
    for _ in range(5):
        end_politely(loop_factory, it.open(1))
        assert len(it.core.ledger.orphans) == 1
    it.end()


def test_loops_of_two_threads_find_each_its_own(loop_factory):
    """And what they find adds up."""
    it = Bench()

    async def leak():
        await it.open(1)
        slot = it.core.runner().shard.idle[0]
        slot.session.leaks = True
        it.core.runner().shard.retire_idle(slot, "planted")
        found = it.core.runner().shard.counters
        await eventually_async(lambda: found.fds_leaked, "a leak")
        return found.fds_leaked

    with LoopThread(loop_factory) as one, LoopThread(loop_factory) as other:
        assert [future.result(20) for future in (one.start(leak()), other.start(leak()))] == [1, 1]
        assert it.counts == (2, 0, 0)
    it.end()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_child_does_not_count_its_parents(run):
    """Neither what the parent has found, nor what it would."""
    it = Bench()

    async def leak():
        await it.open(1)
        await it.replace(leaks=True)
        child = in_child(live)
        await eventually_async(lambda: it.counts == (1, 0, 0), "a leak")
        return child

    async def look():
        it.events.clear()
        await it.open(1)
        await it.looks()
        return it.counts, len(it.found)

    def live():
        return run(look())

    assert run(leak()) == ((0, 0, 0), 0)
    it.end()


def test_a_pool_that_is_dropped_is_collected_though_it_looks(run):
    """The timer refers to nothing of it."""

    async def story():
        it = Bench()
        await it.open(1)
        core, sock = weakref.ref(it.core), it.driver.sessions[0].sock
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # of a pool that was not closed
            del it
            gc.collect()
            await asyncio.sleep(4 * SECONDS)
            gc.collect()
        assert core() is None
        sock.close()

    run(story())


def test_the_process_has_its_fds_counted(run):
    """As many as the system lists, at the last look."""

    async def story():
        async with bench() as it:
            await it.open(1)
            before = it.core.stats().process_fds
            files = [open(os.devnull) for _ in range(7)]  # noqa: SIM115
            await it.looks(1)
            assert it.core.stats().process_fds == before + 7
            for file in files:
                file.close()

    run(story())


def test_counting_fds_needs_no_recent_kernel(monkeypatch):
    """Linux before 6.2 does not tell the number: then the list is read."""
    told = sockets.open_fd_count()
    nothing = os.stat_result([0] * 10)
    monkeypatch.setattr(sockets.os, "stat", lambda folder: nothing)
    assert sockets.open_fd_count() == told
    monkeypatch.setattr(sockets.sys, "platform", "sunos5")
    assert sockets.open_fd_count() is None


def test_sockets_without_an_inode_are_told_apart_by_their_address(monkeypatch):
    """As on macOS: a number that is reused at once is no leak, one that is still the same socket is."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address, fd = server.getsockname(), server.fileno()
        identity = SocketIdentity.of(fd)
        bare = SocketIdentity(fd, 0, 0)
        monkeypatch.setattr(SocketIdentity, "of", classmethod(lambda cls, number: SocketIdentity(number, 0, 0)))

        def closed(address, identity=bare):
            return sockets.ClosedSocket(identity, address, None, 0.0, "loop", "closed")

        assert closed(address).is_open()
        assert not closed(("127.0.0.1", 1)).is_open()
        assert not closed(None).is_open()
        assert not closed(address, identity).is_open()
    assert sockets.local_address(fd) is None


# ---- with the drivers ----


@contextmanager
def planted():
    """Sessions that are not closed when the pool closes them, but here, at the end."""
    left = set()

    async def stay(session):
        left.add(session)

    with pytest.MonkeyPatch.context() as patch:
        for kind in (AsyncpgSession, PsycopgSession):
            patch.setattr(kind, "close", stay)
            patch.setattr(kind, "abort", lambda session: left.add(session))
        yield
    for session in left:
        session.abort()


@pytest.mark.both_drivers
@pytest.mark.parametrize("flavour", flavours.both.values(), ids=flavours.both)
def test_a_leak_is_found_in_either_flavour(flavour, dsn, run):
    """A connection that the pool has closed, and whose socket is still there."""

    async def story():
        events = []
        async with flavour(dsn, fd_check=0.05, on_event=events.append, min_size=0, max_size=2) as client:
            assert await client.value("SELECT 1") == 1
            (before,) = client.pool.fd_report()
            with planted():
                client.pool._core.drain()
                await eventually_async(lambda: client.pool.stats().totals.fds_leaked, "a leak")
            assert [event.identity for event in events if isinstance(event, FINDINGS)] == [before.identity]
            assert client.pool.stats().totals.fds_leaked == 1
            await asyncio.sleep(0.01)

    run(story())


@pytest.mark.both_drivers
@pytest.mark.parametrize("flavour", flavours.both.values(), ids=flavours.both)
def test_a_pool_that_leaks_nothing_finds_nothing(flavour, dsn, run):
    """However connections come to their end: too old, aborted by their user, cut under a query, on a loop that ends."""

    async def story():
        events = []
        async with flavour(dsn, fd_check=0.02, on_event=events.append, max_size=3) as client:
            for _ in range(5):
                assert await client.value("SELECT 1") == 1
                client.pool._core.drain()
            with pytest.raises(flavours.DRIVER_ERRORS):
                await client.value("SELECT pg_terminate_backend(pg_backend_pid())")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.do("SELECT pg_sleep(60)"), 0.05)
            await eventually_async(lambda: sum(isinstance(one, ConnectionClosed) for one in events) >= 6, "six ends")
            await asyncio.sleep(0.1)
            assert [event for event in events if isinstance(event, FINDINGS)] == []
            assert client.pool.stats().process_fds > 0

    run(story())
