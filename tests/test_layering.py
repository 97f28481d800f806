"""What each module may know, read from the source."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import loopaware_pool

ROOT = Path(loopaware_pool.__file__).parent
# What each folder, or module beside them, may import of the package, annotations included.
PRIVATE = {"_core", "_platform"}
BASE = {"driver", "errors", "stats"}
FLAVOUR = {"_core", "_platform", *BASE}
MAY_IMPORT = {
    "_platform": set(),
    "stats": {"_platform"},
    "errors": {"stats"},
    "driver": {"_platform", "errors"},
    "_core": {"_platform", *BASE},
    "asyncpg": FLAVOUR,
    "psycopg": FLAVOUR,
    "sqlalchemy": {*FLAVOUR, "asyncpg", "psycopg"},
    "compat": {"asyncpg"},
    "credentials": {*PRIVATE, "driver", "errors"},
    "swapping": set(),  # it imports the flavours by name, when their drivers are imported
    "audit": {"_platform"},
    "pytest_plugin": {"audit"},
    "live": {"_platform", "stats"},
    "metrics": {"stats"},
    "tracing": {"_core", "driver"},
    "testing": {"_platform", *BASE},
    "cli": {"_platform.conninfo", "asyncpg", "psycopg", "sqlalchemy", "swapping", "audit", "live", "stats", "testing"},
    "__main__": {"cli"},
}
# Decide only: they wait for nothing, connect to nothing, and are told what time it is.
PURE = (
    *("errors", "stats", "_platform.conninfo", "asyncpg.sql_effects"),
    *(
        "_core.checks",
        "_core.config",
        "_core.connect_pacing",
        "_core.housekeeping",
        "_core.interfaces",
        "_core.load_shedding",
        "_core.options",
    ),
    *("_core.permits", "_core.shard", "_core.slot", "_core.sqlstate", "_core.state", "_core.wait_queue"),
)
IMPURE_IMPORTS = {
    "asyncio",
    "asyncpg",
    "concurrent",
    "datetime",
    "os",
    "psycopg",
    "random",
    "select",
    "selectors",
    "signal",
    "socket",
    "ssl",
    "subprocess",
    "threading",
    "time",
    "uvloop",
}
DRIVERS = {"asyncpg", "psycopg", "psycopg_pool", "psycopg_binary", "sqlalchemy"}
KNOWS_A_DRIVER = ("asyncpg", "psycopg", "sqlalchemy", "compat", "cli")

LONGEST_FUNCTION = 50


def modules():
    """Every module of the package, by its name in it."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        if name:
            found[name] = path
    return found


MODULES = modules()
CORE = [name for name in MODULES if not name.startswith(KNOWS_A_DRIVER)]


def tree(name):
    return ast.parse(MODULES[name].read_text())


def is_for_types(node):
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(node, *, types=False, functions=True):
    """The full names of what is imported below *node*, and of what is imported from it."""
    found = set()
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            found |= {alias.name for alias in child.names}
        elif isinstance(child, ast.ImportFrom):
            found |= {child.module} | {f"{child.module}.{alias.name}" for alias in child.names}
        elif is_for_types(child) and not types:
            for other in child.orelse:
                found |= imports(other, types=types, functions=functions)
        elif functions or not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            found |= imports(child, types=types, functions=functions)
    return found


def packages(names):
    return {name.partition(".")[0] for name in names}


def own_imports(name):
    """The modules of the package that a module imports, annotations included."""
    found = imports(tree(name), types=True)
    return {other for other in MODULES if f"loopaware_pool.{other}" in found}


def folder_of(name):
    return name.partition(".")[0]


@pytest.mark.parametrize("name", MODULES)
def test_a_folder_imports_only_what_it_may(name):
    """A flavour builds on the core, the core on the platform; commands use what any user can."""
    allowed = MAY_IMPORT[folder_of(name)]
    others = {other for other in own_imports(name) if folder_of(other) != folder_of(name)}
    assert {other for other in others if not {other, folder_of(other)} & allowed} == set()


def test_imports_go_round_in_no_circle():
    """Not for annotations either: what a module is about can be told without those that use it."""
    below = {name: own_imports(name) - {name, folder_of(name)} for name in MODULES}
    while leaves := {name for name, others in below.items() if not others & below.keys()}:
        below = {name: others for name, others in below.items() if name not in leaves}
    assert below == {}


@pytest.mark.parametrize(
    "name", ["asyncpg", "psycopg", "sqlalchemy", "swapping", "audit", "live", "metrics", "testing"]
)
def test_a_package_only_hands_on_what_its_modules_define(name):
    """Whoever looks for a definition finds it in a module that is named after it."""
    nodes = tree(name).body
    assert not [node for node in nodes if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))]


@pytest.mark.parametrize("name", PURE)
def test_a_module_that_decides_cannot_wait_connect_or_tell_the_time(name):
    """Its imports give it no means to; the lock of the permits is the one exception."""
    allowed = {"threading"} if name == "_core.permits" else set()
    assert not packages(imports(tree(name))) & IMPURE_IMPORTS - allowed


@pytest.mark.parametrize("name", PURE)
def test_a_module_that_decides_imports_only_its_like(name):
    """Otherwise it would get the means from there. (`driver` holds protocols only.)"""
    found = imports(tree(name))
    assert {other for other in MODULES if f"loopaware_pool.{other}" in found} <= {*PURE, "driver", "_core", "_platform"}
    assert not packages(imports(tree("driver"))) & IMPURE_IMPORTS


@pytest.mark.parametrize("name", CORE)
def test_the_core_knows_no_driver(name):
    """Not even for its annotations: what knows a driver stands behind the `Driver` protocol."""
    assert not packages(imports(tree(name), types=True)) & DRIVERS


def test_no_flavour_knows_another():
    """Whoever uses asyncpg need not have psycopg, and the other way round."""
    for flavour, other in (("asyncpg", {"psycopg", "psycopg_pool"}), ("psycopg", {"asyncpg"})):
        for name in MODULES:
            if name.startswith(flavour):
                found = imports(tree(name), types=True)
                assert not packages(found) & other
                assert not any(item.startswith(f"loopaware_pool.{left}") for item in found for left in other)


def run(code, *options):
    done = subprocess.run(
        [sys.executable, *options, "-c", code, str(ROOT.parent)], capture_output=True, text=True, timeout=60, check=True
    )
    return set(done.stdout.split())


def test_importing_the_package_imports_nothing_that_is_slow():
    """Neither a driver nor asyncio; it does not even need a driver to be installed."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); import loopaware_pool; print(*sys.modules)"
    loaded = run(code, "-I", "-S")
    assert "loopaware_pool" in loaded
    assert not {name for name in loaded if name.startswith("loopaware_pool.")}
    assert not loaded & (DRIVERS | {"asyncio", "dataclasses", "inspect", "logging", "select", "socket", "ssl"})


def test_naming_create_pool_imports_one_driver():
    """asyncpg, and no other."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import loopaware_pool; before = set(sys.modules); "
        "loopaware_pool.create_pool; print(*set(sys.modules) - before)"
    )
    loaded = run(code)
    assert "asyncpg" in loaded
    assert not loaded & {"psycopg", "psycopg_pool", "sqlalchemy", "uvloop"}


def test_an_unknown_name_is_no_attribute_of_the_package():
    """A slip in an import is told as any other module would tell it."""
    with pytest.raises(AttributeError, match="module 'loopaware_pool' has no attribute 'creat_pool'"):
        loopaware_pool.creat_pool  # noqa: B018
    assert {"create_pool", "install", "uninstall", "__version__"} <= set(dir(loopaware_pool))


def shape_of(name):
    """Constants come first, then classes, then functions, as the linter has it."""
    if name.isupper():
        return 0, name
    return (1 if name[0].isupper() else 2), name


@pytest.mark.parametrize(
    "name", ["", *(name for name in MODULES if not name.startswith("cli") and name not in PRIVATE)]
)
def test_public_names_exist_and_are_sorted(name):
    """`__all__` names what is there, each name once, in order."""
    module = importlib.import_module(f"loopaware_pool.{name}".rstrip("."))
    assert [public for public in module.__all__ if not hasattr(module, public)] == []
    assert list(module.__all__) == sorted(set(module.__all__), key=shape_of)


def body_lines(function):
    """Lines of a function's body; its signature and its docstring are for the caller, and may be long."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


@pytest.mark.parametrize("name", MODULES)
def test_no_function_is_too_long(name):
    """Fifty lines of body are the most that can be seen at once."""
    functions = [node for node in ast.walk(tree(name)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    assert [f"{f.name}: {body_lines(f)}" for f in functions if body_lines(f) > LONGEST_FUNCTION] == []
