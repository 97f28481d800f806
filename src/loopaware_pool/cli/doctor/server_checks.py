"""Judge the server, and what its sessions, limits and settings mean for the pools that are planned. Decides only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from loopaware_pool.cli.doctor.findings import Finding, Severity
from loopaware_pool.cli.doctor.host_checks import judge_version

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from loopaware_pool.cli.doctor.facts import Facts, Plan, Server, Sessions

__all__ = ["check_server", "quote_name"]

# How long a transaction may be idle before it is told, and how many groups of sessions are.
_LONG_IDLE_SECONDS: Final = 60
_GROUPS_SHOWN: Final = 8
# After how long a pool closes an idle connection unless told otherwise: asyncpg's 300 s, psycopg_pool's 600 s.
_POOL_IDLE_SECONDS: Final = 600
# Some routers and load balancers forget a connection that has been silent for longer.
_LONG_KEEPALIVE_SECONDS: Final = 350


def check_server(facts: Facts) -> Iterator[Finding]:
    """Make the findings of what the server has told."""
    server = facts.server
    yield judge_version("server", "PostgreSQL", server.version)
    yield _privileges(server)
    yield from _limits(facts)
    yield _sessions(server)
    yield _idle_transactions(server)
    yield _parallel_query(server)
    yield _async_client_compatibility(server)
    yield _idle_session_timeout(server)
    yield _session_timeouts(server)
    yield _keepalives(facts)


def quote_name(name: str) -> str:
    """Write a role's name so that the server takes it as it is."""
    return '"' + name.replace('"', '""') + '"'


def _setting(server: Server, name: str) -> int | None:
    """A setting's value in its own unit; None if the server has no such setting, or hides it."""
    value = server.settings.get(name)
    return None if value is None else int(value)


def _privileges(server: Server) -> Finding:
    code = "privileges"
    hidden = _number(server, lambda each: each.is_hidden)
    unseen = [*server.unseen, *([f"what {_some_sessions(hidden)} of other roles do"] if hidden else [])]
    if server.sees_all and not unseen:
        return Finding(code, Severity.OK, "The role sees all that was asked for", f"role {server.role}")
    if not unseen:
        evidence = f"role {server.role} has no pg_read_all_stats; just now there are no sessions but its own"
        return Finding(code, Severity.OK, "The role sees all that there is now", evidence)
    title = f"Role {server.role} does not see everything; what is told of sessions is what it sees"
    remedy = f"to see sessions: GRANT pg_read_all_stats TO {quote_name(server.role)};"
    return Finding(code, Severity.NOTE, title, f"hidden: {'; '.join(unseen)}", "" if server.sees_all else remedy)


# ---- room for the pools ----


def _limits(facts: Facts) -> Iterator[Finding]:
    for finding in (_connections(facts), _role_limit(facts), _database_limit(facts)):
        if facts.way.pooling is None or finding.severity <= Severity.NOTE:
            yield finding
        else:
            evidence = f"{finding.evidence}; but a proxy is between, whose max_client_conn and pool sizes decide"
            yield Finding(finding.code, Severity.NOTE, finding.title, evidence, "compare the proxy's pool sizes")


def _connections(facts: Facts) -> Finding:
    server = facts.server
    most = _setting(server, "max_connections")
    if most is None:
        return _unknown("connections", "How many connections the server accepts", server)
    kept = _kept_for_others(server)
    usable = most - sum(kept.values())
    terms = "".join(f" - {number} {name}" for name, number in kept.items() if number)
    evidence = f"max_connections {most}{terms} = {usable} for role {server.role}"
    remedy = "a smaller --pool-size, fewer processes, a higher max_connections, or a proxy such as PgBouncer"
    return _Limit("connections", "the server", usable, _taken(server), evidence, remedy).judge(facts.plan)


def _kept_for_others(server: Server) -> dict[str, int]:
    """What our role cannot have of max_connections."""
    if server.is_superuser:
        return {}
    names = ["superuser_reserved_connections", *([] if server.may_use_reserved else ["reserved_connections"])]
    return {name: _setting(server, name) or 0 for name in names}


def _role_limit(facts: Facts) -> Finding:
    server, code = facts.server, "role-limit"
    if server.role_limit is None:
        return _unknown(code, "Whether the role's connections are limited", server)
    if server.role_limit < 0 or server.is_superuser:
        why = "superusers have none" if server.is_superuser else "rolconnlimit is -1"
        return Finding(code, Severity.OK, "The role has no connection limit", f"role {server.role}: {why}")
    evidence = f"rolconnlimit of role {server.role} is {server.role_limit}"
    remedy = f"ALTER ROLE {quote_name(server.role)} CONNECTION LIMIT {facts.plan.wanted}; or smaller pools"
    taken = _taken(server, lambda each: each.user == server.role)
    return _Limit(code, "the role", server.role_limit, taken, evidence, remedy).judge(facts.plan)


def _database_limit(facts: Facts) -> Finding:
    server, code = facts.server, "database-limit"
    if server.database_limit is None:
        return _unknown(code, "Whether the database's connections are limited", server)
    if server.database_limit < 0 or server.is_superuser:
        why = "superusers are exempt" if server.is_superuser else "datconnlimit is -1"
        return Finding(code, Severity.OK, "The database has no connection limit", f"database {server.database}: {why}")
    evidence = f"datconnlimit of database {server.database} is {server.database_limit}"
    remedy = f"ALTER DATABASE {quote_name(server.database)} CONNECTION LIMIT {facts.plan.wanted}; or smaller pools"
    taken = _taken(server, lambda each: each.database == server.database)
    return _Limit(code, "the database", server.database_limit, taken, evidence, remedy).judge(facts.plan)


@dataclass(frozen=True, slots=True)
class _Limit:
    """How many connections one of several authorities allows; *taken* is None where that is hidden."""

    code: str
    what: str
    usable: int
    taken: int | None
    evidence: str
    remedy: str

    def judge(self, plan: Plan) -> Finding:
        wanted = f"{plan} = {plan.wanted}"
        if plan.wanted > self.usable:
            title = f"{plan.wanted} connections are more than {self.what} can give"
            evidence = f"{self.evidence}; {wanted} > {self.usable}"
            return Finding(self.code, Severity.PROBLEM, title, evidence, self.remedy)
        if self.taken is None:
            title = f"{plan.wanted} connections fit, if nobody else has any: who is connected is hidden"
            evidence = f"{self.evidence}; {wanted} <= {self.usable}"
            return Finding(self.code, Severity.NOTE, title, evidence, "ask as a role that sees it")
        free = self.usable - self.taken
        evidence = f"{self.evidence}; - {self.taken} taken by others = {free} free; {wanted}"
        if plan.wanted > free:
            title = f"{plan.wanted} connections do not fit beside the {self.taken} that are taken"
            remedy = f"if those are the pools' own, nothing; else {self.remedy}"
            return Finding(self.code, Severity.WARNING, title, f"{evidence} > {free}", remedy)
        title = f"{plan.wanted} connections find room at {self.what}"
        return Finding(self.code, Severity.OK, title, f"{evidence} <= {free}")


def _taken(server: Server, where: Callable[[Sessions], bool] = lambda each: True) -> int | None:
    return None if server.sessions is None else _number(server, where)


def _number(server: Server, where: Callable[[Sessions], bool]) -> int:
    return sum(each.number for each in server.sessions or () if where(each))


def _unknown(code: str, what: str, server: Server) -> Finding:
    return Finding(code, Severity.NOTE, f"{what} is hidden from role {server.role}", "see privileges")


# ---- who is there ----


def _sessions(server: Server) -> Finding:
    code = "sessions"
    if server.sessions is None:
        return _unknown(code, "Who is connected", server)
    total = _number(server, lambda each: True)
    shown = [_describe(each) for each in server.sessions[:_GROUPS_SHOWN]]
    left = total - sum(each.number for each in server.sessions[:_GROUPS_SHOWN])
    evidence = "; ".join([*shown, *([f"{left} more"] if left else [])]) or "nobody else is connected"
    return Finding(
        code, Severity.OK, f"{_some_sessions(total)} of others {'is' if total == 1 else 'are'} open", evidence
    )


def _describe(each: Sessions) -> str:
    state = "state hidden" if each.is_hidden else each.state or "no state"
    application = f" as {each.application!r}" if each.application else ""
    return f"{each.number} {each.user}@{each.database}{application}: {state}"


def _some_sessions(number: int) -> str:
    return f"{number} session{'' if number == 1 else 's'}"


def _idle_transactions(server: Server) -> Finding:
    code = "idle-transactions"
    if server.sessions is None:
        return _unknown(code, "Whether transactions are idle", server)
    idle = [
        each
        for each in server.sessions
        if (each.state or "").startswith("idle in transaction") and (each.longest_seconds or 0) >= _LONG_IDLE_SECONDS
    ]
    if not idle:
        seen = "of those that are seen" if any(each.is_hidden for each in server.sessions) else "of all"
        evidence = f"{seen}, none has been idle in a transaction for {_LONG_IDLE_SECONDS} s"
        return Finding(code, Severity.OK, "No transaction has been idle for long", evidence)
    evidence = "; ".join(f"{_describe(each)}, for up to {each.longest_seconds or 0:.0f} s" for each in idle)
    remedy = (
        "find who keeps a transaction open while doing something else (a pool's leak_threshold names the line); "
        "idle_in_transaction_session_timeout ends them"
    )
    return Finding(code, Severity.WARNING, "Transactions are idle: they hold locks and connections", evidence, remedy)


# ---- settings ----


def _parallel_query(server: Server) -> Finding:
    code = "parallel-query"
    workers = _setting(server, "max_parallel_workers_per_gather")
    if workers is None:
        return _unknown(code, "How many parallel workers a query may have", server)
    given = "; ".join(map(str, server.parallel or ())) or "none"
    if server.parallel is None:
        given = "hidden"
    evidence = f"max_parallel_workers_per_gather is {workers} here; set for roles and databases: {given}"
    if not workers:
        return Finding(code, Severity.OK, "Queries of this role get no parallel workers", evidence)
    title = f"A query of this role may take {workers} more processes, which no pool counts"
    return Finding(code, Severity.NOTE, title, evidence, f"if that is not wanted: {_no_workers(server)}")


def _no_workers(server: Server) -> str:
    return f"ALTER ROLE {quote_name(server.role)} SET max_parallel_workers_per_gather = 0;"


def _async_client_compatibility(server: Server) -> Finding:
    code = "async-client-compatibility"
    remedy = f"what limits a role's parallel workers: {_no_workers(server)}"
    if server.misnamed:
        title = "async_client_compatibility is set, which no release of PostgreSQL has: it does nothing"
        evidence = f"found: {'; '.join(server.misnamed)}"
        return Finding(code, Severity.WARNING, title, evidence, f"take it out; {remedy}")
    title = "There is no setting async_client_compatibility, in any release of PostgreSQL"
    evidence = "settings of roles are hidden" if server.parallel is None else "not found for any role or database"
    return Finding(code, Severity.NOTE, title, evidence, remedy)


def _idle_session_timeout(server: Server) -> Finding:
    code = "idle-session-timeout"
    milliseconds = _setting(server, "idle_session_timeout")
    if milliseconds is None:
        return _unknown(code, "Whether the server ends idle sessions", server)
    if not milliseconds:
        return Finding(code, Severity.OK, "The server ends no idle session", "idle_session_timeout is 0")
    seconds = milliseconds / 1000
    evidence = (
        f"idle_session_timeout is {seconds:g} s; pools close what they do not need after 300 s (asyncpg) or 600 s "
        "(psycopg) of idleness, and keep min_size for good"
    )
    if seconds >= _POOL_IDLE_SECONDS:
        title = "The server ends idle sessions, though not before a pool does, min_size apart"
        return Finding(code, Severity.NOTE, title, evidence, f"a pool option keepalive={seconds / 2:g}")
    title = "The server ends idle sessions that a pool still counts on"
    for_good = f"ALTER ROLE {quote_name(server.role)} SET idle_session_timeout = 0;"
    remedy = f"a pool option keepalive={seconds / 2:g}, or {for_good}"
    return Finding(code, Severity.WARNING, title, evidence, remedy)


def _session_timeouts(server: Server) -> Finding:
    code = "session-timeouts"
    names = ("statement_timeout", "idle_in_transaction_session_timeout", "transaction_timeout")
    values = {name: value for name in names if (value := _setting(server, name)) is not None}
    if not values:
        return _unknown(code, "What the server puts an end to", server)
    evidence = ", ".join(f"{name} {f'{value / 1000:g} s' if value else 'off'}" for name, value in values.items())
    if any(values.values()):
        return Finding(code, Severity.OK, "The server ends what takes too long", evidence)
    remedy = (
        f"ALTER ROLE {quote_name(server.role)} SET idle_in_transaction_session_timeout = '60s'; and a timeout for "
        "each acquire and query in the program"
    )
    title = "The server lets statements and idle transactions last for ever"
    return Finding(code, Severity.NOTE, title, evidence, remedy)


def _keepalives(facts: Facts) -> Finding:
    code = "tcp-keepalives"
    idle = _setting(facts.server, "tcp_keepalives_idle")
    if idle is None:
        return _unknown(code, "When the server asks whether a silent client is there", facts.server)
    if facts.way.is_local or idle == 0:
        evidence = "the server is on this machine" if facts.way.is_local else "tcp_keepalives_idle is 0 here"
        return Finding(code, Severity.OK, "No network forgets idle connections", evidence)
    interval, count = (facts.server.settings.get(f"tcp_keepalives_{part}", "?") for part in ("interval", "count"))
    evidence = f"tcp_keepalives_idle {idle} s, then {count} times, {interval} s apart"
    if idle <= _LONG_KEEPALIVE_SECONDS:
        return Finding(code, Severity.OK, "Idle connections are kept alive", evidence)
    title = "Routers and load balancers may forget idle connections before the server speaks on them"
    remedy = "a pool option keepalive=60, or tcp_keepalives_idle = 60 on the server"
    return Finding(code, Severity.NOTE, title, evidence, remedy)
