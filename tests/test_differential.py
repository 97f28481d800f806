"""Programs run on the drivers' own pools and on ours: a sample of random ones, and those that show each difference."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest

from differential.control import Control
from differential.control import server as differential_server
from differential.intended import PROGRAMS, ROWS, keys_of_page
from differential.judge import Judge
from differential.mends import MENDS
from differential.program import Program
from differential.shrink import shrink
from differential.sides import KINDS
from differential.signatures import surface_of
from differential.stage import HASTY, PATIENT
from differential.write import write

pytestmark = pytest.mark.thorough

TESTS = Path(__file__).parent
# How many random programs of each kind are run here; `make differential` runs more.
SAMPLE = 12
# What was found once, and mended: each has a program that shows it when its mend is taken out.
MENDED = {
    "cancelled-configure": "knows-strange-cancellations",
    "cancelled-init": "knows-strange-cancellations",
    "corrupted-encoding": "waits-for-answers",
    "failed-reset": "waits-for-answers",
    "init-authorization-forgotten": "restores-the-session-user",
    "init-callbacks-vanish": "keeps-callbacks-of-init",
    "max-idle-0": "closes-at-once",
    "max-lifetime-0": "lends-before-the-end-of-life",
    "null-pool-max-waiting": "lets-growth-not-wait",
    "own-query-counted": "counts-no-query-of-its-own",
    "reset-though-expired": "closes-what-has-expired",
    "setup-query-runs-on": "ends-setup-in-peace",
}
# Those mended as a whole, by what cannot be taken out alone.
ONCE_FOUND = {
    "broken-stays-so",
    "close-without-timeout",
    "idle-while-reset",
    "impossible-connect-retried",
    "lost-connection-unsaid",
} | {
    "null-pool-check",
    "null-pool-queued",
    "own-query-told",
    "setup-failed-entered-again",
    "transaction-entered-late",
}


@pytest.fixture(scope="module")
def control():
    with differential_server() as server:
        control = Control(server.dsn)
        yield control
        control.close()


@pytest.fixture
def judge(control):
    logging.disable(logging.CRITICAL)  # programs break connections: that is told, and is not news
    yield Judge(control)
    logging.disable(logging.NOTSET)


def recorded(name):
    return Program.read((PROGRAMS / f"{name}.json").read_text())


def shows(judge, program, key):
    """Whether a program shows a row: some do by chance, as which of two connections comes back first."""
    paces = (HASTY, *[PATIENT] * 5)
    return any(key in judge.keys(program, pace) for pace in paces)


@pytest.mark.parametrize("kind", KINDS)
def test_random_programs_do_alike(judge, kind):
    for number in range(SAMPLE):
        difference = judge.examine(write(1, number, kind))
        assert difference is None, f"--seed 1 --kind '{kind}' --number {number}:\n{difference}\n{difference.program}"


def test_every_row_has_a_sentence_and_every_sentence_a_row():
    assert sorted(keys_of_page()) == sorted({row.key for row in ROWS})


def test_every_program_shows_a_row_or_what_was_mended():
    keys = {row.key for row in ROWS} | MENDED.keys() | ONCE_FOUND
    assert sorted(page.stem for page in PROGRAMS.glob("*.json")) == sorted(keys)


@pytest.mark.parametrize("key", sorted({row.key for row in ROWS}))
def test_every_row_is_met(judge, key):
    program = recorded(key)
    assert shows(judge, program, key), f"nothing differs any more: remove row {key}"


@pytest.mark.parametrize("name", sorted(ONCE_FOUND))
def test_what_was_mended_stays_so(judge, name):
    assert judge.examine(recorded(name)) is None


@pytest.mark.parametrize(("name", "mend"), MENDED.items())
def test_a_defect_is_found_when_its_mend_is_taken_out(judge, name, mend):
    program = recorded(name)
    assert judge.examine(program) is None
    with MENDS[mend]():
        assert judge.examine(program, PATIENT) is not None


def test_a_method_that_is_new_is_drawn(monkeypatch):
    async def brand_new(self, query, *, timeout=None):
        raise NotImplementedError

    monkeypatch.setattr(asyncpg.Connection, "brand_new", brand_new, raising=False)
    assert "brand_new" in surface_of("asyncpg", "connection").methods


def test_programs_are_written_alike_by_the_same_seed():
    for kind in KINDS:
        assert write(5, 17, kind) == write(5, 17, kind)
        assert Program.read(str(write(5, 17, kind))) == write(5, 17, kind)


def test_a_program_is_shrunk_to_what_it_needs():
    program = write(1, 3, "asyncpg")
    needed = program.steps[len(program.steps) // 2]
    shrunk = shrink(program, lambda smaller: needed in smaller.steps, 5.0)
    assert shrunk.steps == (needed,)


def test_a_difference_is_told_with_a_program_that_can_be_replayed(control, tmp_path):
    page = tmp_path / "program.json"
    page.write_text(json.dumps(json.loads(str(recorded("corrupted-encoding")))))
    command = [sys.executable, "-m", "differential", "--replay", page, "--dsn", control.dsn, "--shrink-seconds", "0"]
    told = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, timeout=120, check=False)
    assert (told.returncode, told.stderr) == (0, "")
    told = subprocess.run(
        [*command, "--without", "waits-for-answers"],
        cwd=TESTS,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert told.returncode == 1
    assert "WIN1252" in told.stdout
