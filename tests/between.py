"""What the real programs between a pool and a server have in common: ports, and waiting for them."""

from __future__ import annotations

import socket
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

__all__ = ["own_port", "wait_until_it_listens"]

_DEADLINE_SECONDS = 20.0


@contextmanager
def own_port() -> Iterator[int]:
    """
    A port of 127.0.0.1 for a program that is started, and perhaps started again, in the block.

    Until its end the kernel gives it to nobody else: a socket is bound to it, and does not listen. A program that asks
    for that very port gets it all the same, as both set SO_REUSEADDR.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


def wait_until_it_listens(process: subprocess.Popen[Any], port: int) -> None:
    deadline = time.monotonic() + _DEADLINE_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            assert process.poll() is None, f"{process.args} has ended"
            assert time.monotonic() < deadline, f"{process.args} does not listen"
            time.sleep(0.01)
