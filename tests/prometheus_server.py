"""A real Prometheus server, which scrapes what a test has it scrape, and answers queries."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import between
from debian import environment_for, find_program

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Prometheus", "Sample", "find_prometheus", "find_promtool", "prometheus"]

_DEADLINE_SECONDS = 30.0


class Sample(NamedTuple):
    """One series of a query's answer, and its value now."""

    labels: dict[str, str]
    value: float


class Prometheus(NamedTuple):
    """Where a Prometheus server answers."""

    url: str

    def api(self, path: str, **arguments: str) -> Any:
        """The data of an answer of the HTTP API, as in `api("query", query="up")`."""
        with urlopen(f"{self.url}/api/v1/{path}?{urlencode(arguments)}", timeout=_DEADLINE_SECONDS) as response:
            return json.load(response)["data"]

    def query(self, text: str) -> list[Sample]:
        """What an instant query returns. A metric's name is its label `__name__`."""
        result = self.api("query", query=text)["result"]
        return [Sample(series["metric"], float(series["value"][1])) for series in result]

    def value(self, text: str) -> float | None:
        """The value of a query that returns one series; None if it returns none."""
        samples = self.query(text)
        assert len(samples) < 2, samples
        return samples[0].value if samples else None

    def until_values(self, text: str, *expected: float) -> None:
        """Wait until a query returns so many series, with these values in any order."""
        deadline = time.monotonic() + _DEADLINE_SECONDS
        while (values := sorted(sample.value for sample in self.query(text))) != sorted(expected):
            assert time.monotonic() < deadline, f"{text}: {values}"
            time.sleep(0.05)


def find_prometheus() -> Path:
    """The installed one, or Debian's."""
    return find_program("prometheus")


def find_promtool() -> Path:
    """What checks rules and configurations: it comes with the server."""
    return find_prometheus().with_name("promtool")


@contextmanager
def prometheus(
    program: Path, scrape_configs: Sequence[dict[str, Any]], *, rule_files: Sequence[Path] = (), interval: str = "200ms"
) -> Iterator[Prometheus]:
    """
    Start a server of its own folder, which is removed in the end.

    Args:
        program: What `find_prometheus` has found.
        scrape_configs: As in its configuration: `{"job_name": "shop", "static_configs": [{"targets": ["..."]}]}`.
        rule_files: Recording and alerting rules.
        interval: How often it scrapes, and evaluates rules.
    """
    with between.own_port() as port, _prometheus_on(port, program, scrape_configs, rule_files, interval) as server:
        yield server


@contextmanager
def _prometheus_on(
    port: int, program: Path, scrape_configs: Sequence[dict[str, Any]], rule_files: Sequence[Path], interval: str
) -> Iterator[Prometheus]:
    folder = Path(tempfile.mkdtemp(prefix="loopaware-prometheus-"))
    times = {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval}
    settings = folder / "prometheus.yml"
    rules = [str(file) for file in rule_files]
    # JSON is YAML.
    settings.write_text(json.dumps({"global": times, "scrape_configs": scrape_configs, "rule_files": rules}))
    command = [
        program,
        f"--config.file={settings}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment_for(program), stdout=log, stderr=log)
    try:
        server = Prometheus(f"http://127.0.0.1:{port}")
        _wait_until_ready(process, server, folder / "log")
        yield server
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(folder)


def _wait_until_ready(process: subprocess.Popen[bytes], server: Prometheus, log: Path) -> None:
    deadline = time.monotonic() + _DEADLINE_SECONDS
    while True:
        try:
            urlopen(f"{server.url}/-/ready", timeout=_DEADLINE_SECONDS).close()
            return
        except (URLError, OSError):  # nobody listens, or 503: not yet
            assert process.poll() is None, f"Prometheus has ended:\n{log.read_text()}"
            assert time.monotonic() < deadline, f"Prometheus is not ready:\n{log.read_text()}"
            time.sleep(0.05)
