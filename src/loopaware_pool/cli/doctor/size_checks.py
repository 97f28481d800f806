"""Judge the size of the planned pools by the work that they are to do. Decides only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loopaware_pool.cli.doctor.findings import Finding, Severity
from loopaware_pool.cli.doctor.sizing import HEADROOM, busy_connections, needed_pool, waiting_share

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loopaware_pool.cli.doctor.facts import Plan

__all__ = ["check_size"]


def check_size(plan: Plan) -> Iterator[Finding]:
    """Hold the size of the pools against the work, if the plan says what that is."""
    if plan.work is None:
        return
    work, processes, code = plan.work, plan.processes, "pool-size"
    busy = busy_connections(work.rate, work.hold_seconds) / processes
    needed = needed_pool(work.rate, work.hold_seconds, processes)
    share = waiting_share(plan.pool_size, busy)
    evidence = (
        f"{work.rate:g} leases/s x {work.hold_seconds:g} s / {processes} = {busy:.1f} busy of {plan.pool_size} on "
        f"average; {share:.0%} of callers wait; {busy:.1f} / {HEADROOM} = {needed} needed"
    )
    if plan.pool_size >= needed:
        yield Finding(code, Severity.OK, f"A pool of {plan.pool_size} is enough for the work", evidence)
        return
    remedy = f"--pool-size {needed}, if the server has room; or shorter leases"
    if busy >= plan.pool_size:
        title = f"A pool of {plan.pool_size} cannot do the work: its queue grows without an end"
        yield Finding(code, Severity.PROBLEM, title, evidence, remedy)
    else:
        title = f"A pool of {plan.pool_size} has little room for bursts"
        yield Finding(code, Severity.WARNING, title, evidence, remedy)
