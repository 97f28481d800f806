"""A program that forgets a connection and a socket, for the picture of `loopaware-pool audit`."""

from __future__ import annotations

import asyncio
import socket

import asyncpg

from loopaware_pool.testing.embedded_server import EmbeddedServer

PEERS: list[socket.socket] = []
CONNECTIONS: list[asyncpg.Connection] = []


async def report(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    CONNECTIONS.append(connection)
    await connection.fetchval("SELECT 1")


async def main(dsn: str) -> None:
    PEERS.extend(socket.socketpair())
    await report(dsn)


with EmbeddedServer() as server:
    asyncio.run(main(server.dsn))
