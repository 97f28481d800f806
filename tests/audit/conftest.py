"""For all tests of the audit."""

from __future__ import annotations

import socket

import pytest


@pytest.fixture
def runner(runner_factory):
    with runner_factory() as runner:
        yield runner


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs
