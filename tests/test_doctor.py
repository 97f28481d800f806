"""What `doctor` says of facts: each finding has its severity, its evidence and a remedy that can be carried out."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from loopaware_pool.cli.doctor import command as doctor
from loopaware_pool.cli.doctor import output as doctor_output
from loopaware_pool.cli.doctor.facts import Facts, Host, Plan, Pooling, RoleSetting, Server, Sessions, Way
from loopaware_pool.cli.doctor.findings import Severity
from loopaware_pool.cli.doctor.host_checks import SUPPORTED, judge_version

ROOT = Path(__file__).parent.parent

HOST = Host(
    python="3.12.1",
    loop="asyncio's UnixSelectorEventLoop with EpollSelector",
    is_proactor=False,
    versions={
        "loopaware-pool": "0.1.0",
        "asyncpg": "0.32.0",
        "psycopg": "3.3.1",
        "psycopg-pool": "3.3.0",
        "uvloop": None,
        "gunicorn": None,
        "uvicorn": None,
    },
    psycopg_implementation="binary",
    psycopg_failure=None,
    libpq="18.0",
    start_method="spawn",
    can_hear_of_forks=True,
    fd_limit=1024,
    shows_fds=True,
    worker_count=None,
    gunicorn_arguments="",
)
WAY = Way(
    peer="127.0.0.1",
    is_local=True,
    sslmode="prefer",
    client_tls=None,
    server_tls=None,
    announced_pid=4711,
    backend_pid=4711,
    local_port=50000,
    client_port=50000,
)
SERVER = Server(
    version="17.2",
    role="app",
    database="shop",
    is_superuser=False,
    may_use_reserved=False,
    sees_all=True,
    settings={
        "max_connections": "100",
        "superuser_reserved_connections": "3",
        "reserved_connections": "2",
        "max_parallel_workers_per_gather": "0",
        "idle_session_timeout": "0",
        "idle_in_transaction_session_timeout": "60000",
        "statement_timeout": "0",
        "transaction_timeout": "0",
        "tcp_keepalives_idle": "7200",
        "tcp_keepalives_interval": "75",
        "tcp_keepalives_count": "9",
    },
)
AWAY = replace(WAY, peer="192.0.2.1", is_local=False)


def sessions(number, **features):
    features = {
        "user": "web",
        "application": "",
        "database": "shop",
        "state": "idle",
        "longest_seconds": 1.0,
    } | features
    return Sessions(is_hidden=features["state"] is None, number=number, **features)


def settings(**changed):
    return replace(SERVER, settings={**SERVER.settings, **changed})


def find(code, *, plan=(10, 1), host=HOST, way=WAY, server=SERVER):
    """The one finding of that code."""
    findings = doctor.diagnose(Facts(Plan(*plan), host, way, server))
    (found,) = [each for each in findings if each.code == code]
    return found


def severity(code, **facts):
    return find(code, **facts).severity.name


def test_where_all_is_well_there_is_only_the_note_on_the_setting_that_does_not_exist():
    """It is always told, with what does exist."""
    findings = doctor.diagnose(Facts(Plan(10, 1), HOST, WAY, SERVER))
    (note,) = [each for each in findings if each.severity is not Severity.OK]
    assert note.severity is Severity.NOTE
    assert note.code == "async-client-compatibility"
    assert 'ALTER ROLE "app" SET max_parallel_workers_per_gather = 0;' in note.remedy


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
        ("event-loop", {"is_proactor": True}, "PROBLEM"),
        ("psycopg", {"psycopg_implementation": "python"}, "NOTE"),
        ("psycopg", {"psycopg_failure": "no pq wrapper available", "psycopg_implementation": None}, "WARNING"),
        ("fd-limit", {"fd_limit": None}, "OK"),
        ("fd-limit", {"fd_limit": 74}, "OK"),
        ("fd-limit", {"fd_limit": 73}, "WARNING"),
        ("fd-limit", {"fd_limit": 10}, "PROBLEM"),
        ("fd-list", {"shows_fds": False}, "NOTE"),
        ("fork", {"start_method": "fork"}, "NOTE"),
        ("fork", {"start_method": "fork", "can_hear_of_forks": False}, "WARNING"),
        ("fork", {"start_method": "forkserver"}, "OK"),
        ("workers", {"worker_count": "1"}, "OK"),
        ("workers", {"worker_count": "4"}, "WARNING"),
        ("workers", {"gunicorn_arguments": "--bind=:80 --preload"}, "WARNING"),
        ("workers", {"gunicorn_arguments": "--name 'not --preload'"}, "OK"),
        ("workers", {"gunicorn_arguments": "--name ' --preload"}, "WARNING"),
    ],
)
def test_the_machine_is_judged(code, changes, expected):
    """By what it has."""
    assert severity(code, host=replace(HOST, **changes)) == expected


def test_judging_needs_neither_a_loop_nor_a_driver():
    """What is imported for it gives no means to wait or to connect."""
    code = """
import sys
from loopaware_pool.cli.doctor import findings as doctor_findings
from loopaware_pool.cli.doctor import host_checks as doctor_host_checks
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
    assert severity("connections", plan=plan, server=replace(SERVER, sessions=[sessions(taken)])) == expected


def test_the_arithmetic_is_the_evidence():
    """All of it."""
    found = find("connections", plan=(10, 9), server=replace(SERVER, sessions=[sessions(4), sessions(2, user="x")]))
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
        ("role-limit", {"role_limit": 10, "sessions": [sessions(1, user="app")]}, "WARNING"),
        ("role-limit", {"role_limit": 10, "sessions": [sessions(1)]}, "OK"),
        ("role-limit", {"role_limit": 9, "is_superuser": True}, "OK"),
        ("role-limit", {"role_limit": None}, "NOTE"),
        ("database-limit", {"database_limit": 9}, "PROBLEM"),
        ("database-limit", {"database_limit": 10, "sessions": [sessions(1)]}, "WARNING"),
        ("database-limit", {"database_limit": 10, "sessions": [sessions(1, database="other")]}, "OK"),
        ("database-limit", {"database_limit": 9, "is_superuser": True}, "OK"),
        ("database-limit", {"database_limit": 10, "sessions": None}, "NOTE"),
    ],
)
def test_roles_and_databases_may_have_limits_of_their_own(code, changes, expected):
    """What counts against each is its own; superusers are exempt."""
    assert severity(code, server=replace(SERVER, **changes)) == expected


def test_behind_a_proxy_the_servers_limits_are_no_verdict():
    """The proxy's are what decides."""
    found = find("connections", plan=(100, 10), way=replace(WAY, pooling=Pooling.SESSION))
    assert found.severity is Severity.NOTE
    assert "max_client_conn" in found.evidence


# ---- sessions ----


def test_what_is_hidden_is_said_and_not_guessed():
    """With the grant that would show it."""
    hidden = sessions(3, state=None, longest_seconds=None)
    server = replace(SERVER, sees_all=False, role='o"brien', sessions=[hidden], unseen=["roles (forbidden)"])
    found = find("privileges", server=server)
    assert found.severity is Severity.NOTE
    assert found.evidence == "hidden: roles (forbidden); what 3 sessions of other roles do"
    assert found.remedy == 'to see sessions: GRANT pg_read_all_stats TO "o""brien";'
    assert "3 web@shop: state hidden" in find("sessions", server=server).evidence
    assert "of those that are seen" in find("idle-transactions", server=server).evidence


def test_without_sessions_nothing_is_claimed_of_them():
    """Each finding that needs them says so."""
    server = replace(SERVER, sessions=None)
    assert [severity(code, server=server) for code in ("sessions", "idle-transactions", "connections")] == ["NOTE"] * 3
    server = replace(SERVER, parallel=None)
    assert find("async-client-compatibility", server=server).evidence == "settings of roles are hidden"


def test_without_settings_nothing_is_claimed_of_them():
    """None is taken for zero."""
    codes = ["connections", "parallel-query", "idle-session-timeout", "session-timeouts", "tcp-keepalives"]
    assert [severity(code, server=replace(SERVER, settings={})) for code in codes] == ["NOTE"] * len(codes)


def test_a_transaction_that_is_idle_for_long_is_a_warning():
    """It names whose it is, and for how long."""
    idle = sessions(2, state="idle in transaction (aborted)", application="worker", longest_seconds=61.4)
    found = find("idle-transactions", server=replace(SERVER, sessions=[idle]))
    assert found.severity is Severity.WARNING
    assert found.evidence == "2 web@shop as 'worker': idle in transaction (aborted), for up to 61 s"
    brief = replace(idle, longest_seconds=59.0)
    assert severity("idle-transactions", server=replace(SERVER, sessions=[brief])) == "OK"


# ---- settings ----


def test_parallel_workers_come_with_the_statement_that_ends_them():
    """The role's name is quoted, and what is set for roles and databases is told."""
    given = [RoleSetting("reports", None, "max_parallel_workers_per_gather=8")]
    server = replace(settings(max_parallel_workers_per_gather="2"), role='a "b" c', parallel=given)
    found = find("parallel-query", server=server)
    assert found.severity is Severity.NOTE
    assert "max_parallel_workers_per_gather=8 for role reports" in found.evidence
    assert found.remedy.endswith('ALTER ROLE "a ""b"" c" SET max_parallel_workers_per_gather = 0;')
    assert "hidden" in find("parallel-query", server=replace(server, parallel=None)).evidence


def test_where_the_setting_that_does_not_exist_is_set_is_a_warning():
    """It names the place."""
    found = find("async-client-compatibility", server=replace(SERVER, misnamed=["/etc/postgresql.conf line 7"]))
    assert found.severity is Severity.WARNING
    assert "line 7" in found.evidence


@pytest.mark.parametrize(
    ("code", "changes", "expected"),
    [
        ("idle-session-timeout", {"idle_session_timeout": "599000"}, "WARNING"),
        ("idle-session-timeout", {"idle_session_timeout": "600000"}, "NOTE"),
        ("session-timeouts", {"idle_in_transaction_session_timeout": "0"}, "NOTE"),
        ("session-timeouts", {"idle_in_transaction_session_timeout": "0", "statement_timeout": "1"}, "OK"),
    ],
)
def test_the_servers_timeouts_are_held_against_a_pools(code, changes, expected):
    """What ends a session that the pool counts on is a warning."""
    assert severity(code, server=settings(**changes)) == expected


def test_a_keepalive_is_advised_that_comes_before_the_servers_timeout():
    """In seconds."""
    assert "keepalive=150," in find("idle-session-timeout", server=settings(idle_session_timeout="300000")).remedy


@pytest.mark.parametrize(
    ("idle", "way", "expected"),
    [("7200", WAY, "OK"), ("7200", AWAY, "NOTE"), ("350", AWAY, "OK"), ("0", AWAY, "OK")],
)
def test_keepalives_matter_where_there_is_a_network(idle, way, expected):
    """Not on this machine."""
    assert severity("tcp-keepalives", way=way, server=settings(tcp_keepalives_idle=idle)) == expected


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


def test_another_port_at_the_other_end_is_a_translation():
    """Which is no more than a note."""
    found = find("proxy", way=replace(WAY, client_port=50001))
    assert found.severity is Severity.NOTE
    assert "our port is 50000, the server sees 50001" in found.evidence


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


@pytest.mark.parametrize("is_terminal", [True, False])
def test_the_worst_comes_first(is_terminal, capsys, monkeypatch):
    """In colour on a terminal; square brackets are no markup."""
    monkeypatch.setenv("FORCE_COLOR" if is_terminal else "NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "300")
    server = replace(SERVER, sessions=[sessions(96, application="[bold]")])
    facts = Facts(Plan(10, 1), HOST, WAY, server)
    doctor_output.show("PostgreSQL 17.2", facts, doctor.diagnose(facts))
    told = capsys.readouterr().out
    assert ("\x1b[1;33mwarning" in told) == is_terminal
    lines = [line.rstrip() for line in re.sub(r"\x1b\[[\d;]*m", "", told).splitlines()]
    assert lines[0] == "server   PostgreSQL 17.2"
    assert [line.split()[0] for line in lines if re.match(r"(warning|note|ok) ", line)][:3] == ["warning", "note", "ok"]
    assert "96 web@shop as '[bold]': idle" in "\n".join(lines)
    assert re.fullmatch(r"total    problem 0, warning 1, note 1, ok \d+", lines[-1])


def test_without_rich_the_lines_are_the_same(capsys, monkeypatch):
    """It is an extra."""
    facts = Facts(Plan(10, 1), HOST, WAY, SERVER)
    doctor_output.show("PostgreSQL 17.2", facts, doctor.diagnose(facts))
    with_rich = capsys.readouterr().out
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setitem(sys.modules, "loopaware_pool.cli.console", None)
    doctor_output.show("PostgreSQL 17.2", facts, doctor.diagnose(facts))
    assert capsys.readouterr().out == with_rich


def test_json_has_versions_and_findings():
    """A finding with all of its parts."""
    facts = Facts(Plan(10, 20), HOST, WAY, SERVER)
    told = json.loads(doctor_output.as_json(facts, doctor.diagnose(facts)))
    assert told["plan"] == {"pool_size": 10, "processes": 20}
    assert told["versions"]["PostgreSQL"] == "17.2"
    (found,) = [each for each in told["findings"] if each["code"] == "connections"]
    assert found["severity"] == "problem"
    assert set(found) == {"code", "severity", "title", "evidence", "remedy"}
