"""The questions, one module each. A new one is a module with a `QUESTION`, and its line here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.questions import checkout, psycopg, queries, waiting

if TYPE_CHECKING:
    from benchmarks.lab import Question

__all__ = ["QUESTIONS"]

QUESTIONS: tuple[Question, ...] = (
    queries.QUESTION,
    queries.WHEN_DIRTY,
    queries.WITHOUT_RESET,
    waiting.QUESTION,
    checkout.QUESTION,
    psycopg.QUESTION,
)
