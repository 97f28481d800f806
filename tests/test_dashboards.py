"""The dashboard and the alert rules of docs/dashboards: a real Prometheus has data for each query of theirs."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import os
import re
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, start_http_server

from debian import environment_for
from loopaware_pool.asyncpg import create_pool
from loopaware_pool.errors import PoolTimeout, TooManyWaiting
from loopaware_pool.metrics import METRICS
from loopaware_pool.metrics.prometheus import PREFIX, register
from prometheus_server import find_promtool, prometheus
from running import NOWHERE, LoopThread, eventually, eventually_async

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "dashboards"
RULES = FOLDER / "alerts.yml"
DASHBOARD = json.loads((FOLDER / "grafana.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
VARIABLES = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
ALERTS = re.findall(r"alert: (\w+)", RULES.read_text())
# Longer than an alert's half second, shorter than any caller's patience.
SLOW_SECONDS = 0.6
GRAFANA_COLUMNS = 24


# ---- a program to which everything happens that a dashboard shows ----


class Troubled:
    """
    Pools in trouble, in a loop of their own: one whose server is there, and one whose is not.

    Attributes:
        registry: What is scraped.
    """

    def __init__(self, dsn):
        self.registry = CollectorRegistry()
        self.is_reset_broken = False
        options = {"max_size": 2, "max_waiting": 1, "leak_threshold": 0.05, "fd_check": 0.05, "reset": self.reset}
        self.orders = create_pool(dsn, name="orders", min_size=1, acquire_timeout=30, **options)
        self.unreachable = create_pool(NOWHERE, name="unreachable", min_size=0)
        register(self.orders, self.registry)
        register(self.unreachable, self.registry)
        self.leases = []
        self.waiter = None
        self.socket = None

    async def reset(self, connection):
        if self.is_reset_broken:
            raise ValueError("by the program")

    async def open(self):
        await self.orders
        await self.unreachable

    async def get_into_trouble(self):
        """Once a first scrape has seen that nothing has happened: only what grows after it is an increase."""
        await self.wait_and_leave()
        await self.drop_a_lease()
        await self.fail_a_reset()
        await self.leak_an_fd()
        with suppress(PoolTimeout):
            await self.unreachable.acquire(timeout=0.05)
        self.leases = [await self.orders.acquire() for _ in range(2)]
        self.waiter = asyncio.create_task(self.orders.fetchval("SELECT 1"))

    async def wait_and_leave(self):
        first, second = [await self.orders.acquire() for _ in range(2)]
        with suppress(PoolTimeout):
            await self.orders.acquire(timeout=0.01)
        waiter = asyncio.create_task(self.orders.fetchval("SELECT 1"))
        await eventually_async(lambda: self.orders.stats().waiting, "a waiting caller")
        with suppress(TooManyWaiting):
            await self.orders.acquire()
        await asyncio.sleep(SLOW_SECONDS)
        await self.orders.release(first)
        await self.orders.release(second)
        await waiter

    async def drop_a_lease(self):
        held, dropped = [await self.orders.acquire() for _ in range(2)]
        del dropped
        await self.orders.fetchval("SELECT 1")  # it needs the dropped one's place
        await self.orders.release(held)

    async def fail_a_reset(self):
        self.is_reset_broken = True
        with suppress(ValueError):
            await self.orders.fetchval("SELECT 1")
        self.is_reset_broken = False

    async def leak_an_fd(self):
        """As a program does that takes the socket out of a connection: the connection's end leaves it open."""
        async with self.orders.acquire() as connection:
            self.socket = connection._con._transport.get_extra_info("socket")._sock.detach()
            connection.terminate()
        await eventually_async(lambda: self.orders.stats().totals.fds_leaked, "a leak that is found")

    async def end(self):
        for lease in self.leases:
            await self.orders.release(lease)
        if self.waiter is not None:
            await self.waiter
        await self.orders.close()
        await self.unreachable.close()
        if self.socket is not None:
            os.close(self.socket)


@pytest.fixture(scope="module")
def monitor(dsn, prometheus_program):
    """A Prometheus server that has scraped such a program, before its troubles and after."""
    troubled = Troubled(dsn)
    server, thread = start_http_server(0, "127.0.0.1", registry=troubled.registry)
    jobs = [{"job_name": "shop", "static_configs": [{"targets": [f"127.0.0.1:{server.server_port}"]}]}]
    try:
        with LoopThread() as loop, prometheus(prometheus_program, jobs, rule_files=[RULES]) as monitor:
            loop.run(troubled.open())
            try:
                monitor.until_values("loopaware_pool_max_size", 2, 10)
                loop.run(troubled.get_into_trouble())
                monitor.until_values('loopaware_pool_waiting_callers{pool="orders"}', 1)
                yield monitor
            finally:
                loop.run(troubled.end())
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# ---- the dashboard ----


def filled_in(query):
    """A query as Grafana sends it, with everything selected."""
    for name, value in {"pool": ".*", "instance": ".*", "__rate_interval": "5m"}.items():
        query = query.replace(f"${name}", value)
    assert "$" not in query
    return query


@pytest.mark.parametrize(
    "query", [target["expr"] for panel in PANELS for target in panel["targets"]], ids=lambda query: query[:80]
)
def test_each_query_of_the_dashboard_returns_data(monitor, query):
    """For the pool that has been used, and as numbers."""
    eventually(lambda: has_numbers(monitor, query), "data: there are none after a scrape that took too long")


def has_numbers(monitor, query):
    samples = monitor.query(filled_in(query))
    about = [sample.value for sample in samples if sample.labels.get("pool", "orders") == "orders"]
    return about and all(map(math.isfinite, about))


@pytest.mark.parametrize("name", ["pool", "instance"])
def test_the_variables_of_the_dashboard_have_values(monitor, name):
    """By the query that Grafana makes of `label_values`."""
    query = VARIABLES[name]["query"]["query"]
    series, label = re.fullmatch(r"label_values\((.*), (\w+)\)", query).groups()
    found = monitor.api(f"label/{label}/values", **{"match[]": filled_in(series)})
    assert label == name
    assert found == ["orders", "unreachable"] if name == "pool" else len(found) == 1


def test_the_panels_have_places_of_their_own():
    """And titles, units and numbers; each shows the chosen pools and instances of the chosen data source."""
    taken = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= GRAFANA_COLUMNS
        cells = set(
            itertools.product(range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"]))
        )
        assert not cells & taken
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for panel in PANELS:
        assert panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert 'pool=~"$pool",instance=~"$instance"' in target["expr"]
            assert target["legendFormat"]
    assert set(VARIABLES) == {"datasource", "pool", "instance"}


def test_every_metric_is_on_the_dashboard():
    """But for two that say what others on it say as well."""
    text = json.dumps(DASHBOARD)
    missing = {metric.name for metric in METRICS if f"{PREFIX}{metric.name.removesuffix('_total')}" not in text}
    assert missing == {"acquire_gave_up_seconds", "acquires_queued"}


# ---- the alerts ----


def alerts(monitor):
    """The pools that each alert is about, by the alert's name; those of Prometheus' own state, pending or firing."""
    (group,) = monitor.api("rules", type="alert")["groups"]
    assert {rule["health"] for rule in group["rules"]} == {"ok"}
    return {rule["name"]: {alert["labels"]["pool"] for alert in rule["alerts"]} for rule in group["rules"]}


def test_each_alert_is_about_what_has_happened(monitor):
    """And about no other pool."""
    expected = {
        name: {"orders"}
        for name in ALERTS
        if name not in ("LoopawarePoolCallersTurnedAway", "LoopawarePoolConnectFailures")
    }
    expected["LoopawarePoolCallersTurnedAway"] = {"orders", "unreachable"}
    expected["LoopawarePoolConnectFailures"] = {"unreachable"}
    eventually(lambda: alerts(monitor) == expected, f"{expected}")


@pytest.mark.parametrize(
    "what", [["check", "rules", RULES], ["test", "rules", Path(__file__).parent / "alerts_test.yml"]]
)
def test_promtool_finds_no_fault(prometheus_program, what):
    """Neither in the rules, nor in when they fire."""
    promtool = find_promtool()
    done = subprocess.run([promtool, *what], env=environment_for(promtool), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_page_explains_each_alert():
    """And no other."""
    page = (ROOT / "docs" / "dashboards.md").read_text()
    assert set(re.findall(r"`(LoopawarePool\w+)`", page)) == set(ALERTS)
