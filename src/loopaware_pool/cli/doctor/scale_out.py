"""
What the pools of many processes on many machines come to, and whether one server can hold it. Decides only.

`docs/guide/many-machines.md` explains each line.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from loopaware_pool.cli.doctor.sizing import (
    HEADROOM,
    busy_connections,
    largest_pool,
    needed_pool,
    processors_needed,
    room,
    servers_needed,
    total_connections,
    waiting_share,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loopaware_pool.cli.doctor.facts import Server

__all__ = ["CONNECTION_MIB", "Demand", "Fleet", "Limits", "Outcome", "Row", "Verdict", "judge", "limits_of"]

# What a session of a service has come to when it has cached catalogs and plans. A fresh one has a tenth of it.
CONNECTION_MIB: Final = 10.0
# How many sessions a processor can have at work before more of them make each slower: the usual rule of thumb.
SESSIONS_PER_PROCESSOR: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """All processes that have pools for one server."""

    machines: int
    processes: int  # on each machine
    loops: int  # in each process
    pools: int  # in each process; each serves all loops of it
    max_size: int | None  # of each pool; None for what the work needs

    @property
    def all_pools(self) -> int:
        """The pools of all processes on all machines."""
        return self.machines * self.processes * self.pools


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What all pools are to do together."""

    rate: float  # leases begun a second
    hold_seconds: float  # how long a lease lasts, on average
    transaction_seconds: float | None = None  # the part of it in which a transaction is open; None for all of it
    cpu_seconds: float | None = None  # processor time of the server that a lease costs; None if it is not known


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one server can hold."""

    max_connections: int  # or the limit of a role or of a database, if that is what binds
    reserved: int
    others: int  # connections of other programs
    name: str = "max_connections"  # of the limit that binds
    processors: int | None = None  # None if it is not known
    memory_mib: float | None = None  # what connections may use; None for no limit
    connection_mib: float = CONNECTION_MIB


class Verdict(Enum):
    """What a plan comes to."""

    FITS = "fits"
    TOO_SMALL = "too small"  # the pools are, for the work or for their loops; larger ones would fit
    TOO_LARGE = "too large"  # the pools are, for the server; smaller ones would do the work
    PROXY = "proxy"  # not without one that shares fewer connections among all
    BEYOND = "beyond one server"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the arithmetic."""

    name: str  # a key of the JSON object
    label: str
    value: float
    how: str  # what it was computed from


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What `judge` has found."""

    rows: tuple[Row, ...]
    verdict: Verdict
    says: str  # the verdict in a sentence
    proxy_pool: int | None = None  # how many connections a proxy should have, if one is needed
    servers: int = 1  # how many servers of this kind it takes


def limits_of(server: Server) -> Limits:
    """Return the limit that leaves the least room: the server's, the role's or the database's."""
    reserved = 0
    if not server.is_superuser:
        reserved = server.superuser_reserved_connections
        reserved += 0 if server.may_use_reserved else server.reserved_connections
    found = [Limits(max_connections=server.max_connections, reserved=reserved, others=server.taken)]
    for name, limit, taken in (
        ("CONNECTION LIMIT of the role", server.role_limit, server.taken_by_role),
        ("CONNECTION LIMIT of the database", server.database_limit, server.taken_in_database),
    ):
        if limit >= 0 and not server.is_superuser:
            found.append(Limits(max_connections=limit, reserved=0, others=taken, name=name))
    return min(found, key=_room)


def judge(fleet: Fleet, limits: Limits, demand: Demand | None) -> Outcome:
    """
    Compute what *fleet* comes to, and say whether a server of *limits* can hold it.

    Args:
        fleet: The pools; without a *demand* they have a `max_size`.
        limits: The server's; they leave room for one connection at least.
        demand: The work; None if it is not known.
    """
    sums = _Sums(fleet, limits, demand)
    rows = tuple(_rows(sums))
    if sums.too_much_cpu or sums.least_shared > sums.holds:
        return Outcome(rows=rows, verdict=Verdict.BEYOND, says=_beyond(sums), servers=sums.servers)
    if sums.connections > sums.holds >= sums.wanted and demand is not None:
        return Outcome(rows=rows, verdict=Verdict.TOO_LARGE, says=_too_large(sums))
    if max(sums.connections, sums.wanted) > sums.holds:
        return Outcome(rows=rows, verdict=Verdict.PROXY, says=_proxy(sums), proxy_pool=sums.proxy_pool)
    if sums.max_size < sums.needed:
        why = "for the work" if sums.needed > fleet.loops else "for their loops"
        says = f"the pools are too small {why}: max_size={sums.needed} is enough, and {_connections(sums.wanted)} fit"
        return Outcome(rows=rows, verdict=Verdict.TOO_SMALL, says=says)
    says = f"the server has room for {sums.holds}, and the pools open no more than {_connections(sums.connections)}"
    return Outcome(rows=rows, verdict=Verdict.FITS, says=says)


class _Sums:
    """The numbers from which the verdict follows."""

    def __init__(self, fleet: Fleet, limits: Limits, demand: Demand | None) -> None:
        self.fleet, self.limits, self.demand = fleet, limits, demand
        # A connection stays with its loop: with fewer than loops, these would have to close each other's.
        self.needed = max(fleet.loops, 0 if demand is None else _needed(demand, fleet.all_pools))
        self.max_size = self.needed if fleet.max_size is None else fleet.max_size
        self.connections = total_connections(fleet.all_pools, self.max_size)
        self.wanted = total_connections(fleet.all_pools, self.needed)
        self.room = _room(limits)
        self.in_memory = None if limits.memory_mib is None else int(limits.memory_mib / limits.connection_mib)
        self.holds = self.room if self.in_memory is None else min(self.room, self.in_memory)
        self.largest = largest_pool(self.holds, fleet.all_pools)  # the largest max_size that fits
        # What a proxy cannot do with less. Without a demand, one connection may be enough.
        self.least_shared = 1 if demand is None else needed_pool(demand.rate, self.transaction_seconds, 1)
        self.proxy_pool = self.least_shared if demand is not None else self._proxy_pool_of_no_known_work()
        self.processors = None
        if demand is not None and demand.cpu_seconds is not None:
            self.processors = processors_needed(demand.rate, demand.cpu_seconds)

    @property
    def max_size_of_a_loop(self) -> int:
        """What a pool would need that serves one loop only; as large as ours, if that was given."""
        if self.fleet.max_size is not None or self.demand is None:
            return self.max_size
        return _needed(self.demand, self.fleet.all_pools * self.fleet.loops)

    @property
    def transaction_seconds(self) -> float:
        assert self.demand is not None
        return self.demand.transaction_seconds or self.demand.hold_seconds

    @property
    def too_much_cpu(self) -> bool:
        has, needs = self.limits.processors, self.processors
        return has is not None and needs is not None and needs > has

    @property
    def servers(self) -> int:
        by_connections = servers_needed(self.least_shared, max(1, self.holds))
        if self.processors is None or self.limits.processors is None:
            return by_connections
        return max(by_connections, servers_needed(self.processors, self.limits.processors))

    def _proxy_pool_of_no_known_work(self) -> int:
        processors = self.limits.processors
        return self.holds if processors is None else min(self.holds, SESSIONS_PER_PROCESSOR * processors)


def _needed(demand: Demand, pools: int) -> int:
    return needed_pool(demand.rate, demand.hold_seconds, pools)


def _room(limits: Limits) -> int:
    return room(limits.max_connections, limits.reserved, limits.others)


def _too_large(sums: _Sums) -> str:
    return (
        f"{_connections(sums.connections)} do not fit into {sums.holds}: max_size={sums.needed} is enough for the "
        f"work, and up to max_size={sums.largest} fits"
    )


def _proxy(sums: _Sums) -> str:
    if sums.connections >= sums.wanted:
        what = f"{_connections(sums.connections)} do not fit into {sums.holds}"
    else:
        what = f"pools that are large enough would need {_connections(sums.wanted)}, of which {sums.holds} fit"
    advice = f"{what}: put a proxy in transaction mode in between, with a pool of {sums.proxy_pool}"
    if sums.demand is not None:
        return f"{advice}, which do the work"
    smaller = f"; or make the pools smaller: up to max_size={sums.largest} fits" if sums.wanted <= sums.holds else ""
    return f"{advice}, as large as the server allows: the work is not known{smaller}"


def _beyond(sums: _Sums) -> str:
    if sums.too_much_cpu:
        what = f"the work needs {sums.processors:.1f} processors, and the server has {sums.limits.processors}"
    else:
        what = f"even shared by a proxy, the work needs {_connections(sums.least_shared)}, of which {sums.holds} fit"
    return f"{what}: a server that holds more, or {sums.servers} of this kind that share the data"


def _rows(sums: _Sums) -> Iterator[Row]:
    fleet, limits = sums.fleet, sums.limits
    factors = f"{_many(fleet.machines, 'machine')} x {_many(fleet.processes, 'process')} x {_many(fleet.pools, 'pool')}"
    yield Row("pools", "pools", fleet.all_pools, factors)
    how = f"{_many(fleet.all_pools, 'pool')} x max_size {sums.max_size}"
    yield Row("connections", "connections", sums.connections, f"{how}, whatever the number of loops")
    size = sums.max_size_of_a_loop
    per_loop = total_connections(fleet.all_pools * fleet.loops, size)
    how = f"{_many(fleet.all_pools, 'pool')} x {_many(fleet.loops, 'loop')} x max_size {size}: the drivers' own pools"
    yield Row("connections_of_a_pool_per_loop", "with a pool per loop", per_loop, how)
    if sums.demand is not None:
        yield from _rows_of_work(sums, sums.demand)
    how = f"{limits.name} {limits.max_connections} - {limits.reserved} reserved - {limits.others} of others"
    yield Row("room", "room at the server", sums.room, how)
    memory = sums.connections * limits.connection_mib
    yield Row("memory_mib", "memory, MiB", memory, f"{sums.connections} x {limits.connection_mib:g} MiB")
    if sums.in_memory is not None:
        how = f"{limits.memory_mib:g} MiB / {limits.connection_mib:g} MiB"
        yield Row("room_in_memory", "room in memory", sums.in_memory, how)


def _rows_of_work(sums: _Sums, demand: Demand) -> Iterator[Row]:
    pools = sums.fleet.all_pools
    busy = busy_connections(demand.rate, demand.hold_seconds)
    yield Row("busy", "busy on average", busy, f"{demand.rate:g} leases/s x {demand.hold_seconds:g} s")
    how = f"{busy:g} / {_many(pools, 'pool')} / {HEADROOM}, and no less than one for each loop"
    yield Row("needed_max_size", "max_size needed", sums.needed, how)
    share = waiting_share(sums.max_size, busy / pools)
    yield Row("waiting", "of callers wait", share, f"{busy / pools:.3g} busy of {sums.max_size}, in each pool")
    shared_busy = busy_connections(demand.rate, sums.transaction_seconds)
    how = f"{demand.rate:g}/s x {sums.transaction_seconds:g} s in a transaction / {HEADROOM}"
    yield Row("shared_by_a_proxy", "shared by a proxy", sums.least_shared, how)
    share = waiting_share(sums.least_shared, shared_busy)
    yield Row("waiting_at_a_proxy", "of these wait there", share, f"{shared_busy:.3g} busy of {sums.least_shared}")
    if sums.processors is not None:
        how = f"{demand.rate:g}/s x {demand.cpu_seconds:g} s of processor time / {HEADROOM}"
        yield Row("processors_needed", "processors needed", sums.processors, how)


def _connections(number: int) -> str:
    return _many(number, "connection")


def _many(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 'es' if what.endswith('s') else 's'}"
