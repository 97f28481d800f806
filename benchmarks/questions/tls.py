"""`SELECT 1`, and large results, over TLS, on a server of its own: the binaries that are embedded come without TLS."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.contenders import (
    ASYNCPG,
    BARE_ASYNCPG,
    BARE_ASYNCPG_64_KIB,
    OURS,
    OURS_PSYCOPG,
    OURS_WHEN_DIRTY,
    PSYCOPG_POOL,
    Setting,
)
from benchmarks.lab import NotHere, Question, bursts_of, label
from benchmarks.questions.results import ask_for_results

if TYPE_CHECKING:
    from benchmarks.contenders import Client
    from benchmarks.lab import Heat, Lab

QUERIES = 500
TASKS = (1, 10)


async def ask(lab: Lab) -> list[Heat]:
    """Of both drivers."""
    try:
        from tests.servers import ServerUnavailable, postgresql, tls_server
    except ModuleNotFoundError:
        raise NotHere("its server is a part of the project's tests, which are in its sources only") from None
    heats = []
    try:
        binaries = postgresql(17)
    except ServerUnavailable as error:
        raise NotHere(str(error)) from None
    with tls_server(binaries) as server:
        of_asyncpg = Setting(server.dsn, ssl=server.ssl_context)
        of_psycopg = Setting(server.verified_dsn)
        async with (
            lab.open((ASYNCPG, BARE_ASYNCPG, BARE_ASYNCPG_64_KIB, OURS, OURS_WHEN_DIRTY), of_asyncpg) as clients,
            lab.open((PSYCOPG_POOL, OURS_PSYCOPG), of_psycopg) as others,
        ):
            for tasks in TASKS:
                await lab.warm_up(clients | others, _fetch, tasks=tasks)
                bursts = await lab.burst(clients | others, _fetch, operations=QUERIES, tasks=tasks)
                heats.append(bursts_of(f"SELECT 1 over TLS on PostgreSQL 17, {label(tasks)}", bursts))
            heats += await ask_for_results(lab, clients, " over TLS")
    return heats


async def _fetch(client: Client) -> None:
    await client.fetch("SELECT 1")


QUESTION = Question("tls", ask)
