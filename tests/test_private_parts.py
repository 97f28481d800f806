"""Without a private part of asyncpg's or of the loop's, the pool is slower, says so once, and stays right."""

from __future__ import annotations

import asyncio
import logging
import sys
from contextlib import contextmanager

import asyncpg
import pytest

import helpers
from loopaware_pool.asyncpg import create_pool
from loopaware_pool.asyncpg import link as asyncpg_link
from running import DEADLINE_SECONDS

pytestmark = [pytest.mark.both_pythons, pytest.mark.both_drivers]


class Without:
    """An object that lacks some attributes, and is the wrapped one in all else."""

    def __init__(self, wrapped, *hidden):
        self.__dict__.update(wrapped=wrapped, hidden=hidden)

    def __getattr__(self, name):
        if name in self.hidden:
            raise AttributeError(name)
        return getattr(self.wrapped, name)

    def __setattr__(self, name, value):
        setattr(self.wrapped, name, value)


@contextmanager
def reaching(monkeypatch, change):
    """Have every connection looked at through *change* when it is made."""

    class Internals(asyncpg_link.Internals):
        __slots__ = ()

        def __init__(self, con):
            super().__init__(Without(con, *change.get("con", ())))
            self.transport = Without(self.transport, *change["transport"]) if "transport" in change else self.transport
            self.plain = Without(self.plain, *change["plain"]) if "plain" in change else self.plain
            self.protocol = Without(self.protocol, *change["protocol"]) if "protocol" in change else self.protocol
            self.is_busy = self._find_busy()

    with monkeypatch.context() as patch:
        patch.setattr(asyncpg_link, "Internals", Internals)
        yield


async def whole_life(pool):
    """Acquire, dirty, release, lease again, hand over, lose, cancel; everything must be as it always is."""
    async with pool.acquire() as con:
        pid = con.get_server_pid()
        await con.execute("SET app.tenant = '7'; SELECT pg_advisory_lock(9); SET ROLE pg_monitor")
    await pool.settled()
    async with pool.acquire() as con:
        assert con.get_server_pid() == pid
        row = await con.fetchrow("SELECT current_user::text, nullif(current_setting('app.tenant', true), '')")
        assert tuple(row) == ("postgres", None)
        query = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = $1"
        assert await con.fetchval(query, pid) == 0
    await pool.settled()
    assert await asyncio.gather(*[pool.fetchval("SELECT $1::int", n) for n in range(20)]) == list(range(20))
    sleeping = asyncio.create_task(pool.execute("SELECT pg_sleep(1)"))
    await helpers.spin(10)
    sleeping.cancel()
    await asyncio.wait([sleeping])
    con = await pool.acquire()
    con.terminate()
    await pool.release(con)
    leases = [await pool.acquire() for _ in range(2)]
    assert [await con.fetchval("SELECT 1") for con in leases] == [1, 1]
    for con in leases:
        await pool.release(con)
    assert pool.stats().size == 2


async def live(dsn, **options):
    async with asyncio.timeout(3 * DEADLINE_SECONDS), create_pool(dsn, min_size=0, max_size=2, **options) as pool:
        await whole_life(pool)


def warnings_of(caplog):
    """What the pool has logged; the loop must have had nothing to complain of."""
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []
    return [record for record in caplog.records if record.name.startswith("loopaware_pool")]


RESETS = {
    "_on_timeout": {"protocol": ["_on_timeout"]},
    "_is_cancelling": {"protocol": ["_is_cancelling"]},
    "set_protocol": {"transport": ["set_protocol"]},
    "everything": {"protocol": ["_on_timeout"], "transport": ["set_protocol"], "plain": ["_sock"]},
}


@pytest.mark.parametrize("change", RESETS.values(), ids=RESETS)
def test_without_a_way_to_reset_in_passing_resets_are_awaited(dsn, run, monkeypatch, caplog, zero_fd_delta, change):
    """What a pipelined reset needs and does not find is said once, and each release awaits its reset."""
    with caplog.at_level(logging.WARNING), reaching(monkeypatch, change):
        run(live(dsn))
    (warning,) = warnings_of(caplog)
    assert "resets are awaited" in warning.getMessage()


def test_a_way_to_ask_that_answers_wrongly_is_not_used(dsn, run, monkeypatch, caplog, zero_fd_delta):
    """If a new connection seems busy, the question is not the one it was: resets are awaited."""

    class Internals(asyncpg_link.Internals):
        __slots__ = ()

        def __init__(self, con):
            super().__init__(con)
            self.protocol = Confused(self.protocol)
            self.is_busy = self._find_busy()

    class Confused(Without):
        def _on_timeout(self, waiter):
            return None

    monkeypatch.setattr(asyncpg_link, "Internals", Internals)
    with caplog.at_level(logging.WARNING):
        run(live(dsn))
    assert len(warnings_of(caplog)) == 1


PARTS = {"_sock": {"plain": ["_sock"]}, "_transport": {"con": ["_transport"]}, "_protocol": {"con": ["_protocol"]}}


@pytest.mark.parametrize("change", PARTS.values(), ids=PARTS)
def test_without_one_of_its_parts_a_connection_works(dsn, run, monkeypatch, caplog, zero_fd_delta, change):
    """Whatever of asyncpg's inside is not where it was, leases stay right and nothing is left open."""
    with caplog.at_level(logging.WARNING), reaching(monkeypatch, change):
        run(live(dsn))
    assert len(warnings_of(caplog)) <= 1


def test_without_the_transport_under_tls_a_connection_works(tls_server, monkeypatch, caplog, zero_fd_delta):
    """Where TLS hides the transport with the socket, only the upper one is paused, as on uvloop."""

    class Internals(asyncpg_link.Internals):
        __slots__ = ()

        def __init__(self, con):
            super().__init__(con)
            self.plain = None

    monkeypatch.setattr(asyncpg_link, "Internals", Internals)
    with caplog.at_level(logging.WARNING):
        asyncio.run(live(tls_server.dsn, ssl=tls_server.ssl_context))
    assert len(warnings_of(caplog)) <= 1


def test_tls_with_everything_in_its_place_works(tls_server, run, zero_fd_delta):
    """The same life over TLS, on both kinds of loop."""
    run(live(tls_server.dsn, ssl=tls_server.ssl_context))


def test_without_a_selector_registrations_are_unknown(dsn, caplog, zero_fd_delta):
    """A loop that hides its selector serves as well; only `fd_report` cannot tell who watches."""

    class HidingLoop(asyncio.SelectorEventLoop):
        _hidden = None

        @property
        def _selector(self):
            caller = sys._getframe(1).f_code.co_filename
            if "loopaware_pool" in caller:
                raise AttributeError("_selector")
            return self._hidden

        @_selector.setter
        def _selector(self, selector):
            self._hidden = selector

    async def main():
        async with asyncio.timeout(3 * DEADLINE_SECONDS), create_pool(dsn, min_size=0, max_size=2) as pool:
            await whole_life(pool)
            await pool.settled()
            rows = pool.fd_report()
            assert len(rows) == 2
            assert all(row.registered is None and row.identity.is_open() for row in rows)

    with caplog.at_level(logging.WARNING), asyncio.Runner(loop_factory=HidingLoop) as runner:
        runner.run(main())


class OldConnection(asyncpg.Connection):
    """A connection without the slot by which asyncpg 0.32 finds its holder."""

    __slots__ = ()

    def __getattribute__(self, name):
        if name == "_pool_holder" and sys._getframe(1).f_code.co_filename == asyncpg_link.__file__:
            raise AttributeError(name)
        return super().__getattribute__(name)


def test_without_the_holder_of_asyncpg_0_32_a_connection_works(dsn, run, caplog, zero_fd_delta):
    """A connection that reports its loss to its proxy alone, as up to asyncpg 0.31, is used and closed as any other."""
    with caplog.at_level(logging.WARNING):
        run(live(dsn, connection_class=OldConnection))
    assert warnings_of(caplog) == []


@pytest.mark.parametrize("change", [RESETS["everything"], PARTS["_transport"]], ids=["everything", "_transport"])
def test_without_its_parts_the_end_of_a_loop_leaves_nothing(dsn, run, monkeypatch, zero_fd_delta, change):
    """A loop that ends without `close()` has its connections closed, whatever is hidden."""

    async def main():
        pool = await create_pool(dsn, min_size=0, init_size=2, max_size=2)
        pools.append(pool)
        await pool.fetchval("SELECT 1")

    pools = []
    with reaching(monkeypatch, change):
        run(main())
