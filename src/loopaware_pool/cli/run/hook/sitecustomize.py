"""
Installs our pools in each Python process of a program that `loopaware-pool run` runs.

Python imports a module of this name when it starts. The one that it would have imported otherwise is imported here, and
the folder of this file leaves `sys.path`, so that the program finds nothing changed.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module

__all__: list[str] = []


def _give_way() -> None:
    """Import the `sitecustomize` that this one hides, if there is one."""
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [folder for folder in sys.path if os.path.abspath(folder) != here]
    hidden_by = sys.modules.pop(__name__)
    try:
        import_module(__name__)
    except ModuleNotFoundError as error:
        if error.name != __name__:
            raise
    finally:
        sys.modules.setdefault(__name__, hidden_by)


try:
    from loopaware_pool.cli.run.process import start
except ImportError:  # another Python, with other packages, which the program has started
    pass
else:
    start()
_give_way()
