"""Judge the process: versions and fds. Decides only."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from loopaware_pool.cli.doctor.findings import Finding, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loopaware_pool.cli.doctor.facts import Facts, Host, Plan

__all__ = ["SUPPORTED", "check_host", "judge_version"]

# The oldest and the newest release that is tested, as in the README.
SUPPORTED: Final = {
    "Python": ("3.11", "3.13"),
    "asyncpg": ("0.31", "0.32"),
    "psycopg": ("3.2", "3.3"),
    "psycopg-pool": ("3.2", "3.3"),
    "PostgreSQL": ("15", "18"),
}
# What a process has open besides its pool: files, the loop's own, and the sockets of those it serves.
_SPARE_FDS: Final = 64


def check_host(facts: Facts) -> Iterator[Finding]:
    """Make the findings of what does not concern the server."""
    versions = facts.host.versions
    yield judge_version("python", "Python", versions["Python"])
    for package in ("asyncpg", "psycopg-pool"):
        yield judge_version(package, package, versions[package])
    yield _psycopg(facts.host)
    yield _fd_limit(facts.host, facts.plan)


def judge_version(code: str, name: str, version: str | None) -> Finding:
    """
    Hold a version against those that are supported.

    Args:
        code: The finding's.
        name: A key of `SUPPORTED`.
        version: What was found; None if it is not installed.
    """
    oldest, newest = SUPPORTED[name]
    if version is None:
        title = f"{name} is not installed"
        return Finding(code, Severity.PROBLEM, title, "no such package", f"install {name} {oldest} to {newest}")
    evidence = f"supported: {oldest} to {newest}"
    if _parts(version, oldest) < _parts(oldest, oldest):
        title = f"{name} {version} is older than what is supported"
        return Finding(code, Severity.PROBLEM, title, evidence, f"use {name} {oldest} to {newest}")
    if _parts(version, newest) > _parts(newest, newest):
        title = f"{name} {version} is newer than what was tested"
        return Finding(
            code, Severity.WARNING, title, evidence, f"run your tests before you rely on it, or use {newest}"
        )
    return Finding(code, Severity.OK, f"{name} {version} is supported", evidence)


def _parts(version: str, like: str) -> list[int]:
    """As many numbers of *version* as *like* has."""
    return [int(part) for part in re.findall(r"\d+", version)][: like.count(".") + 1]


def _psycopg(host: Host) -> Finding:
    version = host.versions["psycopg"]
    if version is not None and host.psycopg_failure is not None:
        title = f"psycopg {version} cannot be imported"
        remedy = "only its pools need it: pip install 'psycopg[binary]', or install libpq"
        return Finding("psycopg", Severity.WARNING, title, host.psycopg_failure, remedy)
    found = judge_version("psycopg", "psycopg", version)
    evidence = f"{found.evidence}; implementation: {host.psycopg_implementation}, libpq {host.versions['libpq']}"
    if found.severity is Severity.OK and host.psycopg_implementation == "python":
        title = f"psycopg {version} runs in plain Python, which is slower"
        return Finding("psycopg", Severity.NOTE, title, evidence, "pip install 'psycopg[binary]', or 'psycopg[c]'")
    return Finding("psycopg", found.severity, found.title, evidence, found.remedy)


def _fd_limit(host: Host, plan: Plan) -> Finding:
    code, limit = "fd-limit", host.fd_limit
    if limit is None:
        return Finding(code, Severity.OK, "Nothing limits the fds of a process", "no RLIMIT_NOFILE")
    needed = plan.pool_size + _SPARE_FDS
    evidence = f"RLIMIT_NOFILE is {limit}; {plan.pool_size} for the pool and {_SPARE_FDS} for all else make {needed}"
    if limit >= needed:
        return Finding(code, Severity.OK, "A process may open enough fds", evidence)
    severity = Severity.WARNING if limit > plan.pool_size else Severity.PROBLEM
    remedy = f"ulimit -n {needed} or more (systemd: LimitNOFILE=), or a smaller pool"
    return Finding(code, severity, f"{limit} fds are few for a pool of {plan.pool_size}", evidence, remedy)
