"""The values that programs pass: drawn by the name of a parameter, written as JSON, made when a program runs."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import asyncpg
import psycopg
from psycopg.rows import dict_row

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

__all__ = ["ASYNCPG_QUERIES", "PSYCOPG_QUERIES", "STATEMENTS", "draw_value", "make_value"]

_UMLAUT = "Ã©"

# What a lease does to its session, and what may be seen of that by the next.
STATEMENTS = (
    "SELECT 42",
    "SELECT 1/0",
    "SELEC 1",
    "SELECT pg_sleep(30)",
    "SET application_name = 'left'",
    "SET client_encoding = 'WIN1252'",
    "SET client_encoding = 'LATIN1'",
    "SET TimeZone = 'Asia/Tokyo'",
    "SET standard_conforming_strings = off",
    "SET search_path = d",
    "SET app.tenant = 'left'",
    "SET default_transaction_read_only = on",
    "SET statement_timeout = '100ms'",
    "SET lock_timeout = '50ms'",
    # Makes the reset fail: it takes longer than that to give the locks back.
    "SELECT count(pg_advisory_lock(n)) FROM generate_series(1, 9000) AS n; SET statement_timeout = '1ms'",
    "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE",
    "SELECT set_config('app.tenant', 'set', false)",
    "SELECT set_config('app.tenant', 'local', true)",
    "SET ROLE lowly",
    "SET ROLE none",
    "RESET ROLE",
    "SET SESSION AUTHORIZATION lowly",
    "RESET SESSION AUTHORIZATION",
    "RESET ALL",
    "DISCARD ALL",
    "DISCARD TEMP",
    "SELECT pg_advisory_lock(42)",
    "SELECT pg_advisory_xact_lock(43)",
    "SELECT d.hidden_lock()",
    "SELECT pg_advisory_unlock_all()",
    "LISTEN news",
    "UNLISTEN *",
    "NOTIFY news, 'heard'",
    "CREATE TEMP TABLE mine (id int)",
    "DECLARE held CURSOR WITH HOLD FOR SELECT 1",
    "PREPARE known AS SELECT 1",
    "DEALLOCATE ALL",
    "BEGIN",
    "BEGIN ISOLATION LEVEL SERIALIZABLE",
    "COMMIT",
    "ROLLBACK",
    "SAVEPOINT here",
    "ROLLBACK TO SAVEPOINT here",
    "PREPARE TRANSACTION 'two'",
    "ROLLBACK PREPARED 'two'",
    "INSERT INTO d.items (text) VALUES ('plain')",
    f"INSERT INTO d.items (text) VALUES ('{_UMLAUT}') RETURNING id",
    "UPDATE d.items SET text = 'changed' WHERE id = 1",
    "DELETE FROM d.items WHERE id = 2",
    "SELECT text FROM d.items ORDER BY id",
    "LOCK TABLE d.items",
    "TABLE d.secret",
    "SELECT pg_terminate_backend(pg_backend_pid())",
    "SELECT pg_cancel_backend(pg_backend_pid())",
    "DO $$ BEGIN RAISE NOTICE 'noticed'; END $$",
    "DO $$ BEGIN PERFORM set_config('app.tenant', 'hidden', false); END $$",
    "SELECT 'sad'::d.mood",
    "SELECT '[1]'::json",
    "SELECT 1; SELECT 2",
    "SELECT currval('d.items_id_seq')",
    "",
)

ASYNCPG_QUERIES: tuple[tuple[str, list[Any]], ...] = (
    ("SELECT $1::text", [_UMLAUT]),
    ("SELECT $1::int + 1", [41]),
    ("SELECT $1::int + 1", ["a word"]),
    ("SELECT $1::int", []),
    ("INSERT INTO d.items (text) VALUES ($1) RETURNING text", [_UMLAUT]),
    ("SELECT n FROM generate_series(1, $1::int) AS n", [5]),
    ("SELECT set_config('app.tenant', $1, false)", ["bound"]),
    ("SELECT $1::json", ["[1]"]),
    ("SELECT $1::d.mood", ["sad"]),
    ("UPDATE d.items SET text = $1 WHERE id = 1", ["bound"]),
)

PSYCOPG_QUERIES: tuple[tuple[str, list[Any]], ...] = tuple(
    (query.replace("$1", "%s"), arguments) for query, arguments in ASYNCPG_QUERIES
)

INFINITY = {"$": "inf"}
EDGES: list[Any] = [None, 0, 1, -1, 0.05, INFINITY, True, False, "x"]
SHORT = [*[None] * 10, *[0.1] * 5, *[5] * 3, 0, -1, INFINITY, True]

# By the name of a parameter, upstream's. What is not here, as of a method that is new, takes any of the edges.
_PARAMETERS: dict[str, list[Any]] = {
    "timeout": SHORT,
    "name": [None, "", "named"],
    "prefetch": [None, 1, 2, 0],
    "record_class": [None, None, {"$": "record class"}, {"$": "object"}],
    "column": [0, 0, 0, 1, "n"],
    "callback": [{"$": "recorder", "name": name} for name in ("one", "two")],
    "channel": ["news", "sport"],
    "typename": ["json", "mood", "hstore", "int4", "nothing"],
    "schema": ["pg_catalog", "pg_catalog", "d", "public"],
    "codec_name": ["pg_contrib.hstore", "text"],
    "encoder": [{"$": "encoder"}],
    "decoder": [{"$": "decoder"}],
    "format": ["text", "text", "binary", "tuple", "csv", None],
    "isolation": [None, "serializable", "repeatable_read", "none such"],
    "readonly": [False, True],
    "deferrable": [False, True],
    "table_name": ["items", "none such"],
    "schema_name": ["d", "d", None],
    "columns": [["text"], ["text"], None, ["none such"]],
    "records": [[["copied"], ["twice"]], [[1]], []],
    "source": [{"$": "source"}],
    "output": [*[{"$": "sink"}] * 9, {"$": "failing sink"}],
    "where": [None, "text <> 'twice'"],
    "n": [1, 2, 0, -1],
    "analyze": [False, True],
    # psycopg's
    "row_factory": [None, None, {"$": "dict row"}],
    "binary": [False, True, None],
    "prepare": [None, True, False],
    "scrollable": [None, True, False],
    "redact": [False, True],
    "value": [None, True, False, 1, 2],
    "mode": ["relative", "absolute"],
    "size": [0, 1, 2],
    "stop_after": [None, 1],
    "xid": ["two", "other"],
    "savepoint_name": [None, "here"],
    "force_rollback": [False, True],
    "returning": [False, True],
    "min_size": [0, 1, 2, 3],
    "max_size": [None, 1, 2, 3, 0],
    "wait": [False, True],
    "index": [0, 1],
    "format_id": [1],
    "gtrid": ["g"],
    "bqual": ["b"],
    "sizes": [[]],
    "writer": [None],
    "copy_statement": ["COPY d.items (text) FROM STDIN", "COPY d.items TO STDOUT"],
}


def draw_value(rng: Random, name: str) -> Any:
    """A value, as JSON, for a parameter of that name."""
    return rng.choice(_PARAMETERS.get(name, EDGES))


class DifferentialRecord(asyncpg.Record):
    """A record class of the user's."""


class DifferentialConnection(asyncpg.Connection):
    """A connection class of the user's."""


class _FailingSink:
    def write(self, data: bytes) -> None:
        raise ZeroDivisionError("the sink fails")


def _encode(value: object) -> str:
    return f"[{value}]"


def _decode(text: str) -> str:
    return f"decoded {text}"


_MADE: dict[str, Callable[[], Any]] = {
    "inf": lambda: float("inf"),
    "object": lambda: object,
    "record class": lambda: DifferentialRecord,
    "connection class": lambda: DifferentialConnection,
    "encoder": lambda: _encode,
    "decoder": lambda: _decode,
    "source": lambda: io.BytesIO(b"copied\ntwice\n"),
    "sink": io.BytesIO,
    "failing sink": _FailingSink,
    "dict row": lambda: dict_row,
    "psycopg connection": lambda: psycopg.AsyncConnection,
}


def make_value(written: Any, special: Callable[[dict[str, Any]], Any]) -> Any:
    """What a program's JSON stands for; *special* makes what depends on the run."""
    if isinstance(written, list):
        return [make_value(one, special) for one in written]
    if not isinstance(written, dict):
        return written
    if "$" not in written:
        return {name: make_value(one, special) for name, one in written.items()}
    make = _MADE.get(written["$"])
    return make() if make is not None else special(written)
