"""A pool in OpenTelemetry's eyes: by its own SDK, and its own names of the semantic conventions."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys

import pytest
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics import Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    InMemoryMetricReader,
    MetricExporter,
    MetricExportResult,
    PeriodicExportingMetricReader,
)
from opentelemetry.semconv._incubating.attributes import db_attributes
from opentelemetry.semconv._incubating.metrics import db_metrics

import flavours
from loopaware_pool._core.config import PoolConfig
from loopaware_pool._core.pool import PoolCore
from loopaware_pool.metrics import METRICS
from loopaware_pool.metrics.otel import POOL_NAME, PREFIX, STATE, instrument
from loopaware_pool.stats import BUCKETS_SECONDS
from loopaware_pool.testing import FakeDriver
from running import end_abruptly, end_politely, eventually_async, make_pool

pytestmark = [pytest.mark.both_pythons, pytest.mark.usefixtures("zero_fd_delta")]
both = pytest.mark.parametrize("flavour", flavours.both.values(), ids=flavours.both)
CONVENTIONAL = "db.client.connection."


class FakePool(PoolCore):
    """A pool without a server."""

    def __init__(self, name="fake"):
        super().__init__(PoolConfig(name=name, min_size=0, init_size=0, max_size=3), FakeDriver(), face=self)


class Exporter(MetricExporter):
    """Keeps what it is given, in the form in which a collector would get it."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def export(self, metrics_data, timeout_millis=10_000, **kwargs):
        self.batches.append(encode_metrics(metrics_data))
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis=10_000):
        return True

    def shutdown(self, timeout_millis=30_000, **kwargs):
        pass


@pytest.fixture
def metered():
    """Make providers of readers; each is shut down at the end."""
    made = []

    def make(*readers):
        made.append(MeterProvider(metric_readers=readers, shutdown_on_exit=False))
        return made[-1]

    yield make
    for provider in made:
        provider.shutdown()


@pytest.fixture
def reader():
    return InMemoryMetricReader()


def collect(reader):
    """The metrics of one collection, by name."""
    data = reader.get_metrics_data()
    if data is None:
        return {}
    (resource,) = data.resource_metrics
    (scope,) = resource.scope_metrics
    assert scope.scope.name == "loopaware_pool"
    metrics = {metric.name: metric for metric in scope.metrics}
    assert len(metrics) == len(scope.metrics), "a metric twice"
    return metrics


def values(metrics, name):
    """The values of a metric, by the attributes other than the pool's name; more than one pool's are refused."""
    points = metrics[name].data.data_points
    assert len({point.attributes[POOL_NAME] for point in points}) <= 1
    found = {}
    for point in points:
        others = tuple(value for key, value in point.attributes.items() if key != POOL_NAME)
        found[others] = getattr(point, "value", point)
    return found


def only(metrics, name):
    (value,) = values(metrics, CONVENTIONAL + name).values()
    return value


@both
def test_a_pool_is_seen_as_it_is(flavour, dsn, run, metered, reader):
    """Connections by state, sizes, callers that wait, timeouts, and how long everything took."""
    provider = metered(reader)

    async def story():
        async with flavour(dsn, name="orders", min_size=0, max_size=2) as client:
            instrument(client.pool, provider)
            async with client.lend() as one, client.lend():
                await client.ask(one, "SELECT 1")
                with pytest.raises(TimeoutError):
                    await client.value("SELECT 1", timeout=0.01)
                waiter = asyncio.create_task(client.value("SELECT 1"))
                await eventually_async(lambda: client.pool.stats().waiting, "a waiting caller")
                seen = await asyncio.to_thread(collect, reader)
                assert values(seen, CONVENTIONAL + "count") == {("idle",): 0, ("used",): 2}
                assert [only(seen, name) for name in ("idle.min", "idle.max", "max")] == [0, 2, 2]
                assert (only(seen, "pending_requests"), only(seen, "timeouts")) == (1, 1)
                assert (only(seen, "wait_time").count, only(seen, "use_time").count) == (2, 0)
                created = only(seen, "create_time")
                assert created.count == sum(created.bucket_counts) == 2
                assert created.explicit_bounds == BUCKETS_SECONDS
                assert created.sum == client.pool.stats().totals.connect_seconds > 0
                assert values(seen, PREFIX + "acquires") == {(): 2}
                assert PREFIX + "process_fds" not in seen
            await waiter
            await client.pool.settled()
            seen = collect(reader)
            assert values(seen, CONVENTIONAL + "count") == {("idle",): 2, ("used",): 0}
            assert (only(seen, "wait_time").count, only(seen, "use_time").count) == (3, 3)
            assert only(seen, "use_time").attributes == {"db.client.connection.pool.name": "orders"}

    run(story())


def test_names_units_and_kinds_are_the_conventions_own(metered, reader):
    """All that they have for connections, as OpenTelemetry's package of the conventions has it, and no other."""
    meter = metered(reference := InMemoryMetricReader()).get_meter("loopaware_pool")
    names = {value for key, value in vars(db_metrics).items() if key.startswith("DB_CLIENT_CONNECTION_")}
    for name in names:
        instrument_of = getattr(db_metrics, f"create_{name.replace('.', '_')}")(meter)
        getattr(instrument_of, "add", getattr(instrument_of, "record", None))(1)
    pool = FakePool()
    instrument(pool, metered(reader))
    expected, seen = collect(reference), collect(reader)
    assert {name for name in seen if name.startswith("db.")} == names == set(expected)
    for name in names:
        assert seen[name].unit == expected[name].unit
        assert type(seen[name].data) is type(expected[name].data)
        assert seen[name].data.aggregation_temporality == expected[name].data.aggregation_temporality
        assert getattr(seen[name].data, "is_monotonic", None) == getattr(expected[name].data, "is_monotonic", None)
    assert (POOL_NAME, STATE) == (
        db_attributes.DB_CLIENT_CONNECTION_POOL_NAME,
        db_attributes.DB_CLIENT_CONNECTION_STATE,
    )


def test_what_the_conventions_lack_is_there_under_our_prefix(metered, reader):
    """Each metric of the table is seen, under the one name or under the other."""
    conventional = {
        *("connect_seconds", "acquire_wait_seconds", "use_seconds"),
        *("min_size", "max_size", "waiting_callers", "acquires_timed_out"),
    }
    unknown = {"process_fds", "connections_closed"}  # until fd_check has looked; until one is closed
    pool = FakePool()
    instrument(pool, metered(reader))
    ours = {name.removeprefix(PREFIX) for name in collect(reader) if name.startswith(PREFIX)}
    assert ours == {metric.name for metric in METRICS} - conventional - unknown


def test_closes_are_told_apart_by_reason(dsn, run, metered, reader):
    """As events tell them."""

    async def story():
        async with make_pool(dsn, min_size=0, max_size=1) as pool:
            instrument(pool, metered(reader))
            await pool.fetchval("SELECT 1")
            await pool.expire_connections()
            await pool.fetchval("SELECT 1")
            await pool.settled()
            seen = collect(reader)
            assert values(seen, PREFIX + "connections_closed") == {("expired",): 1}
            (point,) = seen[PREFIX + "connections_closed"].data.data_points
            assert point.attributes["loopaware_pool.reason"] == "expired"

    run(story())


@pytest.mark.parametrize("end", [end_politely, end_abruptly])
def test_histograms_do_not_fall_when_loops_end(end, dsn, loop_factory, metered, reader):
    """What happened on one loop after the other adds up."""
    pool = make_pool(dsn, min_size=0, max_size=2)
    instrument(pool, metered(reader))

    async def use():
        await pool
        await pool.fetchval("SELECT 1")

    for times in (1, 2, 3):
        end(loop_factory, use())
        assert [only(collect(reader), name).count for name in ("wait_time", "use_time", "create_time")] == [times] * 3
    pool.terminate()


def test_a_reader_that_wants_differences_gets_them(dsn, run, metered):
    """Each point counts from where the last one ended; other readers are not disturbed."""
    delta = InMemoryMetricReader(preferred_temporality={Histogram: AggregationTemporality.DELTA})
    cumulative = InMemoryMetricReader()
    provider = metered(delta, cumulative)

    async def story():
        async with make_pool(dsn, min_size=1, max_size=1) as pool:
            instrument(pool, provider)
            points = []
            for uses in (2, 0, 3):
                for _ in range(uses):
                    await pool.fetchval("SELECT 1")
                points.append(only(collect(delta), "use_time"))
            assert [point.count for point in points] == [2, 0, 3]
            assert points[1].sum == 0
            assert sum(point.sum for point in points) == pytest.approx(pool.stats().totals.used_seconds)
            ends = [point.time_unix_nano for point in points]
            assert [point.start_time_unix_nano for point in points][1:] == ends[:2]
            assert only(collect(cumulative), "use_time").count == 5

    run(story())


def test_a_pool_that_takes_the_name_of_a_closed_one_begins_anew(metered):
    """Its points begin when it was instrumented, and nothing is subtracted."""
    delta = InMemoryMetricReader(preferred_temporality={Histogram: AggregationTemporality.DELTA})
    provider = metered(delta)
    first, second = FakePool("orders"), FakePool("orders")
    instrument(first, provider)
    before = only(collect(delta), "use_time")
    with pytest.raises(ValueError, match="name='orders': another pool of that name is registered"):
        instrument(second, provider)
    first.terminate()
    instrument(second, provider)
    instrument(second, provider)
    assert only(collect(delta), "use_time").start_time_unix_nano >= before.time_unix_nano


def test_closed_and_dropped_pools_are_seen_no_more(metered, reader):
    """Nothing here keeps one alive."""
    closed, dropped, kept = FakePool("closed"), FakePool("dropped"), FakePool("kept")
    provider = metered(reader)
    for pool in (closed, dropped, kept):
        instrument(pool, provider)
    assert len(collect(reader)[CONVENTIONAL + "use_time"].data.data_points) == 3
    closed.terminate()
    del pool, dropped
    gc.collect()
    (point,) = collect(reader)[CONVENTIONAL + "use_time"].data.data_points
    assert point.attributes[POOL_NAME] == "kept"


def test_a_reader_that_is_added_later_gets_everything(metered, reader):
    """At its first collection already."""
    provider = metered(InMemoryMetricReader())
    pool = FakePool()
    instrument(pool, provider)
    provider.add_metric_reader(reader)
    assert CONVENTIONAL + "use_time" in collect(reader)
    provider.remove_metric_reader(reader)


def test_what_a_collector_gets(dsn, run, metered):
    """By the exporter's own encoder, from the reader that exports on a timer."""
    exporter = Exporter()
    provider = metered(PeriodicExportingMetricReader(exporter, export_interval_millis=float("inf")))

    async def story():
        async with make_pool(dsn, name="orders", min_size=1, max_size=1) as pool:
            instrument(pool, provider)
            await pool.fetchval("SELECT 1")
            await asyncio.to_thread(provider.force_flush)

    run(story())
    (scope,) = exporter.batches[0].resource_metrics[0].scope_metrics
    (used,) = [metric for metric in scope.metrics if metric.name == CONVENTIONAL + "use_time"]
    (point,) = used.histogram.data_points
    assert used.unit == "s"
    assert (point.count, sum(point.bucket_counts)) == (1, 1)
    assert tuple(point.explicit_bounds) == BUCKETS_SECONDS
    assert point.attributes[0].value.string_value == "orders"


def test_without_the_sdk_nothing_fails():
    """A program that exports nothing loses nothing."""
    instrument(FakePool(), NoOpMeterProvider())


@pytest.mark.parametrize("wrong", [None, "orders", object()])
def test_what_is_no_pool_of_ours_is_refused(wrong, metered, reader):
    """Nothing is created then."""
    with pytest.raises(TypeError, match=r"pool=.*: expected a pool of loopaware_pool"):
        instrument(wrong, metered(reader))
    assert collect(reader) == {}


def in_a_process(program):
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)


def test_the_global_provider_may_be_set_before_or_after():
    """And be named, too: each metric is there once."""
    program = """
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from test_otel import FakePool, collect, instrument
pools = [FakePool(name) for name in ("before", "after", "named")]
instrument(pools[0])
reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider(metric_readers=[reader]))
instrument(pools[1])
instrument(pools[2], metrics.get_meter_provider())
for metric in collect(reader).values():
    print(len({point.attributes["db.client.connection.pool.name"] for point in metric.data.data_points}))
"""
    done = in_a_process(f"import sys; sys.path[:0] = {sys.path!r}\n{program}")
    assert (done.returncode, done.stderr) == (0, "")
    assert set(done.stdout.split()) == {"3"}


def test_without_opentelemetry_the_error_says_what_to_install():
    """When the module is imported, not later."""
    done = in_a_process(
        "import sys; sys.modules['opentelemetry'] = None\n"
        "try: import loopaware_pool.metrics.otel\n"
        "except ImportError as error: print(error)"
    )
    assert "pip install 'loopaware-pool[otel]'" in done.stdout
