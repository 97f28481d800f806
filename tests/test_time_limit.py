"""No test hangs: the limit of `pyproject.toml` ends it, says where it stood, and leaves no process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from running import DEADLINE_SECONDS, child_process, eventually

pytestmark = [pytest.mark.thorough, pytest.mark.both_pythons]

SETTINGS = Path(__file__).parents[1] / "pyproject.toml"
HANGS = """
import asyncio, os, pathlib, subprocess, threading, time
import pytest, uvloop
from running import child_process

def where_another_thread_is():
    time.sleep(3600)

@pytest.fixture(autouse=True)
def another_thread():
    threading.Thread(target=where_another_thread_is, daemon=True).start()

def test_child():
    with child_process(["sleep", "3600"]) as child:  # on a busy machine Python takes longer to begin than the limit
        pathlib.Path(os.environ["PIDS"]).write_text(str(child.pid))
        child.wait()

def test_command():
    subprocess.run(["sleep", "3600"])

@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_loop(factory):
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(asyncio.sleep(3600))

def test_deaf():
    while True:
        try:
            time.sleep(3600)
        except BaseException:
            pass

def test_other():
    pass
"""


def run_tests(folder, *arguments):
    """The exit code, and what was said, of pytest with this project's settings, but for a much shorter limit."""
    path = folder / "test_hangs.py"
    path.write_text(HANGS)
    command = [sys.executable, "-m", "pytest", "-c", SETTINGS, "--rootdir", folder, "-p", "no:cacheprovider", path]
    done = subprocess.run(
        [*command, "--timeout", "2", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
        check=False,
        cwd=SETTINGS.parent,
        env=os.environ | {"PIDS": str(folder / "pids")},
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize("workers", [[], ["-n", "1"]], ids=["alone", "xdist"])
def test_a_test_that_hangs_fails_and_the_next_one_runs(workers, tmp_path):
    """What it has started is ended; the stacks of all threads are printed."""
    code, said = run_tests(tmp_path, *workers, "-k", "child or command or other or (loop and asyncio)")
    assert code == 1
    assert "3 failed, 1 passed" in said, said
    for line in ("child.wait()", 'subprocess.run(["sleep", "3600"])', "runner.run(asyncio.sleep(3600))"):
        assert re.search(f"^> +{re.escape(line)}", said, re.MULTILINE)
    assert said.count("in where_another_thread_is") >= 3
    pid = int((tmp_path / "pids").read_text())
    eventually(lambda: not psutil.pid_exists(pid), "the child has ended")


def test_a_test_that_does_not_let_itself_be_ended_is_ended_with_its_process(tmp_path):
    """By a clock that asks no Python, all stacks are printed; xdist goes on with another process."""
    # Not for tests that are to fail: on a busy machine that takes some time, too.
    last_limit = ["-o", "faulthandler_timeout=6.0"]
    code, said = run_tests(tmp_path, *last_limit, "-n", "1", "-k", "deaf or uvloop or other")
    assert code == 1
    assert "2 failed, 1 passed" in said, said
    assert "crashed while running" in said
    assert "in test_deaf" in said
    assert "in test_loop" in said
    assert "in where_another_thread_is" in said


def test_each_test_has_a_limit_far_above_what_it_needs(pytestconfig):
    """By `pyproject.toml`; and a later one for what does not let itself be ended."""
    limit, last = pytestconfig.getini("timeout"), pytestconfig.getini("faulthandler_timeout")
    assert limit, "there is none"
    assert 60 <= float(limit) < last


def test_a_child_hears_ctrl_c_where_its_tests_do_not():
    """As under nohup, or in the background of a shell that has no jobs."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with child_process(
            [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"], stdout=-1
        ) as child:
            child.stdout.readline()
            child.send_signal(signal.SIGINT)
            assert child.wait(DEADLINE_SECONDS) == -signal.SIGINT
    finally:
        signal.signal(signal.SIGINT, before)
