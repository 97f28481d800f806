"""What `run --report` tells: the pools of a program and its children, and what each process left open."""

from __future__ import annotations

import json
import os
import shutil
import sys
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from loopaware_pool.audit import OpenFd, Registration
from loopaware_pool.cli.output import in_one_line, visible_output

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from loopaware_pool.audit import FdAudit
    from loopaware_pool.cli.run.job import MadePool

__all__ = ["account_of_process", "tell", "write"]

_SHOWN: Final = 20
_KINDS: Final = {
    "loopaware_pool.asyncpg": "asyncpg",
    "loopaware_pool.psycopg": "psycopg",
    "loopaware_pool.sqlalchemy": "SQLAlchemy",
}


def account_of_process(pools: Iterable[MadePool], audit: FdAudit | None) -> dict[str, Any]:
    """
    Say what this process did with its pools, and what it leaves open.

    Args:
        pools: All of them. One that was made before a fork counts here if it was used here.
        audit: Begun with the first pool; None if there was none, or in a child of a fork.
    """
    here = os.getpid()
    accounts = [_account_of(made) for made in pools]
    used = [each for each, made in zip(accounts, pools, strict=True) if made.process == here or each["acquired"]]
    if audit is not None:
        audit.finish()
    return {
        "process": here,
        "pools": used,
        "is_audited": audit is not None,
        "leaked": [] if audit is None else _fds((*audit.orphaned, *audit.leaked)),
        "stale_registrations": [] if audit is None else [asdict(each) for each in audit.registrations],
        "unseen": [] if audit is None else list(audit.unseen),
    }


def _fds(found: Iterable[OpenFd]) -> list[dict[str, Any]]:
    return [asdict(each) for each in {(each.fd, each.inode): each for each in found}.values()]


def _account_of(made: MadePool) -> dict[str, Any]:
    stats = made.pool.stats()
    totals = stats.totals
    modules = [kind.__module__ for kind in type(made.pool).__mro__]
    return {
        "name": stats.name,
        "kind": next(_KINDS[module] for module in modules if module in _KINDS),
        "made_at": made.line,
        "state": stats.state,
        "max_size": stats.max_size,
        "acquired": totals.acquired,
        "waited": totals.waited,
        "waited_seconds": round(totals.waited_seconds, 3),
        "timed_out": totals.timed_out,
        "opened": totals.opened,
        "connect_failures": totals.connect_failures,
        "closed": totals.closed,
    }


def write(account: dict[str, Any], folder: str) -> None:
    """Leave the account of a child for the main process. If that has ended, nobody is left to be told."""
    with suppress(OSError):
        name = os.path.join(folder, str(account["process"]))
        with open(f"{name}.part", "w") as file:
            json.dump(account, file)
        os.replace(f"{name}.part", f"{name}.json")


def tell(account: dict[str, Any], folder: str, *, as_json: bool) -> None:
    """Print what the main process did, and what its children have written, to the error output."""
    accounts = [account, *_accounts_in(folder)]
    shutil.rmtree(folder, ignore_errors=True)
    with visible_output():
        if as_json:
            print(json.dumps({"processes": accounts}), file=sys.stderr)
        else:
            print("\n".join(_lines(accounts)), file=sys.stderr)
        sys.stderr.flush()


def _accounts_in(folder: str) -> list[dict[str, Any]]:
    accounts = []
    with suppress(OSError):
        for name in sorted(os.listdir(folder)):
            if name.endswith(".json"):
                with open(os.path.join(folder, name)) as file:
                    accounts.append(json.load(file))
    return accounts


def _lines(accounts: list[dict[str, Any]]) -> Iterator[str]:
    count = sum(len(account["pools"]) for account in accounts)
    yield f"loopaware-pool: {count or 'no'} pool{'s' * (count != 1)} of ours {'was' if count == 1 else 'were'} made"
    for account in accounts:
        if account is not accounts[0]:
            yield f"  in the child process {account['process']}:"
        for pool in account["pools"]:
            yield from _lines_of(pool)
        if account["is_audited"]:
            yield from _lines_of_audit(account)


def _lines_of(pool: dict[str, Any]) -> Iterator[str]:
    shown = {name: in_one_line(value) if isinstance(value, str) else value for name, value in pool.items()}
    used = ["{acquired:,} acquired"]
    used += ["{waited:,} of them after waiting, for {waited_seconds:g} s in all"] * bool(pool["waited"])
    used += ["{timed_out:,} timed out"] * bool(pool["timed_out"])
    used += ["connections: {opened:,} opened, at most {max_size:,} at once"]
    used += ["{connect_failures:,} could not be opened"] * bool(pool["connect_failures"])
    yield "  {name} ({kind}), made at {made_at}".format(**shown)
    yield "    " + "; ".join([*used, "{state} at the end"]).format(**shown)


def _lines_of_audit(account: dict[str, Any]) -> Iterator[str]:
    leaked, stale = account["leaked"], account["stale_registrations"]
    yield f"  left open since the first pool was made: {len(leaked)}"
    for each in leaked[:_SHOWN]:
        yield f"    {in_one_line(str(OpenFd(**each)))}"
    if len(leaked) > _SHOWN:
        yield f"    and {len(leaked) - _SHOWN} more, which --json lists"
    yield f"  registrations left with a loop: {len(stale)}"
    for each in stale:
        yield f"    {in_one_line(str(Registration(**each)))}"
    for sentence in account["unseen"]:
        yield f"  not seen here: {sentence}"
