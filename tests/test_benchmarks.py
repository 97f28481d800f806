"""The benchmarks: what their runner refuses, and that each question can be asked. What they come to is not judged."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.contenders import CONTENDERS, OURS, Setting
from benchmarks.lab import CPU, SPEED, Goal, Heat, Lab, NotHere
from benchmarks.questions import QUESTIONS, engines
from benchmarks.report import as_json, goals_table, heat_table

import helpers
from loopaware_pool.testing.embedded_server import EmbeddedServer

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def roomy_dsn():
    with EmbeddedServer(settings={"max_connections": 200}) as server:
        yield server.dsn


def run_benchmarks(*arguments):
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--contender", "pgpool"], "pgpool"),
        (["--only", "weather"], "weather"),
        (["--rounds", "0"], "expected a whole number"),
        (["--out", "/nowhere/at/all"], "a folder that exists"),
        (["--dsn", "mysql://somewhere"], "the DSN is not understood"),
        (["--dsn", "postgresql://postgres:secret@127.0.0.1:1/postgres"], "is a server running there?"),
    ],
)
def test_bad_input_takes_one_line(arguments, words):
    """It names what is wrong, shows no password, and the exit code says so too."""
    ended = run_benchmarks(*arguments)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert words in ended.stderr
    assert ended.stderr.startswith("benchmarks: ")
    assert ended.stderr.count("\n") == 1
    assert "secret" not in ended.stderr


def test_a_server_without_room_takes_one_line():
    """All contenders are open at once."""
    with EmbeddedServer(settings={"max_connections": 20}) as server:
        ended = run_benchmarks("--dsn", server.dsn)
    assert ended.returncode == 2
    assert re.fullmatch(r"benchmarks: the server has room for 1\d connections, and \d+ are needed.*\n", ended.stderr)


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.name)
def test_each_question_can_be_asked(roomy_dsn, question):
    """With as little effort as it can be; whoever took part has figures, and no fd is left."""
    lab = Lab(Setting(roomy_dsn), rounds=1, effort=0.01, chosen=[contender.name for contender in CONTENDERS])
    before = helpers.open_sockets()
    try:
        heats = asyncio.run(question.ask(lab))
    except NotHere as error:
        pytest.fail(f"not measured here: {error}")
    assert heats
    for heat in heats:
        assert all(figures for several in heat.rounds.values() for figures in several)
        assert heat_table(heat).row_count == len(heat.rounds)
        assert {goal.ours for goal in heat.goals} <= heat.rounds.keys()
    goals_table("asyncio", heats)
    as_json("a server", {"asyncio": heats}, rounds=1, effort=0.01, load=0.0)
    assert helpers.open_sockets() == before


def test_our_engine_is_to_be_as_fast_as_sqlalchemys_own_pool(roomy_dsn):
    """With each driver and number of tasks: no fewer queries a second, and no more CPU for each."""
    contenders = [one.name for pair in engines.PAIRS.values() for one in pair]
    heats = asyncio.run(engines.ask(Lab(Setting(roomy_dsn), rounds=1, effort=0.01, chosen=contenders)))
    assert len(heats) == len(engines.PAIRS) * len(engines.TASKS)
    for heat in heats:
        theirs, ours = heat.rounds
        assert [(goal.peer, goal.ours, goal.figure, goal.text) for goal in heat.goals] == [
            (theirs, ours, SPEED, ">= 1x"),
            (theirs, ours, CPU, "<= 1x"),
        ]


def test_a_goal_is_judged_by_the_rounds_ratios():
    """Not by the ratio of medians, which a round slow for both would shift."""
    rounds = {"theirs": [{"us": 10.0}, {"us": 100.0}, {"us": 30.0}], "ours": [{"us": 5.0}, {"us": 90.0}, {"us": 6.0}]}
    goal = Goal("ours", "us", 0.5, is_floor=False, peer="theirs")
    heat = Heat("any", rounds, goals=[goal])
    assert heat.reached(goal).median == 0.5
    assert goal.is_met(heat.reached(goal).median)


def test_a_contender_that_did_not_take_part_is_not_judged():
    """Where only some were chosen."""
    heat = Heat("any", {OURS.name: [{"us": 1.0}]}, goals=[Goal(OURS.name, "us", 2.0, is_floor=False, peer="asyncpg")])
    assert heat.reached(heat.goals[0]) is None
