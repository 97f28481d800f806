"""`doctor` looks at real servers, with what it may see of them, and through a real PgBouncer."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from types import SimpleNamespace

import psycopg
import pytest
from psycopg import sql

from helpers import spin
from loopaware_pool import create_pool
from loopaware_pool.audit import assert_zero_fd_delta
from loopaware_pool.cli.doctor import command as doctor
from loopaware_pool.cli.doctor import server as doctor_server
from loopaware_pool.cli.doctor.facts import Pooling
from loopaware_pool.cli.doctor.server import look_at_server
from loopaware_pool.cli.doctor.way_checks import check_way
from loopaware_pool.cli.target import Target
from loopaware_pool.testing import FaultProxy
from loopaware_pool.testing.embedded_server import EmbeddedServer
from pgbouncer import pgbouncer
from running import eventually

pytestmark = [pytest.mark.both_pythons, pytest.mark.both_drivers]

SECRET = "hunter2"
ROLE = 'o"brien'


@pytest.fixture(scope="module")
def private_server():
    """A server that takes 20 connections, two of them reserved, and whose roles and grants may be changed."""
    settings = {"max_connections": 20, "superuser_reserved_connections": 1, "reserved_connections": 1}
    with EmbeddedServer(settings=settings) as server:
        yield server


@pytest.fixture
def admin(private_server):
    with psycopg.connect(private_server.dsn, autocommit=True) as connection:
        eventually(lambda: not other_sessions(connection), "the end of what came before")
        yield connection


def other_sessions(admin):
    query = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    return admin.execute(query).fetchone()[0]


@pytest.fixture
def role(admin):
    """A role that may log in, and nothing else; gives its DSN."""
    admin.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'secret' CONNECTION LIMIT 3").format(sql.Identifier(ROLE)))
    yield f"postgresql://o%22brien:secret@{admin.info.host}:{admin.info.port}/postgres"
    eventually(lambda: not other_sessions(admin), "the end of the role's sessions")
    admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(ROLE)))


def look(dsn):
    async def main():
        async with assert_zero_fd_delta():
            return await look_at_server(dsn)

    return asyncio.run(main())


def diagnose(dsn, capsys, *options):
    """What the command says of a server, by code, and its exit code."""
    code = doctor.main([dsn, "--json", *options])
    told = json.loads(capsys.readouterr().out)
    return {each["code"]: each for each in told["findings"]}, code


def run_command(dsn, **environment):
    """The command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "loopaware_pool", "doctor", dsn, "--pool-size", "1", "--json"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@contextmanager
def connected(dsn, number=1):
    connections = [psycopg.connect(dsn, autocommit=True) for _ in range(number)]
    try:
        yield connections
    finally:
        for connection in connections:
            connection.close()


def test_a_server_is_seen_as_it_is(dsn, loop_factory):
    """On any loop, and nothing is left open."""

    async def main():
        async with assert_zero_fd_delta():
            return await look_at_server(dsn)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        way, server = runner.run(main())
    with psycopg.connect(dsn) as connection:
        assert server.version == connection.execute("SHOW server_version").fetchone()[0].split()[0]
        assert server.max_connections == int(connection.execute("SHOW max_connections").fetchone()[0])
        assert (server.role, server.database) == (connection.info.user, connection.info.dbname)
    assert way.announced_pid == way.backend_pid
    assert way.pooling is None


def test_a_socket_of_this_machine_is_local(private_server):
    """TCP or not."""
    way, _ = look(private_server.dsn)
    assert (way.peer, way.is_local) == ("127.0.0.1", True)
    way, _ = look(private_server.unix_dsn)
    assert (way.peer, way.is_local) == ("a Unix socket", True)
    assert [each.severity.name for each in check_way(way)] == ["OK", "OK"]


def test_without_the_drivers_private_parts_less_is_told(private_server, monkeypatch):
    """Of the socket, that is; the server is seen as ever."""
    monkeypatch.setattr(doctor_server, "Internals", lambda connection: SimpleNamespace(transport=None))
    way, server = look(private_server.dsn)
    assert (way.peer, way.client_tls) == (None, None)
    assert server.role == "postgres"
    assert [each.code for each in check_way(way)] == ["proxy", "tls"]


# ---- room ----


def test_a_server_that_is_nearly_full_is_a_warning_and_one_too_small_a_problem(private_server, role, admin, capsys):
    """20 connections, 2 of them reserved, 1 taken: the arithmetic is told. The role's own limit is another matter."""
    found, code = diagnose(role, capsys, "--pool-size", "3")
    assert (found["connections"]["severity"], code) == ("ok", 0)
    found, code = diagnose(role, capsys, "--pool-size", "9", "--processes", "2")
    assert found["connections"]["severity"] == "warning"
    assert "= 18 for role" in found["connections"]["evidence"]
    assert "- 1 taken by others = 17 free; a pool of 9 x 2 processes = 18 > 17" in found["connections"]["evidence"]
    assert found["role-limit"]["severity"] == "problem"
    assert found["role-limit"]["remedy"] == 'ALTER ROLE "o""brien" CONNECTION LIMIT 18; or --pool-size 1 at most'
    assert code == 1


def test_a_plan_goes_by_the_limit_that_leaves_the_least_room(private_server, role, admin, capsys):
    """The role's own, or the server's; what is taken now counts, and what is given replaces it."""

    def plan(*options):
        code = doctor.main([role, "--plan", "--json", *options])
        told = json.loads(capsys.readouterr().out)
        return code, told["limits"]["name"], told["figures"]["room"], told["proxy_pool"]

    assert plan("--pool-size", "3") == (0, "CONNECTION LIMIT of the role", 3, None)
    assert plan("--pool-size", "2", "--processes", "2") == (1, "CONNECTION LIMIT of the role", 3, 3)
    admin.execute(sql.SQL("ALTER ROLE {} CONNECTION LIMIT -1").format(sql.Identifier(ROLE)))
    assert plan("--machines", "17", "--pool-size", "1") == (0, "max_connections", 20 - 2 - 1, None)
    assert plan("--machines", "17", "--pool-size", "1", "--others", "2") == (1, "max_connections", 20 - 2 - 2, 16)


def test_a_plan_says_that_there_is_a_proxy_already(private_server, pgbouncer_program, capsys):
    """Whose limits it does not know."""
    with pgbouncer(pgbouncer_program, private_server.dsn, pool_mode="transaction") as dsn:
        assert doctor.main([dsn, "--plan", "--pool-size", "2"]) == 0
    assert "behind a proxy that pools: these are not the proxy's limits" in capsys.readouterr().out


def test_a_server_that_is_full_cannot_be_looked_at(role, admin, capsys):
    """One line, exit code 2."""
    admin.execute(sql.SQL("ALTER ROLE {} CONNECTION LIMIT -1").format(sql.Identifier(ROLE)))
    with connected(role, 17):
        assert doctor.main([role]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "is full: remaining connection slots are reserved" in told.err
    assert told.err.count("\n") == 1


# ---- privileges ----


def test_a_role_that_may_not_connect_is_told_so(private_server, role, admin, capsys):
    """One line, exit code 2."""
    admin.execute("REVOKE CONNECT ON DATABASE postgres FROM PUBLIC")
    try:
        assert doctor.main([role]) == 2
    finally:
        admin.execute("GRANT CONNECT ON DATABASE postgres TO PUBLIC")
    told = capsys.readouterr().err
    assert "permission denied for database" in told
    assert told.count("\n") == 1


def test_a_role_of_few_privileges_sees_what_is_needed(private_server, role, admin, capsys):
    """It counts sessions whose state it may not see, and its own apart; reserved connections are none of its own."""
    with connected(role) as (other,):
        other.execute("SELECT 1")
        _, server = look(role)
    assert (server.taken, server.taken_by_role, server.taken_in_database) == (2, 1, 2)
    assert (server.role, server.role_limit, server.database_limit) == (ROLE, 3, -1)
    assert (server.superuser_reserved_connections, server.reserved_connections) == (1, 1)
    assert not server.is_superuser
    assert not server.may_use_reserved
    admin.execute(sql.SQL("GRANT pg_use_reserved_connections TO {}").format(sql.Identifier(ROLE)))
    assert look(role)[1].may_use_reserved


@pytest.mark.parametrize("table", ["pg_stat_activity", "pg_roles", "pg_database"])
def test_a_catalog_that_is_closed_is_one_line_and_exit_code_2(role, admin, table, capsys):
    """Never a traceback."""
    admin.execute(f"REVOKE SELECT ON {table} FROM PUBLIC")
    try:
        assert doctor.main([role]) == 2
    finally:
        admin.execute(f"GRANT SELECT ON {table} TO PUBLIC")
    told = capsys.readouterr().err
    assert f"permission denied for {'table' if table == 'pg_database' else 'view'} {table}" in told
    assert told.count("\n") == 1


def test_a_timeout_of_the_role_is_seen_and_the_statement_that_is_advised_ends_it(role, admin, capsys):
    """In seconds, whatever its unit; the role's name needs quoting."""
    name = sql.Identifier(ROLE)
    admin.execute(sql.SQL("ALTER ROLE {} SET idle_session_timeout = '2min'").format(name))
    found, code = diagnose(role, capsys, "--pool-size", "1")
    assert (found["idle-session-timeout"]["severity"], code) == ("warning", 1)
    assert "idle_session_timeout is 120 s" in found["idle-session-timeout"]["evidence"]
    admin.execute(found["idle-session-timeout"]["remedy"].partition(", or ")[2])
    found, code = diagnose(role, capsys, "--pool-size", "1")
    assert (found["idle-session-timeout"]["severity"], code) == ("ok", 0)


# ---- the way ----


@pytest.mark.parametrize("pooling", [Pooling.TRANSACTION, Pooling.SESSION, Pooling.STATEMENT])
def test_a_pgbouncer_is_found_with_its_mode(private_server, pgbouncer_program, pooling):
    """Time and again: what a look leaves in the server's session does not disturb the next."""
    with pgbouncer(pgbouncer_program, private_server.dsn, pool_mode=pooling.value) as dsn:
        for _ in range(3):
            way, server = look(dsn)
            assert way.pooling is pooling
            assert way.announced_pid != way.backend_pid
            assert server.max_connections == 20


def test_what_one_look_leaves_in_a_shared_session_does_not_disturb_another(private_server, pgbouncer_program):
    """Statements have the same names in every process."""
    with pgbouncer(pgbouncer_program, private_server.dsn, pool_mode="transaction") as dsn:
        for _ in range(3):
            done = run_command(dsn)
            assert (done.returncode, done.stderr) == (1, "")


def test_sessions_that_are_lent_in_turn_are_shared(private_server, pgbouncer_program):
    """Although each of two connections may find the other's next to it."""

    def open_sessions(dsn, number):
        with connected(dsn, number) as connections:
            for connection in connections:
                connection.execute("BEGIN")
            for connection in connections:
                connection.execute("COMMIT")

    options = {"pool_mode": "transaction", "server_round_robin": 1}
    for number in (2, 3):
        with pgbouncer(pgbouncer_program, private_server.dsn, **options) as dsn:
            open_sessions(dsn, number)
            way, _ = look(dsn)
            assert way.pooling is Pooling.TRANSACTION


def test_a_pgbouncer_that_has_no_second_session_does_not_show_its_mode(private_server, pgbouncer_program, monkeypatch):
    """Which is said, after the time that a query may take."""
    find = doctor_server._find_pooling

    async def find_soon(dsn, first):
        monkeypatch.setattr(doctor_server, "_QUERY_SECONDS", 0.3)  # for the second alone
        return await find(dsn, first)

    monkeypatch.setattr(doctor_server, "_find_pooling", find_soon)
    options = {"pool_mode": "session", "default_pool_size": 1}
    with pgbouncer(pgbouncer_program, private_server.dsn, **options) as dsn:
        way, server = look(dsn)
    assert way.pooling is Pooling.UNKNOWN
    assert server.max_connections == 20


def test_what_is_advised_for_shared_sessions_works_through_a_pgbouncer(private_server, pgbouncer_program, capsys):
    """And the command warns, with exit code 1."""

    async def main():
        async with create_pool(dsn, min_size=0, max_size=3, statement_cache_size=0, session_reset="never") as pool:
            return await asyncio.gather(*(pool.fetchval("SELECT $1::int", number) for number in range(100)))

    with pgbouncer(pgbouncer_program, private_server.dsn, pool_mode="transaction") as dsn:
        found, code = diagnose(dsn, capsys)
        assert asyncio.run(asyncio.wait_for(main(), 30)) == [*range(100)]
    assert (found["proxy"]["severity"], code) == ("warning", 1)
    assert "statement_cache_size=0" in found["proxy"]["remedy"]
    assert "max_prepared_statements" in found["proxy"]["remedy"]
    assert 'session_reset="never"' in found["proxy"]["remedy"]


def test_tls_is_seen_from_both_ends(tls_server, monkeypatch):
    """With the mode that the DSN, or the environment, asks for."""
    for mode in ("require", "verify-full"):
        way, _ = look(tls_server.verified_dsn.replace("verify-full", mode))
        assert (way.sslmode, way.client_tls, way.server_tls) == (mode, "TLSv1.3", "TLSv1.3")
    monkeypatch.setenv("PGSSLMODE", "disable")
    way, _ = look(tls_server.dsn)
    assert (way.sslmode, way.client_tls, way.server_tls) == ("disable", None, None)


def test_tls_that_may_be_dropped_is_told(tls_server):
    """Of the default, if the server were elsewhere."""
    way, _ = look(tls_server.dsn)
    assert (way.sslmode, way.client_tls) == ("prefer", "TLSv1.3")
    _, tls = check_way(replace(way, is_local=False))
    assert tls.severity.name == "WARNING"


# ---- the command ----


def test_without_a_dsn_it_looks_at_a_server_of_its_own(capsys):
    """Which ends with it."""
    assert doctor.main([]) == 0
    told = capsys.readouterr().out
    assert "(embedded)" in told
    assert "connections: " in told


@pytest.mark.parametrize("after_bytes", [1, 300, 600, 1200])
def test_a_server_that_hangs_up_is_one_line_and_exit_code_2(private_server, after_bytes, capsys):
    """Wherever it does."""
    with FaultProxy(private_server.dsn) as between, pytest.MonkeyPatch.context() as patch:
        patch.setattr(doctor, "open_target", as_if_it_had_answered)
        between.truncate(after_bytes)
        assert doctor.main([between.dsn]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("doctor: ")
    assert told.err.count("\n") == 1


def test_a_server_that_falls_silent_is_one_line_and_exit_code_2(private_server, capsys, monkeypatch):
    """In the middle of the look, after the time that a query may take."""
    monkeypatch.setattr(doctor_server, "_QUERY_SECONDS", 0.2)
    monkeypatch.setattr(doctor, "open_target", as_if_it_had_answered)
    with FaultProxy(private_server.dsn) as between:
        monkeypatch.setattr(doctor_server, "_connect", frozen(between))
        assert doctor.main([between.dsn]) == 2
    told = capsys.readouterr()
    assert told.err.startswith("doctor: no answer from 127.0.0.1:")
    assert told.err.count("\n") == 1


@contextmanager
def as_if_it_had_answered(dsn):
    yield Target(dsn, "a server")


def frozen(between):
    """Have the network fall silent once there is a connection."""
    connect = doctor_server._connect

    @asynccontextmanager
    async def connect_and_freeze(dsn):
        async with connect(dsn) as connection:
            await asyncio.to_thread(between.freeze)
            yield connection

    return connect_and_freeze


def test_a_look_that_is_cancelled_leaves_nothing(private_server, loop_factory):
    """At any moment; the cancellation goes through."""

    async def main():
        for turns in range(0, 60, 7):
            async with assert_zero_fd_delta():
                task = asyncio.create_task(look_at_server(private_server.dsn))
                await spin(turns)
                task.cancel()
                await asyncio.wait([task])
                assert task.cancelled() or task.result()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pool-size", "0"], "--pool-size 0: expected a whole number, 1 or more"),
        (["--processes", "-1"], "--processes -1: expected a whole number, 1 or more"),
        (["--processes", "two"], "--processes two: expected a whole number, 1 or more"),
        (["nonsense"], "the DSN is not understood"),
        ([f"postgresql://u:{SECRET}@h:port/d"], "the DSN is not understood"),
        ([f"postgresql://u:{SECRET}@127.0.0.1:1/d"], "no connection to 127.0.0.1:"),
        (["{dsn}_that_is_not_there"], "has no such database"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_code_2(private_server, arguments, message, capsys):
    """No password is in it."""
    arguments = [each.format(dsn=private_server.dsn) for each in arguments]
    assert doctor.main(arguments) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert message in told.err
    assert told.err.count("\n") == 1
    assert SECRET not in told.err


def test_an_argument_too_many_is_repeated_without_its_password(capsys):
    """As it may be a DSN."""
    with pytest.raises(SystemExit):
        doctor.main(["postgresql://h/d", f"postgresql://u:{SECRET}@h/d"])
    assert SECRET not in capsys.readouterr().err


def test_where_psycopg_cannot_be_imported_it_is_a_warning(private_server):
    """As on a machine without libpq: the command itself needs only asyncpg."""
    done = run_command(private_server.dsn, PSYCOPG_IMPL="no such")
    assert done.returncode == 1, done.stderr
    (found,) = [each for each in json.loads(done.stdout)["findings"] if each["code"] == "psycopg"]
    assert found["severity"] == "warning"
    assert "cannot be imported" in found["title"]
