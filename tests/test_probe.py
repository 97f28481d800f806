"""`probe` tells within its time whether a server is alive, leaves nothing open, and shows no password."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
import sys
import threading
import time

import asyncpg
import pytest

from between import own_port
from loopaware_pool.audit import assert_zero_fd_delta
from loopaware_pool.cli import probe as command
from loopaware_pool.cli.probe import probe
from loopaware_pool.cli.target import Unusable, open_target

pytestmark = [pytest.mark.both_pythons, pytest.mark.both_drivers]

SECRET = "hunter2"
AMPLE_SECONDS = 60
AMPLE = ["--timeout", str(AMPLE_SECONDS)]


@pytest.fixture
def runner(runner_factory):
    with runner_factory() as runner:
        yield runner


@pytest.fixture(autouse=True)
def all_attempts_end(monkeypatch):
    """
    One that its command no longer waits for would go on in the next test, and use what that has put in place. The
    command would end the process, too, which here is pytest's.
    """
    monkeypatch.setattr(command.os, "_exit", lambda code: None)
    yield
    for thread in threading.enumerate():
        if isinstance(thread, command._Attempt):
            thread.join(60)


@pytest.fixture
def mute():
    """A port where connections are accepted and nothing is ever said."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"postgresql://u:{SECRET}@127.0.0.1:{server.getsockname()[1]}/d"


@pytest.fixture
def nobody():
    """A port where nobody listens, and that nobody else can have meanwhile."""
    with own_port() as port:
        yield f"postgresql://u:{SECRET}@127.0.0.1:{port}/d"


def audited(dsn, **options):
    async def main():
        async with assert_zero_fd_delta():
            return await probe(dsn, **options)

    return main()


def test_a_server_that_answers_is_alive(dsn, runner):
    """And the probe's connection is closed."""
    result = runner.run(audited(dsn, timeout=AMPLE_SECONDS))
    assert (result.is_alive, result.reason, result.fds_left) == (True, None, None)
    assert 0 < result.seconds < AMPLE_SECONDS


def test_a_server_that_is_away_is_not(nobody, runner):
    """The reason is one line, and no password is in it."""
    result = runner.run(audited(nobody, timeout=AMPLE_SECONDS))
    assert not result.is_alive
    assert result.reason.startswith("no connection to 127.0.0.1:")
    assert SECRET not in result.reason
    assert "\n" not in result.reason


def test_a_server_that_is_mute_is_given_up_in_time(mute, runner):
    """The timeout covers all of it: the server never answers."""
    result = runner.run(audited(mute, timeout=0.2))
    assert not result.is_alive
    assert result.reason.startswith("no answer from 127.0.0.1:")
    assert result.reason.endswith("within 0.2 s")


def test_a_server_that_refuses_is_not_alive(dsn, runner):
    """Its own words are the reason."""
    result = runner.run(audited(dsn.rpartition("/")[0] + "/no_such_database", timeout=AMPLE_SECONDS))
    assert not result.is_alive
    assert "no_such_database" in result.reason


def test_a_cancelled_probe_leaves_nothing(mute, runner):
    """The cancellation goes through."""

    async def main():
        async with assert_zero_fd_delta():
            task = asyncio.create_task(probe(mute, timeout=60))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(task, 20)

    runner.run(main())


@pytest.mark.parametrize("dsn", ["nonsense", f"postgresql://u:{SECRET}@h:port/d", f"postgresql://u:{SECRET}/x@h/d"])
def test_a_dsn_that_is_not_understood_is_an_error(dsn):
    """It is the caller's, not the server's; the password is not repeated."""
    with pytest.raises(ValueError, match="the DSN is not understood") as caught:
        asyncio.run(probe(dsn, timeout=1))
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("dsn", "complaint"),
    [
        (f"postgresql+asyncpg://u:{SECRET}@h/d", "it is in SQLAlchemy's form; leave out the + and "),
        (f"postgres+psycopg://u:{SECRET}@h/d", "it is in SQLAlchemy's form"),
        (f"host=127.0.0.1 user=u password={SECRET}", "it is in libpq's other form, key=value; expected postgresql://"),
        (f"  dbname = d password={SECRET}", "it is in libpq's other form, key=value; expected postgresql://"),
        (f"mysql://u:{SECRET}@h/d", "it does not begin with postgresql://; expected postgresql://"),
        (f"{SECRET}://x", "it does not begin with postgresql://; expected postgresql://"),
        (f"postgresql://u:{SECRET}@127.0.0.1:99999/d", "port 99999 is none; a port is a number from 1 to 65535"),
        (f"postgresql://u:{SECRET}@[::1]:65536", "port 65536 is none; a port is a number from 1 to 65535"),
        (f"postgresql://u:{SECRET}@h:5432,/d", "a host is empty in the list of hosts"),
        (f"postgresql://u:{SECRET}@/d?host=,h", "a host is empty in the list of hosts"),
        # What a driver takes for the port is the beginning of the password.
        (f"postgresql://u:{SECRET}/99999@h/d", "expected postgresql://user:password@host:port/database, with special"),
        (f"postgresql://u:55555/{SECRET}@127.0.0.1/d", "expected postgresql://user:password@host:port/database, with"),
    ],
)
def test_what_is_wrong_with_a_dsn_is_told(dsn, complaint):
    """So that it can be mended; nothing that may be secret is repeated."""
    with pytest.raises(ValueError, match=f"^{re.escape(f'the DSN is not understood: {complaint}')}") as caught:
        asyncio.run(probe(dsn, timeout=1))
    with pytest.raises(Unusable, match=re.escape(complaint)), open_target(dsn):
        pass
    assert not any(secret in str(caught.value) for secret in (SECRET, "55555"))


@pytest.mark.parametrize("option", ["target_session_attrs", "sslmode"])
def test_an_option_that_has_no_such_value_is_named(option, dsn):
    """asyncpg refuses it as it refuses a string that it cannot parse."""
    wrong = f"{dsn}?{option}=elsewhere"
    complaint = f"the DSN is not understood: asyncpg does not know this value of {option}"
    with pytest.raises(ValueError, match=f"^{complaint}$"):
        asyncio.run(probe(wrong, timeout=AMPLE_SECONDS))
    with pytest.raises(Unusable, match=f"^{complaint}$"), open_target(wrong):
        pass


@pytest.mark.skipif(
    asyncpg.__version__.startswith("0.31."),
    reason="asyncpg 0.31 closes what does not fit once the loop goes on",
)
def test_a_server_of_the_wrong_kind_is_not_taken_for_one_that_is_not_postgresql(dsn):
    """It is read well, and is not what the DSN asks for."""
    wrong = f"{dsn}?target_session_attrs=standby"
    complaint = "is what target_session_attrs asks for; leave it out, or name another server"
    result = asyncio.run(probe(wrong, timeout=AMPLE_SECONDS))
    assert not result.is_alive
    assert complaint in result.reason
    with pytest.raises(Unusable, match=complaint), open_target(wrong):
        pass


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_a_time_that_makes_no_sense_is_an_error(timeout, dsn):
    """By name."""
    with pytest.raises(ValueError, match="timeout must be above 0 seconds"):
        asyncio.run(probe(dsn, timeout=timeout))


# ---- the command ----


def test_the_command_says_so_and_its_exit_code_is_0(dsn, capsys):
    """One line; with `--json`, an object. It audits all that the probe opened."""
    assert command.main([dsn, *AMPLE]) == 0
    assert capsys.readouterr().out.startswith("alive, ")
    assert command.main([dsn, "--json", *AMPLE]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["is_alive"], told["reason"], told["fds_left"]) == (True, None, 0)


def test_the_command_fails_with_1_where_nobody_answers(nobody, mute, capsys, monkeypatch):
    """For whatever reason."""
    monkeypatch.setattr("os._exit", lambda code: None)  # what a slow machine would have ended is pytest
    assert command.main([nobody]) == 1
    assert command.main([mute, "--timeout", "0.2"]) == 1
    told = capsys.readouterr()
    assert told.out.count("\n") == 2
    assert SECRET not in told.out + told.err
    assert not [
        thread for thread in threading.enumerate() if not thread.daemon and thread is not threading.main_thread()
    ]


def test_the_command_fails_with_1_where_an_fd_is_left(dsn, capsys, monkeypatch):
    """Planted here: the answer alone is not enough."""
    sockets = []

    async def leak(dsn, **_):
        sockets.append(socket.socket())

    monkeypatch.setattr(command, "_ask", leak)
    assert command.main([dsn, *AMPLE]) == 1
    assert "1 fd was left open" in capsys.readouterr().out
    sockets.pop().close()


def test_an_answer_counts_although_the_audit_is_not_over_in_time(dsn, capsys, monkeypatch):
    """It waits for what is left open, and collects garbage, for longer than the time that the command has."""
    answered, told = threading.Event(), threading.Event()
    with monkeypatch.context() as patch:
        patch.setattr(command.FdAudit, "finish", lambda audit: (answered.set(), told.wait(60), audit.abandon()))
        patch.setattr(command._Attempt, "join", lambda attempt, seconds: answered.wait(60))
        try:
            assert command.main([dsn, "--json", *AMPLE]) == 0
        finally:
            told.set()
    result = json.loads(capsys.readouterr().out)
    assert (result["is_alive"], result["reason"], result["fds_left"]) == (True, None, None)


def test_the_command_fails_with_2_where_it_cannot_ask(capsys):
    """A line on the error output."""
    assert command.main([f"postgresql://u:{SECRET}@h:port/d"]) == 2
    assert command.main(["postgresql://h/d", "--timeout", "0"]) == 2
    told = capsys.readouterr()
    assert told.err.count("\n") == 2
    assert SECRET not in told.out + told.err


def test_a_name_that_cannot_be_looked_up_does_not_hold_the_command():
    """Looking up cannot be called off: the process ends all the same."""
    code = """
import socket, sys, time
socket.getaddrinfo = lambda *args, **options: time.sleep(60)
from loopaware_pool.cli.probe import main
sys.exit(main(["postgresql://db.example/d", "--timeout", "0.3"]))
"""
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False)
    assert time.monotonic() - started < 30
    assert done.returncode == 1
    assert "no answer" in done.stdout
