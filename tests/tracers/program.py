"""
Runs one workload under one tracer, and prints what the tracer has seen, as JSON.

`program.py TRACER FLAVOUR theirs|ours|awaited|dropped tracer|pool`. The third argument says whose pool it is. "awaited"
is ours with that `session_reset`, in the asyncpg flavour; "dropped" is ours, with a lease that nobody returns. The last
argument says what is imported first. The server is `DSN`'s.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys

from kinds import TRACERS
from workloads import drop, import_pool, make_pool, work

SECONDS = 30


async def run(kind, flavour, whose, first):
    """Return the spans, and the error that the program ended with, if any."""
    ours, pool, outcome, error = whose != "theirs", None, None, None
    options = {"session_reset": "awaited"} if whose == "awaited" else {}
    tracer = TRACERS[kind](flavour)
    if first == "pool":
        import_pool(flavour, ours=ours)
        if "+" not in flavour:  # engines are traced as they are made, so one that is there already never is
            pool = make_pool(flavour, os.environ["DSN"], ours=ours, **options)
    tracer.start()
    if pool is None:
        pool = make_pool(flavour, os.environ["DSN"], ours=ours, **options)
    try:
        async with asyncio.timeout(SECONDS):
            outcome = await (drop if whose == "dropped" else work)(flavour, pool, tracer.request)
    except Exception as failure:
        error = f"{type(failure).__name__}: {failure}"
    return {"error": error, "spans": tracer.spans(), "outcome": outcome}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(*sys.argv[1:])), default=str))
