"""Six ways to leave something behind, and three programs that do not. The line at fault ends in `# planted: NAME`."""

from __future__ import annotations

import asyncio
import socket
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import anyio
import asyncpg
import psycopg

__all__ = ["CLEAN", "WAYS", "line_of", "loop_closed_early"]


def line_of(name):
    """Where *name* was planted, as `path:line`."""
    (number,) = (
        n for n, line in enumerate(Path(__file__).read_text().splitlines(), 1) if line.endswith(f"ted: {name}")
    )
    return f"{__file__}:{number} "


# ---- ways to leave something behind; `kept` can clean up after them ----


async def socket_not_closed(dsn, kept):
    forgotten = socket.socket()  # planted: socket_not_closed
    kept.callback(forgotten.close)


async def connect_cancelled(dsn, kept):
    async def connect(address):
        sock = socket.create_connection(address)  # planted: connect_cancelled
        kept.callback(sock.close)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_recv(sock, 1)  # a greeting that does not come

    with socket.create_server(("127.0.0.1", 0)) as mute:
        connecting = asyncio.create_task(connect(mute.getsockname()))
        await asyncio.sleep(0.01)
        connecting.cancel()
        with suppress(asyncio.CancelledError):
            await connecting


async def pool_not_closed(dsn, kept):
    pool = await asyncpg.create_pool(dsn, min_size=2, max_size=2)  # planted: pool_not_closed
    kept.push_async_callback(pool.close)


async def reader_left(dsn, kept):
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    loop.add_reader(ours.fileno(), ours.recv, 1)  # planted: reader_left
    kept.callback(loop.remove_reader, ours.fileno())
    await asyncio.sleep(0.01)
    ours.close()
    theirs.close()


async def lease_dropped(dsn, kept):
    pool = asyncpg.create_pool(dsn, min_size=0, max_size=1)
    await pool
    lease = await pool.acquire()  # planted: lease_dropped
    assert await lease.fetchval("SELECT 1") == 1
    kept.callback(pool.terminate)


def loop_closed_early(kept, loop_factory):
    async def connect(server):
        await asyncio.sleep(0)
        address = server.getsockname()
        transport, _ = await loop.create_connection(asyncio.Protocol, *address)  # planted: loop_closed_early
        kept.callback(close_socket_of, transport)

    with socket.create_server(("127.0.0.1", 0)) as server:
        loop = loop_factory()
        loop.run_until_complete(connect(server))
        loop.close()


def close_socket_of(transport):
    """What the closed loop can do no longer."""
    transport._sock.close()
    transport._sock = None  # or its end would complain


WAYS = (socket_not_closed, connect_cancelled, pool_not_closed, reader_left, lease_dropped)

# ---- programs that leave nothing behind ----


async def use_asyncpg(dsn):
    async with asyncpg.create_pool(dsn, min_size=1, max_size=2) as pool:
        assert await pool.fetchval("SELECT 1") == 1


async def use_psycopg(dsn):
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        await connection.execute("SELECT 1")


async def use_no_postgresql(dsn):
    async def answer(reader, writer):
        writer.write(await reader.readline())
        writer.close()
        await writer.wait_closed()

    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(await asyncio.start_server(answer, "127.0.0.1", 0))
        stream = await stack.enter_async_context(await anyio.connect_tcp(*server.sockets[0].getsockname()))
        await stream.send(b"hello\n")
        assert await stream.receive() == b"hello\n"


CLEAN = (use_asyncpg, use_psycopg, use_no_postgresql)
