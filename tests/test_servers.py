from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import psutil
import psycopg
import pytest

import helpers
import servers
from loopaware_pool.testing import embedded_server
from loopaware_pool.testing.embedded_server import EmbeddedServer, EmbeddedServerError
from running import child_process
from servers import OLDER_MAJORS

pytestmark = [pytest.mark.both_pythons, pytest.mark.both_drivers]


@pytest.fixture
def embedded(server):
    if not isinstance(server, EmbeddedServer):
        pytest.skip("LOOPAWARE_TEST_DSN replaces the embedded server")
    return server


def ask(dsn, query):
    with psycopg.connect(dsn) as connection:
        return connection.execute(query).fetchone()[0]


def is_running(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_the_default_server_says_the_version_it_is(server, dsn):
    assert ask(dsn, "SHOW server_version").split()[0] == server.version


def test_the_embedded_server_is_postgresql_18_or_what_the_environment_says(embedded):
    assert embedded.version.startswith(os.environ.get("LOOPAWARE_TEST_POSTGRES", "18") + ".")


@pytest.mark.parametrize("major", OLDER_MAJORS)
def test_the_older_servers_are_what_they_are_called(major, request):
    server = request.getfixturevalue(f"pg{major}_server")
    assert ask(server.dsn, "SHOW server_version").startswith(f"{major}.")


def test_an_unknown_version_of_postgresql_takes_one_line():
    """It names the variable, the value and what may be."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", __file__]
    env = os.environ | {"LOOPAWARE_TEST_POSTGRES": "9"}
    ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == pytest.ExitCode.USAGE_ERROR
    assert "LOOPAWARE_TEST_POSTGRES=9: expected one of 15, 16, 17, or unset for the newest" in ended.stderr


def test_the_embedded_server_answers_both_drivers_on_its_unix_socket(embedded):
    query = "SELECT inet_server_addr() IS NULL"

    async def ask_asyncpg():
        connection = await asyncpg.connect(embedded.unix_dsn)
        try:
            return await connection.fetchval(query)
        finally:
            await connection.close()

    assert ask(embedded.unix_dsn, query)
    assert asyncio.run(ask_asyncpg())


def test_the_tls_server_proves_who_it_is_to_both_drivers(tls_server):
    query = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"

    async def ask_asyncpg():
        connection = await asyncpg.connect(tls_server.dsn, ssl=tls_server.ssl_context)
        try:
            return await connection.fetchval(query)
        finally:
            await connection.close()

    assert ask(tls_server.verified_dsn, query)
    assert asyncio.run(ask_asyncpg())


def test_a_stopped_server_leaves_no_process_and_no_file():
    with EmbeddedServer() as server:
        folder = Path(ask(server.dsn, "SHOW data_directory")).parent
        postmaster = server.pid
        assert folder.is_dir()
        assert is_running(postmaster)
    assert not folder.exists()
    assert not is_running(postmaster)


def test_a_server_that_takes_its_time_to_end_is_waited_for(monkeypatch):
    """Its pid file is gone a moment before it is, and on a busy machine that moment is long."""
    slow = ["sleep", f"1.5{os.getpid()}"]  # stands for it
    life = embedded_server._LIFE_OF_A_SERVER.replace("cd / &&", f"{' '.join(slow)} >/dev/null & pid=$!\ncd / &&")
    assert life != embedded_server._LIFE_OF_A_SERVER
    monkeypatch.setattr(embedded_server, "_LIFE_OF_A_SERVER", life)
    with EmbeddedServer():
        pass
    assert [process for process in psutil.process_iter(["cmdline"]) if process.info["cmdline"] == slow] == []


def test_settings_reach_the_server():
    with EmbeddedServer(settings={"max_connections": 7, "cluster_name": "it's"}) as server:
        assert ask(server.dsn, "SHOW max_connections") == "7"
        assert ask(server.dsn, "SHOW cluster_name") == "it's"


@pytest.mark.parametrize("password", [None, "", "wrong"])
def test_who_has_no_password_is_not_let_in(embedded, password, tmp_path):
    """Over TCP, which every account of the machine can reach."""
    dsn = servers.dsn_of_role(embedded.dsn, "postgres", password)
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(dsn, passfile=str(tmp_path / "none"))
    with pytest.raises(asyncpg.InvalidPasswordError):
        asyncio.run(asyncpg.connect(dsn, passfile=str(tmp_path / "none")))


def test_no_other_account_reaches_the_unix_socket(embedded):
    """It wants no password, as it is in a folder that only its owner may enter."""
    folder = Path(embedded.unix_dsn.partition("host=")[2].partition("&")[0])
    (path,) = folder.glob(".s.PGSQL.*[0-9]")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_a_password_is_shown_neither_by_a_server_nor_by_its_processes():
    """Arguments can be read by every account; a standby's are made of the primary's address. No two are alike."""
    with EmbeddedServer() as primary, EmbeddedServer(standby_of=primary.dsn) as standby, EmbeddedServer() as other:
        password = urlsplit(primary.dsn).password
        assert ask(standby.dsn, "SELECT pg_is_in_recovery()")
        assert len(password) >= 32
        assert password == urlsplit(standby.dsn).password != urlsplit(other.dsn).password
        shown = [repr(primary), repr(standby)]
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                shown += process.cmdline()
        assert any("loopaware-pg-" in word for word in shown)
        assert not any(password in word for word in shown)


keeps_ports = pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere the server could not bind a port that is kept"
)


@keeps_ports
def test_a_server_that_starts_has_its_port_to_itself(monkeypatch):
    """Else another program could take it before the server binds it, which is after it has made its data."""
    give_away = embedded_server._give_away

    def look(directory, account):
        settings = (directory / "settings.conf").read_text()
        port = int(re.search(r"^port = '(\d+)'$", settings, re.MULTILINE)[1])
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
        looked.append(port)
        give_away(directory, account)

    looked = []
    monkeypatch.setattr(embedded_server, "_give_away", look)
    with EmbeddedServer() as server:
        assert looked == [server.port]


def test_a_restart_keeps_the_port():
    with EmbeddedServer() as server:
        before = server.pid
        server.control("restart", "-m", "immediate")
        assert server.pid != before
        assert ask(server.dsn, "SELECT 1") == 1


@keeps_ports
def test_a_server_that_is_down_for_a_while_keeps_its_port(zero_fd_delta):
    with EmbeddedServer() as server:
        server.control("stop", "-m", "immediate")
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", server.port))
        server.control("start")
        assert ask(server.dsn, "SELECT 1") == 1


def test_a_server_that_refuses_a_setting_says_which_in_one_line():
    with pytest.raises(EmbeddedServerError, match=r'^PostgreSQL did not start: .*"no_such_thing".*$'):
        EmbeddedServer(settings={"no_such_thing": 1}).start()


def test_a_folder_without_binaries_is_named(tmp_path):
    with pytest.raises(EmbeddedServerError, match="no PostgreSQL binaries in"):
        EmbeddedServer(bindir=tmp_path).start()


def test_a_server_outlives_neither_its_process_nor_that_processs_violent_death():
    script = (
        "import sys, time\n"
        "from loopaware_pool.testing.embedded_server import EmbeddedServer\n"
        "server = EmbeddedServer().start()\n"
        "print(server.pid, server.unix_dsn, flush=True)\n"
        "time.sleep(60)\n"
    )
    with child_process([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as owner:
        pid, unix_dsn = owner.stdout.readline().split()
        owner.kill()
    folder = Path(unix_dsn.partition("host=")[2].partition("&")[0])
    deadline = time.monotonic() + 20
    while folder.exists() or is_running(int(pid)):
        assert time.monotonic() < deadline, "the server is still there"
        time.sleep(0.02)


def test_the_kernel_and_the_selector_are_seen_to_watch_a_socket(runner_factory):
    async def watched_here(end):
        loop = asyncio.get_running_loop()
        loop.add_reader(end, bool)
        await asyncio.sleep(0)
        try:
            in_selector = end.fileno() in helpers.selector_fds(loop) if hasattr(loop, "_selector") else True
            return in_selector and end.fileno() in helpers.kernel_watched_fds()
        finally:
            loop.remove_reader(end)

    ours, theirs = socket.socketpair()
    with ours, theirs, runner_factory() as runner:
        ours.setblocking(False)
        assert runner.run(watched_here(ours))


def test_sockets_are_counted_as_they_open_and_close(zero_fd_delta):
    before = helpers.socket_count()
    with socket.socket():
        assert helpers.socket_count() == before + 1
    assert helpers.socket_count() == before


def test_a_session_is_counted_by_its_application_name(dsn):
    name = f"counted-{os.getpid()}"
    with psycopg.connect(dsn, application_name=name):
        assert helpers.server_sessions(dsn, name) == 1
