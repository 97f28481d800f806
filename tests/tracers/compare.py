"""Whether a tracer has seen on our pool what it has seen on the driver's own."""

from __future__ import annotations

import json
import re

from kinds import TRACERS

__all__ = ["what_differs", "without_resets"]

_RESET = re.compile("pg_advisory_unlock_all")


def without_resets(spans):
    """Leave out what asyncpg's pool sends at each release. Ours sends it without a query of the driver's."""
    return [span for span in spans if not _RESET.search(json.dumps(span))]


def what_differs(tracer, flavour, theirs, ours):
    """
    Compare what two runs have printed.

    Args:
        tracer, flavour: What ran.
        theirs, ours: The error and the spans of each.

    Returns:
        What is known to differ, in words for a table, and whether anything else does.
    """
    known = []
    expected, got = without_resets(theirs["spans"]), ours["spans"]
    if len(expected) < len(theirs["spans"]):
        known.append(f"no spans of the {len(theirs['spans']) - len(expected)} resets")
    if flavour in TRACERS[tracer].renamed:
        pattern, name, told = TRACERS[tracer].renamed[flavour]
        before = (expected, got)
        expected, got = (json.loads(re.sub(pattern, name, json.dumps(spans))) for spans in before)
        if (expected, got) != before:
            known.append(told)
    return known, expected != got or theirs["error"] != ours["error"]
