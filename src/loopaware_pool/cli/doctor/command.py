"""
`loopaware-pool doctor [DSN]`: does what is here suit the pools that are planned?

It looks at versions, limits, the way to the server and its encryption, and changes nothing. Exit code 0: nothing above
a note; 1: a warning or a problem; 2: it could not look.

With `--plan` it only computes what the pools of all processes come to, and whether one server can hold them.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Final

from loopaware_pool.cli.command import FINE, FOUND, Unusable, run_command
from loopaware_pool.cli.doctor.facts import Facts, Plan, Work
from loopaware_pool.cli.doctor.findings import Severity
from loopaware_pool.cli.doctor.host import look_at_host
from loopaware_pool.cli.doctor.host_checks import check_host
from loopaware_pool.cli.doctor.numbers import count, positive
from loopaware_pool.cli.doctor.output import as_json, show
from loopaware_pool.cli.doctor.scale_out_command import add_plan_arguments, refuse_plan_arguments, run_plan
from loopaware_pool.cli.doctor.server import look_at_server
from loopaware_pool.cli.doctor.server_checks import check_server
from loopaware_pool.cli.doctor.size_checks import check_size
from loopaware_pool.cli.doctor.way_checks import check_way
from loopaware_pool.cli.target import CONNECT_ERRORS, explain, open_target

if TYPE_CHECKING:
    import argparse

    from loopaware_pool.cli.doctor.findings import Finding

__all__ = ["add_arguments", "diagnose", "main", "run"]

_DEFAULT_POOL_SIZE: Final = 10
_DEFAULT_PROCESSES: Final = 1


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return the exit code: 0, 1 if something is wrong, 2 if it could not look."""
    return run_command("doctor", lambda: (add_arguments, run), arguments)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to *parser*."""
    parser.add_argument(
        "dsn",
        metavar="DSN",
        nargs="?",
        help="postgresql://user:password@host:port/database; without it, an embedded server that ends with the command",
    )
    parser.add_argument(
        "--pool-size",
        metavar="N",
        help=f"max_size of the pool in each process (default: {_DEFAULT_POOL_SIZE}; with --plan and --rate, "
        "what the work needs)",
    )
    parser.add_argument(
        "--processes",
        default=str(_DEFAULT_PROCESSES),
        metavar="N",
        help=f"processes that have such a pool (default: {_DEFAULT_PROCESSES})",
    )
    parser.add_argument(
        "--rate", metavar="N", help="leases a second that all processes are to serve together; needs --hold"
    )
    parser.add_argument("--hold", metavar="SECONDS", help="how long a lease lasts on average, such as 0.02")
    parser.add_argument("--json", action="store_true", help="write an object instead of lines")
    add_plan_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Do what *options*, made by arguments of `add_arguments`, say; return the exit code."""
    try:
        if options.plan:
            return run_plan(options)
        refuse_plan_arguments(options)
        plan = Plan(
            _DEFAULT_POOL_SIZE if options.pool_size is None else count("--pool-size", options.pool_size),
            count("--processes", options.processes),
            _work(options.rate, options.hold),
        )
        with open_target(options.dsn) as target:
            facts = _look(target.dsn, plan)
    except ValueError as error:
        raise Unusable(str(error)) from None
    findings = diagnose(facts)
    if options.json:
        print(as_json(facts, findings))
    else:
        show(target.description, facts, findings)
    return FOUND if any(finding.severity > Severity.NOTE for finding in findings) else FINE


def diagnose(facts: Facts) -> list[Finding]:
    """Judge what was seen: one finding for each check, in the order of docs/doctor.md."""
    return [*check_host(facts), *check_size(facts.plan), *check_server(facts), *check_way(facts.way)]


def _look(dsn: str, plan: Plan) -> Facts:
    try:
        way, server = asyncio.run(look_at_server(dsn))
    except CONNECT_ERRORS as error:
        raise Unusable(explain(error, dsn)) from None
    return Facts(plan, look_at_host(), way, server)


def _work(rate: str | None, hold: str | None) -> Work | None:
    """
    Read what the pools are to do.

    Raises:
        ValueError: One of the two is missing, or is no number above 0.
    """
    if rate is None and hold is None:
        return None
    if rate is None or hold is None:
        raise ValueError("--rate and --hold go together: leases a second, and the seconds that one lasts")
    return Work(positive("--rate", rate), positive("--hold", hold))


if __name__ == "__main__":
    sys.exit(main())
