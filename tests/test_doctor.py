"""What `doctor` says of facts: each finding has its severity, its evidence and a remedy that can be carried out."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from doctor_facts import SERVER
from loopaware_pool.cli.doctor import command as doctor
from loopaware_pool.cli.doctor import output as doctor_output
from loopaware_pool.cli.doctor.facts import Facts, Host, Plan, Pooling, Way
from loopaware_pool.cli.doctor.findings import Severity
from loopaware_pool.cli.doctor.host_checks import SUPPORTED, judge_version

ROOT = Path(__file__).parent.parent

HOST = Host(
    versions={
        "Python": "3.12.1",
        "loopaware-pool": "0.1.0",
        "asyncpg": "0.32.0",
        "psycopg": "3.3.1",
        "psycopg-pool": "3.3.0",
        "uvloop": None,
        "libpq": "18.0",
    },
    psycopg_implementation="binary",
    psycopg_failure=None,
    fd_limit=1024,
)
WAY = Way(
    peer="127.0.0.1",
    is_local=True,
    sslmode="prefer",
    client_tls=None,
    server_tls=None,
    announced_pid=4711,
    backend_pid=4711,
)
AWAY = replace(WAY, peer="192.0.2.1", is_local=False)


def find(code, *, plan=(10, 1), host=HOST, way=WAY, server=SERVER):
    """The one finding of that code."""
    findings = doctor.diagnose(Facts(Plan(*plan), host, way, server))
    (found,) = [each for each in findings if each.code == code]
    return found


def severity(code, **facts):
    return find(code, **facts).severity.name


def test_where_all_is_well_every_check_says_so():
    """There is no advice where nothing is to be done."""
    findings = doctor.diagnose(Facts(Plan(10, 1), HOST, WAY, SERVER))
    assert {(each.severity, each.remedy) for each in findings} == {(Severity.OK, "")}


@pytest.mark.parametrize(
    ("name", "version", "expected"),
    [
        ("Python", "3.10.13", "PROBLEM"),
        ("Python", "3.11.0", "OK"),
        ("Python", "3.13.7", "OK"),
        ("Python", "3.14.0", "WARNING"),
        ("asyncpg", "0.30.0", "PROBLEM"),
        ("asyncpg", "0.32.1", "OK"),
        ("psycopg", "3.10.0", "WARNING"),
        ("psycopg", None, "PROBLEM"),
        ("PostgreSQL", "14.19", "PROBLEM"),
        ("PostgreSQL", "15", "OK"),
        ("PostgreSQL", "18.6", "OK"),
        ("PostgreSQL", "19beta1", "WARNING"),
    ],
)
def test_a_version_is_older_than_supported_supported_or_not_tested(name, version, expected):
    """By its leading numbers, not by its text."""
    found = judge_version("code", name, version)
    assert found.severity.name == expected
    assert bool(found.remedy) == (expected != "OK")


def test_the_supported_versions_are_those_of_the_readme():
    """It is said in two places, and must be the same."""
    text = (ROOT / "README.md").read_text().partition("## Supported versions")[2]
    assert "Python {} to {}".format(*SUPPORTED["Python"]) in text
    assert "asyncpg {} and {}".format(*SUPPORTED["asyncpg"]) in text
    assert "psycopg {} and {}".format(*SUPPORTED["psycopg"]) in text
    assert "PostgreSQL {} to {}".format(*SUPPORTED["PostgreSQL"]) in text


def test_each_code_is_in_the_documentation():
    """With what it means."""
    table = (ROOT / "docs" / "doctor.md").read_text()
    codes = [each.code for each in doctor.diagnose(Facts(Plan(1, 1), HOST, WAY, SERVER))]
    assert len(set(codes)) == len(codes)
    assert [code for code in codes if f"`{code}`" not in table] == []


@pytest.mark.parametrize(
    ("code", "changes", "expected"),
    [
        ("psycopg", {"psycopg_implementation": "python"}, "NOTE"),
        ("psycopg", {"psycopg_failure": "no pq wrapper available", "psycopg_implementation": None}, "WARNING"),
        ("fd-limit", {"fd_limit": None}, "OK"),
        ("fd-limit", {"fd_limit": 74}, "OK"),
        ("fd-limit", {"fd_limit": 73}, "WARNING"),
        ("fd-limit", {"fd_limit": 10}, "PROBLEM"),
    ],
)
def test_the_process_is_judged(code, changes, expected):
    """By what it has."""
    assert severity(code, host=replace(HOST, **changes)) == expected


def test_judging_needs_neither_a_loop_nor_a_driver():
    """What is imported for it gives no means to wait or to connect."""
    code = """
import sys
from loopaware_pool.cli.doctor import findings as doctor_findings
from loopaware_pool.cli.doctor import host_checks as doctor_host_checks
from loopaware_pool.cli.doctor import scale_out as doctor_scale_out
from loopaware_pool.cli.doctor import server_checks as doctor_server_checks
from loopaware_pool.cli.doctor import way_checks as doctor_way_checks
print(*{"asyncio", "asyncpg", "psycopg", "socket", "subprocess"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == []


# ---- room ----


@pytest.mark.parametrize(
    ("plan", "taken", "expected"),
    [
        ((95, 1), 0, "OK"),
        ((10, 9), 5, "OK"),
        ((10, 9), 6, "WARNING"),
        ((24, 4), 0, "PROBLEM"),
    ],
)
def test_pool_size_times_processes_has_to_fit_beside_what_is_taken(plan, taken, expected):
    """Of max_connections, what is reserved for others is none of ours."""
    assert severity("connections", plan=plan, server=replace(SERVER, taken=taken)) == expected


def test_the_arithmetic_is_the_evidence():
    """All of it."""
    found = find("connections", plan=(10, 9), server=replace(SERVER, taken=6))
    assert found.evidence == (
        "max_connections 100 - 3 superuser_reserved_connections - 2 reserved_connections = 95 for role app; "
        "- 6 taken by others = 89 free; a pool of 10 x 9 processes = 90 > 89"
    )


@pytest.mark.parametrize(("privilege", "usable"), [("is_superuser", 100), ("may_use_reserved", 97)])
def test_who_may_have_reserved_connections_has_them(privilege, usable):
    """Superusers all, and pg_use_reserved_connections its own."""
    server = replace(SERVER, **{privilege: True})
    assert severity("connections", plan=(usable, 1), server=server) == "OK"
    assert severity("connections", plan=(usable + 1, 1), server=server) == "PROBLEM"


@pytest.mark.parametrize(
    ("code", "changes", "expected"),
    [
        ("role-limit", {"role_limit": 9}, "PROBLEM"),
        ("role-limit", {"role_limit": 10}, "OK"),
        ("role-limit", {"role_limit": 10, "taken": 1, "taken_by_role": 1}, "WARNING"),
        ("role-limit", {"role_limit": 10, "taken": 1, "taken_in_database": 1}, "OK"),
        ("role-limit", {"role_limit": 9, "is_superuser": True}, "OK"),
        ("database-limit", {"database_limit": 9}, "PROBLEM"),
        ("database-limit", {"database_limit": 10, "taken": 1, "taken_in_database": 1}, "WARNING"),
        ("database-limit", {"database_limit": 10, "taken": 1, "taken_by_role": 1}, "OK"),
        ("database-limit", {"database_limit": 9, "is_superuser": True}, "OK"),
    ],
)
def test_roles_and_databases_may_have_limits_of_their_own(code, changes, expected):
    """What counts against each is its own; superusers are exempt."""
    assert severity(code, server=replace(SERVER, **changes)) == expected


def test_behind_a_proxy_the_servers_limits_are_no_verdict():
    """The proxy's are what decides."""
    found = find("connections", plan=(100, 10), way=replace(WAY, pooling=Pooling.SESSION))
    assert found.severity is Severity.NOTE
    assert "max_client_conn" in found.remedy


# ---- settings ----


@pytest.mark.parametrize(("seconds", "expected"), [(0, "OK"), (599, "WARNING"), (600, "NOTE")])
def test_a_timeout_of_the_server_that_comes_before_a_pools_is_a_warning(seconds, expected):
    """It ends a session that the pool counts on."""
    assert severity("idle-session-timeout", server=replace(SERVER, idle_session_timeout=seconds)) == expected


def test_a_keepalive_is_advised_that_comes_before_the_servers_timeout():
    """In seconds; and the statement that ends the timeout quotes the role's name."""
    server = replace(SERVER, idle_session_timeout=300.0, role='a "b" c')
    remedy = find("idle-session-timeout", server=server).remedy
    assert "keepalive=150," in remedy
    assert remedy.endswith('ALTER ROLE "a ""b"" c" SET idle_session_timeout = 0;')


# ---- the way ----


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        (Pooling.SESSION, "NOTE"),
        (Pooling.TRANSACTION, "WARNING"),
        (Pooling.STATEMENT, "PROBLEM"),
        (Pooling.UNKNOWN, "WARNING"),
    ],
)
def test_a_proxy_is_as_bad_as_its_way_of_sharing(pooling, expected):
    """The evidence is that another process answers than was announced."""
    found = find("proxy", way=replace(WAY, pooling=pooling, backend_pid=12))
    assert found.severity.name == expected
    assert "process 4711 was announced, process 12 answers" in found.evidence


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"is_local": True}, "OK"),
        ({}, "WARNING"),
        ({"sslmode": "prefer", "client_tls": "TLSv1.3"}, "WARNING"),
        ({"sslmode": "allow", "client_tls": "TLSv1.3"}, "WARNING"),
        ({"sslmode": "require", "client_tls": "TLSv1.3"}, "NOTE"),
        ({"sslmode": "verify-full", "client_tls": "TLSv1.3"}, "OK"),
        # What the server sees is the proxy's connection, not ours.
        ({"sslmode": "prefer", "server_tls": "TLSv1.3", "pooling": Pooling.SESSION}, "WARNING"),
        ({"sslmode": "verify-full", "server_tls": "TLSv1.3"}, "OK"),
    ],
)
def test_whoever_is_on_the_way_must_not_be_able_to_listen(changes, expected):
    """Nor to have TLS dropped in silence."""
    assert severity("tls", way=replace(AWAY, **changes)) == expected


# ---- output ----


def show(capsys, role="app"):
    """What is shown of a server that is nearly full."""
    facts = Facts(Plan(10, 1), HOST, replace(AWAY, sslmode="require", client_tls="TLSv1.3"), replace(SERVER, taken=96))
    facts = replace(facts, server=replace(facts.server, role=role))
    doctor_output.show("PostgreSQL 17.2", facts, doctor.diagnose(facts))
    return capsys.readouterr().out


def test_the_worst_comes_first(capsys):
    """Each with its evidence and remedy; what is well takes a line."""
    lines = show(capsys).splitlines()
    assert lines[0] == "server   PostgreSQL 17.2"
    assert [line.split()[0] for line in lines if re.match(r"(warning|note|ok) ", line)][:3] == ["warning", "note", "ok"]
    assert lines[3].startswith("warning  connections: ")
    assert lines[4].startswith("         evidence: ")
    assert lines[5].startswith("         remedy:   ")
    assert re.fullmatch(r"total    problem 0, warning 1, note 1, ok \d+", lines[-1])


def test_it_is_in_colour_on_a_terminal(capsys, monkeypatch):
    """The words are the same; square brackets are no markup."""
    plain = show(capsys, role="[bold]x")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    coloured = show(capsys, role="[bold]x")
    assert "\x1b[1;33mwarning" in coloured
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == plain


def test_json_has_versions_and_findings():
    """A finding with all of its parts."""
    facts = Facts(Plan(10, 20), HOST, WAY, SERVER)
    told = json.loads(doctor_output.as_json(facts, doctor.diagnose(facts)))
    assert told["plan"] == {"pool_size": 10, "processes": 20, "work": None}
    assert told["versions"]["PostgreSQL"] == "17.2"
    (found,) = [each for each in told["findings"] if each["code"] == "connections"]
    assert found["severity"] == "problem"
    assert set(found) == {"code", "severity", "title", "evidence", "remedy"}
