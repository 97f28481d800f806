"""
Storms on a real server: whatever happens to a pool in whatever order, nothing is lost, and answers are those asked for.

A few seconds of what `make torture` does for minutes. `LOOPAWARE_TEST_SEED=7` takes another seed.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from haproxy import haproxy
from pgbouncer import pgbouncer
from torture.history import History, write
from torture.report import Stormed, failures, note
from torture.shrink import shrink
from torture.storm import Broken, Storm
from torture.surfaces import SURFACES
from torture.table import as_markdown
from torture.tally import PROMISES, Tally

pytestmark = pytest.mark.thorough

SEED = int(os.environ.get("LOOPAWARE_TEST_SEED", "1"))
SECONDS = 7.5


def storm(dsn, *options, path=""):
    """Let one loose, with another folder on its path; its status, and what it reports."""
    completed = command("torture", "--dsn", dsn, "--json", *options, path=path)
    assert completed.stdout, completed.stderr
    report = json.loads(completed.stdout.splitlines()[-1])
    assert completed.returncode == bool(report["failure"]), completed.stderr  # else the storm fell over itself
    return completed.returncode, report


def command(module, *options, path=""):
    """Run *module*, with another folder on its path."""
    return subprocess.run(
        [sys.executable, "-m", module, *options],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": f"{path}{os.pathsep}{Path(__file__).parent}"},
    )


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("pool", ["ours-asyncpg", "ours-psycopg", "ours-sqlalchemy", "ours-sqlalchemy-psycopg"])
def test_a_storm(dsn, pool, loop, record_property):
    """Leases, cancellations, faults, threads, forks and loops that end: every promise is kept."""
    options = ["--pool", pool, "--loop", loop, "--seed", str(SEED), "--minutes", str(SECONDS / 60)]
    status, report = storm(dsn, *options)
    assert status == 0, report["failure"]
    total = report["total"]
    assert not any(total["broken"].values())
    assert all(total[name] for name in ("rounds", "leases", "cancellations"))
    for name in ("leases", "cancellations", "faults", "loop_ends", "forks"):
        record_property(f"{name.replace('_', ' ')} in storms", total[name])


@pytest.mark.parametrize("pool", ["ours-asyncpg", "ours-psycopg", "ours-sqlalchemy"])
def test_a_storm_through_a_haproxy(dsn, haproxy_program, pool):
    """What the server ends, and what the client ends, both go through it."""
    with haproxy(haproxy_program, dsn) as between:
        status, report = storm(dsn, "--through", between.dsn, "--pool", pool, "--loop", "asyncio", "--rounds", "10")
    assert status == 0, report["failure"]
    assert all(report["total"][name] for name in ("rounds", "leases", "cancellations", "faults"))


@pytest.mark.parametrize("pool", ["ours-asyncpg", "ours-psycopg", "ours-sqlalchemy"])
def test_a_storm_through_a_pgbouncer_in_session_mode(dsn, newer_pgbouncer_program, pool):
    """It ends a server's session with its client's. (1.18 itself ends when clients cancel much.)"""
    options = {"pool_mode": "session", "server_lifetime": 0}
    with pgbouncer(newer_pgbouncer_program, dsn, **options) as through:
        status, report = storm(dsn, "--through", through, "--pool", pool, "--loop", "asyncio", "--rounds", "10")
    assert status == 0, report["failure"]
    assert all(report["total"][name] for name in ("rounds", "leases", "cancellations", "faults"))


def test_a_seed_decides_everything():
    """The same seed writes the same history, whatever the time; another writes another."""
    abilities = SURFACES["ours-psycopg"].abilities
    assert write(7, 3, abilities) == write(7, 3, abilities)
    assert write(7, 3, abilities) != write(8, 3, abilities)


def test_a_history_is_shortened_to_what_matters():
    """Of many steps those are left without which nothing breaks."""
    history = write(7, 3, SURFACES["ours-psycopg"].abilities)
    culprits = [history.steps[3], history.steps[-2]]

    def play(shorter):
        return Broken("lost", "") if all(step in shorter.steps for step in culprits) else None

    shortest = shrink(history, play, Broken("lost", ""), seconds=10.0)
    assert sorted(map(repr, shortest.steps)) == sorted(map(repr, culprits))


def test_a_pool_that_loses_connections_is_found(dsn, tmp_path):
    """A pool that forgets every tenth connection that comes back loses it, and the report tells how."""
    (tmp_path / "sitecustomize.py").write_text(
        "from itertools import count\n"
        "from loopaware_pool._core.shard import Shard\n"
        "take_back, turns = Shard.returned, count(1)\n"
        "Shard.returned = lambda *given: next(turns) % 10 and take_back(*given)\n"
    )
    limits = ["--patience", "1", "--shrink-seconds", "5", "--rounds", "20"]
    status, report = storm(dsn, "--pool", "ours-asyncpg", "--loop", "asyncio", *limits, path=tmp_path)
    assert status == 1
    assert report["total"]["broken"]["lost"] or report["total"]["broken"]["waiters"]
    assert "replay it with --replay" in report["failure"]


def test_what_another_pool_breaks_is_counted_and_the_storm_goes_on(dsn, tmp_path):
    """One whose release forgets the connection: everything is lost."""
    (tmp_path / "sitecustomize.py").write_text(
        "import asyncio, asyncpg.pool\n"
        "asyncpg.pool.Pool.release = lambda self, connection, **options: asyncio.sleep(0)\n"
    )
    options = ["--pool", "asyncpg", "--loop", "asyncio", "--rounds", "2", "--patience", "0.2"]
    status, report = storm(dsn, *options, path=tmp_path)
    assert status == 0
    assert report["total"]["rounds"] == 2
    assert all(report["total"]["broken"][promise] for promise in ("lost", "waiters"))


class TooMany:
    """A witness who has seen five of what may be three."""

    def begin(self):
        pass

    def sessions(self, name):
        return 5

    def peers(self):
        return [3, 4, 5, 6, 7]


def test_what_can_be_seen_of_any_pool_is_held_against_its_size(monkeypatch):
    """Sessions, sockets, and what the selector has of files that are closed."""
    history = History({"max_size": 3, "min_size": 0, "session_reset": "pipelined"}, (), "close")
    storm = Storm(SURFACES["asyncpg"], history, "", asyncio.new_event_loop, TooMany(), is_strict=False)

    async def at_once(condition):
        return condition()

    async def look():
        loop = asyncio.get_running_loop()
        reader, writer = os.pipe()
        loop.add_reader(reader, print)
        os.close(reader)
        await storm._size_is_kept()
        loop.remove_reader(reader)
        os.close(writer)

    monkeypatch.setattr(storm, "_eventually", at_once)
    asyncio.run(look())
    broken = storm.tally.broken
    assert (broken["over"], broken["sockets"], broken["stale"]) == (2, 2, 1)
    assert sum(broken.values()) == 5


def test_a_pool_that_is_not_installed_takes_one_line(tmp_path):
    """And says what to do."""
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as util\n"
        "find = util.find_spec\n"
        "util.find_spec = lambda name, *package: None if name == 'sqlalchemy' else find(name, *package)\n"
    )
    for module, options in (("torture", ["--pool", "sqlalchemy"]), ("torture.report", [])):
        ended = command(module, *options, path=tmp_path)
        assert ended.returncode == 2
        assert ended.stderr.startswith(f"{module}: ")
        assert "sqlalchemy is not installed; `make " in ended.stderr
        assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("module", "options", "words"),
    [
        ("torture", ["--pool", "pgpool"], "'pgpool'"),
        ("torture.report", ["--minutes", "0"], "'0': expected a number above 0"),
        ("torture.report", ["--examples", "few"], "'few': expected a number above 0"),
        ("torture.report", ["--seed", "x"], "'x'"),
        ("torture.soak", ["--minutes", "0.5"], "--minutes 0.5: expected 1 or more"),
    ],
)
def test_what_a_command_refuses_takes_one_line(module, options, words):
    """Before anything is begun."""
    ended = command(module, *options)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert words in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_a_storm_that_hangs_is_counted_with_what_it_had_seen():
    """Its last line tells; one that said nothing counts all the same."""
    line = json.dumps({"total": asdict(Tally(rounds=7, leases=40)), "failure": ""})
    stormed = Stormed()
    note(stormed, 1, f"{line}\n{line[:20]}", is_over=False)
    note(stormed, 2, "", is_over=True)
    note(stormed, 3, f"{line}\n", is_over=True)
    assert (stormed.seeds, stormed.hung, stormed.tally.rounds, stormed.tally.leases) == ([1, 2, 3], 2, 14, 80)


def test_the_report_shows_every_promise_of_every_pool():
    """A row for each, a column for each kind; what only ours are asked is not told of others."""
    broken = {promise: 1000 + number for number, promise in enumerate(PROMISES)}
    ours = Stormed(Tally(forks=5, threads=6), [1])
    theirs = Stormed(Tally(broken=broken), [1], hung=3)
    heat = {"title": "overload", "rounds": {"ours": [{"goodput %": 80.0}], "theirs": [{"goodput %": 9.0}]}}
    report = {
        "python": "3.11",
        "versions": {"asyncpg": "0.32"},
        "minutes_of_each": 1.0,
        "seeds": [1],
        "storms": {"ours on asyncio": asdict(ours), "theirs on asyncio": asdict(theirs)},
        "interleavings": {"interleavings": 32_000, "scenarios": 48, "failure": ""},
        "fuzzing": {"bytes fuzzed": 1_000_000, "argument combinations tried": 9, "failure": "one"},
        "overload": {"loops": {"asyncio": [heat]}, "failure": ""},
    }
    table = as_markdown(report)
    for promise, count in broken.items():
        assert f"| **{PROMISES[promise]}** | 0 | {count:,} |" in table
    assert "| **processes that hung or died** | 0 | 3 |" in table
    assert "| forks | 5 | - |" in table
    assert "32,000 interleavings" in table
    assert "1,000,000 bytes" in table
    assert "goodput %: ours 80; theirs 9" in table
    assert failures(report) == ["one"]


@pytest.mark.parametrize("pool", ["asyncpg", "psycopg_pool", "sqlalchemy", "sqlalchemy-psycopg"])
def test_the_same_storm_on_another_pool(dsn, pool):
    """It is let loose on the drivers' own pools for comparison, and counts what it finds."""
    _, report = storm(dsn, "--pool", pool, "--loop", "asyncio", "--rounds", "2")
    assert report["total"]["rounds"] == 2
