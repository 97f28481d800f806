"""Several workers on one port: each serves its own metrics on a port of its own, which Prometheus is told of."""

import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from threading import Thread
from wsgiref.simple_server import WSGIServer

from fastapi import FastAPI
from prometheus_client import start_http_server

from loopaware_pool import create_pool
from loopaware_pool.metrics.prometheus import register

pool = create_pool(os.environ["DATABASE_URL"], min_size=1, max_size=5, name="shop")
first_port = int(os.environ.get("METRICS_PORT", "9100"))
targets = Path(os.environ["METRICS_TARGETS"])  # a folder, for Prometheus' file_sd_configs


def serve_metrics() -> tuple[WSGIServer, Thread]:
    for port in range(first_port, first_port + 100):
        with suppress(OSError):  # another worker's
            return start_http_server(port, addr="127.0.0.1")
    raise RuntimeError(f"no port is free from {first_port} on")


@contextmanager
def metrics_served() -> Iterator[None]:
    """Serve this process' metrics on the first free port, and have Prometheus know."""
    server, thread = serve_metrics()
    target = targets / f"{server.server_port}.json"
    draft = targets / f"{server.server_port}.draft"
    draft.write_text(json.dumps([{"targets": [f"127.0.0.1:{server.server_port}"]}]))
    draft.rename(target)
    try:
        yield
    finally:
        target.unlink()  # while the port is still this process' own
        server.shutdown()
        server.server_close()
        thread.join()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with pool:
        register(pool)
        with metrics_served():
            yield


app = FastAPI(lifespan=lifespan)


@app.get("/double/{number}")
async def double(number: int) -> int:
    doubled: int = await pool.fetchval("SELECT $1::int * 2", number)
    return doubled
