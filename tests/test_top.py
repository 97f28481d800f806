"""`top` tells of a snapshot in words, keeps to its time, and ends with one line where there is nothing to see."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from dataclasses import replace

import pytest

from between import own_port
from loopaware_pool._core.config import PoolConfig
from loopaware_pool._core.pool import PoolCore
from loopaware_pool._platform.sockets import SocketIdentity
from loopaware_pool.cli.console import VisibleConsole
from loopaware_pool.cli.top import command
from loopaware_pool.cli.top import screen as top_screen
from loopaware_pool.cli.top.page import Room, make_page
from loopaware_pool.live import serve_live
from loopaware_pool.live.snapshot import SCHEMA, ForeignSnapshot, PoolSnapshot, Snapshot
from loopaware_pool.stats import ConnectionReport, Counters, Histogram, LeaseInfo, LoopStats, PoolStats
from loopaware_pool.testing import FakeDriver
from running import DEADLINE_SECONDS, child_process

pytestmark = pytest.mark.both_pythons

EVERYTHING = Room(1000, 1000)
COMMAND = [sys.executable, "-m", "loopaware_pool", "top"]


def loop_stats(name="loop-1 (MainThread)", **counts):
    states = dict.fromkeys(("connecting", "idle", "lent", "resetting", "closing", "waiting"), 0)
    return LoopStats(loop=name, **(states | {"counters": Counters()} | counts))


def pool_stats(*loops, name="orders", **options):
    return PoolStats(**{"name": name, "min_size": 0, "max_size": 10, "loops": loops, "ended": Counters()} | options)


def lease(held_seconds, task="a task", where="/app/db.py:12 in ask", *, fd=7, loop="loop-1 (MainThread)"):
    return ConnectionReport(
        SocketIdentity(fd, 8, 4711), loop, "lent", registered=True, lease=LeaseInfo(held_seconds, task, where)
    )


def snapshot(*pools, at=100.0, pid=1234):
    return Snapshot(SCHEMA, pid, 0.0, at, tuple(PoolSnapshot(stats, tuple(rows)) for stats, rows in pools))


def counters(acquired, waited=0, **others):
    """So many leases, of which so many had waited."""
    return Counters(began_at_once=acquired - waited, wait_times=Histogram([waited] + [0] * 16), **others)


def told(now, before=None, room=EVERYTHING, *, width=1000):
    console = VisibleConsole(io.StringIO(), width=width, color_system=None)
    console.print(make_page(now, before, "/run/pool.sock", room))
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


# ---- words ----


def test_a_first_look_tells_of_states_and_of_all_that_has_happened():
    """Since the pool was made: there is nothing to compare with."""
    so_far = counters(acquired=12, waited=4, waited_seconds=0.01, used_seconds=1.0, timed_out=1, refused=2, shed=3)
    stats = pool_stats(loop_stats(lent=2, idle=1, waiting=3, counters=so_far), ended=Counters(opened=1500))
    assert told(snapshot((stats, []))).partition("\n")[2] == (
        """
pool orders
lent  idle  connecting  resetting  closing  waiting  mean wait  mean use
2/10     1           0          0        0        3     2.5 ms  100.0 ms

acquired  waited  timed out  refused  opened  closed  errors
      12       4          1        5   1,500       0       0  so far
no connection is lent"""
    )


def test_a_second_look_tells_what_happened_in_between():
    """Per second of the pool's own clock; means of what was new."""
    first = counters(acquired=100, waited=10, waited_seconds=5.0, used_seconds=50.0)
    second = counters(acquired=3100, waited=20, waited_seconds=5.5, used_seconds=53.0, timed_out=1, connect_failures=4)
    before = snapshot((pool_stats(loop_stats(counters=first)), []))
    now = snapshot((pool_stats(loop_stats(counters=second)), []), at=102.0)
    assert told(now, before).splitlines()[3:8] == [
        "lent  idle  connecting  resetting  closing  waiting  mean wait  mean use",
        "0/10     0           0          0        0        0    50.0 ms    1.0 ms",
        "",
        "acquired  waited  timed out  refused  opened  closed  errors",
        "   1,500     5.0        0.5        0       0       0     2.0  per second",
    ]


def test_what_a_loop_that_ends_has_done_is_not_undone():
    """Its numbers are in neither place for a moment."""
    before = snapshot((pool_stats(loop_stats(counters=counters(acquired=100))), []))
    now = snapshot((pool_stats(), []), at=101.0)
    assert "       0       0          0        0       0       0       0  per second" in told(now, before)


@pytest.mark.parametrize(
    "other", [{"pid": 1}, {"at": 100.0}, {"name": "others"}], ids=["another process", "no time", "another pool"]
)
def test_only_what_belongs_together_is_compared(other):
    """A process of the same address may be another one by now."""
    stats = pool_stats(loop_stats(counters=counters(acquired=5)))
    name = other.pop("name", "orders")
    now = snapshot((replace(stats, name=name), []), **{"at": 101.0} | other)
    assert "so far" in told(now, snapshot((stats, [])))


def test_pools_of_one_name_are_compared_in_their_order():
    """The first with the first."""
    counts = [pool_stats(loop_stats(counters=counters(acquired=count))) for count in (10, 20, 11, 22)]
    before, now = snapshot(*((one, []) for one in counts[:2])), snapshot(*((one, []) for one in counts[2:]), at=101.0)
    rates = [line.split()[0] for line in told(now, before).splitlines() if line.endswith("per second")]
    assert rates == ["1.0", "2.0"]


def test_loops_are_told_apart_if_there_are_several():
    """A row each; with one, that of the pool tells it."""
    one, other = loop_stats(lent=1), loop_stats("loop-2 (worker)", waiting=2, counters=counters(acquired=7))
    text = told(snapshot((pool_stats(one, other), [])))
    assert "   1     0           0          0        0        0         0  loop-1 (MainThread)" in text
    assert "   0     0           0          0        0        2         7  loop-2 (worker)" in text
    assert " loop" not in told(snapshot((pool_stats(one), [])))


def test_holders_are_told_longest_first():
    """With the age, the fd, the task and the line; those there is no room for are counted."""
    rows = [
        lease(0.0042),
        lease(3723.0, None, fd=8),
        lease(61.0, "report", None),
        ConnectionReport(None, "loop-1 (MainThread)", "connecting", registered=None, lease=None),
    ]
    stats = pool_stats(loop_stats(lent=3))
    assert told(snapshot((stats, rows))).splitlines()[-4:] == [
        "  held for  fd  task         acquired at",
        "1 h 02 min   8  (has ended)  /app/db.py:12 in ask",
        "1 min 01 s   7  report       -",
        "    4.2 ms   7  a task       /app/db.py:12 in ask",
    ]
    assert told(snapshot((stats, rows)), room=Room(1, 12)).splitlines()[-2:] == [
        "1 h 02 min   8  (has ended)  ...12 in ask",
        "and 2 more",
    ]


def test_names_cannot_command_the_terminal():
    """A task may be called anything."""
    nasty = "\x1b[2J\r\n\u202e"
    row = lease(1.0, nasty, nasty, loop=nasty)
    text = told(snapshot((pool_stats(loop_stats(nasty), loop_stats(), name=nasty), [row])))
    assert not {*text} & {*nasty} - {"\n", "[", "2", "J"}


def test_the_heading_tells_whose_pools_these_are():
    """And if there are none."""
    assert told(snapshot((pool_stats(), []))).splitlines()[0].endswith("process 1234 at /run/pool.sock")
    assert told(snapshot()).endswith("process 1234 at /run/pool.sock: no pool is left")


# ---- the command ----


@pytest.fixture
def view(tmp_path):
    """Of a pool that nobody uses."""
    driver = FakeDriver()
    core = PoolCore(PoolConfig(name="orders", min_size=0, init_size=0, max_size=3), driver, face=driver)
    with serve_live(core, tmp_path / "pool.sock") as view:
        yield view


def run(*arguments, **options):
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60, check=False, **options)
    return done.returncode, done.stdout, done.stderr


def without_rich(tmp_path):
    """An environment in which it is not installed."""
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['rich'] = None\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path}


def test_one_look_is_text(view):
    """Without colours, and no line of it is cut, whatever the environment says."""
    environment = os.environ | {"COLUMNS": "20", "FORCE_COLOR": "1"}
    code, out, err = run(view.address, "--once", env=environment)
    assert (code, err) == (0, "")
    assert f"process {os.getpid()} at {view.address}\n\npool orders\nlent  idle" in out
    assert "\n 0/3 " in out
    assert "\x1b" not in out


def test_one_look_is_an_object(view):
    """The one that the view serves, in a line."""
    code, out, err = run(view.address, "--once", "--json")
    assert (code, err) == (0, "")
    assert out.count("\n") == 1
    assert json.loads(out)["pools"][0]["stats"]["name"] == "orders"


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_it_goes_on_until_its_reader_has_enough(options, view):
    """Without a word of complaint."""
    with child_process(
        [*COMMAND, view.address, "--interval", "0.01", *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as watching:
        lines = [watching.stdout.readline() for _ in range(60)]
        watching.stdout.close()
        assert watching.wait(DEADLINE_SECONDS) == 0
        assert watching.stderr.read() == b""
    assert any(b'"schema"' in line if options else b"per second" in line for line in lines)


def test_it_goes_on_until_ctrl_c(view):
    """Which is how one leaves it."""
    with child_process([*COMMAND, view.address, "--interval", "60"], stdout=subprocess.PIPE) as watching:
        assert watching.stdout.readline()
        watching.send_signal(signal.SIGINT)
        assert watching.wait(DEADLINE_SECONDS) == 0


def test_it_tells_that_the_process_has_ended(tmp_path, view, capsys):
    """One line, and 2."""
    with child_process(
        [*COMMAND, view.address, "--interval", "0.01"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as watching:
        assert watching.stdout.readline()
        view.close()
        _, err = watching.communicate(timeout=DEADLINE_SECONDS)
        assert watching.returncode == 2
    assert err == f"top: process {os.getpid()} has ended, or has closed its live view at {view.address}\n"


def in_terminal(arguments, end=None, env=None):
    """The exit code, and what was shown on a terminal; *end* is called with it and the process once a rate is shown."""
    ours, theirs = pty.openpty()
    env = (env or os.environ) | {"TERM": "xterm", "COLUMNS": "100"}
    attributes = termios.tcgetattr(ours)
    shown, deadline = b"", time.monotonic() + DEADLINE_SECONDS
    with child_process([*COMMAND, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=env) as watching:
        os.close(theirs)
        with contextlib.suppress(OSError):  # EIO: nobody has it open any more
            while time.monotonic() < deadline:
                if select.select([ours], [], [], 0.05)[0]:
                    shown += os.read(ours, 65536)
                if end is not None and b"per second" in shown:
                    end(ours, watching)
                    end = None
        assert termios.tcgetattr(ours) == attributes
        os.close(ours)
        return watching.wait(DEADLINE_SECONDS), shown.decode()


def press_x_and_q(terminal, watching):
    os.write(terminal, b"xq")


def interrupt(terminal, watching):
    watching.send_signal(signal.SIGINT)


@pytest.mark.parametrize("end", [press_x_and_q, interrupt])
def test_a_key_ends_it(end, view):
    """On the terminal, which is as it was before: cursor, screen and all."""
    code, shown = in_terminal([view.address, "--interval", "0.05"], end)
    assert code == 0
    assert "q ends" in shown
    assert "orders" in shown
    assert shown.index("\x1b[?1049h") < shown.index("\x1b[?1049l")
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")


def test_one_look_on_a_terminal_stays_there(view):
    """No other screen is opened for it."""
    code, shown = in_terminal([view.address, "--once"])
    assert code == 0
    assert "orders" in shown
    assert "\x1b[?1049h" not in shown


@pytest.mark.parametrize("width", [100, 60, 50, 40, 30])
def test_a_narrow_terminal_cuts_no_figure(width):
    """Those of a pool are put below each other; the words about who holds what have less room."""
    so_far = counters(acquired=5678, waited=1234)
    stats = pool_stats(loop_stats(lent=2, waiting=97, counters=so_far), loop_stats("loop-2"))
    now = snapshot((stats, [lease(12.3, "Task-1 of a long name", "/srv/app/shop/orders.py:123 in take_the_order")]))
    said = told(now, room=Room(9, top_screen._place(width)), width=width)
    for word in ("lent", "idle", "2/10", "connecting", "97", "mean use", "1,234", "5,678", "errors", "12.3 s", "fd"):
        assert re.search(rf"(?<!\S){re.escape(word)}(?!\S)", said), f"{word}:\n{said}"
    assert max(map(len, said.splitlines())) <= width


@pytest.mark.parametrize("options", [[], ["--once"]])
def test_without_rich_it_says_what_to_install(options, view, tmp_path):
    """And what does without it."""
    complaint = "top: rich is not installed: pip install 'loopaware-pool[cli]', or look with --json\n"
    environment = without_rich(tmp_path)
    assert run(view.address, *options, env=environment) == (2, "", complaint)
    code, out, err = run(view.address, "--once", "--json", env=environment)
    assert (code, err) == (0, "")
    assert '"orders"' in out


# ---- where there is nothing to see ----


def failed(capsys, *arguments):
    """What it says of its failure."""
    assert command.main([*arguments]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("top: ")
    assert told.err.count("\n") == 1
    return told.err


@contextlib.contextmanager
def answering(answer):
    """A port where whoever asks is told *answer*."""

    def work():
        with contextlib.suppress(OSError):
            while True:
                client, _ = server.accept()
                with client:
                    client.recv(1000)
                    client.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=work)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_an_address_where_nobody_serves_takes_one_line(tmp_path, capsys):
    """Which names the call that may be missing."""
    path = str(tmp_path / "pool.sock")
    assert f"nobody serves at {path}: has the program called serve_live" in failed(capsys, path)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    assert f"nobody serves at {path}: " in failed(capsys, path)
    with own_port() as port:
        assert f"nobody serves at http://127.0.0.1:{port}: " in failed(capsys, f"127.0.0.1:{port}")
    assert "nobody can be asked at /" in failed(capsys, "/" + "x" * 200)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.0 200 OK\r\n\r\n<html>",
        b"HTTP/1.0 404 \x1b[2J\r\n\r\n",
        b'HTTP/1.0 200 OK\r\n\r\n{"schema": 7, "pools": []}',
        b"HTTP/1.0 200 OK\r\nContent-Length: 100\r\n\r\n{}",
    ],
)
def test_what_is_no_live_view_takes_one_line(answer, capsys):
    """Whatever it answers."""
    with answering(answer) as address:
        said = failed(capsys, address)
    assert "\x1b" not in said
    assert "is no live view" in said or "nobody can be asked" in said


def test_a_view_that_does_not_answer_is_given_up(tmp_path, capsys):
    """In time."""
    path = str(tmp_path / "pool.sock")
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(path)
        mute.listen()
        assert f"no answer from {path} within 0.1 s" in failed(capsys, path, "--timeout", "0.1")


DRIPPING = """
import socket, sys, time
with socket.create_server(("127.0.0.1", 0)) as server:
    print(server.getsockname()[1], flush=True)
    while True:
        client, _ = server.accept()
        client.recv(1000)
        with client:
            try:
                client.sendall(sys.argv[1].encode())
                while True:
                    time.sleep(0.05)
                    client.sendall(b" ")
            except OSError:
                pass
"""


@pytest.mark.parametrize("begun", ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\na: ", "HTTP/1.1 200 OK\r\n\r\n"])
def test_a_view_that_drips_is_given_up(begun, capsys):
    """The time is for all of an answer, its first line and its head as well."""
    with child_process([sys.executable, "-c", DRIPPING, begun], stdout=subprocess.PIPE, text=True) as process:
        address = f"127.0.0.1:{process.stdout.readline().strip()}"
        assert "within 0.5 s" in failed(capsys, address, "--timeout", "0.5")  # else it would read on and on
        process.kill()


def everything():
    """A snapshot in which nothing is left out, as what JSON makes of it."""
    stats = pool_stats(loop_stats(lent=1), loop_stats("loop-2"), process_fds=7)
    row = lease(1.0)
    row = replace(row, lease=replace(row.lease, stack=("a", "b")))
    return json.loads(snapshot((stats, [row])).to_json())


def places_in(data, path=()):
    """Where there is something in what JSON makes."""
    yield path
    for key in data if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ():
        yield from places_in(data[key], (*path, key))


@pytest.mark.parametrize("path", [path for path in places_in(everything()) if path], ids=str)
def test_a_view_that_tells_of_anything_else_takes_one_line(path):
    """Whatever is in place of what belongs there: it is shown, or it is called none."""
    for wrong in (None, True, "x", -1, 1.5, [], {}, [1], {"a": []}, 10**4000, 1e300, "NaN", "Infinity", "-Infinity"):
        data = everything()
        where = data
        for key in path[:-1]:
            where = where[key]
        where[path[-1]] = float(wrong) if wrong in ("NaN", "Infinity", "-Infinity") else wrong
        try:
            read = Snapshot.from_json(json.dumps(data))
        except ForeignSnapshot:
            continue
        told(read)
        told(read, snapshot((pool_stats(loop_stats()), []), at=0.0))


def test_a_view_of_wrong_types_takes_one_line(capsys):
    """No traceback."""
    data = everything()
    data["pools"][0]["stats"]["loops"][0]["lent"] = "many"
    with answering(b"HTTP/1.0 200 OK\r\n\r\n" + json.dumps(data).encode()) as address:
        assert "is no live view" in failed(capsys, address, "--once")


def test_an_answer_that_does_not_end_is_given_up(capsys, monkeypatch):
    """However long it is."""
    monkeypatch.setattr("loopaware_pool.cli.top.source.LONGEST_ANSWER_BYTES", 1000)
    with answering(b"HTTP/1.0 200 OK\r\n\r\n" + b" " * 2000) as address:
        assert "its answer is too long" in failed(capsys, address)


@pytest.mark.parametrize("option", ["--interval", "--timeout"])
@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf"])
def test_a_time_that_makes_no_sense_takes_one_line(option, value, capsys):
    """By name."""
    assert f"{option} {value}: expected seconds above 0" in failed(capsys, "/run/pool.sock", option, value)


@pytest.mark.parametrize("address", ["8125", "postgresql://me:hunter2@host/db"])
def test_what_is_no_address_takes_one_line(address, capsys):
    """No password is repeated."""
    assert "hunter2" not in failed(capsys, address)
