"""
The simulation of many processes (`benchmarks/scale_out`): counts on simulated time, and the figures that pages quote.

No clock of the machine, no loop and no server is involved.
"""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks.scale_out import measure
from benchmarks.scale_out.draw import draw
from benchmarks.scale_out.fleet import Plan, Simulation, Work
from benchmarks.scale_out.measure import growth
from benchmarks.scale_out.model import (
    CONNECT_CPU_SECONDS,
    CONNECTION_MIB,
    DEARER_READS,
    Clock,
    ModelServer,
    ServerKind,
    dearer,
)
from benchmarks.scale_out.scenarios import PARTS, more_machines, simulate

import helpers
from debian import environment_for
from loopaware_pool.cli.doctor.scale_out import Fleet, Limits, Verdict, judge
from loopaware_pool.cli.measure import ratios

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "benchmarks" / "scale-out"
PAGE = (ROOT / "docs" / "guide" / "many-machines.md").read_text()
FLAT = ((1.0, 1.0),)
# A thousand leases a second at best: 1 ms of processor time each.
SMALL = ServerKind(processors=1, max_connections=60)
CROWD = Plan(processes=20, rate=1500, kind=SMALL)
SHAPES = {
    "pools": CROWD,
    "pools that keep connections": replace(CROWD, min_size=10),
    "proxy": replace(CROWD, proxy_pool=4, rate=2500),
    "servers": replace(CROWD, servers=3, rate=2500),
    "servers and proxies": replace(CROWD, servers=3, proxy_pool=4, rate=6000),
}


# ---- the server ----


def ends(processors, *seconds, table=FLAT):
    """When statements of so many seconds end that begin together."""
    clock, ended = Clock(), []
    server = ModelServer(clock, ServerKind(processors=processors, max_connections=9, dearer=table))
    for each in seconds:
        server.run(each, lambda: ended.append(clock.now))
    clock.run(1e6)
    return ended


def test_statements_share_the_processors():
    """Evenly, and each uses one at most."""
    assert ends(1, 1.0, 1.0) == pytest.approx([2.0, 2.0])
    assert ends(1, 1.0, 3.0) == pytest.approx([2.0, 4.0])
    assert ends(2, 1.0, 3.0) == pytest.approx([1.0, 3.0])
    assert ends(2, 1.0, 1.0, 1.0, 1.0) == pytest.approx([2.0] * 4)


def test_more_statements_make_each_dearer():
    """By what the table says, for the time that they are so many."""
    assert ends(1, 1.0, 1.0, table=((1.0, 1.0), (2.0, 1.5))) == pytest.approx([3.0, 3.0])


def test_between_measured_points_it_is_a_straight_line_and_beyond_them_the_last_one():
    """Never more than what was measured."""
    table = ((5.0, 1.0), (25.0, 2.0), (50.0, 4.0))
    assert [dearer(at, table) for at in (0.1, 5, 15, 25, 37.5, 50, 9999)] == [1, 1, 1.5, 2, 3, 4, 4]


def test_a_server_that_is_full_refuses():
    """Until somebody leaves."""
    clock, told = Clock(), []
    server = ModelServer(clock, ServerKind(processors=1, max_connections=2))
    for _ in range(3):
        server.connect(told.append)
    clock.run(10)
    assert (sorted(told), server.connections, server.refused) == ([False, True, True], 2, 1)
    server.disconnect()
    server.connect(told.append)
    clock.run(20)
    assert told[-1] is True


def test_memory_limits_connections_too():
    """Where it is less than they may use."""
    kind = ServerKind(processors=1, max_connections=100)
    assert [replace(kind, memory_mib=mib).places for mib in (None, 14.1, 1e6)] == [100, 10, 100]


# ---- what must hold whatever is simulated ----


@pytest.mark.parametrize("plan", SHAPES.values(), ids=SHAPES)
def test_no_permit_no_connection_and_no_caller_is_lost(plan):
    """With more callers than can be served, of whom many give up, and connects that are refused."""
    simulation = Simulation(plan)
    simulation.run(2.0)
    simulation.drain()
    assert simulation.came > 2500
    assert simulation.failed > 0
    assert simulation.lost() == 0


@pytest.mark.parametrize("plan", SHAPES.values(), ids=SHAPES)
def test_no_server_has_more_connections_than_it_accepts(plan):
    """And a proxy opens no more than its pool."""
    simulation = Simulation(plan)
    simulation.run(1.0)
    for server in simulation.servers:
        assert server.most_active <= server.most_connections <= SMALL.max_connections
        assert server.most_connections <= (plan.proxy_pool or SMALL.max_connections)


def test_the_same_seed_gives_the_same_figures():
    """And another one others."""
    first, again, other = (Simulation(CROWD, seed).run(0.5) for seed in (7, 7, 8))
    assert first == again != other


# ---- what it shows ----


def answered(**changes):
    return Simulation(replace(CROWD, **changes)).run(2.0, 2.0)["answered_per_second"]


def test_throughput_falls_beyond_the_knee_and_behind_a_proxy_it_does_not():
    """The more connections have work at once, the less is done; a proxy of a few keeps it at what can be done."""
    roomy = replace(SMALL, max_connections=1000)
    alone = [answered(kind=roomy, max_size=size) for size in (1, 4, 10)]
    assert alone == sorted(alone, reverse=True)
    assert alone[-1] < 0.7 * 1000
    for size in (1, 4, 10):
        assert answered(kind=roomy, max_size=size, proxy_pool=4) > 0.95 * 1000


def test_without_the_measured_factor_there_is_no_knee():
    """It is the one reason for which more connections do less, once they are open."""
    free = ServerKind(processors=1, max_connections=1000, dearer=FLAT, connect_cpu_seconds=1e-9)
    assert answered(kind=free, max_size=10) > 0.95 * 1000


def test_servers_that_share_the_data_add_up():
    """For callers that each need one of them."""
    assert answered(rate=2500, servers=3, proxy_pool=4) > 2400


def test_pools_alone_stop_where_the_plan_of_doctor_says():
    """At the first machine whose connections do not fit; `min_size` opens them all."""
    for machines, fits in ((6, True), (7, False)):
        fleet = Fleet(machines=machines, processes=8, loops=1, pools=1, max_size=10)
        verdict = judge(fleet, Limits(max_connections=500, reserved=0, others=0), None).verdict
        refused = Simulation(more_machines("pools with min_size=10", machines)).run(0.5)["refused_connects"]
        assert ((verdict is Verdict.FITS), refused == 0) == (fits, fits)


def test_a_lease_outside_of_a_transaction_holds_nothing_of_a_proxy():
    """That is what transaction mode shares: a pool of 2 serves 40 callers at a time."""
    work = Work(statement_cpu_seconds=0.0001, round_trip_seconds=0.0001, rest_seconds=0.4)
    simulation = Simulation(Plan(processes=10, rate=100, max_size=10, proxy_pool=2, kind=SMALL, work=work))
    told = simulation.run(3.0)
    assert simulation.came - simulation.answered > 30
    assert (simulation.failed, told["connections_of_a_server"]) == (0, 2)


# ---- the figures in the documentation ----


def measured():
    return json.loads((FOLDER / "measured.json").read_text())


def simulated():
    return json.loads((FOLDER / "simulated.json").read_text())


def test_the_models_parameters_are_what_was_measured():
    """To two digits: how much dearer reads become, what a connect costs, and the memory of a connection."""
    told = measured()
    table = growth(told, "active", "read", "server_cpu_us")
    found = [(size / told["processors"], round(spread.median, 2)) for size, spread in table.items()]
    assert found == [*DEARER_READS]
    connects = sorted(each for turn in told["turns"] for each in turn["figures"]["connect_cpu_ms"])
    assert round(connects[len(connects) // 2] / 1e3, 4) == CONNECT_CPU_SECONDS
    (row,) = [row for row in told["memory"] if row["connections"] == 100]
    assert round(row["used_mib"], 1) == CONNECTION_MIB


def rows_of_the_page(heading):
    """The cells of the table under the row that begins so."""
    lines = PAGE.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith(heading))
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines[first + 2 :])
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def shown(spread):
    """As the page has it."""
    if spread.low == spread.high == 1:
        return "1.00x"
    return f"{spread.median:.2f}x, {spread.low:.2f}-{spread.high:.2f}"


def test_the_page_shows_what_was_measured():
    """The price of a query by connections, and of a connection in memory."""
    told = measured()
    columns = [growth(told, how, query, "server_cpu_us") for how in ("active", "idle") for query in ("read", "write")]
    expected = [[str(size), *(shown(column[size]) for column in columns)] for size in columns[0]]
    assert rows_of_the_page("| connections | all at work") == expected
    (row,) = [row for row in told["memory"] if row["connections"] == 100]
    assert f"grow by {row['fresh_mib']:.1f} MiB each, and by {row['used_mib']:.1f} MiB when" in PAGE
    (few, *_, many) = (
        statistics.median(turn["figures"]["switches"])
        for turn in told["turns"]
        if (turn["others"], turn["query"]) == ("active", "read") and turn["connections"] in (10, 400)
    )
    assert f"{few:.2f} times a read with 10 connections at work, {many:.2f} times with 400" in PAGE
    assert f"A connect cost the server {1e3 * CONNECT_CPU_SECONDS:.1f} ms" in PAGE


def test_the_page_shows_what_a_proxy_was_measured_to_do():
    """Beside the same clients without it."""
    turns = json.loads((FOLDER / "measured-proxy.json").read_text())["turns"]
    by_way = {}
    for turn in turns:
        by_way.setdefault(turn["way"], {})[turn["query"]] = turn["figures"]
    first = next(iter(by_way.values()))
    figures = [(query, one) for one in ("server_cpu_us", "queries_per_second") for query in ("read", "write")]
    expected = [
        [way, *(shown(ratios(found[query][one], first[query][one])) for query, one in figures)]
        for way, found in by_way.items()
    ]
    assert [[row[0], *row[2:]] for row in rows_of_the_page("| | connections at work")] == expected


def test_the_page_shows_what_was_simulated():
    """Both tables."""
    by_part = {
        part: {name: {row["size"]: row for row in rows} for name, rows in simulated()[part].items()} for part in PARTS
    }
    found = by_part["more_machines"]
    table = rows_of_the_page("| machines | callers/s |")
    assert len(table) == 6
    for size, offered, *cells in table:
        rows = [rows[int(size)] for rows in found.values()]
        assert [f"{row['in_time_per_second']:,.0f}" for row in rows] == cells
        assert f"{rows[0]['offered_per_second']:,.0f}" == offered
    found = by_part["larger_pools"]
    table = rows_of_the_page("| `max_size` | connections of 256")
    assert len(table) == 3
    for size, _, *cells in table:
        rows = [rows[int(size)] for rows in found.values()]
        assert [f"{row['answered_per_second']:,.0f}, {row['in_time_per_second']:,.0f}" for row in rows] == cells


def cases(part, *sizes):
    return [(part, name, size) for name in PARTS[part][0] for size in sizes]


def check_figures(part, name, size):
    """Compare what the documentation has with what the code gives."""
    told = simulated()
    _, make, _, warm_up = PARTS[part]
    (row,) = [row for row in told[part][name] if row["size"] == size]
    figures = Simulation(make(name, size), told["seed"]).run(told["seconds"], warm_up)
    assert row == {"size": size, **figures}


@pytest.mark.parametrize(("part", "name", "size"), cases("more_machines", 4, 8))
def test_the_simulated_figures_are_those_of_the_code(part, name, size):
    """Of the sizes that take no time."""
    assert [*simulated()[part]] == [*PARTS[part][0]]
    check_figures(part, name, size)


@pytest.mark.thorough
@pytest.mark.parametrize(("part", "name", "size"), [*cases("more_machines", 24), *cases("larger_pools", 1)[::2]])
def test_the_simulated_figures_of_a_full_server_are_those_of_the_code(part, name, size):
    """A sample: `python -m benchmarks.scale_out simulate` writes all."""
    check_figures(part, name, size)


def test_a_simulation_has_all_parts():
    """In as little time as it takes."""
    told = simulate(1, 0.01, {part: (names, make, sizes[:1], 0.0) for part, (names, make, sizes, _) in PARTS.items()})
    assert {part: [*told[part]] for part in PARTS} == {part: [*simulated()[part]] for part in PARTS}
    assert all(row["size"] == 1 for part in PARTS for rows in told[part].values() for row in rows)


def test_the_plot_is_that_of_the_figures(tmp_path):
    """Where matplotlib is installed; the same figures give the same file."""
    written = draw(simulated(), tmp_path)
    if not written:
        pytest.skip("matplotlib is not installed")
    assert (tmp_path / "scale-out.svg").read_text() == (FOLDER / "scale-out.svg").read_text()


# ---- the measurements: what they come to is not judged ----


@pytest.mark.thorough
def test_connections_can_be_measured(monkeypatch):
    """Few of them, for a moment; nothing is left open."""
    monkeypatch.setattr(measure, "SIZES", (2, 4))
    monkeypatch.setattr(measure, "BUSY_BESIDE_IDLE", 2)
    before = helpers.open_sockets()
    told = measure.measure(2, 0.05)
    assert helpers.open_sockets() == before
    assert {(turn["others"], turn["query"], turn["connections"]) for turn in told["turns"]} == {
        (how, query, size) for how in ("active", "idle") for query in measure.QUERIES for size in (2, 4)
    }
    for how in ("active", "idle"):
        assert [*growth(told, how, "read", "server_cpu_us")] == [2, 4]
    assert [row["connections"] for row in told["memory"]] == [2, 4]
    assert all(row["fresh_mib"] > 0 for row in told["memory"])


@pytest.mark.thorough
def test_a_proxy_can_be_measured(monkeypatch, pgbouncer_program):
    """It lets no more sessions through than its pool has."""
    monkeypatch.setattr(measure, "SIZES", (2, 8))
    monkeypatch.setattr(measure, "BUSY_BESIDE_IDLE", 2)
    monkeypatch.setenv("LD_LIBRARY_PATH", environment_for(pgbouncer_program).get("LD_LIBRARY_PATH", ""))
    told = measure.measure_proxy(pgbouncer_program, 1, 0.05)
    found = {(turn["way"], turn["query"]): turn["figures"] for turn in told["turns"]}
    assert len(found) == 6
    for query in measure.QUERIES:
        assert found["8 clients, direct", query]["connections"][0] >= 8
        assert found["8 clients, proxy of 2", query]["connections"][0] >= 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["measure", "--pgbouncer", "/nowhere/pgbouncer"], "'/nowhere/pgbouncer': expected a program that exists"),
        (["guess"], "guess"),
        (["simulate", "--seconds", "0"], "'0': expected a number above 0"),
        (["measure", "--rounds", "none"], "'none': expected a whole number, 1 or more"),
        (["simulate", "--out", "/nowhere/at/all"], "'/nowhere/at/all': expected a folder that exists"),
    ],
)
def test_bad_input_takes_one_line(arguments, words):
    """It names what is wrong."""
    command = [sys.executable, "-m", "benchmarks.scale_out", *arguments]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    assert words in ended.stderr
