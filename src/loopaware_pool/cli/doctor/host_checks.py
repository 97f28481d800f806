"""Judge the interpreter and the machine: versions, event loop, fds, forks. Decides only."""

from __future__ import annotations

import re
import shlex
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
    host, plan = facts.host, facts.plan
    yield judge_version("python", "Python", host.python)
    yield _event_loop(host)
    yield Finding("loopaware-pool", Severity.OK, f"loopaware-pool {host.versions['loopaware-pool']}", "installed")
    for package in ("asyncpg", "psycopg-pool"):
        yield judge_version(package, package, host.versions[package])
    yield _psycopg(host)
    yield _fd_limit(host, plan)
    yield _fd_list(host)
    yield _fork(host)
    yield _workers(host, plan)


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
    evidence = f"{version}; supported: {oldest} to {newest}"
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


def _event_loop(host: Host) -> Finding:
    uvloop = host.versions["uvloop"]
    available = "uvloop is not installed" if uvloop is None else f"uvloop {uvloop} is installed"
    evidence = f"asyncio.run uses {host.loop}; {available}"
    if host.is_proactor:
        title = "Windows' Proactor event loop cannot watch the drivers' sockets"
        remedy = "asyncio.run(main(), loop_factory=asyncio.SelectorEventLoop), or that loop's policy before Python 3.12"
        return Finding("event-loop", Severity.PROBLEM, title, evidence, remedy)
    return Finding("event-loop", Severity.OK, "The event loop is one that is supported", evidence)


def _psycopg(host: Host) -> Finding:
    version = host.versions["psycopg"]
    if version is not None and host.psycopg_failure is not None:
        title = f"psycopg {version} cannot be imported"
        remedy = "only its pools need it: pip install 'psycopg[binary]', or install libpq"
        return Finding("psycopg", Severity.WARNING, title, host.psycopg_failure, remedy)
    found = judge_version("psycopg", "psycopg", version)
    evidence = f"{found.evidence}; implementation: {host.psycopg_implementation}, libpq {host.libpq}"
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


def _fd_list(host: Host) -> Finding:
    if host.shows_fds:
        return Finding("fd-list", Severity.OK, "The audit can list what is open", "/proc or /dev/fd can be read")
    title, evidence = "The audit cannot list what is open", "neither /proc/self/fd nor /dev/fd can be read"
    remedy = "mount /proc in the container; on Windows install psutil"
    return Finding("fd-list", Severity.NOTE, title, evidence, remedy)


def _fork(host: Host) -> Finding:
    evidence = f"multiprocessing's default start method here: {host.start_method}"
    if host.start_method != "fork":
        return Finding("fork", Severity.OK, "Processes are not forked by default", evidence)
    remedy = (
        "a pool of loopaware_pool starts empty in a child; a driver's own pool must be made after the fork: "
        'in the child, or multiprocessing.set_start_method("spawn")'
    )
    if not host.can_hear_of_forks:
        title, evidence = "Processes are forked, and no library can hear of it", f"{evidence}; no os.register_at_fork"
        return Finding("fork", Severity.WARNING, title, evidence, "make every pool after the fork")
    return Finding("fork", Severity.NOTE, "Processes are forked, open sockets and all", evidence, remedy)


def _workers(host: Host, plan: Plan) -> Finding:
    servers = [f"{name} {host.versions[name]}" for name in ("gunicorn", "uvicorn") if host.versions[name]]
    installed = f"installed: {' and '.join(servers) or 'neither gunicorn nor uvicorn'}"
    if host.worker_count is not None and host.worker_count != str(plan.processes):
        evidence = f"WEB_CONCURRENCY={host.worker_count}, --processes {plan.processes}; {installed}"
        title = "The environment asks for another number of worker processes than was reckoned with"
        remedy = f"run doctor with --processes {host.worker_count}"
        return Finding("workers", Severity.WARNING, title, evidence, remedy)
    if _preloads(host.gunicorn_arguments):
        evidence = f"--preload in GUNICORN_CMD_ARGS; {installed}"
        title = "gunicorn imports the program, then forks its workers"
        remedy = (
            "open pools in the workers (lifespan, or post_fork), not at import: what the drivers' own pools "
            "have opened before the fork is shared; loopaware_pool's start empty in each worker"
        )
        return Finding("workers", Severity.WARNING, title, evidence, remedy)
    evidence = f"{installed}; neither WEB_CONCURRENCY nor --preload in GUNICORN_CMD_ARGS says otherwise"
    return Finding("workers", Severity.OK, "Nothing contradicts the number of processes", evidence)


def _preloads(arguments: str) -> bool:
    try:
        return "--preload" in shlex.split(arguments)
    except ValueError:  # a quotation mark that nothing closes
        return "--preload" in arguments
