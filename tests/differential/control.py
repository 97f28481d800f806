"""A session beside the pool's: it prepares the server for a run, looks at sessions from outside, and ends them."""

from __future__ import annotations

import time
from typing import Any

import psycopg
from psycopg import sql

from loopaware_pool.testing.embedded_server import EmbeddedServer

__all__ = ["Control", "server"]

_ROLE = """
DO $$ BEGIN
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'lowly') THEN CREATE ROLE lowly LOGIN; END IF;
END $$;
"""
# Programs that log in as that role do so with the password of the server's address.
_PASSWORD = "ALTER ROLE lowly PASSWORD {password}"
_SCHEMA = """
DROP SCHEMA IF EXISTS d CASCADE;
CREATE SCHEMA d;
GRANT ALL ON SCHEMA d TO lowly;
CREATE TABLE d.items (id serial PRIMARY KEY, text text);
INSERT INTO d.items (text) VALUES ('first'), ('second');
GRANT ALL ON d.items, d.items_id_seq TO lowly;
CREATE TABLE d.secret (id int);
CREATE TYPE d.mood AS ENUM ('sad', 'ok');
CREATE FUNCTION d.hidden_lock() RETURNS void LANGUAGE sql AS 'SELECT pg_catalog.pg_advisory_lock(44)';
"""
_SESSIONS = "SELECT pid FROM pg_stat_activity WHERE application_name <> 'control' AND backend_type = 'client backend'"
_GONE_SECONDS = 2.0
# What a connect takes on an idle machine, at most.
_CONNECT_SECONDS = 0.015
_MOST_SLOWNESS = 8.0


def server() -> EmbeddedServer:
    """A server for programs."""
    return EmbeddedServer(settings={"max_prepared_transactions": 10, "max_connections": 200})


class Control:
    """
    A superuser's session.

    Args:
        dsn: The server's address.
    """

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self._connection = psycopg.connect(dsn, autocommit=True, application_name="control")
        self._connection.execute(_ROLE)
        self._connection.execute(sql.SQL(_PASSWORD).format(password=self._connection.info.password))

    def close(self) -> None:
        """End the session."""
        self._connection.close()

    def slowness(self) -> float:
        """How much longer a connect takes than on an idle machine; 1 if it does not."""
        slowest = 0.0
        for _ in range(3):
            began = time.monotonic()
            psycopg.connect(self.dsn, application_name="control").close()
            slowest = max(slowest, time.monotonic() - began)
        return min(max(1.0, slowest / _CONNECT_SECONDS), _MOST_SLOWNESS)

    def prepare(self) -> None:
        """Have the server as it was."""
        self.kill(None)
        for (name,) in self._rows("SELECT gid FROM pg_prepared_xacts"):
            self._connection.execute(f"ROLLBACK PREPARED '{name}'")
        self._connection.execute(_SCHEMA)

    def kill(self, pids: list[int | None] | None) -> None:
        """End sessions, all if *pids* is None, and wait until they are gone."""
        if pids is None:
            pids = [pid for (pid,) in self._rows(_SESSIONS)]
        for pid in pids:
            self._connection.execute("SELECT pg_terminate_backend(%s)", [pid])
        self._until_gone(pids)

    def sessions_left(self) -> int:
        """Count the sessions that do not end by themselves."""
        deadline = time.monotonic() + _GONE_SECONDS
        while (left := len(self._rows(_SESSIONS))) and time.monotonic() < deadline:
            time.sleep(0.005)
        return left

    def look(self, pid: int) -> Any:
        """What is seen of a session without asking it: its locks, and its transaction."""
        locks = self._rows("SELECT objid FROM pg_locks WHERE pid = %s AND locktype = 'advisory' ORDER BY objid", pid)
        activity = self._rows("SELECT state FROM pg_stat_activity WHERE pid = %s", pid)
        return {
            "locks": [number for (number,) in locks[:3]],
            "lock count": len(locks),
            "state": [state for (state,) in activity],
        }

    def items(self) -> Any:
        """What has been written; sessions that are left, and may hold locks, are ended."""
        self.kill(None)
        return [text for (text,) in self._rows("SELECT text FROM d.items ORDER BY id")]

    def _rows(self, query: str, *arguments: Any) -> list[tuple[Any, ...]]:
        return self._connection.execute(query, arguments or None).fetchall()

    def _until_gone(self, pids: list[int | None]) -> None:
        deadline = time.monotonic() + _GONE_SECONDS
        while self._rows("SELECT 1 FROM pg_stat_activity WHERE pid = ANY(%s)", pids):
            assert time.monotonic() < deadline, f"sessions {pids} did not end"
            time.sleep(0.002)
