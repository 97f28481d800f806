"""The commands tell in one line what is wrong with a server that is not PostgreSQL, or says so."""

from __future__ import annotations

import pytest

from dialects import DIALECTS, POSTGRES
from loopaware_pool.cli import probe
from loopaware_pool.cli.doctor import command as doctor
from loopaware_pool.testing.fake_server import READY, message, parameter

# The probe ends the process, here pytest's, where its time is up and the audit of its fds is not over. A slow machine
# takes seconds for that audit: it collects garbage.
AMPLE = ("--timeout", "60")
# What asyncpg cannot read.
UNREADABLE = {
    "version": parameter("server_version", "nonsense"),
    "encoding": parameter("client_encoding", "EBCDIC"),
    "text": message(b"S", b"\xff\0value\0"),
}


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_a_server_of_another_kind_is_alive(serve, capsys, dialect):
    """The probe asks what every server knows, and leaves nothing open."""
    assert probe.main([serve(dialect).asyncpg_dsn, *AMPLE]) == 0
    assert capsys.readouterr().out.startswith("alive, ")


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_the_doctor_says_that_it_is_for_postgresql(serve, capsys, dialect):
    """In one line, with what the server has said, and with the exit code for what it could not look at."""
    server = serve(dialect)
    assert doctor.main([server.asyncpg_dsn]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert f"the server at 127.0.0.1:{server.port} does not know what it was asked: " in line
    assert line.endswith("does not exist; is it PostgreSQL?")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # asyncpg's half-made connections
@pytest.mark.parametrize("report", UNREADABLE.values(), ids=UNREADABLE)
def test_what_cannot_be_read_is_the_servers_fault_and_not_the_users(serve, capsys, report):
    """It is not taken for a DSN that is not understood, although asyncpg raises the same kinds of errors."""
    server = serve(POSTGRES)
    server.welcome = server.welcome.removesuffix(READY) + report + READY
    says = f"the server at 127.0.0.1:{server.port} says of itself what asyncpg cannot read: "
    assert probe.main([server.asyncpg_dsn, *AMPLE]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"not alive: {says}")
    assert doctor.main([server.asyncpg_dsn]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
