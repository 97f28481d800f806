"""Work in a forked child, and what it came to."""

from __future__ import annotations

import os
import pickle
import signal
import traceback
import warnings

from running import DEADLINE_SECONDS

__all__ = ["in_child"]


def in_child(work):
    """Call *work* in a forked child; give what it returns, or fail with what it raised."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # Python 3.12 warns of forks in processes with threads, as one with uvloop or another test's may be.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        _be_child(work, writing)
    os.close(writing)
    with open(reading, "rb") as answers:
        answer = answers.read()
    _, status = os.waitpid(pid, 0)
    assert answer, f"the child said nothing: {_describe(status)}"
    result, complaint = pickle.loads(answer)
    assert not complaint, complaint
    assert status == 0, _describe(status)
    return result


def _be_child(work, writing):
    """Never returns: what is above on the stack is the parent's."""
    status = 1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(int(DEADLINE_SECONDS))
        try:
            answer = work(), ""
        except BaseException:
            answer = None, traceback.format_exc()
        os.write(writing, pickle.dumps(answer))
        status = 0
    finally:
        os._exit(status)


def _describe(status):
    code = os.waitstatus_to_exitcode(status)
    return f"it was ended by {signal.Signals(-code).name}" if code < 0 else f"it exited with {code}"
