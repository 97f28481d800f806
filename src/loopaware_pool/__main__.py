"""`python -m loopaware_pool`: the same as `loopaware-pool`."""

from __future__ import annotations

import sys

from loopaware_pool.cli.main import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
