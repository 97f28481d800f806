"""Metrics of several workers on one port, as a real Prometheus sees them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import textwrap
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from between import own_port
from examples.program import EXAMPLES, get, run, started, until
from prometheus_server import find_promtool, prometheus

pytestmark = pytest.mark.examples

WORKERS, REQUESTS = 4, 200
SERVERS = {
    "uvicorn": ["uvicorn", "--port", "{port}"],
    "gunicorn": ["gunicorn", "--worker-class", "uvicorn.workers.UvicornWorker", "--bind", "127.0.0.1:{port}"],
}
PAGE = (EXAMPLES.parent / "recipes" / "metrics-of-several-workers.md").read_text()
QUERIES = re.findall(r"^sum .*$", PAGE, re.MULTILINE)
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


@contextmanager
def serving(how, database_url, targets):
    """The program, with its workers; and its port."""
    with own_port() as port, own_port() as first_port:
        environment = {"DATABASE_URL": database_url, "METRICS_TARGETS": targets, "METRICS_PORT": first_port}
        command = [word.format(port=port) for word in SERVERS[how]]
        with started("-m", *command, "--workers", WORKERS, "metrics_per_worker:app", **environment) as program:
            yield program, port


@pytest.mark.parametrize("how", SERVERS)
def test_prometheus_has_the_series_of_every_worker(how, database_url, prometheus_program, tmp_path):
    """Their totals add up to the requests that were made; a worker that was killed leaves no dead target behind."""
    jobs = [{"job_name": "shop", "file_sd_configs": [{"files": [f"{tmp_path}/*.json"]}]}]
    with prometheus(prometheus_program, jobs) as monitor, serving(how, database_url, tmp_path) as (program, port):
        program.wait_until_written("Application startup complete", WORKERS)
        with ThreadPoolExecutor(8) as clients:
            answers = clients.map(lambda number: get(port, f"/double/{number}").text, range(REQUESTS))
            assert list(answers) == [str(2 * number) for number in range(REQUESTS)]
        monitor.until_values('up{job="shop"}', *[1] * WORKERS)
        monitor.until_values('sum(loopaware_pool_acquires_total{pool="shop"})', REQUESTS)
        monitor.until_values('count(loopaware_pool_max_size{pool="shop"})', WORKERS)
        monitor.until_values("count(count by (instance) (loopaware_pool_acquires_total))", WORKERS)
        assert len(QUERIES) == 3
        for query in QUERIES:
            until(lambda query=query: monitor.query(query), lambda query=query: f"no data: {query}")

        os.kill(int(re.findall(r"Started server process \[(\d+)\]", program.output())[0]), signal.SIGKILL)
        program.wait_until_written("Application startup complete", WORKERS + 1)
        assert len(list(tmp_path.iterdir())) == WORKERS
        monitor.until_values('up{job="shop"}', *[1] * WORKERS)

        if how == "gunicorn":  # the new workers start before the old ones end
            program.ask_to_stop(signal.SIGHUP)
            program.wait_until_written("Application startup complete", 2 * WORKERS + 1)
            program.wait_until_written("Finished server process", WORKERS)
            until(lambda: len(list(tmp_path.iterdir())) == WORKERS, program.output)
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


def test_prometheus_takes_the_configuration_of_the_page(prometheus_program, tmp_path):
    """By its own checker, promtool."""
    settings = tmp_path / "prometheus.yml"
    settings.write_text(re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1])
    command = [find_promtool(), "check", "config", settings]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
