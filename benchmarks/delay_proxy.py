"""
`python -m benchmarks.delay_proxy HOST PORT ROUND_TRIP_MS`: a TCP proxy that makes the server seem far away.

A process of its own, so that what it costs is no contender's; threads, as an event loop's timers are only good to 1 ms.
It prints its port, and ends when its standard input does.
"""

from __future__ import annotations

import queue
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["delayed"]


@contextmanager
def delayed(dsn: str, round_trip_ms: float) -> Iterator[str]:
    """Give a DSN by which the server of *dsn* is so much farther away, as long as the block lasts."""
    parts = urlsplit(dsn)
    command = [sys.executable, "-m", "benchmarks.delay_proxy", parts.hostname or "localhost", str(parts.port or 5432)]
    with subprocess.Popen(
        [*command, str(round_trip_ms)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as proxy:
        assert proxy.stdin is not None
        assert proxy.stdout is not None
        try:
            port = int(proxy.stdout.readline())
            user = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
            yield parts._replace(netloc=f"{user}127.0.0.1:{port}").geturl()
        finally:
            proxy.stdin.close()


def main() -> None:
    """Serve until standard input ends."""
    host, port, round_trip_ms = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    threading.Thread(target=_accept, args=(listener, (host, port), round_trip_ms / 2e3), daemon=True).start()
    sys.stdin.read()


def _accept(listener: socket.socket, server: tuple[str, int], seconds: float) -> None:
    while True:
        near, _ = listener.accept()
        far = socket.create_connection(server)
        for one, other in ((near, far), (far, near)):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            under_way: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
            threading.Thread(target=_take, args=(one, under_way, seconds), daemon=True).start()
            threading.Thread(target=_bring, args=(other, under_way), daemon=True).start()


def _take(sock: socket.socket, under_way: queue.SimpleQueue[tuple[float, bytes]], seconds: float) -> None:
    data = b"."
    while data:
        try:
            data = sock.recv(65536)
        except OSError:
            data = b""
        under_way.put((time.monotonic() + seconds, data))


def _bring(sock: socket.socket, under_way: queue.SimpleQueue[tuple[float, bytes]]) -> None:
    while True:
        due, data = under_way.get()
        time.sleep(max(due - time.monotonic(), 0))
        try:
            if not data:
                sock.shutdown(socket.SHUT_WR)
                return
            sock.sendall(data)
        except OSError:
            return


if __name__ == "__main__":
    main()
