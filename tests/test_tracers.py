"""Spans of OpenTelemetry's instrumentors: the same through our pools as through the drivers' own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "tracers" / "program.py"
FLAVOURS = ("asyncpg", "psycopg", "sqlalchemy+asyncpg", "sqlalchemy+psycopg")
SECONDS = 60
IS_RESET = re.compile(r"pg_advisory_unlock_all")

pytestmark = [pytest.mark.both_drivers, pytest.mark.both_pythons]


def spans(dsn, flavour, whose, first):
    """What a program in a process of its own has been seen to do; see tests/tracers/program.py."""
    done = subprocess.run(
        [sys.executable, PROGRAM, "opentelemetry", flavour, whose, first],
        env={**os.environ, "DSN": dsn},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
    )
    printed = json.loads(done.stdout.splitlines()[-1])
    assert printed["error"] is None
    assert done.stderr == ""
    return printed["spans"]


def is_reset(span):
    return IS_RESET.search(span["attributes"].get("db.statement", "")) is not None


@pytest.mark.parametrize("first", ["tracer", "pool"])
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_program_has_the_same_spans_on_our_pool(dsn, flavour, first):
    """Names, order, parents, attributes, status and errors; asyncpg's pool has one for each reset beside them."""
    theirs, ours = (spans(dsn, flavour, whose, first) for whose in ("theirs", "ours"))
    assert ours == [span for span in theirs if not is_reset(span)]
    assert {span["name"] for span in ours} >= {"SELECT", "CREATE", "INSERT"}
    assert {span["status"][0] for span in ours} == {"UNSET", "ERROR"}
    assert "unknown" not in {span["parent"] for span in ours}
    assert "request" in {span["parent"] for span in ours}


def test_an_awaited_reset_has_a_span_as_on_asyncpgs_pool(dsn):
    """It is a query of the driver's then, at the same place among the others."""
    theirs, ours = (spans(dsn, "asyncpg", whose, "tracer") for whose in ("theirs", "awaited"))
    assert [is_reset(span) for span in ours] == [is_reset(span) for span in theirs]
    assert any(is_reset(span) for span in ours)


def test_the_instrumentor_of_sqlalchemy_says_whether_it_supports_this_version(caplog):
    """From 2.1 on it does nothing unless it is told to skip its check, as the other tests do."""
    import sqlalchemy
    from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor

    conflict = SQLAlchemyInstrumentor()._check_dependency_conflicts()
    assert (conflict is None) == sqlalchemy.__version__.startswith("2.0.")
