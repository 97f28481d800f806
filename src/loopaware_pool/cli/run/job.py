"""What `run` asks of each process of a program. It travels in the environment, as children inherit that."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import MutableMapping

__all__ = ["Job", "MadePool"]

_VARIABLE: Final = "LOOPAWARE_POOL_RUN"
_HOOK: Final = os.path.join(os.path.dirname(os.path.abspath(__file__)), "hook")


class MadePool(NamedTuple):
    """
    A pool of ours in a process of the program.

    Attributes:
        pool: The pool. It is kept until the end, so that its figures can be told.
        line: What has asked for it.
        process: The process that has made it. A child of a fork has the same pool.
    """

    pool: Any
    line: str
    process: int


class Job(NamedTuple):
    """
    What is to be done.

    Attributes:
        main: The process id of the program; its children have others.
        reports: A folder for what each process has to report; None for no report.
        is_json: Whether the report is an object instead of text.
        sqlalchemy: Whether SQLAlchemy's default pool is swapped, too.
    """

    main: int
    reports: str | None
    is_json: bool
    sqlalchemy: bool

    @classmethod
    def here(cls) -> Job | None:
        """Read what is asked of this process; None if nothing is."""
        text = os.environ.get(_VARIABLE)
        return None if text is None else cls(**json.loads(text))

    def tell(self, environment: MutableMapping[str, str]) -> None:
        """Ask it of a process, and of its children, that starts with *environment*."""
        environment[_VARIABLE] = json.dumps(self._asdict())
        paths = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = f"{_HOOK}{os.pathsep}{paths}" if paths else _HOOK
