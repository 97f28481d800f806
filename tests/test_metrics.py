"""A pool in Prometheus' eyes, by its own client and its own parser."""

from __future__ import annotations

import asyncio
import gc
import itertools
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.openmetrics import exposition
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_strictly
from prometheus_client.parser import text_string_to_metric_families

import flavours
from loopaware_pool._core.config import PoolConfig
from loopaware_pool._core.pool import PoolCore
from loopaware_pool.metrics import METRICS, Spent, Times, Total, Totals
from loopaware_pool.metrics.prometheus import PREFIX, register
from loopaware_pool.stats import Counters, Histogram, PoolStats
from loopaware_pool.testing import FakeDriver
from running import LoopThread, end_abruptly, end_politely, eventually_async, make_pool

pytestmark = [pytest.mark.both_pythons, pytest.mark.usefixtures("zero_fd_delta")]
both = pytest.mark.parametrize("flavour", flavours.both.values(), ids=flavours.both)


@pytest.fixture
def registry():
    """A registry that refuses the same name twice, as prometheus_client's own does."""
    return CollectorRegistry(auto_describe=True)


class FakePool(PoolCore):
    """A pool without a server."""

    def __init__(self, name="fake"):
        super().__init__(PoolConfig(name=name, min_size=0, init_size=0, max_size=3), FakeDriver(), face=self)


def scrape(registry):
    """Every sample, by its name and its labels' values but for the pool's; more than one pool's are refused."""
    (samples,) = scrape_all(registry).values()
    return samples


def scrape_all(registry):
    """The samples of each pool, by its name."""
    pools = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            labels = dict(sample.labels)
            samples = pools.setdefault(labels.pop("pool"), {})
            key = (sample.name.removeprefix(PREFIX), *labels.values())
            assert key not in samples, "a series twice"
            samples[key] = sample.value
    return pools


@both
def test_a_pool_is_seen_as_it_is(flavour, dsn, run, registry):
    """Connections by state, callers, sizes, and what was counted, each under its name."""

    async def story():
        async with flavour(dsn, name="orders", min_size=0, max_size=2) as client:
            register(client.pool, registry)
            async with client.lend() as one, client.lend():
                await client.ask(one, "SELECT 1")
                with pytest.raises(TimeoutError):
                    await client.value("SELECT 1", timeout=0.01)
                waiter = asyncio.create_task(client.value("SELECT 1"))
                await eventually_async(lambda: client.pool.stats().waiting, "a waiting caller")
                seen = await asyncio.to_thread(scrape, registry)
                assert seen["connections", "lent"] == 2
                assert seen["connections", "idle"] == 0
                assert (seen["min_size",], seen["max_size",], seen["waiting_callers",]) == (0, 2, 1)
                assert (seen["acquires_total",], seen["acquires_timed_out_total",]) == (2, 1)
                assert seen["acquire_gave_up_seconds_count",] == 1
                assert seen["acquire_gave_up_seconds_sum",] > 0
                assert seen["connect_seconds_count",] == seen["connections_opened_total",] == 2
                assert seen["connect_seconds_sum",] > 0
                assert seen["connect_seconds_bucket", "30.0"] == seen["connect_seconds_bucket", "+Inf"] == 2
                assert seen["fd_leak_total",] == 0
                assert ("process_fds",) not in seen
            await waiter
            await client.pool.settled()
            seen = scrape(registry)
            assert (seen["acquires_total",], seen["connections", "idle"]) == (3, 2)
            # The two that found nothing idle waited for their connects, the third for one of these.
            assert seen["acquire_wait_seconds_count",] == seen["acquires_waited_total",] == 3
            assert seen["acquire_wait_seconds_bucket", "0.00025"] == 0
            assert seen["use_seconds_count",] == seen["use_seconds_bucket", "+Inf"] == 3
            assert seen["use_seconds_sum",] > 0
            await client.value("SELECT 1")
            seen = scrape(registry)
            # A caller that finds a connection idle has waited, too: not at all.
            assert seen["acquire_wait_seconds_bucket", "0.00025"] == 1
            assert seen["acquire_wait_seconds_count",] == 4

    run(story())


def test_every_metric_is_of_its_kind_and_written_down(registry):
    """Names as Prometheus has them; OpenMetrics' own strict parser takes what a scrape gives."""
    pool = FakePool()
    register(pool, registry)
    families = {family.name: family for family in parse_strictly(exposition.generate_latest(registry).decode())}
    pages = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text()
    assert list(families) == [PREFIX + metric.name for metric in METRICS]
    for metric in METRICS:
        family = families[PREFIX + metric.name]
        kinds = {Spent: "summary", Times: "histogram", Total: "counter", Totals: "counter"}
        kind = kinds.get(type(metric), "gauge")
        assert family.type == kind
        assert family.documentation == metric.help
        assert family.unit == ("seconds" if metric.name.endswith("_seconds") else "")
        assert f"`{PREFIX}{metric.name}{'_total' if kind == 'counter' else ''}`" in pages


def test_there_is_a_metric_for_every_counter():
    """What the pool counts can be seen: each counter, made to stand out, shows in some metric."""
    plain = PoolStats("x", 0, 1, (), Counters())
    unseen = []
    for name in Counters.__slots__:
        more = {Histogram: Histogram([1] * 17), dict: {"idle": 1}}.get(type(getattr(Counters(), name)), 1)
        raised = PoolStats("x", 0, 1, (), Counters(**{name: more}))
        if all(metric.read(raised) == metric.read(plain) for metric in METRICS):
            unseen.append(name)
    assert unseen == ["closed"]  # the sum of those by reason


def test_closes_and_resets_are_told_apart(dsn, run, registry):
    """By reason, and by what was sent when."""

    async def story():
        async with make_pool(dsn, min_size=0, max_size=1) as pool:
            register(pool, registry)
            assert await pool.fetchval("SELECT 1") == 1
            await pool.execute("SET application_name = 'x'")
            await pool.expire_connections()
            await pool.fetchval("SELECT 1")
            await pool.settled()
            return scrape(registry)

    seen = run(story())
    assert seen["connections_closed_total", "expired"] == 1
    assert seen["resets_total", "pipelined"] + seen["resets_total", "confirmed"] == 3
    assert seen["resets_total", "confirmed"] >= 1
    assert seen["resets_total", "awaited"] == 0
    assert seen["permits_moved_total",] == 0


def test_several_pools_are_told_apart_by_their_names(registry):
    """Each has all the series."""
    pools = [FakePool("one"), FakePool("two")]
    for pool in pools:
        register(pool, registry)
    seen = scrape_all(registry)
    assert set(seen) == {"one", "two"}
    assert seen["one"].keys() == seen["two"].keys()


def test_a_pool_registered_twice_is_seen_once(registry):
    """Whoever registers it, and however often."""
    pool = FakePool()
    register(pool, registry)
    register(pool, registry)
    assert set(scrape_all(registry)) == {"fake"}


def test_a_second_pool_of_a_name_is_refused_while_the_first_lives(registry):
    """Their series would be one; the error says what to do."""
    first, second = FakePool("orders"), FakePool("orders")
    register(first, registry)
    with pytest.raises(ValueError, match="name='orders': another pool of that name is registered; give each pool"):
        register(second, registry)
    first.terminate()
    register(second, registry)
    assert set(scrape_all(registry)) == {"orders"}


@pytest.mark.parametrize("wrong", [None, "orders", object(), PoolStats])
def test_what_is_no_pool_of_ours_is_refused(wrong, registry):
    """Nothing is registered then."""
    with pytest.raises(TypeError, match=r"pool=.*: expected a pool of loopaware_pool"):
        register(wrong, registry)
    assert generate_latest(registry) == b""


def test_a_registry_with_a_metric_of_that_name_refuses(registry):
    """As for any other metric that is there twice."""
    Counter(f"{PREFIX}acquires", "mine", registry=registry)
    with pytest.raises(ValueError, match="Duplicated"):
        register(FakePool(), registry)


@both
def test_a_closed_pool_is_seen_no_more(flavour, dsn, run, registry):
    """Not even its name."""

    async def story():
        async with flavour(dsn) as client:
            register(client.pool, registry)
            await client.value("SELECT 1")
            assert len(scrape_all(registry)) == 1
        assert generate_latest(registry) == b""

    run(story())


def test_a_pool_that_is_dropped_is_seen_no_more(registry):
    """Nothing here keeps it alive."""
    pool = FakePool()
    register(pool, registry)
    del pool
    gc.collect()
    assert generate_latest(registry) == b""


@pytest.mark.parametrize("end", [end_politely, end_abruptly])
def test_counters_do_not_fall_when_loops_end(end, dsn, loop_factory, registry):
    """What happened on one loop after the other adds up; what they held is gone."""
    pool = make_pool(dsn, min_size=0, max_size=2)
    register(pool, registry)

    async def use():
        async with pool:
            pass

    async def ask():
        await pool
        assert await pool.fetchval("SELECT 1") == 1

    for turn in range(1, 4):
        end(loop_factory, ask())
        seen = scrape(registry)
        assert seen["acquires_total",] == seen["connections_opened_total",] == turn
        assert sum(count for key, count in seen.items() if key[0] == "connections_closed_total") == turn
        assert (seen["loops",], seen["connections", "idle"]) == (0, 0)
    end_politely(loop_factory, use())


def test_counters_do_not_fall_while_a_loop_takes_its_leave(dsn, run, registry):
    """A lease holds its loop's end up for a moment: meanwhile the loop is counted neither twice nor not at all."""
    pool = make_pool(dsn, min_size=0, max_size=2)
    register(pool, registry)
    totals = []

    async def hold():
        await pool
        connection = await pool.acquire()
        totals.append(scrape(registry)["acquires_total",])
        loop = asyncio.get_running_loop()
        loop.call_later(0.02, lambda: totals.append(scrape(registry)["acquires_total",]))
        return connection

    connection = run(hold())
    totals.append(scrape(registry)["acquires_total",])
    assert totals == [1, 1, 1]
    del connection
    pool.terminate()


def test_a_scrape_from_another_thread_sees_loops_at_work(dsn, loop_factory, registry):
    """None of them fails, no counter falls, and in the end every acquire was counted."""
    pool = make_pool(dsn, min_size=0, max_size=4)
    register(pool, registry)
    scrapes, over = [], threading.Event()

    def keep_scraping():
        while not over.is_set():
            scrapes.append(scrape(registry))
            pool.fd_report()

    async def work():
        async def ask():
            for _ in range(20):
                assert await pool.fetchval("SELECT 1") == 1

        await asyncio.gather(*(ask() for _ in range(5)))

    async def begin():
        await pool

    scraper = threading.Thread(target=keep_scraping)
    with LoopThread(loop_factory) as one, LoopThread(loop_factory) as other:
        one.run(begin())
        scraper.start()
        try:
            for future in (one.start(work()), other.start(work())):
                future.result(20)
        finally:
            over.set()
            scraper.join()
        scrapes.append(scrape(registry))
        one.run(pool.close())
    for before, after in itertools.pairwise(scrapes):
        assert all(
            after[key] >= value for key, value in before.items() if key[0].endswith(("_total", "_count", "_sum"))
        )
    assert scrapes[-1]["acquires_total",] == 200


def test_leaks_and_the_process_are_seen_with_fd_check(dsn, run, registry):
    """The number of all open fds, and the counter of what leaked."""

    async def story():
        async with make_pool(dsn, fd_check=0.01) as pool:
            register(pool, registry)
            await pool.fetchval("SELECT 1")
            pool._core.runner().shard.counters.fds_leaked += 2
            seen = scrape(registry)
            assert seen["process_fds",] > 3
            assert seen["fd_leak_total",] == 2

    run(story())


def test_without_the_client_the_error_names_the_extra():
    """Nothing but the exporter needs it."""
    code = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        "import loopaware_pool.metrics\n"
        "try: import loopaware_pool.metrics.prometheus\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "pip install 'loopaware-pool[prometheus]'" in done.stdout
