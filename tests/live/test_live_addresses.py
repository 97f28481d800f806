"""Where a live view listens, and where it does not."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from live_view import connect, look
from loopaware_pool.live import serve_live
from loopaware_pool.live.address import HostPort, SocketPath, parse_address

pytestmark = pytest.mark.both_pythons


def test_a_socket_of_a_process_that_is_gone_is_replaced(core, path):
    """It says so itself: nobody listens on it."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    with serve_live(core, path) as view:
        assert look(view.address).pools
    assert not path.exists()


@pytest.mark.parametrize("backlog", [0, 16])
def test_a_socket_of_a_process_that_lives_is_left_to_it(backlog, core, path):
    """Even if it has no time at the moment."""
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen(backlog)
        with connect(path), pytest.raises(OSError, match="a process that lives serves there already") as caught:
            serve_live(core, path)
        assert (caught.value.errno, caught.value.filename) == (errno.EADDRINUSE, str(path))
        assert path.exists()


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_is_no_socket_is_left_alone(kind, core, path):
    """It may be dear to somebody."""
    if kind == "folder":
        path.mkdir()
    elif kind == "file":
        path.write_text("dear")
    else:
        path.symlink_to("/nowhere")
    with pytest.raises(OSError, match="there is a file that is no socket") as caught:
        serve_live(core, path)
    assert caught.value.errno == errno.EEXIST
    assert path.is_symlink() or path.exists()


def test_it_takes_its_socket_along_and_no_other(core, path):
    """Somebody may have put another in its place meanwhile."""
    view = serve_live(core, path)
    path.unlink()
    path.write_text("another's")
    view.close()
    assert path.read_text() == "another's"


def test_a_port_that_is_taken_is_an_error(core):
    """With the address, and the system's reason."""
    with serve_live(core, "127.0.0.1:0") as view, pytest.raises(OSError, match="no live view can be opened") as caught:
        serve_live(core, view.address)
    assert (caught.value.errno, caught.value.filename) == (errno.EADDRINUSE, view.address)


def test_a_folder_that_is_not_there_is_an_error(core, path):
    """The system's."""
    with pytest.raises(FileNotFoundError) as caught:
        serve_live(core, path.parent / "nowhere" / "pool.sock")
    assert caught.value.filename.endswith("nowhere/pool.sock")
    with pytest.raises(OSError, match="path too long") as caught:
        serve_live(core, "/" + "x" * 200)
    assert caught.value.filename == "/" + "x" * 200


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("/run/app/pool.sock", SocketPath("/run/app/pool.sock")),
        ("pool.sock", SocketPath("pool.sock")),
        ("./a:1", SocketPath("./a:1")),
        ("127.0.0.1:8125", HostPort("127.0.0.1", 8125)),
        ("localhost:0", HostPort("localhost", 0)),
        ("http://127.0.0.1:8125/", HostPort("127.0.0.1", 8125)),
        ("http://[::1]:8125", HostPort("::1", 8125)),
    ],
)
def test_an_address_is_a_path_or_a_host_and_a_port(text, meant):
    """And is written as it can be read."""
    assert parse_address(text) == meant
    assert parse_address(str(meant)) == meant


@pytest.mark.parametrize(
    "text",
    ["", "8125", ":8125", "host:", "host:99999", "host:port", "https://h:1", "http://h", "http://h:1/x", "a\0b"]
    + [f"postgresql://me:hunter2@host/{name}" for name in ("db", "db?a=b")],
)
def test_another_address_is_not_understood(text, core):
    """One line that says what is, without a password."""
    with pytest.raises(ValueError, match=r"^address=.*: expected the path of a Unix socket, .* or host:port") as caught:
        serve_live(core, text)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_arguments_are_named(core, path):
    """Before anything is opened."""
    for pools in (None, 5, "orders", [core, 5], object()):
        with pytest.raises(TypeError, match=r"^pools .*: expected"):
            serve_live(pools, path)
    with pytest.raises(ValueError, match="pools is empty"):
        serve_live([], path)
    for address in (None, 8125, b"/run/pool.sock", os):
        with pytest.raises(TypeError, match=r"^address="):
            serve_live(core, address)
    assert not path.exists()


@pytest.mark.parametrize("address", ["0.0.0.0:0", "db.example:8125", "[::]:0"])
def test_other_machines_are_let_in_only_if_told_to(address, core):
    """There is neither a password nor encryption."""
    with pytest.raises(ValueError, match=r"other machines could reach it; .* or allow_remote=True"):
        serve_live(core, address)


def test_other_machines_are_let_in_if_told_to(core):
    """All addresses of this one are served then."""
    with serve_live(core, "0.0.0.0:0", allow_remote=True) as view:
        assert look(view.address.replace("0.0.0.0", "127.0.0.1")).pools
