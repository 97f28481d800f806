"""What `loopaware_pool.testing` has for others' tests. The driver and the proxy have files of their own."""

from __future__ import annotations

import asyncio
import os
import re
import struct
import subprocess
import sys
import threading
from pathlib import Path

import asyncpg
import psycopg
import pytest

from loopaware_pool.testing import FakeServer, LoopThread, end_abruptly, end_politely, loop_factories, loop_harness
from loopaware_pool.testing.fake_server import READY, completed, error, row

pytestmark = [pytest.mark.both_pythons, pytest.mark.usefixtures("zero_fd_delta")]

PAGE = Path(__file__).parents[1] / "docs" / "testing.md"
both_ends = pytest.mark.parametrize("end", [end_politely, end_abruptly])


def test_the_examples_of_the_page_run(tmp_path, dsn):
    """Each as a file of tests, by a pytest of its own."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    for number, block in enumerate(blocks):
        (tmp_path / f"test_{number}.py").write_text(block)
    (tmp_path / "conftest.py").write_text(f"import pytest\n\n@pytest.fixture\ndef dsn():\n    return {dsn!r}\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:xdist",
            "-p",
            "no:asyncio",
            tmp_path,
        ],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTEST_ADDOPTS": ""},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(blocks) - 1 + 2 * len(loop_factories())} passed" in done.stdout


def test_the_page_names_all_there_is():
    """Every public name of `loopaware_pool.testing` but the server's side of a connection, which its examples show."""
    from loopaware_pool import testing

    named = set(re.findall(r"`(\w+)`", PAGE.read_text()))
    assert set(testing.__all__) - named == {"FakeClient"}


def test_the_loops_are_those_that_are_installed(monkeypatch):
    """uvloop's is there if uvloop is."""
    assert set(loop_factories()) == {"asyncio", "uvloop"}
    monkeypatch.setattr(loop_harness, "find_spec", lambda name: None)
    assert set(loop_factories()) == {"asyncio"}


@both_ends
def test_work_gives_what_it_returns_and_raises_what_it_raises(end, loop_factory):
    """And its loop is closed in either case."""
    loops = []

    async def work(error=None):
        loops.append(asyncio.get_running_loop())
        if error is not None:
            raise error
        return 42

    assert end(loop_factory, work()) == 42
    with pytest.raises(ValueError, match="mine"):
        end(loop_factory, work(ValueError("mine")))
    assert all(loop.is_closed() for loop in loops)


@pytest.mark.parametrize(("end", "is_told"), [(end_politely, True), (end_abruptly, False)])
def test_the_ends_differ_in_what_a_loop_is_told(end, is_told, loop_factory):
    """Only a polite end closes what was begun."""
    told = []

    async def generate():
        try:
            yield 1
        finally:
            told.append("the end")

    async def work():
        await anext(generated)

    generated = generate()
    end(loop_factory, work())
    assert bool(told) is is_told


@both_ends
def test_a_thread_has_a_loop_until_the_block_ends(end, loop_factory):
    """Its work is done there, and its errors are raised here."""

    async def where():
        return threading.current_thread()

    async def fail():
        raise ValueError("mine")

    with LoopThread(loop_factory, end=end) as there:
        thread = there.run(where())
        assert thread is not threading.current_thread()
        with pytest.raises(ValueError, match="mine"):
            there.run(fail())
    assert there.loop.is_closed()
    assert not thread.is_alive()


def test_a_loop_that_cannot_be_made_is_told_of():
    """In the test's thread, at once."""

    def refuse():
        raise OSError("no more fds")

    with pytest.raises(OSError, match="no more fds"), LoopThread(refuse):
        pytest.fail("there is a loop")


def test_a_client_that_says_what_the_server_does_not_know_is_told(loop_factory):
    """By an error that says what it was, and the end of the connection."""

    async def story():
        async with FakeServer() as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(struct.pack("!II", 8, 3 << 16) + b"F\0\0\0\4")
            assert b"the fake server knows no message b'F'" in await reader.read()
            writer.close()
            await writer.wait_closed()

    end_politely(loop_factory, story())


def answer_by_script(client, query):
    """A row of each type there is, and an error in the middle of a session."""
    if query == "fail":
        return completed("SET") + error("22012") + READY
    return row("a", 7, True, None) + READY


def test_a_prepared_statement_is_answered_like_a_simple_query(loop_factory):
    """In the binary format, too, and once for each execution. A failed one leaves the connection in use."""

    async def story():
        async with FakeServer(answer_by_script) as server:
            connection = await asyncpg.connect(server.asyncpg_dsn)
            for _ in range(3):
                assert [*await connection.fetchrow("SELECT $1", "x")] == ["a", 7, True, None]
            with pytest.raises(asyncpg.DivisionByZeroError):
                await connection.fetchrow("fail")
            assert [*await connection.fetchrow("SELECT $1", "y")] == ["a", 7, True, None]
            assert server.session.queries == ["SELECT $1"] * 3 + ["fail", "SELECT $1"]
            connection.terminate()
            async with await psycopg.AsyncConnection.connect(server.dsn, autocommit=True) as connection:
                for _ in range(7):  # prepared from the sixth on
                    assert await (await connection.execute("SELECT %s", ["x"])).fetchone() == ("a", 7, True, None)
                with pytest.raises(psycopg.errors.DivisionByZero):
                    await connection.execute("fail", prepare=True)
                cursor = connection.cursor(binary=True)
                assert await (await cursor.execute("SELECT %s", ["x"])).fetchone() == ("a", 7, True, None)
            assert server.session.queries == ["SELECT $1"] * 7 + ["fail", "SELECT $1"]

    end_politely(loop_factory, story())
