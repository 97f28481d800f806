"""The fields of our log records: that each has them, that the page names them, and that JSON loggers pass them on."""

from __future__ import annotations

import ast
import asyncio
import gc
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import flavours
import helpers
from engines import Engines, ask
from loopaware_pool.psycopg import AsyncConnectionPool
from psycopg_pools import make_pool
from running import NOWHERE, eventually_async

pytestmark = [pytest.mark.both_drivers, pytest.mark.both_pythons]

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "loopaware_pool"
PAGE = (ROOT / "docs" / "logging.md").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
LEVELS = {"debug", "info", "warning", "error", "exception", "critical", "log"}
# Functions that are called with an event and make the fields of its record.
MAKERS = {"fields", "_fields", "_lease_fields", "_log_fields", "_warn"}
COMMON = {"pool", "pool_event", "pool_loop"}
COUNTS = {"pool_size", "pool_idle", "pool_waiting", "pool_max_size"}
LEASE = {"pool_held_seconds", "pool_holder_task", "pool_holder_line", "pool_holder_stack", *COUNTS}
# Arguments of the makers that are no fields.
OTHER_ARGUMENTS = {"loop", "event", None}
# What structlog, and its processors, have a meaning for.
STRUCTLOGS = {
    "event",
    "exception",
    "exc_info",
    "level",
    "logger",
    "positional_args",
    "stack",
    "stack_info",
    "timestamp",
}


def calls():
    """Every call in the package, with the file it is in; commands have no pools."""
    for path in PACKAGE.rglob("*.py"):
        if "cli" not in path.parts:
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call):
                    yield path.relative_to(PACKAGE).as_posix(), node


def name_of(node):
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", None)


def is_logging(node):
    function = node.func
    if not isinstance(function, ast.Attribute) or function.attr not in LEVELS:
        return False
    of = function.value
    return (of.attr if isinstance(of, ast.Attribute) else getattr(of, "id", "")) == "logger"


def made_events():
    return [
        (node.args[0].value, {keyword.arg for keyword in node.keywords})
        for _, node in calls()
        if name_of(node) in MAKERS and node.args and isinstance(node.args[0], ast.Constant)
    ]


def test_every_record_has_fields():
    """Each call of a logger passes them."""
    logging_calls = [(path, node) for path, node in calls() if is_logging(node)]
    assert len(logging_calls) > 30
    without = [f"{path}:{node.lineno}" for path, node in logging_calls if "extra" not in {k.arg for k in node.keywords}]
    assert without == []


def test_the_page_lists_the_events_and_their_fields():
    """All that the code has, and no other."""
    table = [line for line in PAGE.partition("## Events")[2].splitlines() if line.startswith("| `")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[1:]]
    on_page = {event: row for row in rows for event in re.findall(r"`(\w+)`", row[0])}
    made = made_events()
    assert {event for event, _ in made} == set(on_page)
    for event, arguments in made:
        assert {name for name in arguments - OTHER_ARGUMENTS if f"`{name}`" not in on_page[event][3]} == set()
    for field in COMMON | COUNTS:
        assert f"`{field}`" in PAGE.partition("## As JSON")[0]


def test_no_field_has_a_name_of_loggings_or_structlogs():
    """`logging` would refuse it, and structlog would overwrite a part of the record."""
    names = COMMON | COUNTS | LEASE | {name for _, arguments in made_events() for name in arguments} - OTHER_ARGUMENTS
    record = logging.LogRecord("", 0, "", 0, "", (), None)
    assert names & {*vars(record), "message", "asctime", "taskName", *STRUCTLOGS} == set()
    assert {name for name in names if not name.startswith("pool")} == set()


# ---- the two configurations of the page, as they stand there ----

LEASES = """
import asyncio
import sys

from loopaware_pool.asyncpg import create_pool


async def main():
    async with create_pool(sys.argv[1], min_size=0, max_size=3, name="orders", leak_threshold=0.01) as pool:
        async with pool.acquire() as connection:
            await asyncio.sleep(0.1)
            await connection.fetchval("SELECT 'CANARY'")

asyncio.run(main())
"""


@pytest.mark.parametrize("configuration", PROGRAMS, ids=["python-json-logger", "structlog"])
def test_a_logger_for_json_passes_the_fields_on(dsn, configuration):
    """With the message beside them, one line for each record."""
    done = subprocess.run(
        [sys.executable, "-c", configuration + LEASES, dsn],
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    overdue, returned = (json.loads(line) for line in done.stderr.splitlines())
    assert [overdue["pool_event"], returned["pool_event"]] == ["lease_overdue", "lease_returned"]
    for record in (overdue, returned):
        assert record["pool"] == "orders"
        assert record["pool_loop"] == "loop-1 (MainThread)"
        assert record["pool_holder_line"].endswith("in main")
        assert record["pool_held_seconds"] >= 0.01
        assert (record["pool_size"], record["pool_idle"], record["pool_waiting"], record["pool_max_size"]) == (
            1,
            0,
            0,
            3,
        )
        assert (record.get("message") or record["event"]).startswith("orders: a connection ")
        assert (record.get("levelname") or record["level"]).lower() == "warning"
        assert (record.get("name") or record["logger"]) == "loopaware_pool"
    assert any(line.endswith("in main") for line in overdue["pool_holder_stack"])
    assert "CANARY" not in done.stderr


# ---- what records say ----


def fields_of(caplog, event):
    (record,) = [record for record in caplog.records if getattr(record, "pool_event", None) == event]
    standard = vars(logging.LogRecord("", 0, "", 0, "", (), None))
    return {name: value for name, value in vars(record).items() if name.startswith("pool") and name not in standard}


@pytest.mark.parametrize("flavour", flavours.both)
def test_a_dropped_lease_says_who_held_it_and_how_full_the_pool_is(dsn, run, caplog, flavour):
    """Both flavours alike."""

    async def main():
        async with flavours.both[flavour](dsn, name="orders", max_size=1) as client:
            lease = client.lend()
            connection = await lease.__aenter__()
            del connection, lease
            gc.collect()
            assert await client.value("SELECT 1") == 1

    run(main())
    fields = fields_of(caplog, "lease_dropped")
    assert fields.keys() == COMMON | LEASE
    assert (fields["pool"], fields["pool_max_size"]) == ("orders", 1)
    assert __file__ in fields["pool_holder_line"]


def test_a_close_that_is_cut_short_says_how_many_leases_there_were(dsn, run, caplog):
    """And after what time."""

    async def main():
        async with flavours.both["asyncpg"](dsn, name="orders", close_timeout=0.01) as client:
            lease = client.lend()
            kept = await lease.__aenter__()
            await client.pool.close()
            return kept

    run(main())
    fields = fields_of(caplog, "close_cut_short")
    assert (fields["pool"], fields["pool_lent"], fields["pool_close_timeout"]) == ("orders", 1, 0.01)
    assert fields["pool_loop"].startswith("loop-")


def test_a_failed_connect_says_what_it_failed_with(run, caplog):
    """By the class of the error; its text is in the message."""

    async def main():
        async with make_pool(AsyncConnectionPool, NOWHERE, min_size=1, name="orders"):
            await eventually_async(lambda: "error connecting" in caplog.text, "a record")

    run(main())
    first = next(record for record in caplog.records if getattr(record, "pool_event", "") == "connect_failed")
    assert (first.pool, first.pool_error, first.pool_failures) == ("orders", "psycopg.OperationalError", 1)


def test_every_record_of_a_lease_of_psycopgs_has_fields(dsn, run, caplog):
    """Those of level INFO, which psycopg_pool has, too."""
    caplog.set_level(logging.INFO, "psycopg.pool")

    async def main():
        async with make_pool(AsyncConnectionPool, dsn, min_size=1, name="orders") as pool:
            await pool.wait()
            async with pool.connection():
                pass
            await pool.resize(1, 2)

    run(main())
    records = [record for record in caplog.records if record.name == "psycopg.pool"]
    assert {record.pool for record in records} == {"orders"}
    events = [record.pool_event for record in records]
    assert [event for event in events if event.startswith("connection_") and event != "connection_added"] == [
        "connection_requested",
        "connection_given",
        "connection_returned",
    ]
    assert {"opening", "ready", "connection_added", "resizing"} <= set(events)


def test_a_disposed_engine_says_so(dsn, run, caplog):
    """By the logger that SQLAlchemy makes for each class of pools."""
    caplog.set_level(logging.INFO, "loopaware_pool.sqlalchemy.LoopAwareQueuePool")

    async def main():
        engine = Engines(dsn, "asyncpg").make(pool_logging_name="orders")
        assert await ask(engine) == 42
        await engine.dispose()

    run(main())
    fields = fields_of(caplog, "disposed")
    assert fields["pool"] == "orders"
    assert fields.keys() == COMMON | COUNTS


def test_a_listeners_error_says_its_class(dsn, run, caplog):
    """The traceback is in the record as ever."""

    def listen(event):
        raise asyncio.InvalidStateError("by a listener")

    async def main():
        async with flavours.both["asyncpg"](dsn, name="orders", on_event=listen) as client:
            await client.value("SELECT 1")
            await helpers.spin(2)

    run(main())
    record = next(record for record in caplog.records if getattr(record, "pool_event", "") == "listener_failed")
    assert (record.pool, record.pool_error) == ("orders", "asyncio.exceptions.InvalidStateError")
