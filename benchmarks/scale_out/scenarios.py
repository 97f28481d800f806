"""What is simulated: a service to which machines are added, and one whose pools are made larger."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias

from benchmarks.scale_out.fleet import Plan, Simulation
from benchmarks.scale_out.model import ServerKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

__all__ = ["PARTS", "larger_pools", "more_machines", "simulate"]

PROCESSES_OF_A_MACHINE: Final = 8
RATE_OF_A_PROCESS: Final = 40.0
# A lease costs 1 ms of processor time, so 8 processors can do 8,000 a second at best.
SERVER: Final = ServerKind(processors=8, max_connections=500)
MACHINES: Final = (1, 4, 6, 8, 12, 16, 20, 24, 28, 32, 48, 64)
# By name: what is different from a pool of 10 that opens connections as callers wait.
MORE_MACHINES: Final[Mapping[str, Mapping[str, Any]]] = {
    "pools with min_size=10": {"min_size": 10},
    "pools with min_size=0": {},
    "pools, proxy of 32": {"proxy_pool": 32},
    "pools, proxy of 32, shed_after=0.05": {"proxy_pool": 32, "shed_after": 0.05},
    "4 servers, pools with min_size=0": {"servers": 4},
    "4 servers, proxy of 32 each": {"servers": 4, "proxy_pool": 32},
}
# A server that accepts whatever comes, and a quarter more work than it can do.
ROOMY_SERVER: Final = ServerKind(processors=8, max_connections=6000)
BUSY_PROCESSES: Final = 256
BUSY_RATE: Final = 10_000.0
MAX_SIZES: Final = (1, 2, 4, 8, 16, 20)
LARGER_POOLS: Final[Mapping[str, Mapping[str, Any]]] = {
    "pools alone": {},
    "pools alone, shed_after=0.05": {"shed_after": 0.05},
    "pools, proxy of 32": {"proxy_pool": 32},
    "pools, proxy of 32, shed_after=0.05": {"proxy_pool": 32, "shed_after": 0.05},
}


def more_machines(name: str, machines: int) -> Plan:
    """Make the plan of so many *machines*, each of which brings callers of its own."""
    processes = machines * PROCESSES_OF_A_MACHINE
    changes = MORE_MACHINES[name]
    return Plan(processes=processes, rate=processes * RATE_OF_A_PROCESS, kind=SERVER, **changes)


def larger_pools(name: str, max_size: int) -> Plan:
    """Make the plan of a service that has more work than the server can do, in pools of *max_size*."""
    changes = LARGER_POOLS[name]
    return Plan(processes=BUSY_PROCESSES, rate=BUSY_RATE, max_size=max_size, kind=ROOMY_SERVER, **changes)


_Part: TypeAlias = "tuple[Iterable[str], Callable[[str, int], Plan], Sequence[int], float]"

# What `simulate` runs: names, what makes a plan of a name and a size, sizes, and seconds until connections are open.
PARTS: Final[Mapping[str, _Part]] = {
    "more_machines": (MORE_MACHINES, more_machines, MACHINES, 3.0),
    "larger_pools": (LARGER_POOLS, larger_pools, MAX_SIZES, 8.0),
}


def simulate(seed: int, seconds: float, parts: Mapping[str, _Part] = PARTS) -> dict[str, Any]:
    """
    Run all of it.

    Args:
        seed: The same one gives the same figures.
        seconds: Simulated and counted, for each plan.
        parts: What to run.
    """
    report: dict[str, Any] = {"seed": seed, "seconds": seconds}
    for part, (names, make, sizes, warm_up) in parts.items():
        report[part] = {
            name: [{"size": size, **Simulation(make(name, size), seed).run(seconds, warm_up)} for size in sizes]
            for name in names
        }
    return report
