"""What `doctor` knows of a server, for tests of what it says of that."""

from __future__ import annotations

from loopaware_pool.cli.doctor.facts import Server

__all__ = ["SERVER"]

SERVER = Server(
    version="17.2",
    role="app",
    database="shop",
    is_superuser=False,
    may_use_reserved=False,
    max_connections=100,
    superuser_reserved_connections=3,
    reserved_connections=2,
    idle_session_timeout=0,
    role_limit=-1,
    database_limit=-1,
    taken=0,
    taken_by_role=0,
    taken_in_database=0,
)
