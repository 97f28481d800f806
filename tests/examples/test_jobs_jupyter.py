"""Jupyter and IPython: the notebook of docs/examples in a real kernel, and the session in a real IPython."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys

import pytest

from examples.program import EXAMPLES, run, sessions_in, until

pytestmark = pytest.mark.examples

TO_ASYNCPG = {"from loopaware_pool import create_pool": "from asyncpg import create_pool"}
AWAITED_AT_ONCE = {"pool = create_pool(": "pool = await create_pool(", "await pool\n": "None\n"}
WITHOUT_THREAD = {"await asyncio.to_thread": "None  # asyncio.to_thread"}
EXECUTE = ["-c", "from nbclient.cli import main; main()", "--inplace", "--allow-errors"]
IPYTHON = [sys.executable, "-m", "IPython", "--simple-prompt", "--no-banner", "--colors=NoColor"]
SECONDS = 50
PAGE = EXAMPLES.parent / "recipes" / "jupyter.md"
# What happens between two prompts, while the loop stands still.
END_SESSIONS = """\
import psycopg
others = "datname = current_database() AND pid <> pg_backend_pid()"
kill = f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE {others}"
psycopg.connect(os.environ["DATABASE_URL"], autocommit=True).execute(kill).fetchall()
await pool.fetchval("SELECT 6 * 9")
"""


@pytest.fixture
def home(tmp_path):
    """A home without anybody's settings, in which IPython may write."""
    folder = tmp_path / "home"
    folder.mkdir()
    return {"HOME": folder, "IPYTHONDIR": folder, "JUPYTER_PLATFORM_DIRS": "1"}


@pytest.fixture
def cells(database_url, tmp_path, home):
    """Run a copy of the notebook; what each cell shows, or the name of its error; None if a changed one has crashed."""

    def cells(changes=None):
        notebook = tmp_path / "notebook.ipynb"
        text = (EXAMPLES / notebook.name).read_text()
        for old, new in (changes or {}).items():
            assert old in text
            text = text.replace(old, new)
        notebook.write_text(text)
        code, output = run(*EXECUTE, notebook, DATABASE_URL=database_url, **home)
        if changes and "DeadKernelError" in output:
            return None
        assert code == 0, output
        return [shown(cell) for cell in json.loads(notebook.read_text())["cells"]]

    return cells


def shown(cell):
    texts = [output.get("ename") or output["data"]["text/plain"] for output in cell["outputs"]]
    return "".join("".join(text) for text in texts)


@pytest.fixture
def answers(database_url, tmp_path, home):
    """Type the session into IPython; what it shows, by the number of the prompt, and everything it has written."""

    def answers(changes=None, typed_before_the_end=""):
        lines = copy_session(tmp_path, changes).splitlines(keepends=True)
        typed = "".join([*lines[:-1], typed_before_the_end, lines[-1]])
        own = {name: str(value) for name, value in home.items()} | {"PYTHONUNBUFFERED": "1"}
        environment = os.environ | own | {"DATABASE_URL": database_url}
        done = subprocess.run(
            IPYTHON, input=typed, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
        )
        assert done.returncode == 0 or (changes and done.returncode == -signal.SIGSEGV), done.stderr
        return dict(re.findall(r"Out\[(\d+)\]: (.*)", done.stdout)), done.stdout

    return answers


def copy_session(folder, changes):
    """The text of the session, with texts replaced."""
    text = (EXAMPLES / "ipython_session.ipy").read_text()
    for old, new in (changes or {}).items():
        assert old in text
        text = text.replace(old, new)
    (folder / "ipython_session.ipy").write_text(text)
    return text


def test_a_notebook_uses_one_pool_in_cells_in_a_thread_and_in_a_nested_loop(cells, database_url):
    """And leaves no session."""
    assert cells() == ["42", "[0, 1, 4, 9, 16]", "49", "64", ""]
    until(lambda: not sessions_in(database_url), lambda: "sessions are left")


def test_on_asyncpgs_pool_the_thread_fails(cells):
    """It is given a connection of the kernel's loop. Two threads in one of asyncpg's connections may end the kernel."""
    shown = cells(TO_ASYNCPG)
    assert shown is None or shown[:2] == ["42", "[0, 1, 4, 9, 16]"]
    assert shown is None or shown[2] in ("InterfaceError", "RuntimeError")


def test_ipython_awaits_at_its_prompt(answers, database_url):
    """On the loop of the prompt, and on that of a thread."""
    shown, output = answers()
    assert (shown["5"], shown["6"], shown["7"]) == ("42", "[0, 1, 2, 3, 4]", "49"), output
    until(lambda: not sessions_in(database_url), lambda: "sessions are left")


def test_what_the_server_does_between_two_prompts_is_not_noticed(answers):
    """Nothing has read that the connections are closed: the loop runs only while something is awaited."""
    shown, output = answers(typed_before_the_end=END_SESSIONS)
    assert shown["12"] == "54", output


def test_on_asyncpgs_pool_a_pool_that_is_awaited_at_another_prompt_fails(answers):
    """The prompt at which it is made has another loop than the one at which it is awaited."""
    shown, output = answers(TO_ASYNCPG)
    assert shown.keys() <= {"7"}
    assert "attached to a different loop" in output


def test_on_asyncpgs_pool_the_thread_of_ipython_fails(answers):
    """As in a notebook, or IPython itself crashes."""
    shown, output = answers(TO_ASYNCPG | AWAITED_AT_ONCE)
    assert (shown["5"], shown["6"]) == ("42", "[0, 1, 2, 3, 4]"), output
    assert "7" not in shown


def test_on_asyncpgs_pool_a_prompt_is_told_of_what_the_server_has_done(answers):
    """It lends the connection that the server has closed."""
    shown, output = answers(TO_ASYNCPG | AWAITED_AT_ONCE | WITHOUT_THREAD, END_SESSIONS)
    assert "12" not in shown
    assert "AdminShutdownError" in output or "ConnectionDoesNotExistError" in output


def test_the_page_shows_the_cells_of_the_notebook():
    """In their order, and the session as it is."""
    cells = json.loads((EXAMPLES / "notebook.ipynb").read_text())["cells"]
    sources = ["".join(cell["source"]) + "\n" for cell in cells]
    session = (EXAMPLES / "ipython_session.ipy").read_text()
    assert re.findall(r"^```py\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL) == [*sources, session]
