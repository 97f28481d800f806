"""`loopaware-pool doctor --plan`: read the plan, and the server's limits if they are not given, and show the sums."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Final

from loopaware_pool.cli.command import FINE, FOUND, Unusable, say
from loopaware_pool.cli.doctor.numbers import count, positive
from loopaware_pool.cli.doctor.scale_out import CONNECTION_MIB, Demand, Fleet, Limits, Verdict, judge, limits_of
from loopaware_pool.cli.doctor.server import look_at_server
from loopaware_pool.cli.doctor.sizing import busy_connections
from loopaware_pool.cli.output import in_one_line
from loopaware_pool.cli.target import CONNECT_ERRORS, explain, open_target

if TYPE_CHECKING:
    import argparse

    from loopaware_pool.cli.doctor.scale_out import Outcome, Row

__all__ = ["add_plan_arguments", "refuse_plan_arguments", "run_plan"]

_DEFAULT_POOL_SIZE: Final = 10
# What PostgreSQL has unless it is told otherwise: superuser_reserved_connections 3, reserved_connections 0.
_DEFAULT_RESERVED: Final = 3
_MOST_BUSY: Final = 1e6
# Name -> metavar and help. All need --plan.
_ARGUMENTS: Final = {
    "machines": ("N", "machines, with --processes on each (default: 1)"),
    "loops": ("N", "event loops in each process (default: 1)"),
    "pools": ("N", "pools in each process, of which each serves all loops (default: 1)"),
    "transaction": ("SECONDS", "the part of --hold in which a transaction is open (default: all of it)"),
    "cpu-per-lease": ("SECONDS", "processor time of the server that a lease costs; needs --rate"),
    "max-connections": ("N", "of the server; then no server is asked"),
    "reserved": ("N", f"of these, what is kept free for superusers (default: the server's, or {_DEFAULT_RESERVED})"),
    "others": ("N", "connections of other programs (default: those that are open now, or 0)"),
    "cpus": ("N", "processors of the server"),
    "memory": ("MIB", "memory of the server that connections may use"),
    "connection-memory": ("MIB", f"memory that one connection uses (default: {CONNECTION_MIB:g})"),
}
_COLOURS: Final = {
    Verdict.FITS: "green",
    Verdict.TOO_SMALL: "bold yellow",
    Verdict.TOO_LARGE: "bold yellow",
    Verdict.PROXY: "bold yellow",
    Verdict.BEYOND: "bold red",
}


def add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--plan`, and what only it has, to the command's *parser*."""
    group = parser.add_argument_group("the arithmetic of many processes")
    group.add_argument("--plan", action="store_true", help="only compute whether a server can hold all pools together")
    for name, (metavar, text) in _ARGUMENTS.items():
        group.add_argument(f"--{name}", metavar=metavar, help=text)


def refuse_plan_arguments(options: argparse.Namespace) -> None:
    """
    Refuse what has no meaning without `--plan`.

    Raises:
        ValueError: Such an argument was given.
    """
    for name in _ARGUMENTS:
        if _given(options, name) is not None:
            raise ValueError(f"--{name} needs --plan")


def run_plan(options: argparse.Namespace) -> int:
    """
    Show what the plan of *options* comes to, and return the exit code: 0 if it fits, 1 if not.

    Raises:
        ValueError: An argument makes no sense; the message names it.
        Unusable: The server could not be asked.
    """
    demand = _read_demand(options)
    fleet = _read_fleet(options, demand)
    limits, server = _read_limits(options)
    outcome = judge(fleet, limits, demand)
    if options.json:
        print(_as_json(server, fleet, limits, demand, outcome))
    else:
        _show(server, outcome)
    return FINE if outcome.verdict is Verdict.FITS else FOUND


# ---- reading ----


def _given(options: argparse.Namespace, name: str) -> str | None:
    text: str | None = getattr(options, name.replace("-", "_"))
    return text


def _count(options: argparse.Namespace, name: str, default: int, least: int = 1) -> int:
    text = _given(options, name)
    return default if text is None else count(f"--{name}", text, least)


def _positive(options: argparse.Namespace, name: str) -> float | None:
    text = _given(options, name)
    return None if text is None else positive(f"--{name}", text)


def _read_fleet(options: argparse.Namespace, demand: Demand | None) -> Fleet:
    default = _DEFAULT_POOL_SIZE if demand is None else None
    return Fleet(
        machines=_count(options, "machines", 1),
        processes=_count(options, "processes", 1),
        loops=_count(options, "loops", 1),
        pools=_count(options, "pools", 1),
        max_size=default if options.pool_size is None else count("--pool-size", options.pool_size),
    )


def _read_demand(options: argparse.Namespace) -> Demand | None:
    rate, hold = _positive(options, "rate"), _positive(options, "hold")
    transaction, cpu = _positive(options, "transaction"), _positive(options, "cpu-per-lease")
    if rate is None and hold is None:
        for name in ("transaction", "cpu-per-lease"):
            if _given(options, name) is not None:
                raise ValueError(f"--{name} needs --rate and --hold")
        return None
    if rate is None or hold is None:
        raise ValueError("--rate and --hold go together: leases a second, and the seconds that one lasts")
    if busy_connections(rate, hold) > _MOST_BUSY:
        raise ValueError(f"--rate {rate:g}: with --hold {hold:g}, more than {_MOST_BUSY:,.0f} connections are busy")
    if transaction is not None and transaction > hold:
        raise ValueError(f"--transaction {transaction:g}: expected a part of --hold {hold:g}")
    return Demand(rate=rate, hold_seconds=hold, transaction_seconds=transaction, cpu_seconds=cpu)


def _read_limits(options: argparse.Namespace) -> tuple[Limits, str]:
    """Return the limits, and where they are from: those of the command line replace those of a server."""
    if options.max_connections is None and not options.dsn:
        raise ValueError("--plan needs a DSN, to read the limits of its server, or --max-connections")
    if options.max_connections is not None:
        most = count("--max-connections", options.max_connections)
        limits, server = Limits(max_connections=most, reserved=_DEFAULT_RESERVED, others=0), "as given"
    else:
        limits, server = _ask_server(options.dsn)
    limits = replace(
        limits,
        reserved=_count(options, "reserved", limits.reserved, 0),
        others=_count(options, "others", limits.others, 0),
        processors=None if options.cpus is None else count("--cpus", options.cpus),
        memory_mib=_positive(options, "memory"),
        connection_mib=_positive(options, "connection-memory") or CONNECTION_MIB,
    )
    _refuse_without_room(limits)
    return limits, server


def _ask_server(dsn: str) -> tuple[Limits, str]:
    with open_target(dsn) as target:
        try:
            way, server = asyncio.run(look_at_server(target.dsn))
        except CONNECT_ERRORS as error:
            raise Unusable(explain(error, target.dsn)) from None
    proxied = "" if way.pooling is None else ", behind a proxy that pools: these are not the proxy's limits"
    return limits_of(server), f"{target.description}{proxied}"


def _refuse_without_room(limits: Limits) -> None:
    if limits.max_connections <= limits.reserved + limits.others:
        raise ValueError(
            f"{limits.name} {limits.max_connections}: nothing is left of it beside "
            f"--reserved {limits.reserved} and --others {limits.others}"
        )
    if limits.memory_mib is not None and limits.memory_mib < limits.connection_mib:
        raise ValueError(f"--memory {limits.memory_mib:g}: less than one connection's {limits.connection_mib:g} MiB")


# ---- showing ----


def _show(server: str, outcome: Outcome) -> None:
    widest = max(len(row.label) for row in outcome.rows)
    say(in_one_line(f"{'server':<{widest}}  {server}"), style="bold")
    print()
    for row in outcome.rows:
        print(in_one_line(f"{row.label:<{widest}}  {_value(row):>10}  {row.how}"))
    print()
    says = f"{outcome.verdict.value}: {outcome.says}"
    say(in_one_line(f"{'verdict':<{widest}}  {says}"), style=_COLOURS[outcome.verdict])


def _value(row: Row) -> str:
    if row.name.startswith("waiting"):
        return f"{row.value:.1%}"
    return f"{row.value:,}" if isinstance(row.value, int) else f"{row.value:,.1f}"


def _as_json(server: str, fleet: Fleet, limits: Limits, demand: Demand | None, outcome: Outcome) -> str:
    return json.dumps(
        {
            "server": server,
            "fleet": asdict(fleet),
            "limits": asdict(limits),
            "demand": None if demand is None else asdict(demand),
            "figures": {row.name: row.value for row in outcome.rows},
            "verdict": outcome.verdict.value,
            "says": outcome.says,
            "proxy_pool": outcome.proxy_pool,
            "servers": outcome.servers,
        },
        indent=2,
    )
