"""What a restart of the server does to the sessions that are open."""

from __future__ import annotations

import os

import psycopg


def end_sessions():
    """End all client sessions but this one, and wait until they have gone."""
    others = "FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    with psycopg.connect(os.environ["DSN"], autocommit=True) as connection:
        connection.execute(f"SELECT pg_terminate_backend(pid, 5000) {others}")
