"""
A live view of pools, for readers outside the process: `loopaware-pool top`, curl, a script.

It has threads of its own and uses no event loop: it is needed most when a loop is blocked. Its data come from `stats()`
and `fd_report()`, which never wait. It speaks HTTP over a Unix socket or TCP, with one request for each connection:
`GET /` returns `Snapshot.to_json()`. Nothing is opened until `serve_live` is called.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import io
import ipaddress
import logging
import os
import selectors
import socket
import stat
import threading
import weakref
from contextlib import ExitStack
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Final

from loopaware_pool._platform import event_loops
from loopaware_pool._platform.log_fields import error_type, fields
from loopaware_pool.live.address import HostPort, SocketPath, parse_address
from loopaware_pool.live.snapshot import Snapshot, Viewed
from loopaware_pool.live.wire import UntilDeadline

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType
    from typing import Self

__all__ = ["LiveView", "serve_live"]

logger: logging.Logger = logging.getLogger("loopaware_pool")

# How long a client may take to send its request, and again to read the answer. `close()` waits for that long.
REQUEST_SECONDS: Final = 1.0
# If more clients come, the oldest is disconnected: it has had the most time.
MOST_CLIENTS: Final = 16
# The pause after a connection could not be accepted.
ACCEPT_RETRY_SECONDS: Final = 0.1
_PROBE_SECONDS: Final = 1.0
_BACKLOG: Final = 128
_NOT_OTHERS: Final = 0o177  # leaves mode 0600
_Selector = getattr(selectors, "PollSelector", selectors.SelectSelector)  # has nothing that a child could share


def serve_live(
    pools: Viewed | Iterable[Viewed], address: str | os.PathLike[str], *, allow_remote: bool = False
) -> LiveView:
    """
    Serve a live view of pools, until it is closed or the process ends.

    A child of `fork` has none. It may open its own, at another address.

    Args:
        pools: One of this package's pools, or several. They are held weakly: a pool that is dropped disappears.
        address: The path of a Unix socket, which is made with mode 0600; or `host:port`, where for port 0 the system
            chooses one.
        allow_remote: Whether other machines may reach the host. There is no password, and no encryption.

    Returns:
        A context manager that closes the view.

    Raises:
        TypeError: *pools* are no pools, or *address* is no string and no path.
        ValueError: The address cannot be parsed, or is not a loopback address although *allow_remote* is False.
        OSError: The address cannot be used; `filename` is the address. `EADDRINUSE`: another process serves there.
            `EEXIST`: a file is there that is no socket.
    """
    return LiveView(_check_pools(pools), address, allow_remote=allow_remote)


class LiveView:
    """
    A live view that is being served; made by `serve_live`.

    Attributes:
        address: Its address, as `loopaware-pool top` takes it.
    """

    def __init__(self, pools: tuple[Viewed, ...], address: str | os.PathLike[str], *, allow_remote: bool) -> None:
        where = parse_address(address)
        if isinstance(where, HostPort) and not (allow_remote or where.is_loopback()):
            raise ValueError(
                f"address={os.fspath(address)!r}: other machines could reach it; "
                "give 127.0.0.1 or the path of a Unix socket, or allow_remote=True"
            )
        self._pools = tuple(weakref.ref(pool) for pool in pools)
        self._clients: dict[socket.socket, threading.Thread] = {}
        self._spare_lock = threading.Lock()
        with ExitStack() as undo:
            self._listener = undo.enter_context(_listen(where))
            self._listener.setblocking(False)  # a client may be gone before it is accepted
            self._socket_file = _SocketFile(where.path) if isinstance(where, SocketPath) else None
            if self._socket_file is not None:
                undo.callback(self._socket_file.remove)
            self._spare = undo.enter_context(self._listener.dup())
            self._waker, self._woken = (undo.enter_context(end) for end in socket.socketpair())
            self.address: str = str(_bound(where, self._listener))
            self._thread = threading.Thread(target=self._serve, name=f"live view at {self.address}", daemon=True)
            self._thread.start()
            undo.pop_all()
        event_loops.call_in_child(self)
        atexit.register(self.close)

    def close(self) -> None:
        """
        Stop serving, and close and remove the socket. Waits for clients that are being answered, 2 s at most.

        May be called from any thread, and more than once.
        """
        atexit.unregister(self.close)
        with contextlib.suppress(OSError):  # closed already
            self._waker.shutdown(socket.SHUT_WR)
        self._thread.join()

    def start_afresh_in_child(self) -> None:
        """Close, in a child process, what belongs to the parent."""
        atexit.unregister(self.close)
        for inherited in (self._listener, self._spare, self._waker, self._woken, *self._clients):
            inherited.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # ---- in the thread ----

    def _serve(self) -> None:
        with self._listener, self._waker, self._woken, _Selector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while all(key.fileobj is not self._woken for key, _ in selector.select()):
                self._take_next()
            for thread in tuple(self._clients.values()):
                thread.join()
            self._spare.close()
            if self._socket_file is not None:
                self._socket_file.remove()

    def _take_next(self) -> None:
        try:
            client = self._accept()
        except OSError:
            sleep(ACCEPT_RETRY_SECONDS)
            return
        # All surplus ones: those that were disconnected before may still be in the list.
        for oldest in tuple(self._clients)[: 1 - MOST_CLIENTS]:
            with contextlib.suppress(OSError):  # the client has gone
                oldest.shutdown(socket.SHUT_RDWR)
        thread = threading.Thread(target=self._answer, args=(client,), name=self._thread.name, daemon=True)
        self._clients[client] = thread
        thread.start()

    # ---- in a thread for each client: one that says nothing holds up no other ----

    def _answer(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):  # the client went away, or was too slow
            _Answer(client, self)
            client.shutdown(socket.SHUT_WR)  # a process forked meanwhile has the connection, too
        del self._clients[client]
        with self._spare_lock, contextlib.suppress(OSError):  # still no free fd
            if self._spare.fileno() < 0:
                self._spare = self._listener.dup()

    def _accept(self) -> socket.socket:
        try:
            return self._listener.accept()[0]
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
            with self._spare_lock:
                self._spare.close()  # a view is needed when a process has leaked all its fds
                return self._listener.accept()[0]

    def snapshot(self) -> Snapshot:
        """Take a snapshot of the pools now, as each request does."""
        return Snapshot.take(pool for one in self._pools if (pool := one()) is not None)


class _Answer(BaseHTTPRequestHandler):
    """Answers one request, in its constructor. Raises OSError if the client goes away, or is too slow."""

    server_version = "loopaware-pool"
    sys_version = ""

    def __init__(self, connection: socket.socket, view: LiveView) -> None:
        self._view = view
        super().__init__(connection, ("", 0), None)  # type: ignore[arg-type] # the server object is not used

    def setup(self) -> None:
        self.rfile = io.BufferedReader(UntilDeadline(self.request, monotonic() + REQUEST_SECONDS))
        self.wfile = io.BytesIO()

    def finish(self) -> None:
        self.request.settimeout(REQUEST_SECONDS)
        self.request.sendall(self.wfile.getvalue())  # type: ignore[attr-defined] # of BytesIO

    def do_GET(self) -> None:
        if not _is_local_name(self.headers.get("Host", "")):
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST, "Ask by numeric address, or as localhost")
        elif self.path != "/":
            self.send_error(HTTPStatus.NOT_FOUND, "There is only /")
        else:
            self._send_snapshot()

    def _send_snapshot(self) -> None:
        try:
            body = self._view.snapshot().to_json().encode()
        except Exception as error:
            told = fields("live_view_failed", None, pool_error=error_type(error))
            logger.exception("the live view could not look at a pool", extra=told)
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR, "A pool could not be looked at; the log says why")
            return
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - as the base class has it
        """Do nothing: requests are not logged."""


def _is_local_name(host: str) -> bool:
    """
    Whether *host*, from a request's header, is a numeric address or localhost, not a name.

    A web page can make the browser send requests to the page's own name, after changing that name's address to this
    machine.
    """
    name = host.rpartition(":")[0] if not host.endswith("]") else host
    name = (name or host).strip("[]")
    try:
        return name.lower() in ("", "localhost") or bool(ipaddress.ip_address(name))
    except ValueError:
        return False


# ---- opening ----


def _check_pools(pools: Any) -> tuple[Viewed, ...]:
    found = (pools,) if hasattr(pools, "fd_report") else pools
    if isinstance(found, str) or not hasattr(found, "__iter__"):
        raise TypeError(f"pools is of type {type(pools).__name__}: expected a pool of this package, or several")
    found = tuple(found)
    for pool in found:
        if not hasattr(pool, "fd_report"):
            raise TypeError(f"pools has one of type {type(pool).__name__}: expected pools of this package")
    if not found:
        raise ValueError("pools is empty: expected a pool of this package, or several")
    return found


def _listen(where: HostPort | SocketPath) -> socket.socket:
    try:
        if isinstance(where, SocketPath):
            return _listen_on_path(where.path)
        family = socket.AF_INET6 if ":" in where.host else socket.AF_INET
        return socket.create_server((where.host, where.port), family=family, backlog=_BACKLOG)
    except OSError as error:
        if error.filename is not None:
            raise
        code = error.errno or errno.EINVAL
        raise OSError(code, f"no live view can be opened: {error.strerror or error}", str(where)) from error


def _bound(where: HostPort | SocketPath, listener: socket.socket) -> HostPort | SocketPath:
    return where if isinstance(where, SocketPath) else HostPort(where.host, listener.getsockname()[1])


def _listen_on_path(path: str) -> socket.socket:
    if not hasattr(socket, "AF_UNIX"):
        raise OSError(errno.EAFNOSUPPORT, "this system has no Unix sockets: give host:port", path)
    with ExitStack() as undo:
        listener = undo.enter_context(socket.socket(socket.AF_UNIX))
        try:
            _bind_for_owner(listener, path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            _remove_stale(path)
            _bind_for_owner(listener, path)
        undo.callback(os.unlink, path)
        listener.listen(_BACKLOG)
        undo.pop_all()
    return listener


def _bind_for_owner(listener: socket.socket, path: str) -> None:
    # Not by a chmod afterwards, which would follow a link that another process has put there in between.
    before = os.umask(_NOT_OTHERS)
    try:
        listener.bind(path)
    finally:
        os.umask(before)


def _remove_stale(path: str) -> None:
    """Remove the socket of a process that is gone: one that no process listens on."""
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise OSError(errno.EEXIST, "no live view can be opened: there is a file that is no socket", path)
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_PROBE_SECONDS)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except (BlockingIOError, TimeoutError):
            pass  # a process listens, and is busy
    raise OSError(errno.EADDRINUSE, "no live view can be opened: a process that lives serves there already", path)


class _SocketFile:
    """
    The file of a Unix socket, as this process has made it.

    Args:
        path: Its path.
    """

    def __init__(self, path: str) -> None:
        self._path = os.path.abspath(path)
        self._made = self._identity()

    def remove(self) -> None:
        """Remove it, unless it has been replaced by another."""
        with contextlib.suppress(OSError):
            if self._identity() == self._made:
                os.unlink(self._path)

    def _identity(self) -> tuple[int, int]:
        status = os.lstat(self._path)
        return status.st_dev, status.st_ino
