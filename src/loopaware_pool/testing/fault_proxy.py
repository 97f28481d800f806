"""
A TCP proxy that fails on demand, to test how a program handles a failing network or server.

It has its own thread and event loop. So it goes on when the loop under test is blocked, and code without a loop can use
it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from enum import Enum
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Self

__all__ = ["FaultProxy"]

_HOST: Final = "127.0.0.1"
_PIECE_BYTES: Final = 65536
# How many pieces may be delayed; then the sender's writes block, as on any slow network.
_PIECES_HELD: Final = 16
_BACKLOG: Final = 512
_DEFAULT_PORT: Final = 5432


class _End(Enum):
    """How a connection through the proxy ends."""

    CLOSE = "close"
    RESET = "reset"


class _Over(Exception):
    """The limit of `truncate` has been reached."""


class _Faults:
    """The present faults of all connections. None means no such fault."""

    def __init__(self) -> None:
        self.thawed = asyncio.Event()
        self.clear()

    def clear(self) -> None:
        self.to_server_seconds = 0.0
        self.to_client_seconds = 0.0
        self.drip_seconds: float | None = None
        self.truncate_bytes: int | None = None
        self.is_half_open = False
        self.thawed.set()


class FaultProxy:
    """
    Passes TCP connections on to a server, and makes them fail on demand.

    A context manager: it listens inside the block, and leaves no thread, socket or connection behind. Every method may
    be called from any thread, on any loop or none, and affects present and later connections. It blocks until it is in
    effect, mostly less than a millisecond.

    Args:
        dsn: The server: a URL with one host that is reached over TCP.

    Attributes:
        dsn: Inside the block, the same by way of the proxy.
        port: Inside the block, the port it listens on, at 127.0.0.1.

    Raises:
        ValueError: *dsn* is no such URL.

    Example:
        with FaultProxy("postgresql://app@localhost/app") as proxy:
            async with create_pool(proxy.dsn) as pool:
                proxy.freeze()
                ...
    """

    def __init__(self, dsn: str) -> None:
        parts = urlsplit(dsn)
        if not parts.scheme or not parts.hostname or "," in parts.netloc:  # not shown: it may have a password
            raise ValueError("dsn: expected a URL with one host, as in 'postgresql://user@host:5432/database'")
        self.dsn: str = dsn
        self.port: int = 0
        self._parts = parts
        self._target = parts.hostname, parts.port or _DEFAULT_PORT
        self._links: set[_Link] = set()
        self._listener: socket.socket | None = None

    # ---- what fails ----

    @property
    def connections(self) -> int:
        """How many connections are open now, half-open ones included."""
        return len(self._links)

    def drop(self) -> None:
        """Close every connection at both ends, like a server that shuts down."""
        self._do(self._end_all, _End.CLOSE)

    def reset(self) -> None:
        """Reset every connection at both ends: data in flight are lost, and reads and writes fail."""
        self._do(self._end_all, _End.RESET)

    def refuse(self) -> None:
        """Refuse new connections from now on; open ones stay."""
        self._do(self._stop_listening)

    def delay(self, *, to_server: float = 0.0, to_client: float = 0.0) -> None:
        """Delay all data by so many seconds in each direction. The order is kept, and delays do not add up."""
        self._do(self._delay, to_server, to_client)

    def drip(self, seconds: float = 0.0) -> None:
        """Pass all data on byte by byte, *seconds* apart."""
        self._do(self._drip, seconds)

    def truncate(self, after_bytes: int) -> None:
        """Close each connection after so many more bytes from the server."""
        self._do(self._truncate, after_bytes)

    def freeze(self) -> None:
        """Go silent: no data are passed on, and new connections get no answer. Data are kept."""
        self._do(self._freeze)

    def half_open(self) -> None:
        """Close the server's end of every connection without telling the client, as if its machine had vanished."""
        self._do(self._half_open)

    def heal(self) -> None:
        """
        End all faults, and listen.

        Delayed data go on. A half-open connection is reset, as by a server that has come back and does not know it.
        """
        self._do(self._heal)

    # ---- on the proxy's loop ----

    def _delay(self, to_server_seconds: float, to_client_seconds: float) -> None:
        self._faults.to_server_seconds = to_server_seconds
        self._faults.to_client_seconds = to_client_seconds

    def _drip(self, seconds: float) -> None:
        self._faults.drip_seconds = seconds

    def _truncate(self, after_bytes: int) -> None:
        self._faults.truncate_bytes = after_bytes
        for link in self._links:
            link.passed_bytes = 0

    def _freeze(self) -> None:
        self._faults.thawed.clear()

    async def _half_open(self) -> None:
        self._faults.is_half_open = True
        for link in list(self._links):
            await link.leave_client_alone()

    async def _heal(self) -> None:
        if self._faults.is_half_open:
            await self._end_all(_End.RESET)
        self._faults.clear()
        self._listen()

    async def _end_all(self, how: _End) -> None:
        for link in list(self._links):
            await link.end(how)

    def _listen(self) -> None:
        if self._listener is None:
            self._listener = _bound(self.port)
            self._listener.listen(_BACKLOG)
            self._loop.add_reader(self._listener, self._accept, self._listener)

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    def _accept(self, listener: socket.socket) -> None:
        # Not `sock_accept`: cancelled just after a client has come, it would lose the client's socket.
        with contextlib.suppress(BlockingIOError):
            client, _ = listener.accept()
            client.setblocking(False)
            self._links.add(_Link(client, self._target, self._faults, self._links.discard))

    # ---- its life ----

    def _do(self, action: Callable[..., object], *args: object) -> None:
        async def act() -> None:
            outcome = action(*args)
            if asyncio.iscoroutine(outcome):
                await outcome

        asyncio.run_coroutine_threadsafe(act(), self._loop).result()

    def _main(self) -> None:
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            runner.run(self._live())

    async def _live(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        self._faults = _Faults()
        self._faults.thawed.set()
        self._listen()
        self._is_ready.set()
        await self._over.wait()
        self._stop_listening()
        await self._end_all(_End.RESET)

    def __enter__(self) -> Self:
        # Reserves the port. Bound without listening, it refuses connections, and no other socket gets the port.
        self._reserved = _bound(0)
        self.port = self._reserved.getsockname()[1]
        login, at, _ = self._parts.netloc.rpartition("@")
        self.dsn = self._parts._replace(netloc=f"{login}{at}{_HOST}:{self.port}").geturl()
        self._is_ready = threading.Event()
        self._thread = threading.Thread(target=self._main, name=f"fault proxy {self.port}", daemon=True)
        self._thread.start()
        self._is_ready.wait()
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()
        self._reserved.close()


class _Link:
    """
    One connection through the proxy.

    Attributes:
        passed_bytes: How many bytes the client has received, since `truncate` if that was called meanwhile.
    """

    def __init__(
        self, client: socket.socket, target: tuple[str, int], faults: _Faults, gone: Callable[[_Link], object]
    ) -> None:
        self.passed_bytes = 0
        self._client = client
        self._server: socket.socket | None = None
        self._target = target
        self._faults = faults
        self._gone = gone
        self._task = asyncio.create_task(self._live())

    async def end(self, how: _End) -> None:
        """Close both ends."""
        await _cancelled(self._task)
        self._close(how)

    async def leave_client_alone(self) -> None:
        """Close the server's end only."""
        await _cancelled(self._task)
        if self._server is not None:
            _close(self._server, _End.CLOSE)
            self._server = None

    async def _live(self) -> None:
        _send_at_once(self._client)
        try:
            await self._faults.thawed.wait()
            if self._faults.is_half_open:
                return
            await self._connect()
            await self._pass_on()
        except* _Over:
            self._close(_End.CLOSE)
        except* OSError:
            self._close(_End.RESET)
        else:
            self._close(_End.CLOSE)

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        family, kind, protocol, _, address = (await loop.getaddrinfo(*self._target, type=socket.SOCK_STREAM))[0]
        self._server = socket.socket(family, kind, protocol)
        self._server.setblocking(False)
        await loop.sock_connect(self._server, address)
        _send_at_once(self._server)

    async def _pass_on(self) -> None:
        server = self._server
        assert server is not None
        to_server: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_PIECES_HELD)
        to_client: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_PIECES_HELD)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._receive(self._client, to_server, lambda: self._faults.to_server_seconds))
            group.create_task(self._receive(server, to_client, lambda: self._faults.to_client_seconds))
            group.create_task(self._send(to_server, server))
            group.create_task(self._send(to_client, self._client))

    async def _receive(
        self, source: socket.socket, held: asyncio.Queue[tuple[float, bytes]], delay_seconds: Callable[[], float]
    ) -> None:
        loop = asyncio.get_running_loop()
        data = b"more"
        while data:
            await self._faults.thawed.wait()
            data = await loop.sock_recv(source, _PIECE_BYTES)
            await held.put((loop.time() + delay_seconds(), data))

    async def _send(self, held: asyncio.Queue[tuple[float, bytes]], sink: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due, data = await held.get()
            await asyncio.sleep(due - loop.time())
            await self._faults.thawed.wait()
            if not data:
                sink.shutdown(socket.SHUT_WR)
                return
            for part in self._portions(data):
                await loop.sock_sendall(sink, self._allowed(part) if sink is self._client else part)
                if self._faults.drip_seconds is not None:
                    await asyncio.sleep(self._faults.drip_seconds)
                    await self._faults.thawed.wait()
                if sink is self._client and self._is_full():
                    raise _Over

    def _portions(self, data: bytes) -> Iterator[bytes]:
        if self._faults.drip_seconds is None:
            yield data
        else:
            yield from (data[at : at + 1] for at in range(len(data)))

    def _allowed(self, part: bytes) -> bytes:
        limit = self._faults.truncate_bytes
        if limit is not None:
            part = part[: max(0, limit - self.passed_bytes)]
        self.passed_bytes += len(part)
        return part

    def _is_full(self) -> bool:
        limit = self._faults.truncate_bytes
        return limit is not None and self.passed_bytes >= limit

    def _close(self, how: _End) -> None:
        for end in (self._client, self._server):
            if end is not None:
                _close(end, how)
        self._gone(self)


def _bound(port: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((_HOST, port))
    sock.setblocking(False)
    return sock


def _send_at_once(sock: socket.socket) -> None:
    """Send each piece by itself."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _close(sock: socket.socket, how: _End) -> None:
    if sock.fileno() < 0:
        return
    if how is _End.RESET:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    else:
        with contextlib.suppress(OSError):  # unread data would make the kernel reset the connection
            while sock.recv(_PIECE_BYTES):
                pass
    sock.close()


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
