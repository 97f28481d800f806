"""`doctor --plan`: the arithmetic of many processes, with limits that are given, and with those of a real server."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

import doctor_facts
from loopaware_pool.cli.doctor import command as doctor
from loopaware_pool.cli.doctor.scale_out import Demand, Fleet, Limits, Verdict, judge, limits_of
from loopaware_pool.cli.doctor.sizing import HEADROOM, waiting_share

PAGE = (Path(__file__).parents[1] / "docs" / "guide" / "many-machines.md").read_text()

FLEET = Fleet(machines=2, processes=4, loops=3, pools=2, max_size=5)
LIMITS = Limits(max_connections=100, reserved=3, others=10)
# 24 connections are busy on average; 35 have headroom.
DEMAND = Demand(rate=1200, hold_seconds=0.02)
SERVER = replace(doctor_facts.SERVER, version="18.1", taken=7, taken_by_role=1, taken_in_database=2)


def figures(outcome):
    return {row.name: row.value for row in outcome.rows}


def verdict(fleet, limits=LIMITS, demand=None):
    return judge(fleet, limits, demand).verdict


def test_connections_are_machines_times_processes_times_pools_times_max_size():
    """Loops are no factor, but for pools of which each loop needs one of its own."""
    told = figures(judge(FLEET, LIMITS, None))
    assert told["pools"] == 2 * 4 * 2
    assert told["connections"] == 2 * 4 * 2 * 5
    assert told["connections_of_a_pool_per_loop"] == 2 * 4 * 2 * 5 * 3
    assert told["room"] == 100 - 3 - 10


def test_a_pool_for_each_loop_is_as_large_as_its_share_of_the_work_needs():
    """Where no size is given; it has less to share, so the sum is larger, or the same."""
    fleet = Fleet(machines=1, processes=4, loops=2, pools=1, max_size=None)
    told = figures(judge(fleet, LIMITS, DEMAND))
    assert (told["connections"], told["connections_of_a_pool_per_loop"]) == (4 * 9, 4 * 2 * 5)


def test_each_loop_needs_a_connection():
    """However little the work is, and whether it is known or not."""
    fleet = Fleet(machines=1, processes=2, loops=4, pools=1, max_size=None)
    told = figures(judge(fleet, LIMITS, Demand(rate=1, hold_seconds=0.001)))
    assert (told["needed_max_size"], told["connections"]) == (4, 8)
    outcome = judge(replace(fleet, max_size=3), LIMITS, None)
    assert outcome.verdict is Verdict.TOO_SMALL
    assert outcome.says == "the pools are too small for their loops: max_size=4 is enough, and 8 connections fit"


@pytest.mark.parametrize(("max_size", "expected"), [(87, Verdict.FITS), (88, Verdict.PROXY)])
def test_a_plan_fits_up_to_the_last_connection(max_size, expected):
    """And not beyond."""
    assert verdict(Fleet(machines=1, processes=1, loops=9, pools=1, max_size=max_size)) is expected


def test_without_a_size_pools_are_as_large_as_the_work_needs():
    """In each of them, which is less well used than one that all share."""
    fleet = Fleet(machines=2, processes=8, loops=1, pools=1, max_size=None)
    told = figures(judge(fleet, LIMITS, DEMAND))
    assert (told["needed_max_size"], told["connections"]) == (3, 48)
    assert told["shared_by_a_proxy"] == 35
    assert told["waiting"] > told["waiting_at_a_proxy"]


def test_a_proxy_is_advised_with_the_size_that_the_work_needs():
    """Shared by all processes, it needs less than all of their pools together."""
    fleet = Fleet(machines=10, processes=10, loops=1, pools=1, max_size=None)
    outcome = judge(fleet, LIMITS, DEMAND)
    assert outcome.verdict is Verdict.PROXY
    assert outcome.proxy_pool == 35
    assert "100 connections do not fit into 87: put a proxy" in outcome.says
    assert 24 / outcome.proxy_pool <= HEADROOM < 24 / (outcome.proxy_pool - 1)


def test_a_proxy_shares_by_transactions():
    """What a lease does outside of one needs no connection of the server."""
    fleet = Fleet(machines=10, processes=10, loops=1, pools=1, max_size=None)
    outcome = judge(fleet, LIMITS, replace(DEMAND, transaction_seconds=0.005))
    assert outcome.proxy_pool == 9


def test_of_work_that_is_not_known_a_proxy_gets_what_the_processors_can_use():
    """Or what the server has room for."""
    fleet = Fleet(machines=100, processes=1, loops=1, pools=1, max_size=10)
    assert judge(fleet, LIMITS, None).proxy_pool == 87
    assert judge(fleet, replace(LIMITS, processors=8), None).proxy_pool == 16
    assert judge(fleet, replace(LIMITS, processors=64), None).proxy_pool == 87


def test_pools_that_are_too_small_are_told_the_size():
    """If that fits; else a proxy is what helps, as larger pools would not fit."""
    small = Fleet(machines=1, processes=8, loops=1, pools=1, max_size=2)
    outcome = judge(small, LIMITS, DEMAND)
    assert outcome.verdict is Verdict.TOO_SMALL
    assert "max_size=5 is enough, and 40 connections fit" in outcome.says
    outcome = judge(
        replace(small, machines=8, max_size=1), LIMITS, replace(DEMAND, rate=6000, transaction_seconds=0.005)
    )
    assert outcome.verdict is Verdict.PROXY
    assert "would need 192 connections, of which 87 fit" in outcome.says


def test_pools_that_are_too_large_are_told_the_size():
    """No proxy is needed where smaller pools do the work, and fit."""
    large = Fleet(machines=1, processes=8, loops=2, pools=1, max_size=20)
    outcome = judge(large, LIMITS, DEMAND)
    assert (outcome.verdict, outcome.proxy_pool) == (Verdict.TOO_LARGE, None)
    assert outcome.says == (
        "160 connections do not fit into 87: max_size=5 is enough for the work, and up to max_size=10 fits"
    )
    assert verdict(replace(large, max_size=10), demand=DEMAND) is Verdict.FITS
    assert verdict(replace(large, max_size=11), demand=DEMAND) is Verdict.TOO_LARGE
    unknown = judge(large, LIMITS, None)
    assert unknown.verdict is Verdict.PROXY
    assert unknown.says.endswith("the work is not known; or make the pools smaller: up to max_size=10 fits")
    assert "smaller" not in judge(replace(large, processes=50), LIMITS, None).says


def test_beyond_one_server_it_says_how_many():
    """By connections, where a proxy cannot share what is in use; or by processors."""
    fleet = Fleet(machines=10, processes=10, loops=1, pools=1, max_size=None)
    outcome = judge(fleet, LIMITS, replace(DEMAND, rate=12_000))
    assert (outcome.verdict, outcome.servers) == (Verdict.BEYOND, 4)  # 343 connections, 87 at each
    busy = replace(DEMAND, cpu_seconds=0.01)  # 12 processors busy, 17.1 with headroom
    outcome = judge(replace(fleet, processes=1), replace(LIMITS, processors=8), busy)
    assert (outcome.verdict, outcome.servers) == (Verdict.BEYOND, 3)
    assert "needs 17.1 processors, and the server has 8" in outcome.says
    assert verdict(replace(fleet, processes=1), replace(LIMITS, processors=18), busy) is Verdict.FITS


def test_memory_is_a_limit_like_any_other():
    """In whole connections."""
    fleet = Fleet(machines=1, processes=5, loops=1, pools=1, max_size=10)
    assert verdict(fleet, replace(LIMITS, memory_mib=500)) is Verdict.FITS
    assert verdict(fleet, replace(LIMITS, memory_mib=499)) is Verdict.PROXY
    assert verdict(fleet, replace(LIMITS, memory_mib=499, connection_mib=2)) is Verdict.FITS


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ("max_connections", 100, 5, 7)),
        ({"is_superuser": True}, ("max_connections", 100, 0, 7)),
        ({"may_use_reserved": True}, ("max_connections", 100, 3, 7)),
        ({"role_limit": 50}, ("CONNECTION LIMIT of the role", 50, 0, 1)),
        ({"role_limit": 50, "database_limit": 40}, ("CONNECTION LIMIT of the database", 40, 0, 2)),
        ({"role_limit": 5, "is_superuser": True}, ("max_connections", 100, 0, 7)),
        ({"role_limit": 90}, ("max_connections", 100, 5, 7)),
    ],
)
def test_the_limit_that_leaves_the_least_room_binds(changes, expected):
    """Of the server, of the role and of the database."""
    found = limits_of(replace(SERVER, **changes))
    assert (found.name, found.max_connections, found.reserved, found.others) == expected


# ---- the page ----


def examples():
    """The rows of the page's table, as text."""
    rows = re.findall(r"^\| (\d+ x \d+ x \d+ \|.*) \|$", PAGE, re.MULTILINE)
    return [[cell.strip() for cell in row.split("|")] for row in rows]


@pytest.mark.parametrize("row", examples(), ids=" ".join)
def test_the_examples_of_the_page_are_what_is_computed(row):
    """Each cell."""
    machines, processes, loops = map(int, row[0].split(" x "))
    rate, hold, transaction = (float(cell.replace(",", "")) for cell in row[1:4])
    fleet = Fleet(machines=machines, processes=processes, loops=loops, pools=1, max_size=None)
    demand = Demand(rate=rate, hold_seconds=hold / 1e3, transaction_seconds=transaction / 1e3)
    outcome = judge(fleet, LIMITS, demand)
    told = figures(outcome)
    names = ("needed_max_size", "connections", "connections_of_a_pool_per_loop", "waiting", "shared_by_a_proxy")
    computed = [told[name] for name in (*names, "waiting_at_a_proxy")]
    shown = [f"{each}" if isinstance(each, int) else f"{100 * each:.1f} %" for each in computed]
    assert [*shown, outcome.verdict.value] == row[4:]


def test_the_sums_in_the_text_of_the_page_are_what_is_computed():
    """Four of them."""
    assert len(examples()) == 6
    fleet = Fleet(machines=4, processes=8, loops=2, pools=1, max_size=10)
    told = figures(judge(fleet, LIMITS, None))
    text = " ".join(PAGE.split())
    assert f"{told['connections_of_a_pool_per_loop']} connections in place of {told['connections']}" in text
    assert f"so there is room for {told['room']}." in text
    assert f"`max_size=3` in the second example {waiting_share(3, 24 / 32):.1%}".replace("%", " %") in text
    assert f"but {4 * 8 * 3} connections do not fit" in text
    busy = Demand(rate=12_000, hold_seconds=0.02, transaction_seconds=0.005, cpu_seconds=0.001)
    outcome = judge(replace(fleet, machines=20, loops=1, max_size=None), replace(LIMITS, processors=8), busy)
    assert outcome.verdict is Verdict.BEYOND
    assert f"{figures(outcome)['processors_needed']:.1f} have headroom" in text


# ---- the command ----


def plan(capsys, *arguments):
    code = doctor.main(["--plan", "--json", *map(str, arguments)])
    return code, json.loads(capsys.readouterr().out)


def test_no_server_is_asked_where_the_limits_are_given(capsys, monkeypatch):
    """The DSN may be wrong, or there may be none."""
    monkeypatch.setattr("loopaware_pool.cli.doctor.scale_out_command.open_target", None)
    given = ["--machines", 3, "--processes", 4, "--loops", 5, "--max-connections", 200, "--others", 7]
    code, told = plan(capsys, *given)
    assert code == 0
    assert told["fleet"] == {"machines": 3, "processes": 4, "loops": 5, "pools": 1, "max_size": 10}
    assert told["figures"]["connections"] == 120
    assert told["figures"]["connections_of_a_pool_per_loop"] == 600
    assert told["figures"]["room"] == 200 - 3 - 7
    assert (told["verdict"], told["proxy_pool"], told["servers"]) == ("fits", None, 1)


def test_the_exit_code_says_that_it_does_not_fit(capsys):
    """And JSON what to do."""
    code, told = plan(capsys, "--machines", 50, "--rate", 1200, "--hold", 0.02, "--max-connections", 40)
    assert code == 1
    assert (told["verdict"], told["proxy_pool"]) == ("proxy", 35)
    code, told = plan(capsys, "--machines", 50, "--rate", 12000, "--hold", 0.02, "--max-connections", 40)
    assert code == 1
    assert (told["verdict"], told["servers"]) == ("beyond one server", 10)


def test_the_table_has_each_sum_with_its_terms(capsys):
    """The verdict comes last, with what to do."""
    given = ["--plan", "--machines", "50", "--loops", "2", "--rate", "1200", "--hold", "0.02"]
    assert doctor.main([*given, "--max-connections", "40", "--cpu-per-lease", "0.001"]) == 1
    told = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in told.splitlines()]
    assert "connections 100 50 pools x max_size 2, whatever the number of loops" in lines
    assert "with a pool per loop 100 50 pools x 2 loops x max_size 1: the drivers' own pools" in lines
    assert "shared by a proxy 35 1200/s x 0.02 s in a transaction / 0.7" in lines
    assert "processors needed 1.7 1200/s x 0.001 s of processor time / 0.7" in lines
    assert lines[-1].startswith("verdict proxy: 100 connections do not fit into 37: put a proxy in transaction mode")
    assert lines[-1].endswith("with a pool of 35, which do the work")


def test_limits_are_read_from_the_server(capsys, dsn):
    """What is given replaces what is read."""
    code, told = plan(capsys, dsn)
    assert code == 0
    assert told["limits"]["name"] == "max_connections"
    assert told["limits"]["reserved"] == 0  # a superuser's
    most = told["limits"]["max_connections"]
    assert told["server"].startswith("PostgreSQL ")
    code, told = plan(capsys, dsn, "--others", 0, "--reserved", 5, "--pool-size", most)
    assert (code, told["verdict"], told["figures"]["room"]) == (1, "proxy", most - 5)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--plan"], "--plan needs a DSN, to read the limits of its server, or --max-connections"),
        (["--machines", "2"], "--machines needs --plan"),
        (["--cpu-per-lease", "1"], "--cpu-per-lease needs --plan"),
        (["--plan", "--max-connections", "0"], "--max-connections 0: expected a whole number, 1 or more"),
        (["--plan", "--max-connections", "9" * 5000], "expected a whole number, 1000000 at most"),
        (["--plan", "--max-connections", "9", "--machines", "-1"], "--machines -1: expected a whole number"),
        (["--plan", "--max-connections", "9", "--loops", "two"], "--loops two: expected a whole number, 1 or more"),
        (["--plan", "--max-connections", "9", "--others", "x"], "--others x: expected a whole number, 0 or more"),
        (["--plan", "--max-connections", "9", "--rate", "5"], "--rate and --hold go together"),
        (["--plan", "--max-connections", "9", "--transaction", "5"], "--transaction needs --rate and --hold"),
        (["--plan", "--max-connections", "9", "--rate", "1", "--hold", "nan"], "--hold nan: expected a number above 0"),
        (
            ["--plan", "--max-connections", "9", "--rate", "1", "--hold", "1", "--transaction", "2"],
            "--transaction 2: expected a part of --hold 1",
        ),
        (["--plan", "--max-connections", "9", "--rate", "1e9", "--hold", "1"], "--rate 1e+09: with --hold 1"),
        (["--plan", "--max-connections", "3"], "max_connections 3: nothing is left of it beside --reserved 3"),
        (
            ["--plan", "--max-connections", "9", "--memory", "1e308", "--connection-memory", "1e-308"],
            "--memory 1e308: expected a number from 1e-09 to 1e+12",
        ),
        (
            ["--plan", "--max-connections", "9", "--rate", "1e300", "--hold", "1e-300", "--cpu-per-lease", "1e300"],
            "--rate 1e300: expected a number from 1e-09 to 1e+12",
        ),
        (["--plan", "--max-connections", "9", "--memory", "1"], "--memory 1: less than one connection's 10 MiB"),
        (["--plan", "mysql://u:hunter2@h/d"], "the DSN is not understood"),
    ],
)
def test_bad_input_takes_one_line(capsys, arguments, complaint):
    """It names the argument, and no password."""
    assert doctor.main(arguments) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert complaint in told.err
    assert told.err.count("\n") == 1
    assert "hunter2" not in told.err


def test_the_table_in_the_documentation_is_what_the_command_prints(capsys):
    """To the letter."""
    page = (Path(__file__).parents[1] / "docs" / "doctor.md").read_text()
    command, shown = re.search(r"^\$ loopaware-pool doctor (--plan [^\n]*)\n(.*?)^```$", page, re.M | re.S).groups()
    assert doctor.main(command.split()) == 1
    assert capsys.readouterr().out == shown
