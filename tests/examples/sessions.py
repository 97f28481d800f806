"""The sessions of a database, ended by the server."""

from __future__ import annotations

import psycopg

__all__ = ["end_all_sessions"]


def end_all_sessions(database_url: str) -> int:
    """End those of others, as a server does that restarts; how many that were."""
    query = """
        SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity
        WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
    """
    with psycopg.connect(database_url, autocommit=True) as connection:
        return connection.execute(query).fetchone()[0]
