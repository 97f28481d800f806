"""`install()` makes the drivers' own names mean our pools, and `uninstall()` undoes it: in processes of their own."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap

import pytest

pytestmark = [pytest.mark.both_drivers, pytest.mark.both_pythons]

ASYNCPG = ("asyncpg.create_pool", "asyncpg.pool.create_pool", "asyncpg.Pool", "asyncpg.pool.Pool")
PSYCOPG = (
    *("psycopg_pool.AsyncConnectionPool", "psycopg_pool.pool_async.AsyncConnectionPool"),
    *("psycopg_pool.AsyncNullConnectionPool", "psycopg_pool.null_pool_async.AsyncNullConnectionPool"),
)
WHOSE = """
import importlib, sys

def whose(path):
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name).__module__.partition(".")[0]
"""


@pytest.fixture
def run(tmp_path):
    """Runs a program in a process of its own, in a folder of modules; gives the lines it prints, and its warnings."""

    def run(code, *options, modules=None, warns=False):
        for name, source in (modules or {}).items():
            path = tmp_path / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(source))
        program = WHOSE + textwrap.dedent(code)
        done = subprocess.run(
            [sys.executable, *options, "-c", program],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert warns or not done.stderr, done.stderr
        return done.stderr if warns else done.stdout.splitlines()

    return run


# ---- what is swapped ----


@pytest.mark.parametrize("names", [ASYNCPG, PSYCOPG], ids=["asyncpg", "psycopg_pool"])
@pytest.mark.parametrize("imported", ["before", "after", "after ours"])
def test_the_drivers_names_are_ours(run, names, imported):
    """Whether the driver is imported before the call, after it, or by way of our own package."""
    driver = names[0].partition(".")[0]
    ours = {"asyncpg": "loopaware_pool.asyncpg", "psycopg_pool": "loopaware_pool.psycopg"}[driver]
    before = f"import {driver}" if imported == "before" else ""
    after = f"import {ours}" if imported == "after ours" else ""
    code = f"""
        {before}
        import loopaware_pool
        loopaware_pool.install()
        {after}
        print(*[whose(name) for name in {names}])
    """
    assert run(code) == [" ".join(["loopaware_pool"] * 4)]


def test_no_driver_is_imported_that_the_program_does_not_import(run):
    """Neither by the call, nor by the import of the other one."""
    code = """
        import loopaware_pool
        loopaware_pool.install(sqlalchemy=True)
        drivers = {"asyncpg", "psycopg", "psycopg_pool", "sqlalchemy"}
        print(*drivers & set(sys.modules))
        import asyncpg
        print(*drivers & set(sys.modules))
    """
    assert run(code) == ["", "asyncpg"]


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg_pool"])
def test_a_driver_that_is_not_there_is_no_obstacle(run, driver):
    """Its import fails as it would have."""
    code = f"""
        sys.modules["{driver}"] = None
        import loopaware_pool
        loopaware_pool.install()
        try:
            import {driver}
        except ModuleNotFoundError as error:
            print(error.name)
    """
    assert run(code) == [driver]


def test_sync_pools_stay_as_they_are(run):
    """psycopg_pool's `ConnectionPool` has loops to know nothing of."""
    code = """
        from psycopg_pool import ConnectionPool, NullConnectionPool
        import loopaware_pool
        loopaware_pool.install()
        names = "psycopg_pool.ConnectionPool", "psycopg_pool.pool.ConnectionPool", "psycopg_pool.NullConnectionPool"
        print(*map(whose, names), ConnectionPool.__module__, NullConnectionPool.__module__)
    """
    assert run(code) == ["psycopg_pool psycopg_pool psycopg_pool psycopg_pool.pool psycopg_pool.null_pool"]


def test_names_that_were_imported_earlier_are_changed(run):
    """In the program and in other modules, under whatever name."""
    code = """
        from asyncpg import create_pool as make, Pool
        from psycopg_pool import AsyncConnectionPool
        import taken
        import loopaware_pool
        loopaware_pool.install()
        print(*[each.__module__ for each in (make, Pool, AsyncConnectionPool, taken.Null)])
    """
    taken = "from psycopg_pool import AsyncNullConnectionPool as Null"
    asyncpg, psycopg = "loopaware_pool.asyncpg", "loopaware_pool.psycopg"
    assert run(code, modules={"taken": taken}) == [f"{asyncpg} {asyncpg} {psycopg} {psycopg}"]


def test_our_own_modules_keep_the_drivers_classes(run):
    """A name of theirs that holds one is not changed: our pools are still subclasses of the drivers' own."""
    code = """
        import asyncpg, loopaware_pool.asyncpg.pool, loopaware_pool.psycopg
        loopaware_pool.asyncpg.pool.kept = asyncpg.Pool
        loopaware_pool.install()
        ours = loopaware_pool.psycopg.AsyncConnectionPool
        kept = loopaware_pool.asyncpg.pool.kept
        print(kept.__module__, kept in loopaware_pool.asyncpg.Pool.__mro__)
        print([each.__module__ for each in ours.__mro__ if each.__name__ == "AsyncConnectionPool"])
    """
    assert run(code) == ["asyncpg.pool True", "['loopaware_pool.psycopg', 'psycopg_pool.pool_async']"]


@pytest.mark.parametrize("expression", ["functools.partial(create_pool, dsn)()", "Holder.make(dsn)", "default()"])
def test_the_old_create_pool_makes_pools_of_ours_whoever_holds_it(run, expression):
    """It looks its class up when it is called; so nobody is warned of those that hold it."""
    code = f"""
        import functools
        from asyncpg import create_pool
        dsn = "postgresql://localhost/"
        class Holder:
            make = staticmethod(create_pool)
        def default(make=create_pool):
            return make(dsn)
        partial = functools.partial(create_pool, dsn)
        import asyncpg, loopaware_pool
        loopaware_pool.install()
        pool = {expression.replace("functools.partial(create_pool, dsn)", "partial")}
        print(type(pool).__module__, isinstance(pool, asyncpg.Pool), pool.get_max_size())
    """
    assert run(code) == ["loopaware_pool.asyncpg True 10"]


@pytest.mark.parametrize(
    ("driver", "base"), [("asyncpg", "asyncpg.Pool"), ("psycopg_pool", "psycopg_pool.AsyncConnectionPool")]
)
def test_a_class_that_is_derived_later_is_derived_from_ours(run, driver, base):
    """As tortoise-orm's is."""
    code = f"""
        import loopaware_pool
        loopaware_pool.install()
        import {driver}
        class Derived({base}):
            pass
        print(Derived.__mro__[1].__module__.partition(".")[0])
    """
    assert run(code) == ["loopaware_pool"]


def test_one_pool_serves_two_loops_with_no_import_changed(run, dsn):
    """What the README's first program cannot do as it is."""
    code = f"""
        import loopaware_pool
        loopaware_pool.install()
        import asyncio
        from asyncpg import create_pool

        async def answer(pool):
            return await (await pool).fetchval("SELECT 42")

        pool = create_pool({dsn!r}, min_size=1)
        print(asyncio.run(answer(pool)), asyncio.run(answer(pool)))
    """
    assert run(code) == ["42 42"]


def test_a_module_that_is_imported_lazily_is_not_executed_to_look_at_it(run):
    """The names are looked for in its dictionary alone."""
    code = """
        import asyncpg, importlib.util
        spec = importlib.util.find_spec("late")
        spec.loader = importlib.util.LazyLoader(spec.loader)
        module = sys.modules["late"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        import loopaware_pool
        loopaware_pool.install()
        print("not yet")
        module.create_pool
    """
    assert run(code, modules={"late": "print('executed')\nfrom asyncpg import create_pool"}) == ["not yet", "executed"]


def test_the_driver_sees_nothing_of_the_import_being_watched(run):
    """Its loader is its own, and a reload swaps its names again."""
    code = """
        import loopaware_pool
        loopaware_pool.install()
        import asyncpg, importlib
        print(type(asyncpg.__loader__).__name__, asyncpg.__spec__.loader is asyncpg.__loader__)
        importlib.reload(asyncpg)
        print(whose("asyncpg.create_pool"), type(asyncpg.__loader__).__name__)
    """
    assert run(code) == ["SourceFileLoader True", "loopaware_pool SourceFileLoader"]


def test_a_driver_can_be_looked_for_without_being_imported(run):
    """What is found has all that the driver's own loader has."""
    code = """
        import importlib.util
        import loopaware_pool
        loopaware_pool.install()
        sys.meta_path.insert(1, object())  # a finder of the kind that Python has given up
        spec = importlib.util.find_spec("asyncpg")
        print(spec.loader.get_filename("asyncpg") == spec.origin, "asyncpg" in sys.modules)
        sys.meta_path.remove(sys.meta_path[1])
        import asyncpg
        print(asyncpg.Pool.__module__)
    """
    assert run(code) == ["True False", "loopaware_pool.asyncpg"]


def test_finders_that_find_nothing_are_left_out(run):
    """The driver is looked for as it would have been."""
    code = """
        import loopaware_pool
        loopaware_pool.install()
        sys.meta_path[1:] = [finder for finder in sys.meta_path[1:] if "PathFinder" not in repr(finder)]
        try:
            import asyncpg
        except ModuleNotFoundError as error:
            print(error.name)
    """
    assert run(code) == ["asyncpg"]


# ---- what cannot be reached ----

HOLDERS = {
    "a subclass": "class Mine(AsyncConnectionPool): pass",
    "a class attribute": "class Mine:\n    kind = AsyncConnectionPool",
    "a default": "def make(kind=AsyncConnectionPool): pass",
    "a default by keyword": "def make(*, kind=AsyncConnectionPool): pass",
    "a closure": "def outer():\n    kind = AsyncConnectionPool\n    return lambda: kind\nmake = outer()",
    "a partial": "import functools\nmake = functools.partial(AsyncConnectionPool)",
    "an instance": "class Mine:\n    def __init__(self): self.kind = AsyncConnectionPool\nmine = Mine()",
    "a proxy that is not to be asked": """
class Proxy:
    kind = AsyncConnectionPool
    @property
    def __class__(self):
        raise ZeroDivisionError
proxies = [Proxy()]
proxies[0].held = [AsyncConnectionPool]
""",
    "a list": "kinds = [AsyncConnectionPool]",
    "a mapping": "kinds = {'pool': [AsyncConnectionPool]}",
    "an alias that can be called": "Pool = AsyncConnectionPool[int]",
}
HARMLESS = {
    "a global name": "",
    "an annotation": "def use(pool: AsyncConnectionPool): pass",
    "an annotation of a class": "class Mine:\n    pool: AsyncConnectionPool",
    "an annotation of the module": "pool: AsyncConnectionPool",
    "an alias for annotations": "Either = int | AsyncConnectionPool[int]",
    "an older alias for annotations": "import typing\nEither = typing.Union[int, AsyncConnectionPool[int]]",
    "a pool": "async def make():\n    return AsyncConnectionPool('', open=False)\nimport asyncio\nasyncio.run(make())",
}
WATCH = """
    import warnings
    import loopaware_pool
    from loopaware_pool.swapping import NotSwapped
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        loopaware_pool.install()
    print(*[f"{each.category.__name__} {each.filename} {each.message}" for each in told])
"""


def sources(kinds, prefix):
    """A module for each way to hold the class, by name."""
    held = "from psycopg_pool import AsyncConnectionPool\n"
    return {f"{prefix}_{number:02}": held + source for number, source in enumerate(kinds.values())}


def test_modules_that_hold_the_old_class_otherwise_are_named(run):
    """One warning, at the line of the call, that says what to do; what only speaks of the class is of no interest."""
    holders, harmless = sources(HOLDERS, "holder"), sources(HARMLESS, "harmless")
    (told,) = run(f"import {', '.join([*holders, *harmless])}\n{textwrap.dedent(WATCH)}", modules=holders | harmless)
    assert told.startswith("NotSwapped <string> a driver's own pool class is still used in holder_00, ")
    assert told.endswith("call loopaware_pool.install() before these modules are imported")
    assert re.findall(r"(?:holder|harmless)_\d+", told) == sorted(holders)


def test_what_was_installed_first_leaves_nothing_to_warn_of(run):
    """The same modules, imported after the call."""
    holders = sources(HOLDERS, "holder")
    code = f"""
        import warnings
        warnings.simplefilter("error")
        import loopaware_pool
        loopaware_pool.install()
        import {", ".join(holders)}
        loopaware_pool.install()
        print(holder_00.Mine.__mro__[1].__module__)
    """
    assert run(code, modules=holders) == ["loopaware_pool.psycopg"]


def test_asyncpgs_class_is_looked_for_too(run):
    """Only its function makes pools of ours by itself."""
    mine = "import asyncpg\nclass Mine(asyncpg.Pool): pass"
    (told,) = run(f"import holder\n{textwrap.dedent(WATCH)}", modules={"holder": mine})
    assert "still used in holder (as " in told


# ---- more than once, and undone ----


def test_a_second_call_changes_what_has_come_since(run):
    """Whatever is swapped stays swapped, and is watched once."""
    code = """
        import asyncpg
        old = {"create_pool": asyncpg.create_pool}
        import loopaware_pool
        before = len(sys.meta_path)
        loopaware_pool.install()
        late = old["create_pool"]
        print(late.__module__)
        loopaware_pool.install()
        print(late.__module__, len(sys.meta_path) - before)
        loopaware_pool.uninstall()
        print(late.__module__, asyncpg.create_pool.__module__, len(sys.meta_path) - before)
    """
    assert run(code) == ["asyncpg.pool", "loopaware_pool.asyncpg 1", "asyncpg.pool asyncpg.pool 0"]


def test_uninstalling_gives_all_names_back(run):
    """Those of the drivers, and those that were changed in other modules; a later import finds the driver's own."""
    code = f"""
        from asyncpg import create_pool
        import loopaware_pool
        loopaware_pool.install()
        import psycopg_pool
        loopaware_pool.uninstall()
        loopaware_pool.uninstall()
        print(*[whose(name) for name in {ASYNCPG + PSYCOPG}], create_pool.__module__)
        from asyncpg import create_pool
        print(create_pool.__module__)
    """
    expected = " ".join(["asyncpg"] * 4 + ["psycopg_pool"] * 4 + ["asyncpg.pool"])
    assert run(code) == [expected, "asyncpg.pool"]


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg_pool"])
def test_a_driver_that_is_imported_after_uninstalling_is_its_own(run, driver):
    """Nothing watches any more."""
    code = f"""
        import loopaware_pool
        loopaware_pool.install()
        loopaware_pool.uninstall()
        import {driver}
        print(*[whose(name) for name in {ASYNCPG if driver == "asyncpg" else PSYCOPG}])
    """
    assert run(code) == [" ".join([driver] * 4)]


def test_uninstalling_leaves_alone_what_others_have_changed(run):
    """A tracer's wrapper stays where it is, and so does a name that was taken from us."""
    code = """
        import asyncpg
        import loopaware_pool
        loopaware_pool.install()
        from asyncpg import create_pool as taken
        asyncpg.create_pool = tracer = lambda *arguments: None
        loopaware_pool.uninstall()
        print(asyncpg.create_pool is tracer, taken.__module__, asyncpg.pool.create_pool.__module__)
    """
    assert run(code) == ["True loopaware_pool.asyncpg asyncpg.pool"]


def test_it_may_be_installed_again(run):
    """As often as one likes."""
    code = """
        import asyncpg, loopaware_pool
        for _ in range(3):
            loopaware_pool.install()
            print(asyncpg.create_pool.__module__)
            loopaware_pool.uninstall()
            print(asyncpg.create_pool.__module__)
    """
    assert run(code) == ["loopaware_pool.asyncpg", "asyncpg.pool"] * 3


def test_importing_the_package_changes_nothing(run):
    """Nor does importing the module of `install`."""
    code = f"""
        import asyncpg, loopaware_pool.swapping, loopaware_pool.asyncpg, loopaware_pool.psycopg
        print(*[whose(name) for name in {ASYNCPG + PSYCOPG}])
    """
    assert run(code) == [" ".join(["asyncpg"] * 4 + ["psycopg_pool"] * 4)]


# ---- threads ----


def test_any_thread_may_install(run):
    """Many at once, while others import the drivers; the names are swapped once, and one call undoes it."""
    code = f"""
        import threading
        import loopaware_pool
        begin = threading.Barrier(8)
        found, failed = [], []

        def work(number):
            try:
                begin.wait()
                loopaware_pool.install()
                found.append([whose(name) for name in ({ASYNCPG}, {PSYCOPG})[number % 2]])
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=work, args=[number]) for number in range(8)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        print(failed, len(found))
        loopaware_pool.install()
        print({{whose(name) for name in {ASYNCPG + PSYCOPG}}})
        loopaware_pool.uninstall()
        print(*[whose(name) for name in {ASYNCPG + PSYCOPG}])
    """
    expected = ["[] 8", "{'loopaware_pool'}", " ".join(["asyncpg"] * 4 + ["psycopg_pool"] * 4)]
    assert run(code) == expected


def test_one_thread_undoes_nothing_that_another_is_doing(run):
    """`uninstall()` waits until an `install()` that has begun is through."""
    code = """
        import asyncpg, threading
        import loopaware_pool
        from loopaware_pool.swapping import names
        began, go_on = threading.Event(), threading.Event()
        make = names.Replacements.make

        def slowly(self):
            began.set()
            go_on.wait()
            make(self)

        names.Replacements.make = slowly
        one = threading.Thread(target=loopaware_pool.install)
        other = threading.Thread(target=loopaware_pool.uninstall)
        one.start()
        began.wait()
        other.start()
        other.join(0.1)
        print(other.is_alive())
        go_on.set()
        one.join()
        other.join()
        print(asyncpg.create_pool.__module__)
    """
    assert run(code) == ["True", "asyncpg.pool"]


# ---- who is told ----


def test_each_pool_is_told(run):
    """Of both flavours, once each, when it is made; until it is uninstalled."""
    code = """
        import asyncio
        import loopaware_pool
        pools = []
        loopaware_pool.install(on_pool=pools.append)
        loopaware_pool.install()
        import asyncpg, psycopg_pool

        def make():
            return asyncpg.create_pool("postgresql://localhost/")

        async def make_psycopgs():
            psycopg_pool.AsyncConnectionPool("", open=False)
            psycopg_pool.AsyncNullConnectionPool("", open=False)

        one = make()
        asyncio.run(make_psycopgs())
        print(pools[0] is one, *[type(pool).__name__ for pool in pools])
        loopaware_pool.uninstall()
        loopaware_pool.create_pool("postgresql://localhost/")
        loopaware_pool.install()
        make()
        print(len(pools))
    """
    assert run(code) == ["True Pool AsyncConnectionPool AsyncNullConnectionPool", "3"]


def test_the_last_listener_is_the_one_that_is_told(run):
    """And a pool whose arguments are wrong is not told."""
    code = """
        import asyncpg, inspect
        import loopaware_pool
        first, second = [], []
        loopaware_pool.install(on_pool=first.append)
        loopaware_pool.install(on_pool=second.append)
        asyncpg.create_pool("postgresql://localhost/")
        try:
            asyncpg.create_pool("postgresql://localhost/", min_size=-1)
        except ValueError:
            print(len(first), len(second), "min_size" in inspect.signature(asyncpg.Pool).parameters)
    """
    assert run(code) == ["0 1 True"]


def test_what_the_listener_raises_the_maker_gets(run):
    """It is called where the pool is made."""
    code = """
        import asyncpg
        import loopaware_pool
        def refuse(pool):
            raise ZeroDivisionError
        loopaware_pool.install(on_pool=refuse)
        try:
            asyncpg.create_pool("postgresql://localhost/")
        except ZeroDivisionError:
            print("refused")
    """
    assert run(code) == ["refused"]


def test_a_library_that_says_it_is_a_module_is_let_be(run):
    """As one of cffi's, which the package cryptography leaves among the modules; it has no globals."""
    code = """
        import asyncpg
        import types
        class Library:
            __slots__ = ()
            __class__ = property(lambda _: types.ModuleType)
        sys.modules["library"] = Library()
        import loopaware_pool
        loopaware_pool.install()
        print(whose("asyncpg.create_pool"))
        loopaware_pool.uninstall()
    """
    assert run(code) == ["loopaware_pool"]


# ---- SQLAlchemy ----

# Stands for SQLAlchemy, and for our pool for it, as far as the swap knows them.
STAGE = textwrap.dedent("""
    import types

    def module(name, **contents):
        made = sys.modules[name] = types.ModuleType(name)
        made.__dict__.update(contents)
        return made

    class AsyncAdaptedQueuePool: pass
    class NullPool: pass
    class LoopAwareQueuePool(AsyncAdaptedQueuePool):
        def __init__(self, creator, pool_size=5, **kw): self.pool_size = pool_size
    class Base:
        poolclass = AsyncAdaptedQueuePool
        @classmethod
        def get_pool_class(cls, url): return cls.poolclass
    class PGDialect_asyncpg(Base):
        pass
    class Derived(PGDialect_asyncpg):
        poolclass = NullPool
    class PGDialectAsync_psycopg(Base):
        @classmethod
        def get_pool_class(cls, url): return NullPool if url == "null" else cls.poolclass
    class PGDialect_psycopg(Base): pass

    module("sqlalchemy")
    module("sqlalchemy.pool", AsyncAdaptedQueuePool=AsyncAdaptedQueuePool)
    module("sqlalchemy.dialects.postgresql.asyncpg", PGDialect_asyncpg=PGDialect_asyncpg)
    module(
        "sqlalchemy.dialects.postgresql.psycopg",
        PGDialectAsync_psycopg=PGDialectAsync_psycopg,
        PGDialect_psycopg=PGDialect_psycopg,
    )
    import loopaware_pool
    module("loopaware_pool.sqlalchemy", LoopAwareQueuePool=LoopAwareQueuePool)
    dialects = PGDialect_asyncpg, Derived, PGDialectAsync_psycopg, PGDialect_psycopg
    def show(): print(*[dialect.get_pool_class("url").__name__ for dialect in dialects])
""")


def test_sqlalchemys_async_engines_take_our_pool_if_that_is_asked_for(run):
    """Where they would take SQLAlchemy's queue; a sync dialect, and one that wants another pool, keep theirs."""
    code = """
        loopaware_pool.install()
        show()
        loopaware_pool.install(sqlalchemy=True)
        swapped = vars(PGDialect_asyncpg)["get_pool_class"]
        loopaware_pool.install()
        show()
        print(vars(PGDialect_asyncpg)["get_pool_class"] is swapped)
        print(PGDialectAsync_psycopg.get_pool_class("null").__name__)
        loopaware_pool.uninstall()
        show()
        print("get_pool_class" in vars(PGDialect_asyncpg), "get_pool_class" in vars(PGDialectAsync_psycopg))
        loopaware_pool.install()
        show()
        loopaware_pool.install(sqlalchemy=True)
        show()
    """
    theirs = "AsyncAdaptedQueuePool NullPool AsyncAdaptedQueuePool AsyncAdaptedQueuePool"
    ours = "LoopAwareQueuePool NullPool LoopAwareQueuePool AsyncAdaptedQueuePool"
    assert run(STAGE + textwrap.dedent(code)) == [theirs, ours, "True", "NullPool", theirs, "False True", theirs, ours]


def test_pools_of_sqlalchemys_engines_are_told(run):
    """By a subclass, whose options are the same."""
    code = """
        pools = []
        loopaware_pool.install(sqlalchemy=True, on_pool=pools.append)
        kind = PGDialect_asyncpg.get_pool_class("url")
        pool = kind(None, pool_size=7)
        print(issubclass(kind, LoopAwareQueuePool), kind.__name__, pools == [pool], pool.pool_size)
    """
    assert run(STAGE + textwrap.dedent(code)) == ["True LoopAwareQueuePool True 7"]


def test_a_dialect_that_is_imported_later_takes_our_pool(run):
    """As SQLAlchemy imports it for the first engine of the kind."""
    dialect = """
        class PGDialect_asyncpg:
            @classmethod
            def get_pool_class(cls, url):
                from sqlalchemy.pool import AsyncAdaptedQueuePool
                return AsyncAdaptedQueuePool
    """
    modules = dict.fromkeys(["sqlalchemy/__init__", "sqlalchemy/dialects/__init__"], "")
    modules["sqlalchemy/pool"] = "class AsyncAdaptedQueuePool: pass"
    modules["sqlalchemy/dialects/postgresql/asyncpg"] = dialect
    code = """
        import loopaware_pool, types
        ours = sys.modules["loopaware_pool.sqlalchemy"] = types.ModuleType("loopaware_pool.sqlalchemy")
        ours.LoopAwareQueuePool = type("Ours", (), {})
        loopaware_pool.install(sqlalchemy=True)
        loopaware_pool.install()
        from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg
        print(PGDialect_asyncpg.get_pool_class("url").__name__)
    """
    assert run(code, modules=modules) == ["Ours"]


def test_a_real_engine_takes_our_pool(run):
    """For both drivers, with the options of `create_async_engine`, whenever SQLAlchemy is imported."""
    pytest.importorskip("sqlalchemy")
    pytest.importorskip("loopaware_pool.sqlalchemy")
    code = """
        import loopaware_pool
        pools = []
        loopaware_pool.install(sqlalchemy=True, on_pool=pools.append)
        from sqlalchemy.ext.asyncio import create_async_engine
        from sqlalchemy.pool import NullPool
        for driver in ("asyncpg", "psycopg"):
            engine = create_async_engine(f"postgresql+{driver}://localhost/", pool_size=2, max_overflow=1)
            pool = engine.sync_engine.pool
            print(isinstance(pool, sys.modules["loopaware_pool.sqlalchemy"].LoopAwareQueuePool), pool.size())
        own = create_async_engine("postgresql+asyncpg://localhost/", poolclass=NullPool).sync_engine.pool
        print(type(own).__name__, len(pools))
    """
    assert run(code) == ["True 2", "True 2", "NullPool 2"]
