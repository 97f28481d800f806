"""Our pools in one process of a program that `run` runs: swapped at its start, and reported at its end."""

from __future__ import annotations

import atexit
import os
import sys
from typing import TYPE_CHECKING, Any, Final

from loopaware_pool.cli.run.job import Job, MadePool
from loopaware_pool.swapping import install

if TYPE_CHECKING:
    from types import FrameType

    from loopaware_pool.audit import FdAudit

__all__ = ["start"]

# Between a pool and the line that has asked for it.
_IN_BETWEEN: Final = frozenset({"loopaware_pool", "asyncpg", "psycopg_pool", "sqlalchemy", "typing"})


def start() -> None:
    """Do what the environment asks for, if it asks for anything."""
    job = Job.here()
    if job is None:
        return
    recorder = None if job.reports is None else _Recorder(job, job.reports)
    install(sqlalchemy=job.sqlalchemy, on_pool=None if recorder is None else recorder.record)


class _Recorder:
    """Keeps the pools of this process, and writes down at its end what became of them. The main process tells all."""

    def __init__(self, job: Job, folder: str) -> None:
        self._job = job
        self._folder = folder
        self._pools: list[MadePool] = []
        self._audit: FdAudit | None = None
        # First, and so the last to run: the program's own exit functions come before.
        atexit.register(self._finish)
        os.register_at_fork(after_in_child=self._forked)
        if os.getpid() == job.main:
            # Now, as dataclasses execute text when they are defined. After a Ctrl-C that has ended the program, Python
            # would forget it then, and exit with another code.
            import loopaware_pool.cli.run.report  # noqa: F401

    def record(self, pool: Any) -> None:
        """Note a new pool, and the line that has asked for it. The first one begins the audit."""
        if not self._pools:
            self._begin_audit()
        self._pools.append(MadePool(pool, _line_of(sys._getframe(1)), os.getpid()))  # noqa: SLF001

    def _begin_audit(self) -> None:
        from loopaware_pool.audit import AuditUnavailable, FdAudit

        audit = FdAudit(trace=True)
        try:
            audit.start()
        except AuditUnavailable:
            return
        self._audit = audit

    def _forked(self) -> None:
        """Begin anew in a child. One of multiprocessing's ends without Python's exit functions."""
        self._audit = None  # what is open here was opened by the parent
        util = sys.modules.get("multiprocessing.util")
        if util is not None:
            util.register_after_fork(self, lambda _: util.Finalize(None, self._finish, exitpriority=-1))

    def _finish(self) -> None:
        is_main = os.getpid() == self._job.main
        if not (self._pools or is_main):
            return
        from loopaware_pool.cli.run.report import account_of_process, tell, write

        account = account_of_process(self._pools, self._audit)
        if is_main:
            tell(account, self._folder, as_json=self._job.is_json)
        elif account["pools"]:
            write(account, self._folder)


def _line_of(frame: FrameType | None) -> str:
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _IN_BETWEEN:
        frame = frame.f_back
    return "an unknown line" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"
