"""What a type checker sees of the core: a slot knows the sessions of its driver, and a session its listener."""

from typing import assert_type

from loopaware_pool._core.pool import PoolCore
from loopaware_pool._core.runner import SessionListener, ShardRunner
from loopaware_pool._core.slot import Slot
from loopaware_pool.asyncpg.driver import AsyncpgDriver
from loopaware_pool.asyncpg.session import AsyncpgSession
from loopaware_pool.driver import Driver, Owner, Session
from loopaware_pool.psycopg.driver import PsycopgDriver
from loopaware_pool.psycopg.session import PsycopgSession
from loopaware_pool.testing import FakeDriver, FakeSession


def a_core_lends_sessions_of_its_driver(core: PoolCore[AsyncpgSession], runner: ShardRunner[PsycopgSession]) -> None:
    assert_type(core.runner().shard.take(0.0), Slot[AsyncpgSession] | None)
    assert_type(core.slots()[0].session, AsyncpgSession)
    assert_type(runner.shard.idle[0].session.owner, SessionListener[PsycopgSession] | None)


def drivers_keep_the_protocol(asyncpg: AsyncpgDriver, psycopg: PsycopgDriver, fake: FakeDriver) -> None:
    drivers: tuple[Driver[AsyncpgSession], Driver[PsycopgSession], Driver[FakeSession]] = (asyncpg, psycopg, fake)
    assert drivers


def a_listener_is_an_owner(listener: SessionListener[FakeSession]) -> Owner:
    return listener


def who_does_not_care_says_slot(slot: Slot[AsyncpgSession]) -> Session:
    any_slot: Slot = slot
    return any_slot.session
