"""Judge the server: its version, and what its limits mean for the pools that are planned. Decides only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from loopaware_pool.cli.doctor.findings import Finding, Severity
from loopaware_pool.cli.doctor.host_checks import judge_version
from loopaware_pool.cli.doctor.sizing import largest_pool

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loopaware_pool.cli.doctor.facts import Facts, Plan, Server

__all__ = ["check_server"]

# After how long a pool closes an idle connection unless told otherwise: asyncpg's 300 s, psycopg_pool's 600 s.
_POOL_IDLE_SECONDS: Final = 600


def check_server(facts: Facts) -> Iterator[Finding]:
    """Make the findings of what the server has told."""
    server, plan = facts.server, facts.plan
    yield judge_version("server", "PostgreSQL", server.version)
    for limit in (_connections(server), *_own_limits(server, plan)):
        yield limit.judge(plan, is_proxied=facts.way.pooling is not None)
    yield _idle_session_timeout(server)


# ---- room for the pools ----


@dataclass(frozen=True, slots=True, kw_only=True)
class _Limit:
    """How many connections the server, a role or a database allows, and how many of them others have."""

    code: str
    what: str
    usable: int | None  # None for no limit
    taken: int
    evidence: str
    remedy: str = ""

    def judge(self, plan: Plan, *, is_proxied: bool) -> Finding:
        """Hold it against the *plan*; behind a proxy, the proxy's limits decide."""
        if self.usable is None:
            return Finding(self.code, Severity.OK, f"The {self.what} has no connection limit", self.evidence)
        free, wanted = self.usable - self.taken, plan.wanted
        evidence = f"{self.evidence}; - {self.taken} taken by others = {free} free; {plan} = {wanted}"
        if wanted <= free:
            title = f"{wanted} connections find room at the {self.what}"
            return Finding(self.code, Severity.OK, title, f"{evidence} <= {free}")
        largest = largest_pool(free, plan.processes)
        remedy = f"{self.remedy}; or --pool-size {largest} at most" if largest else self.remedy
        severity = Severity.PROBLEM
        title = f"{wanted} connections are more than the {self.what} can give"
        if wanted <= self.usable:
            severity, remedy = Severity.WARNING, f"if those are the pools' own, nothing; else {remedy}"
            title = f"{wanted} connections do not fit beside the {self.taken} that are taken"
        if is_proxied:
            severity, remedy = Severity.NOTE, "compare the proxy's max_client_conn and pool sizes, which decide"
        return Finding(self.code, severity, title, f"{evidence} > {free}", remedy)


def _connections(server: Server) -> _Limit:
    kept = {}
    if not server.is_superuser:
        kept["superuser_reserved_connections"] = server.superuser_reserved_connections
        kept["reserved_connections"] = 0 if server.may_use_reserved else server.reserved_connections
    usable = server.max_connections - sum(kept.values())
    terms = "".join(f" - {number} {name}" for name, number in kept.items() if number)
    return _Limit(
        code="connections",
        what="server",
        usable=usable,
        taken=server.taken,
        evidence=f"max_connections {server.max_connections}{terms} = {usable} for role {server.role}",
        remedy="fewer processes, a higher max_connections, or a proxy such as PgBouncer",
    )


def _own_limits(server: Server, plan: Plan) -> Iterator[_Limit]:
    """List the limits that the role and the database have of their own."""
    for what, name, limit, taken in (
        ("role", server.role, server.role_limit, server.taken_by_role),
        ("database", server.database, server.database_limit, server.taken_in_database),
    ):
        is_limited = limit >= 0 and not server.is_superuser
        yield _Limit(
            code=f"{what}-limit",
            what=what,
            usable=limit if is_limited else None,
            taken=taken,
            evidence=f"CONNECTION LIMIT of {what} {name} is {limit}"
            + (f"; {server.role} is a superuser, and exempt" if server.is_superuser else ""),
            remedy=f"ALTER {what.upper()} {_quote(name)} CONNECTION LIMIT {plan.wanted}",
        )


def _quote(name: str) -> str:
    """Write a name so that the server takes it as it is."""
    return '"' + name.replace('"', '""') + '"'


# ---- what ends a pool's connections ----


def _idle_session_timeout(server: Server) -> Finding:
    code, seconds = "idle-session-timeout", server.idle_session_timeout
    if not seconds:
        return Finding(code, Severity.OK, "The server ends no idle session", "idle_session_timeout is 0")
    evidence = (
        f"idle_session_timeout is {seconds:g} s; pools close what they do not need after 300 s (asyncpg) or 600 s "
        "(psycopg) of idleness, and keep min_size for good"
    )
    remedy = f"a pool option keepalive={seconds / 2:g}"
    if seconds >= _POOL_IDLE_SECONDS:
        title = "The server ends idle sessions, though not before a pool does, min_size apart"
        return Finding(code, Severity.NOTE, title, evidence, remedy)
    title = "The server ends idle sessions that a pool still counts on"
    for_good = f"ALTER ROLE {_quote(server.role)} SET idle_session_timeout = 0;"
    return Finding(code, Severity.WARNING, title, evidence, f"{remedy}, or {for_good}")
