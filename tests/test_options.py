"""Each option is declared once: signatures, checks and docstrings follow the declaration."""

from __future__ import annotations

import dataclasses
import inspect

import pytest

import loopaware_pool.asyncpg.options
import loopaware_pool.psycopg.options
import loopaware_pool.sqlalchemy.options
from loopaware_pool._core.options import SharedOptions, documented, option, sentence
from loopaware_pool.asyncpg import Pool, create_pool
from loopaware_pool.psycopg import AsyncConnectionPool, AsyncNullConnectionPool
from loopaware_pool.sqlalchemy import LoopAwareQueuePool

FLAVOURS = {
    "asyncpg": (create_pool, loopaware_pool.asyncpg.options.Options),
    "psycopg": (AsyncConnectionPool, loopaware_pool.psycopg.options.Options),
    "sqlalchemy": (LoopAwareQueuePool, loopaware_pool.sqlalchemy.options.Options),
}
# What the public functions take beside the options.
BESIDE = {"dsn", "connect_args", "connect_kwargs", "creator", "kw"}


def taken_by(function):
    return {name: one for name, one in inspect.signature(function).parameters.items() if name not in BESIDE}


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_signature_says_what_is_declared(flavour):
    """The same names and defaults; a type checker reads them where they are written out."""
    function, options = FLAVOURS[flavour]
    declared = {field.name: field.default for field in dataclasses.fields(options)}
    assert {name: parameter.default for name, parameter in taken_by(function).items()} == declared


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_signature_has_the_types_that_are_declared(flavour):
    """Those of a generic class are `Any`'s in the declaration."""
    function, options = FLAVOURS[flavour]
    generic = {
        "type[ACT]": "type[AsyncConnection[Any]]",
        "AsyncConnectionCB[ACT] | None": "AsyncConnectionCB[Any] | None",
    }
    written = {
        name: str(parameter.annotation).removeprefix("asyncio.") for name, parameter in taken_by(function).items()
    }
    declared = {field.name: field.type for field in dataclasses.fields(options)}
    assert {name: generic.get(kind, kind) for name, kind in written.items()} == declared


def test_the_class_takes_what_the_function_takes():
    """As with asyncpg's, the class has no default for some."""
    of_class, of_function = taken_by(Pool), taken_by(create_pool)
    assert of_class.keys() == of_function.keys()
    assert all(one.annotation == of_function[name].annotation for name, one in of_class.items())
    defaults = {name: one.default for name, one in of_class.items() if one.default is not one.empty}
    assert all(of_function[name].default == default for name, default in defaults.items())


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_docstring_says_what_each_option_does(flavour):
    """`help()` shows what the page shows."""
    function, options = FLAVOURS[flavour]
    told = " ".join(inspect.getdoc(function).split())
    for field in dataclasses.fields(options):
        assert f"{field.name}: {sentence(field)}" in told
    assert "{options}" not in told


def test_no_option_is_declared_twice():
    """What both flavours have, and the core, is declared with the same meaning for all."""
    shared = SharedOptions.names()
    for _, options in FLAVOURS.values():
        assert not set(shared) & set(vars(options).get("__annotations__", {}))


def test_what_may_hold_a_password_is_not_shown():
    """Options may end up in a traceback with the values of variables, or in a log."""
    options = loopaware_pool.psycopg.options.Options(conninfo="password=hunter2", kwargs={"password": "hunter2"})
    assert "hunter2" not in repr(options)


@pytest.mark.parametrize("kind", [AsyncConnectionPool, AsyncNullConnectionPool])
def test_the_null_pool_takes_the_same(kind):
    """With the least size that it can have."""
    pool = kind(min_size=0, max_size=2, keepalive=5, open=False)
    assert pool._core.shared.config.keepalive == 5


def test_a_docstring_that_python_has_dropped_stays_so():
    """As under `python -OO`."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Options(SharedOptions):
        size: int = option("How many.", default=1)

    def undocumented(*, size=1):
        return size

    def described(*, size=1):
        """
        Do something.

        Args:
            {options}
        """
        return size

    assert documented(Options)(undocumented).__doc__ is None
    assert "            size: How many.\n" in documented(Options)(described).__doc__
