"""The proxy that fails on demand, on plain sockets."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from itertools import pairwise

import asyncpg
import pytest

from loopaware_pool.testing import FaultProxy
from running import NOWHERE, eventually

pytestmark = [pytest.mark.both_pythons, pytest.mark.usefixtures("zero_fd_delta")]

# How long nothing must come for it to count as silence.
SILENCE_SECONDS = 0.15


class Echo:
    """A server that sends back what it gets; it notes how its connections ended."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.endings = []
        self.threads = [threading.Thread(target=self.accept, daemon=True)]
        self.threads[0].start()

    @property
    def dsn(self):
        return f"postgresql://me:secret@127.0.0.1:{self.listener.getsockname()[1]}/db?a=b"

    def accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self.serve, args=(client,), daemon=True)
            thread.start()
            self.threads.append(thread)

    def serve(self, client):
        with client:
            try:
                while data := client.recv(65536):
                    client.sendall(data)
                self.endings.append("closed")
            except ConnectionError:
                self.endings.append("reset")

    def close(self):
        if self.listener.fileno() < 0:
            return
        self.listener.shutdown(socket.SHUT_RDWR)  # else the thread that accepts would keep it open
        self.listener.close()
        for thread in self.threads:
            thread.join(10)


@pytest.fixture
def echo():
    server = Echo()
    yield server
    server.close()


@pytest.fixture
def proxy(echo):
    with FaultProxy(echo.dsn) as proxy:
        yield proxy
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fault proxy")]
    echo.close()


@pytest.fixture
def client(proxy):
    with connect(proxy) as client:
        yield client


def connect(proxy):
    client = socket.create_connection(("127.0.0.1", proxy.port))
    client.settimeout(10)
    return client


def says(client, text):
    client.sendall(text)
    got = b""
    while len(got) < len(text) and (data := client.recv(65536)):
        got += data
    return got


def is_silent(client):
    client.settimeout(SILENCE_SECONDS)
    try:
        client.recv(65536)
    except TimeoutError:
        return True
    finally:
        client.settimeout(10)
    return False


def test_without_a_fault_it_passes_everything_on(proxy, client, echo):
    """Any amount, both ways, and the end of either side's talk."""
    text = os.urandom(1 << 20)
    writer = threading.Thread(target=lambda: (client.sendall(text), client.shutdown(socket.SHUT_WR)))
    writer.start()
    got = b""
    while data := client.recv(65536):
        got += data
    writer.join()
    assert got == text
    eventually(lambda: echo.endings == ["closed"], "the server has heard of the end")
    eventually(lambda: proxy.connections == 0, "nothing left to pass on")


def test_its_dsn_differs_in_host_and_port_alone(proxy):
    """So that it can be given to any pool in place of the server's."""
    assert proxy.dsn == f"postgresql://me:secret@127.0.0.1:{proxy.port}/db?a=b"


@pytest.mark.parametrize(
    "dsn", ["host=secret port=1", "postgresql:///secret", "postgresql://u:secret@a,b/db", "postgresql://u:secret@/db"]
)
def test_a_dsn_it_cannot_stand_in_for_is_refused_and_not_shown(dsn):
    """It may have a password in it."""
    with pytest.raises(ValueError, match="expected a URL with one host") as caught:
        FaultProxy(dsn)
    assert "secret" not in str(caught.value)


def test_a_drop_is_an_end_at_both_ends(proxy, client, echo):
    """Later connections are served."""
    assert says(client, b"one") == b"one"
    proxy.drop()
    assert client.recv(1) == b""
    eventually(lambda: echo.endings == ["closed"], "the server has heard of it")
    with connect(proxy) as other:
        assert says(other, b"two") == b"two"


def test_a_reset_is_an_error_at_both_ends(proxy, client, echo):
    """Later connections are served."""
    assert says(client, b"one") == b"one"
    proxy.reset()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    eventually(lambda: echo.endings == ["reset"], "the server has heard of it")
    with connect(proxy) as other:
        assert says(other, b"two") == b"two"


def test_while_it_refuses_open_connections_stay(proxy, client):
    """And nobody else can get its port, not by chance either."""
    assert says(client, b"one") == b"one"
    proxy.refuse()
    proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        connect(proxy)
    assert says(client, b"two") == b"two"
    with pytest.raises(OSError, match="in use"), socket.socket() as thief:
        thief.bind(("127.0.0.1", proxy.port))
    proxy.heal()
    with connect(proxy) as other:
        assert says(other, b"three") == b"three"


def test_a_server_that_is_not_there_is_a_reset():
    """The proxy has taken the connection by then."""
    with FaultProxy(NOWHERE) as proxy, connect(proxy) as client, pytest.raises(ConnectionResetError):
        client.recv(1)


@pytest.mark.parametrize("delays", [{"to_server": 0.2}, {"to_client": 0.2}, {"to_server": 0.1, "to_client": 0.1}])
def test_a_delay_holds_up_and_keeps_the_order(proxy, client, delays):
    """What is sent later does not wait for the earlier to have passed."""
    proxy.delay(**delays)
    began = time.monotonic()
    for number in range(10):
        client.sendall(bytes([number]))
        time.sleep(0.02)
    got, times = b"", []
    while len(got) < 10:
        data = client.recv(65536)
        got += data
        times += [time.monotonic()] * len(data)
    assert got == bytes(range(10))
    assert times[-1] - began > 0.38
    # One after the other, each would come a delay after the one before; on a busy machine, some may.
    assert min(after - before for before, after in pairwise(times)) < min(delays.values()) / 2
    proxy.heal()


def test_a_drip_comes_byte_by_byte(proxy, client):
    """Each in a segment of its own, though a busy client may read several at once."""
    before = segments_with_data(client)
    proxy.drip(seconds=0.01)
    client.sendall(b"0123456789")
    got = b""
    while len(got) < 10:
        got += client.recv(65536)
    assert got == b"0123456789"
    assert segments_with_data(client) - before >= 10


def segments_with_data(client):
    """How many have come, by the `tcp_info` of Linux."""
    (count,) = struct.unpack_from("I", client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 160), 152)
    return count


def test_a_truncated_connection_has_exactly_that_many_bytes_more(proxy, client):
    """Those that are made later, too."""
    assert says(client, b"before") == b"before"
    proxy.truncate(3)
    assert says(client, b"012345") == b"012"
    assert client.recv(1) == b""
    with connect(proxy) as other:
        assert says(other, b"012345") == b"012"
    proxy.heal()
    with connect(proxy) as healed:
        assert says(healed, b"012345") == b"012345"


def test_a_frozen_connection_is_silent_and_goes_on_where_it_was(proxy, client, echo):
    """Those that are made meanwhile, too. Nobody is told that anybody has left."""
    assert says(client, b"one") == b"one"
    proxy.freeze()
    client.sendall(b"two")
    assert is_silent(client)
    with connect(proxy) as leaver:
        leaver.sendall(b"three")
        assert is_silent(leaver)
    assert echo.endings == []
    proxy.heal()
    assert client.recv(10) == b"two"


def test_a_half_open_connection_is_closed_at_the_servers_end_alone(proxy, client, echo):
    """The client hears nothing, until the way is healed: then its connection is known no more."""
    assert says(client, b"one") == b"one"
    proxy.half_open()
    eventually(lambda: echo.endings == ["closed"], "the server has heard of it")
    client.sendall(b"two")
    assert is_silent(client)
    with connect(proxy) as other:
        other.sendall(b"three")
        assert is_silent(other)
        assert len(echo.endings) == 1
        proxy.heal()
        for connection in (client, other):
            with pytest.raises(ConnectionResetError):
                connection.recv(1)
    with connect(proxy) as healed:
        assert says(healed, b"four") == b"four"


def test_it_ends_in_the_middle_of_any_fault(echo):
    """Whoever is connected then is reset."""
    faults = ("freeze", "half_open", "refuse", "drip")
    for fault in faults:
        with FaultProxy(echo.dsn) as proxy:
            client = connect(proxy)
            assert says(client, b"one") == b"one"
            getattr(proxy, fault)()
            client.sendall(b"two")
        with client, pytest.raises(ConnectionResetError):
            while client.recv(10):
                pass


def test_it_may_be_told_from_a_loop_that_it_serves(dsn, run):
    """It has a loop of its own."""

    async def main():
        with FaultProxy(dsn) as proxy:
            connection = await asyncpg.connect(proxy.dsn)
            assert await connection.fetchval("SELECT 1") == 1
            proxy.reset()
            with pytest.raises((asyncpg.ConnectionDoesNotExistError, OSError)):
                await connection.fetchval("SELECT 2")

    run(main())
