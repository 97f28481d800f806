"""A live view answers its owner, one question at a time, and no client holds it up."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import subprocess
import sys
import threading
import time

import pytest

from live_view import GET, ask, connect, look
from loopaware_pool.live import serve_live
from loopaware_pool.live import server as live
from running import DEADLINE_SECONDS, eventually

pytestmark = pytest.mark.both_pythons


def test_the_socket_is_its_owners_alone(core, path):
    """Mode 0600, whatever the umask."""
    before = os.umask(0)
    try:
        with serve_live(core, path):
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    finally:
        os.umask(before)


def test_no_mode_is_changed_by_name(core, path, monkeypatch):
    """A link put there after the bind would lead it elsewhere. The umask is as it was, where the bind fails, too."""
    monkeypatch.setattr(os, "chmod", None)
    before = os.umask(0o027)
    try:
        with serve_live(core, path):
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        with pytest.raises(OSError, match="no live view can be opened"):
            serve_live(core, path / "nowhere" / "x")
    finally:
        assert os.umask(before) == 0o027


@pytest.mark.parametrize("silent", [20, 60])
def test_clients_that_say_nothing_hold_up_nobody(silent, core, address, monkeypatch):
    """Anybody can connect over TCP. What was there longest makes room."""
    monkeypatch.setattr(live, "REQUEST_SECONDS", 3 * DEADLINE_SECONDS)
    with contextlib.ExitStack() as stack:
        view = stack.enter_context(serve_live(core, address))
        for _ in range(silent):
            stack.enter_context(connect(view.address)).sendall(b"GET / HT")
        began = time.monotonic()
        for _ in range(3):
            assert look(view.address).pools
        assert time.monotonic() - began < DEADLINE_SECONDS / 4
        eventually(lambda: len(view._clients) <= live.MOST_CLIENTS, "no more than that at a time")
        for each in view._clients.copy():
            with contextlib.suppress(OSError):  # it has made room
                each.shutdown(socket.SHUT_RDWR)


def test_its_end_waits_for_a_client_that_is_being_answered(core, address):
    """Who has begun to ask has the answer."""
    with serve_live(core, address) as view, connect(view.address) as client:
        client.sendall(GET[:8])
        eventually(lambda: view._clients, "the client to be accepted")
        closing = threading.Thread(target=view.close)
        closing.start()
        closing.join(0.1)
        assert closing.is_alive()
        client.sendall(GET[8:])
        assert client.recv(12) == b"HTTP/1.0 200"
        closing.join(DEADLINE_SECONDS)
        assert not view._clients


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.0\r\n\r\n", 200),
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1:80\r\n\r\n", 200),
        (b"GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", 200),
        (b"GET / HTTP/1.1\r\nHost: [::1]\r\n\r\n", 200),
        (b"GET / HTTP/1.1\r\nHost: LOCALHOST:80\r\n\r\n", 200),
        (b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", 421),
        (b"GET / HTTP/1.1\r\nHost: evil.example:80\r\n\r\n", 421),
        (b"GET /else HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\n\r\n", 501),
        (b"GET / HTTP/9.9\r\n\r\n", 0),  # told in HTML, without a head
        (b"GET /\r\nnonsense\r\n\r\n", 0),  # HTTP/0.9: without a head
        (b"\x00\xff\r\n\r\n", 0),
        (b"GET / HTTP/1.1\r\nHost: \xff\xfe\r\n\r\n", 421),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n", 431),
        (b"G" * 70_000, 414),
        (b"\r\n", 0),
    ],
)
def test_it_answers_one_question_and_goes_on(request_, status, core, address):
    """A web page's is not that one: it could have its own name mean this machine."""
    with serve_live(core, address) as view:
        answered, _ = ask(view.address, request_)
        assert answered == status or (status in (414, 431) and answered == 0)  # it hangs up on what is too long
        assert look(view.address).pools


@pytest.mark.parametrize("said", [b"", b"GET / HT"])
def test_a_client_that_takes_its_time_is_given_up(said, core, path, monkeypatch):
    """Others wait no longer than that."""
    has_said = threading.Event()
    monkeypatch.setattr(live, "REQUEST_SECONDS", 0.05)
    monkeypatch.setattr(live, "monotonic", lambda: has_said.wait(DEADLINE_SECONDS) and time.monotonic())
    with serve_live(core, path) as view, connect(path) as slow:
        slow.sendall(said)
        has_said.set()
        assert slow.recv(1) == b""
        monkeypatch.setattr(live, "REQUEST_SECONDS", DEADLINE_SECONDS)
        assert look(view.address).pools


def test_a_client_that_drips_is_given_up(core, path, monkeypatch):
    """Its time is for all of its request, not for each byte."""
    monkeypatch.setattr(live, "REQUEST_SECONDS", 0.2)
    with serve_live(core, path), connect(path) as slow, pytest.raises((BrokenPipeError, ConnectionResetError)):
        for _ in range(int(DEADLINE_SECONDS / 0.05)):
            slow.sendall(b"G")
            threading.Event().wait(0.05)


def test_a_client_that_goes_away_does_no_harm(core, address):
    """Before or after its question."""
    with serve_live(core, address) as view:
        for said in (b"", GET):
            with connect(view.address) as client:
                client.sendall(said)
        assert look(view.address).pools


def test_a_pool_that_cannot_be_looked_at_is_told_of_in_the_log(path, caplog):
    """The client learns where to read; the view goes on."""

    class Broken:
        def stats(self):
            raise LookupError("planted")

        def fd_report(self):
            raise NotImplementedError

    broken = Broken()
    with serve_live(broken, path) as view:
        assert ask(view.address)[0] == 500
        assert ask(view.address)[0] == 500
    assert "planted" in caplog.text


def test_it_answers_although_the_process_has_no_fd_left(tmp_path):
    """It has kept one for this."""
    code = f"""
import os, resource, socket, time
from loopaware_pool import create_pool
from loopaware_pool.live import serve_live, server
server.REQUEST_SECONDS = {DEADLINE_SECONDS}
pool = create_pool("postgresql://localhost/x")
with serve_live(pool, {str(tmp_path / "pool.sock")!r}) as view:
    clients = [socket.socket(socket.AF_UNIX) for _ in range(3)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    for client in clients:
        while view._spare.fileno() < 0:
            time.sleep(0.001)
        try:
            while True:
                os.open(os.devnull, os.O_RDONLY)
        except OSError:
            pass
        client.settimeout({DEADLINE_SECONDS})
        client.connect(view.address)
        client.sendall({GET!r})
        assert client.recv(12) == b"HTTP/1.0 200"
        client.close()
"""
    subprocess.run([sys.executable, "-c", code], timeout=60, check=True)
