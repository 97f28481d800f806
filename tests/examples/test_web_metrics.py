"""Metrics of several workers on one port, as a real Prometheus sees them."""

from __future__ import annotations

import os
import re
import signal
import textwrap
from concurrent.futures import ThreadPoolExecutor

import pytest

from examples.program import free_port, get, run, started
from prometheus_server import prometheus

pytestmark = pytest.mark.examples

WORKERS, REQUESTS = 4, 200
SERVERS = {
    "uvicorn": ["uvicorn", "--port", "{port}"],
    "gunicorn": ["gunicorn", "--worker-class", "uvicorn.workers.UvicornWorker", "--bind", "127.0.0.1:{port}"],
}
# What prometheus_client's documentation has programs do that have several workers.
MULTIPROCESS = """
    import asyncio, os
    from prometheus_client import CollectorRegistry, Counter, generate_latest, multiprocess
    from loopaware_pool import create_pool
    from loopaware_pool.metrics.prometheus import register

    async def main():
        async with create_pool(os.environ["DATABASE_URL"]) as pool:
            register(pool)
            Counter("requests", "Requests served.").inc()
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)
            print(generate_latest(registry).decode())

    asyncio.run(main())
"""


@pytest.mark.parametrize("how", SERVERS)
def test_prometheus_has_the_series_of_every_worker(how, database_url, prometheus_program, tmp_path):
    """Their totals add up to the requests that were made; a worker that was killed leaves no dead target behind."""
    port = free_port()
    environment = {"DATABASE_URL": database_url, "METRICS_TARGETS": tmp_path, "METRICS_PORT": free_port()}
    command = ["-m", *(word.format(port=port) for word in SERVERS[how]), "--workers", WORKERS, "metrics_per_worker:app"]
    jobs = [{"job_name": "shop", "file_sd_configs": [{"files": [f"{tmp_path}/*.json"]}]}]
    with prometheus(prometheus_program, jobs) as monitor, started(*command, **environment) as program:
        program.wait_until_written("Application startup complete", WORKERS)
        with ThreadPoolExecutor(8) as clients:
            answers = clients.map(lambda number: get(port, f"/double/{number}").text, range(REQUESTS))
            assert list(answers) == [str(2 * number) for number in range(REQUESTS)]
        monitor.until_values('up{job="shop"}', *[1] * WORKERS)
        monitor.until_values('sum(loopaware_pool_acquires_total{pool="shop"})', REQUESTS)
        monitor.until_values('count(loopaware_pool_max_size{pool="shop"})', WORKERS)
        monitor.until_values("count(count by (instance) (loopaware_pool_acquires_total))", WORKERS)

        os.kill(int(re.findall(r"Started server process \[(\d+)\]", program.output())[0]), signal.SIGKILL)
        program.wait_until_written("Application startup complete", WORKERS + 1)
        assert len(list(tmp_path.iterdir())) == WORKERS
        monitor.until_values('up{job="shop"}', *[1] * WORKERS)

        program.ask_to_stop()
        assert program.ended() == 0
        assert list(tmp_path.iterdir()) == []


def test_multiprocess_mode_does_not_carry_a_pools_metrics(database_url, tmp_path):
    """It gathers what counters and gauges have written to files, and no collector writes any."""
    environment = {"DATABASE_URL": database_url, "PROMETHEUS_MULTIPROC_DIR": tmp_path}
    code, output = run("-c", textwrap.dedent(MULTIPROCESS), **environment)
    assert code == 0
    assert "requests_total 1.0" in output
    assert "loopaware_pool" not in output
