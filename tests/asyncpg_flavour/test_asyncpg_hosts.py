"""Which host a connect of the asyncpg flavour begins with, after one that has timed out."""

from __future__ import annotations

import asyncio
import contextlib

import asyncpg
import pytest
from asyncpg import connect_utils

from loopaware_pool._core.asking import AskedPassword, Asking
from loopaware_pool.asyncpg.hosts import KEPT_SECONDS, HostOrder

pytestmark = [pytest.mark.both_drivers]

HOSTS = ["a", "b", "c"]


class Connects:
    """
    Stands in for `asyncpg.connect`. Hosts in `silent` use up the time if they are first, or if all are tried.

    Attributes:
        tries_all: Whether a connect tries all hosts, as for a standby that is only preferred.
    """

    def __init__(self):
        self.hosts = []
        self.silent = set()
        self.refusing = set()
        self.tries_all = False

    async def __call__(self, dsn=None, *, host=None, port=None, password=None, **_):
        self.hosts.append((host, port))
        await asyncio.sleep(0)
        if password is not None:
            await password()
        hosts = HOSTS if host is None else host
        first = hosts[0]
        if self.silent.intersection(hosts if self.tries_all else hosts[:1]):
            raise TimeoutError
        if first in self.refusing:
            raise asyncpg.InvalidAuthorizationSpecificationError
        return "a connection"


@pytest.fixture
def connects(monkeypatch):
    connects = Connects()
    monkeypatch.setattr(asyncpg, "connect", connects)
    return connects


class Clock:
    """Tells the seconds that a test has let pass."""

    def __init__(self):
        self.seconds = 1e6

    def __call__(self):
        return self.seconds

    def pass_on(self, seconds):
        self.seconds += seconds


@pytest.fixture
def clock():
    return Clock()


def dsn_for(wanted, hosts="a:1,b:2,c:3"):
    return f"postgresql://app@{hosts}/shop?target_session_attrs={wanted}"


async def until_connected(order, *args, **kwargs):
    while True:
        try:
            return await order.connect(*args, **kwargs)
        except TimeoutError:
            continue


def as_given():
    return (None, None)


def test_the_order_that_leads_to_a_host_is_kept(run, connects):
    """Those of which only one will do are alike."""
    order = HostOrder()
    connects.silent = {"a", "b"}
    run(until_connected(order, dsn_for("read-write")))
    run(until_connected(order, dsn_for("read-write")))
    from_b, from_c = (["b", "c", "a"], [2, 3, 1]), (["c", "a", "b"], [3, 1, 2])
    assert connects.hosts == [as_given(), from_b, from_c, from_c]


ORDERS_THAT_MATTER = pytest.mark.parametrize(
    ("wanted", "second"), [("any", (["b", "c", "a"], [2, 3, 1])), ("prefer-standby", (["b"], [2]))]
)


@ORDERS_THAT_MATTER
def test_an_order_that_matters_is_tried_again(run, connects, clock, wanted, second):
    """The first host may be the one that is meant. asyncpg looks on all for a standby, the silent one included."""
    order = HostOrder(clock)
    connects.silent = {"a"}
    run(until_connected(order, dsn_for(wanted)))
    connects.silent = set()
    clock.pass_on(KEPT_SECONDS - 1)
    run(until_connected(order, dsn_for(wanted)))
    clock.pass_on(1)
    for _ in range(2):
        run(until_connected(order, dsn_for(wanted)))
    assert connects.hosts == [as_given(), second, second, as_given(), as_given()]


@ORDERS_THAT_MATTER
def test_a_first_host_that_stays_silent_is_asked_once_in_a_while(run, connects, clock, wanted, second):
    """Not by each connect: every one of them would lose its time limit."""
    order = HostOrder(clock)
    connects.silent = {"a"}
    for _ in range(2):
        for _ in range(3):
            run(until_connected(order, dsn_for(wanted)))
        clock.pass_on(KEPT_SECONDS)
    assert connects.hosts == [as_given(), *[second] * 3] * 2


def test_the_time_begins_with_the_last_host_that_was_silent(run, connects, clock):
    """Where several are, one after the other has been tried before."""
    order = HostOrder(clock)
    connects.silent = {"a", "b"}

    async def main():
        for _ in range(2):
            with pytest.raises(TimeoutError):
                await order.connect(dsn_for("any"))
            clock.pass_on(KEPT_SECONDS - 1)
        await order.connect(dsn_for("any"))

    run(main())
    assert [hosts and hosts[0] for hosts, _ in connects.hosts] == [None, "b", "c"]


@pytest.mark.parametrize("wanted", ["read-write", "any", "prefer-standby"])
def test_a_host_that_refuses_is_not_begun_with_again(run, connects, wanted):
    """Else one timeout would keep the pool from the first host, which serves again, for ever."""
    order = HostOrder()
    connects.refusing = {"b"}

    async def main():
        connects.silent = {"a"}
        first_alone = [TimeoutError] if wanted == "prefer-standby" else []
        turn = [TimeoutError, asyncpg.PostgresError, *first_alone]
        for error in turn * 2:
            with pytest.raises(error):
                await order.connect(dsn_for(wanted, "a:1,b:2"))
        connects.silent = set()
        await order.connect(dsn_for(wanted, "a:1,b:2"))

    run(main())


def test_each_host_is_tried_alone_where_a_standby_is_preferred(run, connects):
    """The first one, too: as given, a connect to a primary would still ask the silent standby."""
    order = HostOrder()
    connects.silent, connects.tries_all = {"b", "c"}, True
    run(until_connected(order, dsn_for("prefer-standby")))
    assert connects.hosts == [as_given(), (["b"], [2]), (["c"], [3]), (["a"], [1])]


def test_a_first_host_that_refuses_keeps_its_place(run, connects):
    """As with asyncpg: it may be the only one that is meant."""
    order = HostOrder()
    connects.refusing = {"a"}

    async def main():
        for _ in range(2):
            with pytest.raises(asyncpg.PostgresError):
                await order.connect(dsn_for("any"))

    run(main())
    assert connects.hosts == [as_given()] * 2


def test_connects_that_time_out_together_count_as_one(run, connects):
    """Else every second host would be passed over."""
    order = HostOrder()
    connects.silent = {"a"}

    async def main():
        await asyncio.gather(*(order.connect(dsn_for("primary")) for _ in range(2)), return_exceptions=True)
        await order.connect(dsn_for("primary"))

    run(main())
    assert connects.hosts[2:] == [(["b", "c", "a"], [2, 3, 1])]


def test_hosts_are_found_where_asyncpg_finds_them(run, connects, monkeypatch):
    """In arguments, or in the environment; Unix sockets by their paths."""
    connects.silent = {"a"}
    for kwargs, second in (
        ({"host": ["a", "/run/db"], "port": 7, "user": "app"}, ["/run/db/.s.PGSQL.7", "a"]),
        ({"dsn": "postgresql://app@/shop?host=a,d"}, ["d", "a"]),
        ({"user": "app"}, ["e", "a"]),
    ):
        monkeypatch.setenv("PGHOST", "a,e")
        connects.hosts.clear()
        run(until_connected(HostOrder(), target_session_attrs="primary", **kwargs))
        assert connects.hosts[-1][0] == second


@pytest.mark.parametrize("wanted", ["read-write", "any", "prefer-standby"])
def test_no_host_is_blamed_for_a_password_that_does_not_come(run, connects, wanted):
    """Readers would else leave the standby because a service for secrets was slow."""
    order = HostOrder()

    async def fails():
        raise TimeoutError

    async def main():
        for function in (fails, lambda: "secret"):
            password = AskedPassword(Asking(asyncpg.InterfaceError), "password", function)
            with contextlib.suppress(TimeoutError):
                await order.connect(dsn_for(wanted), password=password)

    run(main())
    assert connects.hosts == [as_given()] * 2


def test_a_host_is_blamed_if_the_password_has_come(run, connects):
    """It was silent before or after it had asked for it."""
    order = HostOrder()
    connects.silent = {"a"}
    password = AskedPassword(Asking(asyncpg.InterfaceError), "password", lambda: "secret")
    run(until_connected(order, dsn_for("read-write"), password=password))
    assert connects.hosts == [as_given(), (["b", "c", "a"], [2, 3, 1])]


@pytest.mark.parametrize("is_hidden", [False, True])
def test_a_single_host_and_hosts_that_are_not_found_are_left_alone(run, connects, monkeypatch, is_hidden):
    """Then it is asyncpg's own connect."""
    if is_hidden:
        monkeypatch.delattr(connect_utils, "_parse_connect_dsn_and_args")
    order = HostOrder()
    connects.silent = {"a"}

    async def main():
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await order.connect(dsn_for("read-write", "a:1,b:2" if is_hidden else "a:1"))

    run(main())
    assert connects.hosts == [as_given()] * 3


@pytest.mark.parametrize("wanted", ["read-write", "any", "prefer-standby"])
def test_other_hosts_begin_as_given(run, connects, wanted):
    """As after `set_connect_args`, or if a function returns the DSN. Which of them is silent is not known."""
    order = HostOrder()
    connects.silent = {"a"}

    async def main():
        for hosts in ("a:1,b:2", "b:2,a:1", "b:2,a:1", "b:2"):
            with contextlib.suppress(TimeoutError):
                await order.connect(dsn_for(wanted, hosts))
            connects.silent = set()

    run(main())
    assert connects.hosts == [as_given()] * 4
