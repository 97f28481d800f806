"""The demo for machines: the same scenes as `demo_show` shows, and what they came to."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from loopaware_pool.cli.demo import engines, scenes
from loopaware_pool.cli.demo.entrants import CONNECTIONS, Entrant, Playground, has_sqlalchemy, open_playground
from loopaware_pool.cli.measure import ratios

if TYPE_CHECKING:
    from loopaware_pool.cli.measure import Burst
    from loopaware_pool.cli.target import Target

__all__ = ["gather"]


def gather(target: Target) -> dict[str, Any]:
    """
    Run all scenes on *target*.

    Returns:
        What can be written as JSON; times have their unit in their names, and ratios are ours by theirs. "sqlalchemy"
        is None where SQLAlchemy is not installed.
    """
    with open_playground(target.dsn) as playground:
        deadlock = asyncio.run(scenes.run_article_design(playground))
        return {
            "server": target.description,
            "connections": CONNECTIONS,
            "tasks": scenes.TASKS,
            "asyncpg": _flavour(playground, playground.for_asyncpg(), scenes.QUERIES),
            "article_design": asdict(deadlock),
            "psycopg": {
                **_flavour(playground, playground.for_psycopg(), scenes.PSYCOPG_QUERIES),
                "given_back_under_query": _reuses(*playground.for_psycopg()),
            },
            "sqlalchemy": _engines(playground) if has_sqlalchemy() else None,
        }


def _reuses(theirs: Entrant, ours: Entrant) -> dict[str, Any]:
    entrants = {"theirs": theirs, "ours": ours}
    return {side: asdict(asyncio.run(scenes.give_back_under_query(one))) for side, one in entrants.items()}


def _flavour(playground: Playground, entrants: tuple[Entrant, Entrant], queries: int) -> dict[str, Any]:
    rounds: list[tuple[Burst, Burst]] = []
    asyncio.run(scenes.run_rounds(*entrants, queries, lambda _, theirs, ours: rounds.append((theirs, ours))))
    speeds = ratios([ours.per_second for _, ours in rounds], [theirs.per_second for theirs, _ in rounds])
    theirs, ours = entrants
    return {
        "queries_per_round": queries,
        "speed_ratio": asdict(speeds),
        "theirs": _entrant(playground, theirs, [burst for burst, _ in rounds]),
        "ours": _entrant(playground, ours, [burst for _, burst in rounds]),
    }


def _entrant(playground: Playground, entrant: Entrant, bursts: list[Burst]) -> dict[str, Any]:
    steps: list[scenes.Step] = []
    scenes.use_from_five_loops(playground, entrant, steps.append)
    return {
        "name": entrant.name,
        "rounds": [
            {
                "queries_per_second": burst.per_second,
                "cpu_us_per_query": burst.cpu_us,
                "p50_ms": burst.p50_ms,
                "p99_ms": burst.p99_ms,
            }
            for burst in bursts
        ],
        "left_over": asdict(asyncio.run(scenes.find_leftovers(entrant))),
        "five_loops": [_as_json(step) for step in steps],
    }


def _engines(playground: Playground) -> dict[str, Any]:
    programs: dict[str, Any] = {}
    for side, entrant in zip(("theirs", "ours"), playground.for_sqlalchemy(engines.KILLED), strict=True):
        steps: list[scenes.Step] = []
        engines.use_engines(playground, entrant, steps.append)
        programs[side] = {"name": entrant.name, "programs": [_as_json(step) for step in steps]}
    return programs


def _as_json(step: scenes.Step) -> dict[str, Any]:
    return {**asdict(step), "errors": dict(step.errors)}
