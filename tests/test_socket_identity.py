"""Which socket a number means, whether its peer is there, and who watches it."""

from __future__ import annotations

import asyncio
import socket
import struct

import pytest
import uvloop

from loopaware_pool._platform.sockets import SocketIdentity, SocketProbe, is_watched


@pytest.fixture
def pair():
    """Two connected sockets."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_an_identity_tells_the_number_and_the_socket(pair):
    """Two sockets differ in both; one socket is always the same."""
    ours, theirs = pair
    assert SocketIdentity.of(ours.fileno()) == SocketIdentity.of(ours.fileno())
    assert SocketIdentity.of(ours.fileno()).fd == ours.fileno()
    assert SocketIdentity.of(ours.fileno()).inode != SocketIdentity.of(theirs.fileno()).inode


def test_an_identity_holds_while_the_socket_is_open(pair):
    """It ends when the socket is closed."""
    ours, _ = pair
    identity = SocketIdentity.of(ours.fileno())
    assert identity.is_open()
    ours.close()
    assert not identity.is_open()


def test_a_reused_number_is_another_socket(pair):
    """The kernel gives the lowest free number to the next socket: it has the fd, and not the identity."""
    ours, _ = pair
    old = SocketIdentity.of(ours.fileno())
    ours.close()
    with socket.socket() as successor:
        new = SocketIdentity.of(successor.fileno())
        assert new.fd == old.fd
        assert new != old
        assert new.is_open()
        assert not old.is_open()


def test_a_number_that_is_not_open_has_no_identity(pair):
    """Asking for it is an error."""
    ours, _ = pair
    fd = ours.fileno()
    ours.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        SocketIdentity.of(fd)


class TestProbe:
    def test_a_quiet_socket_is_alive(self, pair):
        """Neither gone, nor anything to read."""
        assert SocketProbe(pair[0].fileno()).events() == (False, False)

    def test_a_message_is_something_to_read(self, pair):
        """It is no sign of death, and gone once it is read."""
        ours, theirs = pair
        probe = SocketProbe(ours.fileno())
        theirs.send(b"notification")
        assert probe.events() == (False, True)
        assert probe.events() == (False, True)
        ours.recv(100)
        assert probe.events() == (False, False)

    def test_a_half_closed_peer_is_gone(self, pair):
        """It will never answer, although it might still listen."""
        ours, theirs = pair
        probe = SocketProbe(ours.fileno())
        theirs.shutdown(socket.SHUT_WR)
        gone, _ = probe.events()
        assert gone

    def test_a_closed_peer_is_gone(self, pair):
        """As by the end of its process."""
        ours, theirs = pair
        probe = SocketProbe(ours.fileno())
        theirs.close()
        gone, _ = probe.events()
        assert gone

    def test_a_farewell_is_seen_before_it_is_read(self, pair):
        """Unread bytes do not hide that the peer is gone."""
        ours, theirs = pair
        probe = SocketProbe(ours.fileno())
        theirs.send(b"terminating connection")
        theirs.close()
        assert probe.events() == (True, True)

    def test_a_reset_over_tcp_is_gone(self):
        """A server that was killed resets the connection."""
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as ours:
            theirs, _ = server.accept()
            probe = SocketProbe(ours.fileno())
            assert probe.events() == (False, False)
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            theirs.close()
            gone, _ = probe.events()
            assert gone

    def test_a_socket_closed_on_this_side_is_gone(self, pair):
        """A number that is not open any more has no peer."""
        ours, _ = pair
        probe = SocketProbe(ours.fileno())
        ours.close()
        gone, _ = probe.events()
        assert gone

    def test_what_can_be_written_to_is_no_event(self, pair):
        """A full send buffer, or an empty one, says nothing of the peer."""
        ours, _ = pair
        probe = SocketProbe(ours.fileno())
        ours.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                ours.send(b"x" * 65536)
        assert probe.events() == (False, False)


def test_an_asyncio_loop_tells_what_it_watches(pair):
    """A reader or a writer is a registration, and its removal the end of it."""
    ours, _ = pair
    loop = asyncio.new_event_loop()
    try:
        assert is_watched(loop, ours.fileno()) is False
        for add, remove in ((loop.add_reader, loop.remove_reader), (loop.add_writer, loop.remove_writer)):
            add(ours, print)
            assert is_watched(loop, ours.fileno()) is True
            remove(ours)
            assert is_watched(loop, ours.fileno()) is False
    finally:
        loop.close()


def test_a_stale_registration_is_still_told(pair):
    """The map keeps what was closed without being removed: that is what it is read for."""
    ours, _ = pair
    fd = ours.fileno()
    loop = asyncio.new_event_loop()
    try:
        loop.add_reader(ours, print)
        ours.close()
        assert is_watched(loop, fd) is True
        loop.remove_reader(fd)
    finally:
        loop.close()


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_closed_loop_tells_nothing(factory, pair):
    """None is not False: it is not known."""
    loop = factory()
    loop.close()
    assert is_watched(loop, pair[0].fileno()) is None


def test_uvloop_tells_nothing(pair):
    """It shows no selector."""
    loop = uvloop.new_event_loop()
    try:
        loop.add_reader(pair[0], print)
        assert is_watched(loop, pair[0].fileno()) is None
        loop.remove_reader(pair[0])
    finally:
        loop.close()
