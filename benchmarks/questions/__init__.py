"""The questions, one module each. A new one is a module with a `QUESTION`, and its line here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.questions import (
    article,
    cancelled,
    checkout,
    counts,
    engines,
    growth,
    many_loops,
    memory,
    overload,
    parallel,
    queries,
    results,
    round_trip,
    scale,
    tls,
    waiting,
)

if TYPE_CHECKING:
    from benchmarks.lab import Question

__all__ = ["QUESTIONS"]

QUESTIONS: tuple[Question, ...] = (
    queries.QUESTION,
    queries.PSYCOPG,
    engines.QUESTION,
    checkout.QUESTION,
    results.QUESTION,
    article.QUESTION,
    round_trip.QUESTION,
    tls.QUESTION,
    growth.QUESTION,
    waiting.QUESTION,
    overload.QUESTION,
    many_loops.QUESTION,
    scale.QUESTION,
    cancelled.QUESTION,
    memory.QUESTION,
    counts.QUESTION,
    parallel.QUESTION,
)
