"""
Servers that speak PostgreSQL's protocol and are not PostgreSQL, as scripts: what they report of themselves, what they
answer to the statements of a pool, and what they refuse.

They show what a pool does when it meets such a server, and nothing of the server itself. Each refusal is known from the
address beside it; docs/servers.md says which of them were not seen in the documentation but follow from it.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from loopaware_pool.testing import FakeServer
from loopaware_pool.testing.fake_server import READY, completed, error, message, parameter, row

if TYPE_CHECKING:
    from collections.abc import Callable

    from loopaware_pool.testing import FakeClient

__all__ = [
    "COCKROACH",
    "CRATE",
    "DIALECTS",
    "PID",
    "POSTGRES",
    "RDS_PROXY",
    "REDSHIFT",
    "SUPAVISOR",
    "YUGABYTE_2_0",
    "Dialect",
    "DialectServer",
]

# What the server announces as its process.
PID: Final = 4711

_MODERN: Final = {
    "server_version": "17.5",
    "server_encoding": "UTF8",
    "client_encoding": "UTF8",
    "standard_conforming_strings": "on",
    "integer_datetimes": "on",
    "in_hot_standby": "off",
    "default_transaction_read_only": "off",
    "session_authorization": "me",
    "DateStyle": "ISO, MDY",
    "TimeZone": "UTC",
}
_OLD: Final = {
    name: value for name, value in _MODERN.items() if name not in ("in_hot_standby", "default_transaction_read_only")
}


@dataclass(frozen=True)
class Refusal:
    """
    What a server refuses.

    Attributes:
        statement: A regular expression.
        sqlstate, text: The error.
        source: Where that is said.
        severity: FATAL if the server hangs up as well.
    """

    statement: str
    sqlstate: str
    text: str
    source: str
    severity: str = "ERROR"


@dataclass(frozen=True)
class Dialect:
    """
    A kind of server.

    Attributes:
        name: What it is called.
        reports: The settings that it reports.
        refusals: What it refuses; the first that fits.
        pid: What `pg_backend_pid()` answers.
        announces_pid: Whether it names a process when a connection is made (BackendKeyData).
        has_transactions: Whether ReadyForQuery ever says that one is open.
    """

    name: str
    reports: dict[str, str] = field(default_factory=_MODERN.copy)
    refusals: tuple[Refusal, ...] = ()
    pid: int = PID
    announces_pid: bool = True
    has_transactions: bool = True

    def but(self, **reports: str) -> Dialect:
        """The same, reporting something else of itself."""
        return replace(self, reports=self.reports | reports)

    @property
    def welcome(self) -> bytes:
        """What a new client is sent."""
        told = b"".join(parameter(*pair) for pair in self.reports.items())
        key = message(b"K", struct.pack("!II", PID, 42)) if self.announces_pid else b""
        return message(b"R", bytes(4)) + told + key + READY


POSTGRES = Dialect("postgres")

_REDSHIFT_FUNCTION = "https://github.com/mattes/migrate/issues/208"
_REDSHIFT_IS_8_0 = "https://github.com/aamine/activerecord4-redshift-adapter/pull/26"
REDSHIFT = Dialect(
    "redshift",
    _OLD | {"server_version": "8.0.2", "padb_revision": "5d1a0b1", "padb_version": "1.0.117891"},
    (
        Refusal(
            "UNLISTEN", "0A000", 'SQL command "UNLISTEN *" not supported', "https://github.com/npgsql/npgsql/issues/853"
        ),
        Refusal("LISTEN", "0A000", "SQL command not supported", "https://github.com/npgsql/npgsql/issues/853"),
        Refusal("advisory", "42883", "function pg_advisory_unlock_all() does not exist", _REDSHIFT_FUNCTION),
        Refusal("pg_is_in_recovery", "42883", "function pg_is_in_recovery() does not exist", _REDSHIFT_IS_8_0),
        Refusal("exit_on_error", "42704", 'unrecognized configuration parameter "exit_on_error"', _REDSHIFT_IS_8_0),
        Refusal("'role'|ROLE", "42704", 'unrecognized configuration parameter "role"', _REDSHIFT_IS_8_0),
        Refusal("CLOSE ALL|DISCARD", "42601", "syntax error", _REDSHIFT_IS_8_0),
    ),
)

_COCKROACH_UNLISTEN = "https://github.com/cockroachdb/cockroach/pull/86772"
COCKROACH = Dialect(
    "cockroach",
    _MODERN | {"server_version": "13.0.0", "crdb_version": "CockroachDB CCL v25.2.0"},
    (
        Refusal(
            "advisory_unlock_all",
            "42883",
            "unknown function: pg_advisory_unlock_all()",
            "https://github.com/npgsql/npgsql/issues/5010",
        ),
        Refusal(
            "exit_on_error",
            "42704",
            'unrecognized configuration parameter "exit_on_error"',
            "no setting of that name is documented",
        ),
        Refusal(
            "^LISTEN", "0A000", "unimplemented: this syntax", "https://github.com/cockroachdb/cockroach/issues/41522"
        ),
        Refusal(
            "DISCARD PLANS",
            "0A000",
            "unimplemented: this syntax",
            "https://github.com/cockroachdb/cockroach/blob/master/pkg/sql/parser/sql.y",
        ),
    ),
)

_CRATE = "https://github.com/crate/crate/blob/master/docs/interfaces/postgres.rst"
_CRATE_SET = "https://github.com/crate/crate/blob/master/docs/sql/statements/set.rst"
CRATE = Dialect(
    "crate",
    {
        "crate_version": "5.10.0",
        "server_version": "14.0",
        "server_encoding": "UTF8",
        "client_encoding": "UTF8",
        "datestyle": "ISO",
        "TimeZone": "UTC",
        "integer_datetimes": "on",
    },
    (
        Refusal("set_config", "42883", "Unknown function: pg_catalog.set_config", _CRATE),
        Refusal("advisory", "42883", "Unknown function: pg_catalog.pg_advisory_unlock_all()", _CRATE),
        Refusal("pg_is_in_recovery", "42883", "Unknown function: pg_catalog.pg_is_in_recovery()", _CRATE),
        Refusal("'role'", "XX000", "Unrecognised Setting: role", _CRATE),
        Refusal("^RESET", "42601", "mismatched input 'ALL' expecting 'GLOBAL'", _CRATE_SET),
        Refusal("LISTEN", "42601", "mismatched input 'LISTEN'", _CRATE),
    ),
    pid=-1,
    announces_pid=False,
    has_transactions=False,
)

YUGABYTE_2_0 = Dialect(
    "yugabyte 2.0",
    _OLD | {"server_version": "11.2-YB-2.0.11.0-b0"},
    (
        Refusal(
            "CLOSE ALL",
            "0A000",
            "CLOSE ALL cursor not supported yet",
            "https://github.com/yugabyte/yugabyte-db/issues/3639",
        ),
        Refusal("DISCARD", "0A000", "DISCARD not supported yet", "https://github.com/yugabyte/yugabyte-db/issues/2491"),
    ),
)

# Supavisor in transaction mode, told to refuse what would stay in a session.
SUPAVISOR = Dialect(
    "supavisor",
    refusals=(
        Refusal(
            r"^(SET|RESET) (?!LOCAL|TRANSACTION)",
            "XX000",
            "(ESETNOTALLOWED) session-level SET statements are not allowed in transaction mode",
            "https://github.com/supabase/supavisor/pull/1113",
            severity="FATAL",
        ),
    ),
    pid=815,
)

RDS_PROXY = Dialect("rds-proxy", pid=815)
# https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/rds-proxy-pinning.html
PINS: Final = re.compile(
    r"^(SET|RESET|PREPARE|DISCARD|DEALLOCATE|EXECUTE|LISTEN|UNLISTEN|DECLARE|CLOSE)\b|set_config|advisory",
    re.IGNORECASE,
)

DIALECTS: Final = (COCKROACH, CRATE, REDSHIFT, YUGABYTE_2_0, SUPAVISOR, RDS_PROXY)

_ANSWERS: Final[tuple[tuple[str, Callable[[DialectServer], bytes]], ...]] = (
    ("set_config\\('exit_on_error'", lambda server: row(str(server.dialect.pid), "on")),
    ("current_setting\\('role'\\), session_user", lambda _: row("none", "me")),
    ("current_setting\\('role'\\)", lambda _: row("none")),
    ("session_user", lambda _: row("me")),
    ("pg_is_in_recovery", lambda server: row(server.is_read_only)),
    ("pg_backend_pid", lambda server: row(server.dialect.pid)),
    ("(?i)^SHOW server_version", lambda server: row(server.dialect.reports["server_version"])),
    ("(?i)^SHOW standard_conforming_strings", lambda _: row("on")),
    ("(?i)^SHOW transaction isolation level", lambda _: row("read committed")),
    (r"version\(\)", lambda server: row(f"PostgreSQL {server.dialect.reports['server_version']}")),
    (r"current_schema\(\)", lambda _: row("public")),
    ("(?i)^SELECT", lambda _: row(1)),
)


class DialectServer(FakeServer):
    """
    A scripted server of one dialect. To `RAISE 42601` it answers that error. None of them tells of its sessions.

    Args:
        dialect: What it is.

    Attributes:
        dialect: What it is.
        is_read_only: Whether it refuses to write.
    """

    def __init__(self, dialect: Dialect) -> None:
        super().__init__(self._answer, is_bare=True)
        self.dialect = dialect
        self.welcome = dialect.welcome
        self.is_read_only = False
        self._open: dict[FakeClient, bytes] = {}

    @property
    def statements(self) -> list[str]:
        """All statements so far, in their order on each connection."""
        return [one for session in self.sessions for query in session.queries for one in _split(query)]

    @property
    def pins(self) -> list[str]:
        """The statements that would have pinned a session of RDS Proxy's."""
        return [statement for statement in self.statements if PINS.search(statement)]

    def _answer(self, client: FakeClient, query: str) -> bytes | None:
        said = b""
        for statement in _split(query) or [""]:
            one = self._answer_one(client, statement)
            said += one
            if one[:1] == b"E":
                if self._open.get(client) == b"T":
                    self._open[client] = b"E"
                if b"FATAL" in one:
                    client.send(said)
                    client.hang_up()
                    return None
                break
        return said + message(b"Z", self._open.get(client, b"I"))

    def _answer_one(self, client: FakeClient, statement: str) -> bytes:
        for refusal in self.dialect.refusals:
            if re.search(refusal.statement, statement):
                return error(refusal.sqlstate, refusal.severity, refusal.text)
        if not statement:
            return message(b"I")
        verb = statement.split()[0].upper()
        if "pg_stat_" in statement:
            return error("42P01", text='relation "pg_stat_activity" does not exist')
        if verb == "RAISE":
            return error(statement.split()[1])
        if verb in ("INSERT", "UPDATE") and self.is_read_only:
            return error("25006", text=f"cannot execute {verb} in a read-only transaction")
        if self.dialect.has_transactions and verb in ("BEGIN", "COMMIT", "ROLLBACK"):
            self._open[client] = b"T" if verb == "BEGIN" else b"I"
        for pattern, answer in _ANSWERS:
            if re.search(pattern, statement):
                return answer(self)
        return completed(verb)


def _split(query: str) -> list[str]:
    return [statement.strip() for statement in query.split(";") if statement.strip()]
