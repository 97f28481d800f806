"""A live view shows a pool from outside, whatever its loops do, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
import threading
import weakref
from typing import ClassVar

import pytest

from flavours import both
from forking import in_child
from live_view import GET, Face, ask, connect, look
from loopaware_pool._core.config import PoolConfig
from loopaware_pool._core.pool import PoolCore
from loopaware_pool._core.reporter import Reporter
from loopaware_pool._core.slot import Slot, SlotEvent, SlotState
from loopaware_pool._core.state import SharedState
from loopaware_pool.audit import FdAudit
from loopaware_pool.live import serve_live
from loopaware_pool.live.snapshot import SCHEMA, ForeignSnapshot, Snapshot
from loopaware_pool.testing import FakeDriver
from running import DEADLINE_SECONDS, LoopThread, eventually, eventually_async, make_pool

pytestmark = pytest.mark.both_pythons


# ---- what it shows ----


@pytest.mark.both_drivers
@pytest.mark.parametrize("flavour", both)
def test_it_shows_states_waiters_and_who_holds_what_since_when(flavour, dsn, address, run):
    """Of either flavour: the pool's own statistics and report. Nobody's query, DSN or password is in it."""

    async def hold(client, release):
        async with client.lend() as connection:
            assert await client.ask(connection, "SELECT 'secret'") == "secret"
            await release.wait()

    async def main():
        release = asyncio.Event()
        async with both[flavour](dsn, max_size=1) as client, asyncio.TaskGroup() as group:
            with serve_live(client.pool, address) as view:
                group.create_task(hold(client, release), name="the holder")
                group.create_task(hold(client, release), name="the waiter")
                await eventually_async(lambda: client.pool.stats().waiting, "a waiter")
                await eventually_async(lambda: client.pool.fd_report()[0].lease, "a holder")
                status, body = await asyncio.to_thread(ask, view.address)
                release.set()
            return status, body, client.pool

    status, body, pool = run(main())
    assert status == 200
    data = json.loads(body)
    assert (data["schema"], data["pid"]) == (SCHEMA, os.getpid())
    (shown,) = data["pools"]
    (loop,) = shown["stats"]["loops"]
    assert shown["stats"]["name"] == pool.name
    assert [loop[name] for name in ("lent", "idle", "waiting")] == [1, 0, 1]
    (row,) = shown["connections"]
    assert row["state"] == "lent"
    assert row["identity"]["inode"] > 0
    assert row["lease"]["task"] == "the holder"
    assert row["lease"]["held_seconds"] > 0
    assert row["lease"]["where"].endswith("in hold")
    assert __file__ in row["lease"]["where"]
    assert not [word for word in (dsn, dsn.partition("@")[0], "secret") if word in body.decode()]


def test_several_pools_and_loops_are_shown_together(dsn, path, loop_factory):
    """Each pool in its place, each of its loops with its own counts."""
    pools = [make_pool(dsn), make_pool(dsn)]

    async def use():
        await pools[0]
        async with pools[0].acquire() as connection:
            await connection.fetchval("SELECT 1")

    with (
        serve_live(iter(pools), path) as view,
        LoopThread(loop_factory) as one,
        LoopThread(loop_factory) as other,
    ):
        for loop in (one, other):
            loop.run(use())
        shown = look(view.address)
        assert [pool.stats.name for pool in shown.pools] == [pool.name for pool in pools]
        assert [loop.counters.acquired for loop in shown.pools[0].stats.loops] == [1, 1]
        assert shown.pools[1].stats.loops == ()


def test_it_answers_while_a_loop_is_blocked(dsn, path, loop_factory):
    """That is when one wants to look."""
    pool = make_pool(dsn)
    blocked, go_on = threading.Event(), threading.Event()

    async def block():
        await pool
        async with pool.acquire():
            blocked.set()
            assert go_on.wait(DEADLINE_SECONDS)

    with serve_live(pool, path) as view, LoopThread(loop_factory) as loop:
        working = loop.start(block())
        assert blocked.wait(DEADLINE_SECONDS)
        (shown,) = look(view.address).pools
        go_on.set()
        working.result(DEADLINE_SECONDS)
    assert shown.stats.lent == 1
    assert [row.state for row in shown.connections] == ["lent"]


def test_a_pool_that_is_looked_at_all_the_time_does_its_work(dsn, path, loop_factory):
    """Its loop changes what is being listed, and nobody hears of it."""
    pool = make_pool(dsn, max_size=3)

    async def worker():
        for number in range(60):
            async with pool.acquire() as connection:
                if number % 4 == 0:
                    connection.terminate()

    async def work():
        await pool
        await asyncio.gather(*[worker() for _ in range(6)])
        await pool.close()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with serve_live(pool, path) as view, LoopThread(loop_factory) as loop:
            working = loop.start(work())
            while not working.done():
                assert look(view.address).pid == os.getpid()
            working.result()
    finally:
        sys.setswitchinterval(interval)


def test_a_connection_may_change_while_it_is_described():
    """Asked from another thread: it is lent when its state is read, and given back before its holder is."""

    class Task:
        def get_name(self):
            return "the holder"

    class Flickering(Slot):
        __slots__ = ()
        answers: ClassVar = {"state": iter(SlotState), "holder": iter([])}

        def __getattribute__(self, name):
            answers = Flickering.answers.get(name)
            return super().__getattribute__(name) if answers is None else next(answers)

    slot, task = Flickering(0, float("inf")), Task()
    reporter = Reporter(SharedState(PoolConfig(min_size=0, init_size=0, max_size=1)), "loop-1")
    Flickering.answers |= {
        "state": iter([SlotState.LENT, SlotState.IDLE, SlotState.IDLE]),
        "holder": iter([weakref.ref(task), None]),
    }
    row = reporter.row(slot, asyncio.AbstractEventLoop())
    assert (row.state, row.lease.task, row.lease.held_seconds) == ("lent", "the holder", 0)


def test_a_connection_may_be_gone_before_it_is_described():
    """One that could not be opened never had a session."""
    slot = Slot(0, 0)
    slot.move(SlotEvent.CONNECT_FAILED)
    row = Reporter(SharedState(PoolConfig(min_size=0, init_size=0, max_size=1)), "loop-1").row(
        slot, asyncio.AbstractEventLoop()
    )
    assert (row.state, row.identity) == ("gone", None)


def test_a_pool_that_nobody_has_any_more_disappears(path):
    """The view does not keep it."""
    core = PoolCore(PoolConfig(min_size=0, init_size=0, max_size=3), FakeDriver(), face=Face())
    gone = weakref.ref(core)
    with serve_live([core], path) as view:
        assert len(look(view.address).pools) == 1
        del core
        gc.collect()
        assert gone() is None
        assert look(view.address).pools == ()


def test_what_is_written_can_be_read(core):
    """As it was; what another release adds is passed over."""
    taken = Snapshot.take([core])
    assert Snapshot.from_json(taken.to_json()) == taken
    data = json.loads(taken.to_json())
    data["more"] = data["pools"][0]["stats"]["more"] = 1
    assert Snapshot.from_json(json.dumps(data)) == taken


@pytest.mark.parametrize(
    "text", ["", "[]", "nonsense", "[" * 100_000, '{"schema": 1}', '{"schema": 1, "pools": [{"stats": 1}]}', b"\xff"]
)
def test_what_is_no_snapshot_is_refused(text):
    """Whatever it is."""
    with pytest.raises(ForeignSnapshot, match="it is not a snapshot of pools"):
        Snapshot.from_json(text)


def test_a_snapshot_of_another_schema_is_refused(core):
    """Both are named."""
    data = json.loads(Snapshot.take([core]).to_json()) | {"schema": 2}
    with pytest.raises(ForeignSnapshot, match="schema 2, and this release understands 1"):
        Snapshot.from_json(json.dumps(data))


# ---- the end ----


def test_it_leaves_nothing(core, address):
    """No fd, no thread, no file; not even of a client it was waiting for."""
    before = threading.enumerate()
    with FdAudit() as audit:
        for _ in range(3):
            with serve_live(core, address) as view:
                look(view.address)
                view.close()
            view.close()
    assert audit.leaked == ()
    assert [thread for thread in threading.enumerate() if thread not in before] == []
    assert not isinstance(address, os.PathLike) or not address.exists()


def test_what_cannot_be_opened_leaves_nothing(core, path, monkeypatch):
    """Neither socket nor file, if the last step fails."""

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with FdAudit() as audit, pytest.raises(RuntimeError, match="can't start"):
        serve_live(core, path)
    assert audit.leaked == ()
    assert not path.exists()


def test_a_program_that_ends_takes_it_along(path):
    """It need not close it, nor does the view keep it from ending."""
    code = f"""
from loopaware_pool import create_pool
from loopaware_pool.live import serve_live
pool = create_pool("postgresql://localhost/x")
serve_live(pool, {str(path)!r})
import os
assert os.path.exists({str(path)!r})
"""
    subprocess.run([sys.executable, "-c", code], timeout=DEADLINE_SECONDS, check=True)
    assert not path.exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_has_none(core, path, tmp_path):
    """It closes its copies, and leaves the parent's socket alone; it may open one of its own."""
    with serve_live(core, path) as view:

        def live_on():
            copies = [end.fileno() for end in (view._listener, view._spare, view._waker, view._woken)]
            view.close()
            with serve_live(core, tmp_path / "child.sock") as own:
                return copies, path.exists(), look(own.address).pid

        copies, is_there, pid = in_child(live_on)
        assert copies == [-1, -1, -1, -1]
        assert is_there
        assert look(view.address).pid == os.getpid() != pid
    assert not path.exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_client_gets_its_answer_although_a_child_was_forked_meanwhile(core, path):
    """The child has a copy of the client's connection, too, and closes it."""
    with serve_live(core, path) as view, connect(path) as client:
        eventually(lambda: view._clients, "the client to be accepted")

        def have_none():
            return [each.fileno() for each in view._clients]

        assert in_child(have_none) == [-1]
        client.sendall(GET)
        assert client.recv(12) == b"HTTP/1.0 200"
