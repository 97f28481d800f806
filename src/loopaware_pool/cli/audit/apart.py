"""Has `audit_child` do a job in a process of its own, of which nothing is left running in the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from typing import Any

from loopaware_pool.cli.command import Unusable

__all__ = ["run_apart"]


def run_apart(job: dict[str, Any], what: str, *, timeout_seconds: float, is_quiet: bool) -> dict[str, Any]:
    """
    Do a job, and give its outcome.

    Args:
        job: What `audit_child` is to do. It may hold a password, and is shown to no other process.
        what: What it is called where it fails.
        timeout_seconds: After this it is killed, and all processes that it has started.
        is_quiet: Whether what it prints goes to the error output, as the output is for something else.

    Raises:
        Unusable: It failed, or did not end.
    """
    with tempfile.TemporaryFile("w+") as answer:
        child = subprocess.Popen(
            # -P: a file of the current folder would else be taken for a module of ours, or of Python's.
            [sys.executable, "-P", "-m", "loopaware_pool.cli.audit.child", str(answer.fileno())],
            stdin=subprocess.PIPE,
            stdout=sys.stderr if is_quiet else None,
            pass_fds=[answer.fileno()],
            start_new_session=True,  # so that they can be killed together
            text=True,
        )
        try:
            child.communicate(json.dumps(job), timeout=timeout_seconds)
        except subprocess.TimeoutExpired:
            was = f"did not end within {timeout_seconds:g} s, and was killed"
            raise Unusable(f"{what} {was}; give it less to do, or more --timeout") from None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        answer.seek(0)
        return _outcome(answer.read(), what, child.returncode)


def _outcome(answer: str, what: str, code: int) -> dict[str, Any]:
    if not answer:
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended at once, with exit code {code}"
        raise Unusable(f"{what} {how}, so nothing is known of it; it must end by itself, and not by os._exit()")
    outcome: dict[str, Any] = json.loads(answer)
    if "error" in outcome:
        raise Unusable(outcome["error"])
    return outcome
