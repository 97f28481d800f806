"""
Runs the Python blocks of a page, one after the other, in one namespace: `python tests/page_programs.py PAGE DSN`.

A block with `await` outside of a function runs in an `asyncio.run` of its own. The address of the server in a block is
replaced. What a block takes for granted, as a pool of the reader's, is made before: see `GIVEN`.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import sys
import tempfile
import textwrap
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^( *)```python\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
EXAMPLE = "postgresql://postgres@localhost/postgres"
POOL = "from loopaware_pool import create_pool\npool = create_pool(dsn, name='shop')"
# Stand-ins for the packages of providers, which give the password of the server that is there.
PROVIDERS = """
import datetime, sys, time, types
from urllib.parse import unquote, urlsplit

def made(name, **names):
    parent, _, last = name.rpartition(".")
    if parent and parent not in sys.modules:
        made(parent)
    module = sys.modules[name] = types.ModuleType(name)
    vars(module).update(names)
    if parent:
        setattr(sys.modules[parent], last, module)

password = unquote(urlsplit(dsn).password or "")

class Rds:
    def generate_db_auth_token(self, *, DBHostname, Port, DBUsername):
        return password

class Google:
    token = expiry = None
    def refresh(self, request):
        self.token = password
        self.expiry = datetime.datetime.now(datetime.UTC).replace(tzinfo=None) + datetime.timedelta(hours=1)

class Azure:
    async def __aenter__(self):
        return self
    async def __aexit__(self, *_):
        pass
    async def get_token(self, scope):
        return types.SimpleNamespace(token=password, expires_on=int(time.time()) + 3600)

class Database:
    def generate_credentials(self, *, name):
        return {"lease_duration": 3600, "data": {"username": urlsplit(dsn).username, "password": password}}

made("boto3", client=lambda service, region_name: Rds())
made("google.auth", default=lambda scopes: (Google(), "project"))
made("google.auth.transport.requests", Request=object)
made("azure.identity.aio", DefaultAzureCredential=Azure)
secrets = types.SimpleNamespace(database=Database())
made("hvac", Client=lambda url: types.SimpleNamespace(secrets=secrets))
open(folder + "/password", "w").write(password)
"""
# What pages show of a reader's own program.
GIVEN = {
    "docs/audit.md": "async def handle_a_request(): ...",
    "docs/choosing.md": "import loopaware_pool\nfrom loopaware_pool.psycopg import AsyncConnectionPool",
    "docs/credentials.md": PROVIDERS,
    "docs/live-view.md": """
from loopaware_pool import create_pool
orders, invoices = create_pool(dsn, name="orders"), create_pool(dsn, name="invoices")
async def serve_customers(): ...
""",
    "docs/dashboards.md": POOL,
    "docs/metrics.md": POOL,
    "docs/tracing.md": POOL,
}
# The number of a block that fails on purpose, and a part of its error.
FAILS = {("README.md", 0): "attached to a different loop"}


def blocks(page):
    """Each block with the number of its first line."""
    text = page.read_text()
    for block in BLOCK.finditer(text):
        yield text.count("\n", 0, block.start()) + 1, textwrap.dedent(block[2])


def with_addresses(code, dsn, folder):
    """The code, with a server and a folder that exist."""
    server = urlsplit(dsn)
    written = f'"localhost", 5432, "postgres", None, "{server.path[1:]}"'
    there = f'"{server.hostname}", {server.port}, "{server.username}", {server.password!r}, "{server.path[1:]}"'
    for driver in ("", "+asyncpg", "+psycopg"):
        code = code.replace(
            EXAMPLE.replace(":", f"{driver}:", 1), dsn.replace("postgresql:", f"postgresql{driver}:", 1)
        )
    return code.replace(written, there).replace("/run/shop", folder)


def run(code, place, namespace):
    compiled = compile(code, place, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    if compiled.co_flags & inspect.CO_COROUTINE:
        asyncio.run(eval(compiled, namespace))
    else:
        exec(compiled, namespace)


def main(name, dsn):
    with tempfile.TemporaryDirectory() as folder:
        namespace = {"__name__": "page", "dsn": dsn, "folder": folder}
        run(GIVEN.get(name, ""), "given", namespace)
        for number, (line, code) in enumerate(blocks(ROOT / name)):
            expected = FAILS.get((name, number))
            try:
                run("\n" * line + with_addresses(code, dsn, folder), name, namespace)
            except Exception as error:
                if expected is None or expected not in str(error):
                    raise
            else:
                if expected is not None:
                    raise AssertionError(f"{name}: block {number} does not fail")


if __name__ == "__main__":
    main(*sys.argv[1:])
