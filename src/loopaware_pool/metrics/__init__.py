"""
The metrics of a pool: `table` defines them, and each exporter takes them from there.

An exporter reads `pool.stats()` and events, nothing else. It imports its package when it is imported itself.
"""

from __future__ import annotations

from loopaware_pool.metrics.table import METRICS, Level, Levels, Metric, Spent, Times, Total, Totals

__all__ = ["METRICS", "Level", "Levels", "Metric", "Spent", "Times", "Total", "Totals"]
