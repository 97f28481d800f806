"""
Storms on a real server: whatever happens to a pool in whatever order, nothing is lost, and answers are those asked for.

A few seconds of what `make torture` does for minutes. `LOOPAWARE_TEST_SEED=7` takes another seed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from torture.history import write
from torture.shrink import shrink
from torture.storm import Broken
from torture.surfaces import SURFACES

SEED = int(os.environ.get("LOOPAWARE_TEST_SEED", "1"))
SECONDS = 7.5


def storm(dsn, *options, path=""):
    """Run the command, with another folder on its path; its status, and what it reports."""
    completed = subprocess.run(
        [sys.executable, "-m", "torture", "--dsn", dsn, "--json", *options],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": f"{path}{os.pathsep}{Path(__file__).parent}"},
    )
    assert completed.stdout, completed.stderr
    return completed.returncode, json.loads(completed.stdout.splitlines()[-1])


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("pool", ["ours-asyncpg", "ours-psycopg"])
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
    """A pool that keeps what was handed to a cancelled caller loses it, and the report tells how."""
    (tmp_path / "sitecustomize.py").write_text(
        "from loopaware_pool.shard import Shard\nShard.abandon = lambda self, slot, now: None\n"
    )
    limits = ["--patience", "1", "--shrink-seconds", "5", "--rounds", "20"]
    status, report = storm(dsn, "--pool", "ours-asyncpg", "--loop", "asyncio", *limits, path=tmp_path)
    assert status == 1
    assert report["total"]["broken"]["lost"] or report["total"]["broken"]["waiters"]
    assert "replay it with --replay" in report["failure"]


@pytest.mark.parametrize("pool", ["asyncpg", "psycopg_pool"])
def test_the_same_storm_on_another_pool(dsn, pool):
    """It is let loose on the drivers' own pools for comparison, and counts what it finds."""
    _, report = storm(dsn, "--pool", pool, "--loop", "asyncio", "--rounds", "2")
    assert report["total"]["rounds"] == 2
