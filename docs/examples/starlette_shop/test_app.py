"""Tests with Starlette's client, which runs a loop of its own. None of them leaves a socket open."""

from collections.abc import Iterator

import pytest
from app import app
from starlette.testclient import TestClient

pytestmark = pytest.mark.zero_fd_delta


@pytest.fixture
def client() -> Iterator[TestClient]:
    with TestClient(app) as client:
        yield client


@pytest.mark.parametrize("number", range(5))
def test_a_client_with_one_loop(client: TestClient, number: int) -> None:
    assert client.get(f"/double/{number}").json() == 2 * number
    assert client.get(f"/double/{number + 1}").json() == 2 * number + 2


def test_a_client_with_a_loop_for_each_request() -> None:
    client = TestClient(app)
    assert [client.get(f"/double/{number}").json() for number in range(5)] == [0, 2, 4, 6, 8]


def test_two_clients_at_once() -> None:
    with TestClient(app) as one, TestClient(app) as other:
        assert one.get("/double/1").json() == 2
        assert other.get("/double/2").json() == 4
        assert one.get("/double/3").json() == 6
