"""
What connections cost a real PostgreSQL on this machine: processor time, throughput, memory.

Clients are libpq's, of one process, each with a query under way at all times. The processor time of a query is that of
the sessions' own processes, as the kernel counts it: it says the same whatever else the machine does, which a
throughput does not.
"""

from __future__ import annotations

import os
import select
import shutil
import socket
import statistics
import subprocess
import tempfile
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, sleep
from typing import TYPE_CHECKING, Any, Final, LiteralString
from urllib.parse import urlsplit

import psycopg
from psycopg import pq

from loopaware_pool.cli.measure import Spread, ratios
from loopaware_pool.testing.embedded_server import EmbeddedServer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["BUSY_BESIDE_IDLE", "QUERIES", "SIZES", "growth", "measure", "measure_proxy"]

SIZES: Final = (10, 50, 100, 200, 400)
# How many connections have work while the others are idle.
BUSY_BESIDE_IDLE: Final = 10
_TABLE: Final[tuple[LiteralString, ...]] = (
    "CREATE TABLE account AS SELECT id, 0 AS balance, repeat('x', 80) AS filler FROM generate_series(1, 100000) AS id",
    "ALTER TABLE account ADD PRIMARY KEY (id)",
    "VACUUM ANALYZE account",
)
QUERIES: Final = {
    "read": b"SELECT sum(balance) FROM account WHERE id BETWEEN $1::int AND $1::int + 500",
    "write": b"UPDATE account SET balance = balance + 1 WHERE id = $1::int",
}
_SESSIONS: Final = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
_ROWS: Final = 90_000
_STEP: Final = 7919  # a prime: all rows have their turn


@dataclass(slots=True)
class _Client:
    connection: psycopg.Connection[tuple[object, ...]]
    row: int
    query: bytes
    is_prepared: bool

    @property
    def raw(self) -> pq.abc.PGconn:
        return self.connection.pgconn

    def ask(self) -> None:
        self.row = (self.row + _STEP) % _ROWS
        if self.is_prepared:
            self.raw.send_query_prepared(b"q", [b"%d" % self.row])
        else:
            self.raw.send_query_params(self.query, [b"%d" % self.row])
        self.raw.flush()

    def has_answer(self) -> bool:
        self.raw.consume_input()
        if self.raw.is_busy():
            return False
        while (result := self.raw.get_result()) is not None:
            if result.status not in (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK):
                raise RuntimeError(result.error_message.decode())
        return True


def measure(rounds: int, seconds: float) -> dict[str, Any]:
    """
    Measure all of it, in rounds that each have every size, and return the figures of each round.

    Args:
        rounds: How often each size has its turn.
        seconds: How long a turn lasts.

    Raises:
        EmbeddedServerError: No server can be started.
        OSError: The kernel does not count what is needed.
    """
    turns: dict[tuple[str, str, int], list[dict[str, float]]] = {}
    with _server() as server:
        for number in range(rounds):
            sizes = SIZES if number % 2 == 0 else SIZES[::-1]
            for query in QUERIES:
                for size in sizes:
                    for idle in (False, True):
                        figures = _turn(server.dsn, query, size, size if not idle else BUSY_BESIDE_IDLE, seconds)
                        turns.setdefault(("idle" if idle else "active", query, size), []).append(figures)
        version = server.version
    return {
        "postgresql": version,
        "processors": len(os.sched_getaffinity(0)),
        "rounds": rounds,
        "seconds": seconds,
        "turns": [
            {"others": how, "query": query, "connections": size, "figures": _by_figure(several)}
            for (how, query, size), several in turns.items()
        ],
        "memory": [_memory(size) for size in SIZES],
    }


def growth(measured: Mapping[str, Any], others: str, query: str, figure: str) -> dict[int, Spread]:
    """
    Divide a figure, round by round, by that of the fewest connections in the same round: what slows one slows both.

    Args:
        measured: What `measure` returned.
        others: `"active"` if all connections have work, `"idle"` if only `BUSY_BESIDE_IDLE` have.
        query: `"read"` or `"write"`.
        figure: Its name.
    """
    found = {
        turn["connections"]: turn["figures"][figure]
        for turn in measured["turns"]
        if (turn["others"], turn["query"]) == (others, query)
    }
    return {size: ratios(several, found[min(found)]) for size, several in sorted(found.items())}


@contextmanager
def _server() -> Iterator[EmbeddedServer]:
    # Sessions of one turn may still be ending when the next one begins.
    with EmbeddedServer(settings={"max_connections": 2 * max(SIZES) + 50, "autovacuum": "off"}) as server:
        with psycopg.connect(server.dsn, autocommit=True) as admin:
            for statement in _TABLE:
                admin.execute(statement)
        yield server


def _by_figure(several: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    return {name: [round(one[name], 3) for one in several] for name in several[0]}


def _turn(dsn: str, query: str, size: int, busy: int, seconds: float) -> dict[str, float]:
    """Have *busy* of *size* connections ask for some *seconds*."""
    with _clients(dsn, query, size) as clients:
        pids = [client.raw.backend_pid for client in clients]
        at_work = clients[:busy]
        connect_ms = statistics.median(_cpu_seconds(pid) for pid in pids) * 1e3
        _run(at_work, seconds / 5)  # plans are made, and rows are in memory
        before = sum(map(_cpu_seconds, pids)), sum(map(_switches, pids))
        began = perf_counter()
        done = _run(at_work, seconds)
        spent = perf_counter() - began
        after = sum(map(_cpu_seconds, pids)), sum(map(_switches, pids))
    return {
        "queries_per_second": done / spent,
        "server_cpu_us": (after[0] - before[0]) / done * 1e6,
        "switches": (after[1] - before[1]) / done,
        "connect_cpu_ms": connect_ms,
    }


@contextmanager
def _clients(dsn: str, query: str, size: int, *, is_prepared: bool = True) -> Iterator[list[_Client]]:
    with ExitStack() as stack:
        clients = []
        for number in range(size):
            connection = stack.enter_context(psycopg.connect(dsn, autocommit=True))
            clients.append(_Client(connection, number * 211, QUERIES[query], is_prepared))
        for client in clients if is_prepared else ():
            client.raw.prepare(b"q", QUERIES[query])
        yield clients


def _run(clients: Sequence[_Client], seconds: float) -> int:
    """Have each of *clients* ask again as soon as it has its answer, and return how many answers came."""
    poll = select.epoll()
    by_fd = {client.raw.socket: client for client in clients}
    try:
        for fd, client in by_fd.items():
            poll.register(fd, select.EPOLLIN)
            client.ask()
        done, end = 0, perf_counter() + seconds
        waiting = dict(by_fd)
        while waiting:
            is_over = perf_counter() >= end
            for fd, _ in poll.poll(10.0):
                if waiting[fd].has_answer():
                    done += not is_over
                    if is_over:
                        del waiting[fd]
                        poll.unregister(fd)
                    else:
                        by_fd[fd].ask()
    finally:
        poll.close()
    return done


def _cpu_seconds(pid: int) -> float:
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) * 1e-9


def _switches(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in status if "ctxt_switches" in line)


# ---- a proxy ----


def measure_proxy(program: Path, rounds: int, seconds: float) -> dict[str, Any]:
    """
    Measure many clients at the server, and the same many through a PgBouncer in transaction mode, in turn.

    Nothing is prepared, as older PgBouncers know no prepared statements in that mode.

    Args:
        program: PgBouncer's.
        rounds: How often each has its turn.
        seconds: How long a turn lasts.

    Raises:
        EmbeddedServerError: No server can be started.
        OSError: PgBouncer cannot be started.
    """
    turns: dict[tuple[str, str], list[dict[str, float]]] = {}
    with _server() as server, _pgbouncer(program, server.dsn) as proxy_dsn:
        ways = {
            f"{BUSY_BESIDE_IDLE} clients, direct": (server.dsn, BUSY_BESIDE_IDLE),
            f"{max(SIZES)} clients, direct": (server.dsn, max(SIZES)),
            f"{max(SIZES)} clients, proxy of {BUSY_BESIDE_IDLE}": (proxy_dsn, max(SIZES)),
        }
        for _ in range(rounds):
            for query in QUERIES:
                for way, (dsn, size) in ways.items():
                    figures = _proxy_turn(server.dsn, dsn, query, size, seconds)
                    turns.setdefault((way, query), []).append(figures)
        return {
            "postgresql": server.version,
            "processors": len(os.sched_getaffinity(0)),
            "rounds": rounds,
            "seconds": seconds,
            "turns": [
                {"way": way, "query": query, "figures": _by_figure(several)} for (way, query), several in turns.items()
            ],
        }


def _proxy_turn(server_dsn: str, dsn: str, query: str, size: int, seconds: float) -> dict[str, float]:
    with (
        psycopg.connect(server_dsn, autocommit=True) as admin,
        _clients(dsn, query, size, is_prepared=False) as clients,
    ):
        _run(clients, seconds / 5)
        pids = [pid for (pid,) in admin.execute(_SESSIONS)]
        before, began = sum(map(_cpu_seconds, pids)), perf_counter()
        done = _run(clients, seconds)
        spent = perf_counter() - began
        cpu_seconds = sum(map(_cpu_seconds, pids)) - before
    return {
        "queries_per_second": done / spent,
        "server_cpu_us": cpu_seconds / done * 1e6,
        "connections": float(len(pids)),
    }


@contextmanager
def _pgbouncer(program: Path, dsn: str) -> Iterator[str]:
    """Start a PgBouncer that lets everybody in, and give the DSN of the way through it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = urlsplit(dsn)
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder, "pgbouncer.ini")
        settings.write_text(
            f"[databases]\n* = host=127.0.0.1 port={server.port} user=postgres password={server.password}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n"
            f"pool_mode = transaction\ndefault_pool_size = {BUSY_BESIDE_IDLE}\nmax_client_conn = {2 * max(SIZES)}\n"
        )
        account = ["-u", "nobody"] if os.geteuid() == 0 else []  # it refuses to run as root
        if account:
            shutil.chown(folder, "nobody")
        process = subprocess.Popen([program, "-q", *account, settings], stderr=subprocess.DEVNULL)
        try:
            _wait_for(process, port)
            yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
        finally:
            process.kill()  # asked politely, newer ones wait for their clients
            process.wait()


def _wait_for(process: subprocess.Popen[bytes], port: int) -> None:
    end = perf_counter() + 20
    while True:
        with suppress(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port)).close()
            return
        if process.poll() is not None or perf_counter() > end:
            raise ChildProcessError("PgBouncer does not start")
        sleep(0.01)


# ---- memory ----


def _memory(size: int) -> dict[str, float]:
    """
    Tell by how much a server's memory grows for each of *size* connections, in MiB.

    A page that several processes share counts once, in parts, in their proportional set sizes (PSS). So the growth of
    the sum, over all processes of the server, is what the connections have cost.
    """
    with _server() as server, psycopg.connect(server.dsn, autocommit=True) as admin:
        admin.execute("SELECT sum(balance) FROM account")  # the table is in memory, and counts for nobody
        before = _server_mib(server.pid)
        with _clients(server.dsn, "read", size) as clients:
            fresh = _server_mib(server.pid)
            _run(clients, 0.3 + size / 400)
            used = _server_mib(server.pid)
            tables = statistics.median(_page_tables_mib(client.raw.backend_pid) for client in clients)
    return {
        "connections": size,
        "fresh_mib": round((fresh - before) / size, 2),
        "used_mib": round((used - before) / size, 2),
        "page_tables_mib": round(tables, 2),
    }


def _server_mib(postmaster: int) -> float:
    """Add up the PSS of a postmaster and of its children, in MiB."""
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
    return sum(_kib(Path(f"/proc/{pid}/smaps_rollup"), "Pss:") for pid in [str(postmaster), *children]) / 1024


def _page_tables_mib(pid: int) -> float:
    return _kib(Path(f"/proc/{pid}/status"), "VmPTE:") / 1024


def _kib(path: Path, name: str) -> int:
    try:
        lines = path.read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):  # a process that has ended meanwhile
        return 0
    return next(int(line.split()[1]) for line in lines if line.startswith(name))
