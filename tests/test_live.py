"""A live view shows a pool from outside, whatever its loops do, to whom it concerns, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import json
import os
import socket
import stat
import subprocess
import sys
import threading
import time
import weakref
from typing import ClassVar

import pytest

from flavours import both
from forking import in_child
from loopaware_pool._core.config import PoolConfig
from loopaware_pool._core.pool import PoolCore
from loopaware_pool._core.reporter import Reporter
from loopaware_pool._core.slot import Slot, SlotEvent, SlotState
from loopaware_pool.audit import FdAudit
from loopaware_pool.live import serve_live
from loopaware_pool.live import server as live
from loopaware_pool.live.address import HostPort, SocketPath, parse_address
from loopaware_pool.live.snapshot import SCHEMA, ForeignSnapshot, Snapshot
from loopaware_pool.testing import FakeDriver
from running import DEADLINE_SECONDS, LoopThread, eventually, eventually_async, make_pool

pytestmark = pytest.mark.both_pythons

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Face:
    """The object that users of a core know."""


@pytest.fixture
def core():
    """A pool on a driver without a server; nobody uses it."""
    return PoolCore(PoolConfig(name="orders", min_size=0, init_size=0, max_size=3), FakeDriver(), face=Face())


@pytest.fixture
def path(tmp_path):
    return tmp_path / "pool.sock"


@pytest.fixture(params=["unix", "tcp"])
def address(request, path):
    return path if request.param == "unix" else "127.0.0.1:0"


def connect(address):
    where = parse_address(address)
    if isinstance(where, HostPort):
        return socket.create_connection((where.host, where.port), timeout=DEADLINE_SECONDS)
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(DEADLINE_SECONDS)
    client.connect(where.path)
    return client


def ask(address, request=GET):
    """The status, and the body; 0 and nothing where there is no answer."""
    with connect(address) as client:
        client.sendall(request)
        try:
            answer = b"".join(iter(lambda: client.recv(65536), b""))
        except ConnectionResetError:
            return 0, b""
    if not answer.startswith(b"HTTP/"):
        return 0, answer
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def look(address):
    status, body = ask(address)
    assert status == 200
    return Snapshot.from_json(body)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


# ---- what it shows ----


@pytest.mark.both_drivers
@pytest.mark.parametrize("flavour", both)
def test_it_shows_states_waiters_and_who_holds_what_since_when(flavour, dsn, address, loop_factory):
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

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        status, body, pool = runner.run(main())
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
    reporter = Reporter(PoolConfig(min_size=0, init_size=0, max_size=1), "loop-1")
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
    row = Reporter(PoolConfig(min_size=0, init_size=0, max_size=1), "loop-1").row(slot, asyncio.AbstractEventLoop())
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


# ---- whom it answers ----


def test_the_socket_is_its_owners_alone(core, path):
    """Mode 0600, whatever the umask."""
    before = os.umask(0)
    try:
        with serve_live(core, path):
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    finally:
        os.umask(before)


def test_no_mode_is_changed_by_name(core, path, monkeypatch):
    """A link put there after the bind would lead it elsewhere. The umask is as it was, where the bind fails, too."""
    monkeypatch.setattr(os, "chmod", None)
    before = os.umask(0o027)
    try:
        with serve_live(core, path):
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        with pytest.raises(OSError, match="no live view can be opened"):
            serve_live(core, path / "nowhere" / "x")
    finally:
        assert os.umask(before) == 0o027


@pytest.mark.parametrize("silent", [20, 60])
def test_clients_that_say_nothing_hold_up_nobody(silent, core, address, monkeypatch):
    """Anybody can connect over TCP. What was there longest makes room."""
    monkeypatch.setattr(live, "REQUEST_SECONDS", 3 * DEADLINE_SECONDS)
    with contextlib.ExitStack() as stack:
        view = stack.enter_context(serve_live(core, address))
        for _ in range(silent):
            stack.enter_context(connect(view.address)).sendall(b"GET / HT")
        began = time.monotonic()
        for _ in range(3):
            assert look(view.address).pools
        assert time.monotonic() - began < DEADLINE_SECONDS / 4
        eventually(lambda: len(view._clients) <= live.MOST_CLIENTS, "no more than that at a time")
        for each in view._clients.copy():
            with contextlib.suppress(OSError):  # it has made room
                each.shutdown(socket.SHUT_RDWR)


def test_its_end_waits_for_a_client_that_is_being_answered(core, address, monkeypatch):
    """Who has begun to ask has the answer."""
    monkeypatch.setattr(live, "REQUEST_SECONDS", DEADLINE_SECONDS)
    with serve_live(core, address) as view, connect(view.address) as client:
        client.sendall(GET[:8])
        eventually(lambda: view._clients, "the client to be accepted")
        closing = threading.Thread(target=view.close)
        closing.start()
        closing.join(0.1)
        assert closing.is_alive()
        client.sendall(GET[8:])
        assert client.recv(12) == b"HTTP/1.0 200"
        closing.join(DEADLINE_SECONDS)
        assert not view._clients


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.0\r\n\r\n", 200),
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1:80\r\n\r\n", 200),
        (b"GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", 200),
        (b"GET / HTTP/1.1\r\nHost: [::1]\r\n\r\n", 200),
        (b"GET / HTTP/1.1\r\nHost: LOCALHOST:80\r\n\r\n", 200),
        (b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", 421),
        (b"GET / HTTP/1.1\r\nHost: evil.example:80\r\n\r\n", 421),
        (b"GET /else HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\n\r\n", 501),
        (b"GET / HTTP/9.9\r\n\r\n", 0),  # told in HTML, without a head
        (b"GET /\r\nnonsense\r\n\r\n", 0),  # HTTP/0.9: without a head
        (b"\x00\xff\r\n\r\n", 0),
        (b"GET / HTTP/1.1\r\nHost: \xff\xfe\r\n\r\n", 421),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n", 431),
        (b"G" * 70_000, 414),
        (b"\r\n", 0),
    ],
)
def test_it_answers_one_question_and_goes_on(request_, status, core, address):
    """A web page's is not that one: it could have its own name mean this machine."""
    with serve_live(core, address) as view:
        answered, _ = ask(view.address, request_)
        assert answered == status or (status in (414, 431) and answered == 0)  # it hangs up on what is too long
        assert look(view.address).pools


@pytest.mark.parametrize("said", [b"", b"GET / HT"])
def test_a_client_that_takes_its_time_is_given_up(said, core, path, monkeypatch):
    """Others wait no longer than that."""
    monkeypatch.setattr(live, "REQUEST_SECONDS", 0.05)
    with serve_live(core, path) as view, connect(path) as slow:
        slow.sendall(said)
        assert look(view.address).pools
        assert slow.recv(1) == b""


def test_a_client_that_drips_is_given_up(core, path, monkeypatch):
    """Its time is for all of its request, not for each byte."""
    monkeypatch.setattr(live, "REQUEST_SECONDS", 0.2)
    with serve_live(core, path), connect(path) as slow, pytest.raises((BrokenPipeError, ConnectionResetError)):
        for _ in range(int(DEADLINE_SECONDS / 0.05)):
            slow.sendall(b"G")
            threading.Event().wait(0.05)


def test_a_client_that_goes_away_does_no_harm(core, address):
    """Before or after its question."""
    with serve_live(core, address) as view:
        for said in (b"", GET):
            with connect(view.address) as client:
                client.sendall(said)
        assert look(view.address).pools


def test_a_pool_that_cannot_be_looked_at_is_told_of_in_the_log(path, caplog):
    """The client learns where to read; the view goes on."""

    class Broken:
        def stats(self):
            raise LookupError("planted")

        def fd_report(self):
            raise NotImplementedError

    broken = Broken()
    with serve_live(broken, path) as view:
        assert ask(view.address)[0] == 500
        assert ask(view.address)[0] == 500
    assert "planted" in caplog.text


def test_it_answers_although_the_process_has_no_fd_left(tmp_path):
    """It has kept one for this."""
    code = f"""
import os, resource, socket, time
from loopaware_pool import create_pool
from loopaware_pool.live import serve_live
pool = create_pool("postgresql://localhost/x")
with serve_live(pool, {str(tmp_path / "pool.sock")!r}) as view:
    clients = [socket.socket(socket.AF_UNIX) for _ in range(3)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    for client in clients:
        while view._spare.fileno() < 0:
            time.sleep(0.001)
        try:
            while True:
                os.open(os.devnull, os.O_RDONLY)
        except OSError:
            pass
        client.settimeout({DEADLINE_SECONDS})
        client.connect(view.address)
        client.sendall({GET!r})
        assert client.recv(12) == b"HTTP/1.0 200"
        client.close()
"""
    subprocess.run([sys.executable, "-c", code], timeout=60, check=True)


# ---- where it is ----


def test_a_socket_of_a_process_that_is_gone_is_replaced(core, path):
    """It says so itself: nobody listens on it."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    with serve_live(core, path) as view:
        assert look(view.address).pools
    assert not path.exists()


@pytest.mark.parametrize("backlog", [0, 16])
def test_a_socket_of_a_process_that_lives_is_left_to_it(backlog, core, path):
    """Even if it has no time at the moment."""
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen(backlog)
        with connect(path), pytest.raises(OSError, match="a process that lives serves there already") as caught:
            serve_live(core, path)
        assert (caught.value.errno, caught.value.filename) == (errno.EADDRINUSE, str(path))
        assert path.exists()


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_is_no_socket_is_left_alone(kind, core, path):
    """It may be dear to somebody."""
    if kind == "folder":
        path.mkdir()
    elif kind == "file":
        path.write_text("dear")
    else:
        path.symlink_to("/nowhere")
    with pytest.raises(OSError, match="there is a file that is no socket") as caught:
        serve_live(core, path)
    assert caught.value.errno == errno.EEXIST
    assert path.is_symlink() or path.exists()


def test_it_takes_its_socket_along_and_no_other(core, path):
    """Somebody may have put another in its place meanwhile."""
    view = serve_live(core, path)
    path.unlink()
    path.write_text("another's")
    view.close()
    assert path.read_text() == "another's"


def test_a_port_that_is_taken_is_an_error(core):
    """With the address, and the system's reason."""
    with serve_live(core, "127.0.0.1:0") as view, pytest.raises(OSError, match="no live view can be opened") as caught:
        serve_live(core, view.address)
    assert (caught.value.errno, caught.value.filename) == (errno.EADDRINUSE, view.address)


def test_a_folder_that_is_not_there_is_an_error(core, path):
    """The system's."""
    with pytest.raises(FileNotFoundError) as caught:
        serve_live(core, path.parent / "nowhere" / "pool.sock")
    assert caught.value.filename.endswith("nowhere/pool.sock")
    with pytest.raises(OSError, match="path too long") as caught:
        serve_live(core, "/" + "x" * 200)
    assert caught.value.filename == "/" + "x" * 200


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("/run/app/pool.sock", SocketPath("/run/app/pool.sock")),
        ("pool.sock", SocketPath("pool.sock")),
        ("./a:1", SocketPath("./a:1")),
        ("127.0.0.1:8125", HostPort("127.0.0.1", 8125)),
        ("localhost:0", HostPort("localhost", 0)),
        ("http://127.0.0.1:8125/", HostPort("127.0.0.1", 8125)),
        ("http://[::1]:8125", HostPort("::1", 8125)),
    ],
)
def test_an_address_is_a_path_or_a_host_and_a_port(text, meant):
    """And is written as it can be read."""
    assert parse_address(text) == meant
    assert parse_address(str(meant)) == meant


@pytest.mark.parametrize(
    "text",
    ["", "8125", ":8125", "host:", "host:99999", "host:port", "https://h:1", "http://h", "http://h:1/x", "a\0b"]
    + [f"postgresql://me:hunter2@host/{name}" for name in ("db", "db?a=b")],
)
def test_another_address_is_not_understood(text, core):
    """One line that says what is, without a password."""
    with pytest.raises(ValueError, match=r"^address=.*: expected the path of a Unix socket, .* or host:port") as caught:
        serve_live(core, text)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_arguments_are_named(core, path):
    """Before anything is opened."""
    for pools in (None, 5, "orders", [core, 5], object()):
        with pytest.raises(TypeError, match=r"^pools .*: expected"):
            serve_live(pools, path)
    with pytest.raises(ValueError, match="pools is empty"):
        serve_live([], path)
    for address in (None, 8125, b"/run/pool.sock", os):
        with pytest.raises(TypeError, match=r"^address="):
            serve_live(core, address)
    assert not path.exists()


@pytest.mark.parametrize("address", ["0.0.0.0:0", "db.example:8125", "[::]:0"])
def test_other_machines_are_let_in_only_if_told_to(address, core):
    """There is neither a password nor encryption."""
    with pytest.raises(ValueError, match=r"other machines could reach it; .* or allow_remote=True"):
        serve_live(core, address)


def test_other_machines_are_let_in_if_told_to(core):
    """All addresses of this one are served then."""
    with serve_live(core, "0.0.0.0:0", allow_remote=True) as view:
        assert look(view.address.replace("0.0.0.0", "127.0.0.1")).pools


# ---- the end ----


def test_it_leaves_nothing(core, address):
    """No fd, no thread, no file; not even of a client it was waiting for."""
    threads = threading.active_count()
    with FdAudit() as audit:
        for _ in range(3):
            with serve_live(core, address) as view:
                look(view.address)
                view.close()
            view.close()
    assert audit.leaked == ()
    assert threading.active_count() == threads
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
