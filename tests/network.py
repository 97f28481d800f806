"""A network that loses packets: this process at one end of it, a server in a namespace of its own at the other."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import shutil
import struct
import subprocess
import threading
import time
from collections import deque
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from loopaware_pool.testing.embedded_server import EmbeddedServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["FarServer", "Network", "NetworkUnavailable", "network"]

_CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_IFF_TUN_WITHOUT_HEADER = 0x1001
_OWN_NAMESPACE = "/proc/thread-self/ns/net"
# Set aside for tests of networks, by RFC 2544.
_FIRST_ADDRESS = IPv4Address("198.18.0.0")
_MOST_NETWORKS = 1000
_PACKET_BYTES = 65536
_LIBC = ctypes.CDLL(None, use_errno=True)


class NetworkUnavailable(Exception):
    """A network that this machine cannot make; the message says what is missing."""


class Network:
    """
    Two interfaces, and a thread that carries packets from one to the other, or loses them.

    Each end has a TCP of its own, that of the kernel, and hears nothing of what becomes of its packets. So this is how
    a machine seems that has vanished, and no end of a connection is told. There is nothing to clean up: interfaces and
    namespace go with the file descriptors that hold them.

    Attributes:
        address: Of the far end.
        delay_seconds: How long a packet is on its way, in either direction.
        sent: How many segments with data have been carried, or lost, on their way to the far end.
    """

    def __init__(self, near: int, far: int, namespace: int, address: str) -> None:
        self.address = address
        self.delay_seconds = 0.0
        self.sent = 0
        self._near, self._far, self._namespace = near, far, namespace
        self._lost: frozenset[int] = frozenset()
        self._under_way: deque[tuple[float, int, bytes]] = deque()
        self._wake, self._woken = os.pipe()
        self._thread = threading.Thread(target=self._carry, name="network", daemon=True)
        self._thread.start()

    def lose(self, *, there: bool = True, back: bool = True) -> None:
        """Lose all packets from now on: to the far end, from it, or both."""
        self._lost = frozenset([self._near] * there + [self._far] * back)

    def heal(self) -> None:
        """Carry all packets again."""
        self._lost = frozenset()

    @contextmanager
    def silent(self, **directions: bool) -> Iterator[None]:
        """Lose all packets in the block."""
        self.lose(**directions)
        try:
            yield
        finally:
            self.heal()

    @contextmanager
    def far_end(self) -> Iterator[None]:
        """What this thread opens, and starts, in the block is at the far end."""
        with _in_namespace(self._namespace):
            yield

    def end(self) -> None:
        """Take the near interface away; the far one stays until nothing at that end runs any more."""
        os.close(self._woken)
        self._thread.join()
        for fd in (self._wake, self._near, self._far, self._namespace):
            os.close(fd)

    def _carry(self) -> None:
        poll = select.poll()
        for fd in (self._wake, self._near, self._far):
            poll.register(fd, select.POLLIN)
        while True:
            for fd, _ in poll.poll(self._milliseconds_until_due()):
                if fd == self._wake:
                    return
                self._take(fd, os.read(fd, _PACKET_BYTES))
            self._deliver()

    def _take(self, source: int, packet: bytes) -> None:
        self.sent += source == self._near and _has_data(packet)
        if source not in self._lost:
            target = self._far if source == self._near else self._near
            self._under_way.append((time.monotonic() + self.delay_seconds, target, packet))

    def _deliver(self) -> None:
        while self._under_way and self._under_way[0][0] <= time.monotonic():
            _, target, packet = self._under_way.popleft()
            os.write(target, packet)

    def _milliseconds_until_due(self) -> float | None:
        if not self._under_way:
            return None
        return max(0.0, (self._under_way[0][0] - time.monotonic()) * 1000)


class FarServer(EmbeddedServer):
    """A server at the far end of a network; `dsn` is the way to it, and no network is in the way of `unix_dsn`."""

    def __init__(self, between: Network, **options: Any) -> None:
        super().__init__(**options)
        self.network = between

    @property
    def dsn(self) -> str:
        parts = urlsplit(super().dsn)
        login = parts.netloc.rpartition("@")[0]
        return parts._replace(netloc=f"{login}@{self.network.address}:{parts.port}").geturl()

    def _launch(self, directory: Path, *port: Any) -> Any:
        allowed = directory / "hba.conf"
        lines = "local {0} all trust\nhost {0} all all scram-sha-256\n"
        allowed.write_text(lines.format("all") + lines.format("replication"))
        self._settings = {"listen_addresses": "*", "hba_file": str(allowed)} | self._settings
        with self.network.far_end():
            return super()._launch(directory, *port)


@contextmanager
def network() -> Iterator[Network]:
    """
    A network, which ends with the block.

    Raises:
        NetworkUnavailable: This machine lets us make none.
    """
    with ExitStack() as undo:
        namespace, far = _far_interface(undo)
        near, name, first = _near_interface(undo)
        near_address, far_address = str(first + 1), str(first + 2)
        with _in_namespace(namespace):
            _configure("far", far_address, near_address)
        _configure(name, near_address, far_address)
        undo.pop_all()
    between = Network(near, far, namespace, far_address)
    try:
        yield between
    finally:
        between.end()


def _far_interface(undo: ExitStack) -> tuple[int, int]:
    """A new namespace, and an interface in it."""
    with _in_namespace(None):
        namespace = os.open(_OWN_NAMESPACE, os.O_RDONLY)
        undo.callback(os.close, namespace)
        return namespace, _new_interface("far", undo)


def _near_interface(undo: ExitStack) -> tuple[int, str, IPv4Address]:
    """An interface with a number that no other process has; and the first address of those of that number."""
    for number in range(_MOST_NETWORKS):
        name = f"loopaware{number}"
        try:
            return _new_interface(name, undo), name, _FIRST_ADDRESS + 4 * number
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise NetworkUnavailable(f"cannot make an interface: {error}") from None
    raise NetworkUnavailable(f"{_MOST_NETWORKS} networks of ours are in use")


def _new_interface(name: str, undo: ExitStack) -> int:
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR)
    except OSError as error:
        raise NetworkUnavailable(f"cannot make an interface: {error}") from None
    try:
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN_WITHOUT_HEADER))
    except OSError:
        os.close(fd)
        raise
    undo.callback(os.close, fd)
    return fd


def _configure(name: str, own: str, other: str) -> None:
    """Give an interface of the current namespace its address, and the one that it leads to."""
    program = shutil.which("ip", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        raise NetworkUnavailable("there is no program `ip` (Debian's package iproute2)")
    commands = f"link set lo up\naddr add {own} peer {other} dev {name}\n"
    commands += f"link set {name} addrgenmode none\nlink set {name} up\n"
    completed = subprocess.run([program, "-batch", "-"], input=commands, check=False, capture_output=True, text=True)
    if completed.returncode:
        raise NetworkUnavailable(f"`ip` cannot set up an interface: {completed.stderr.strip()}")


@contextmanager
def _in_namespace(namespace: int | None) -> Iterator[None]:
    """Have this thread be in another network namespace, in a new one if that is None, and bring it back."""
    own = os.open(_OWN_NAMESPACE, os.O_RDONLY)
    try:
        if namespace is None:
            _check(_LIBC.unshare(_CLONE_NEWNET), "make a network namespace")
        else:
            _check(_LIBC.setns(namespace, _CLONE_NEWNET), "enter a network namespace")
        try:
            yield
        finally:
            _check(_LIBC.setns(own, _CLONE_NEWNET), "leave a network namespace")
    finally:
        os.close(own)


def _check(result: int, what: str) -> None:
    if result:
        raise NetworkUnavailable(f"may not {what}: {os.strerror(ctypes.get_errno())}")


def _has_data(packet: bytes) -> bool:
    """Whether this is a segment of TCP with data in it."""
    if packet[0] >> 4 != 4 or packet[9] != 6:
        return False
    headers = (packet[0] & 15) * 4 + (packet[(packet[0] & 15) * 4 + 12] >> 4) * 4
    return len(packet) > headers
