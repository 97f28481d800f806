"""`doctor` names what is between: pgpool-II, a TCP proxy such as HAProxy, nothing."""

from __future__ import annotations

import asyncio
import json

import pytest

from haproxy import haproxy
from loopaware_pool.audit import assert_zero_fd_delta
from loopaware_pool.cli.doctor import command as doctor
from loopaware_pool.cli.doctor.facts import Pooling, Relay
from loopaware_pool.cli.doctor.server import look_at_server
from loopaware_pool.cli.doctor.way_checks import check_way
from pgbouncer import pgbouncer
from pgpool import pgpool

pytestmark = [pytest.mark.both_pythons, pytest.mark.both_drivers]


def look(dsn):
    async def main():
        async with assert_zero_fd_delta():
            return await look_at_server(dsn)

    return asyncio.run(main())[0]


def diagnose(dsn, capsys):
    code = doctor.main([dsn, "--json", "--pool-size", "1"])
    return {each["code"]: each for each in json.loads(capsys.readouterr().out)["findings"]}, code


def test_without_a_proxy_none_is_named(dsn, server, capsys):
    """By TCP and by the Unix socket; the server sees the address that we have."""
    for way_there in (dsn, getattr(server, "unix_dsn", dsn)):
        way = look(way_there)
        assert (way.relay, way.seen_address) == (None, None)
        assert way.our_address is not None
    found, _ = diagnose(dsn, capsys)
    assert "relay" not in found


def test_a_haproxy_is_seen_by_the_address_that_the_server_sees(dsn, haproxy_program, capsys):
    """It is invisible but for that, and a note: what it needs is a look at its timeouts."""
    with haproxy(haproxy_program, dsn) as between:
        way = look(between.dsn)
        found, code = diagnose(between.dsn, capsys)
    assert (way.relay, way.pooling) == (Relay.UNKNOWN, None)
    assert (found["relay"]["severity"], code) == ("note", 0)
    assert "HAProxy" in found["relay"]["title"]
    assert "timeout client" in found["relay"]["remedy"]


@pytest.mark.parametrize("caches", ["on", "off"])
def test_a_pgpool_is_named(dsn, pgpool_program, capsys, caches):
    """Time and again: it announces the process that answers, and answers a question that no server knows."""
    with pgpool(pgpool_program, dsn, connection_cache=caches) as through:
        for _ in range(3):
            way = look(through)
            assert (way.relay, way.pooling) == (Relay.PGPOOL, None)
        found, code = diagnose(through, capsys)
    assert (found["relay"]["severity"], code) == ("note", 0)
    assert "pgpool-II" in found["relay"]["title"]
    assert "num_init_children" in found["relay"]["remedy"]


@pytest.mark.parametrize("pooling", [Pooling.TRANSACTION, Pooling.SESSION, Pooling.STATEMENT])
def test_a_pgbouncer_is_no_pgpool(dsn, pgbouncer_program, pooling):
    """And what is to be done about it is said by the finding `proxy`."""
    with pgbouncer(pgbouncer_program, dsn, pool_mode=pooling.value) as through:
        way = look(through)
    assert (way.relay, way.pooling) == (Relay.UNKNOWN, pooling)
    proxy, relay, _ = check_way(way)
    assert (relay.severity.name, relay.remedy) == ("OK", "")
    if pooling is Pooling.SESSION:
        assert 'session_reset="pipelined"' in proxy.remedy
