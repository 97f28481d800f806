"""Finds in one file what the rules of `lint` forbid. It reads the text; it imports and runs nothing of it."""

from __future__ import annotations

import ast
import re
import warnings
from typing import TYPE_CHECKING, Final

from loopaware_pool.cli.lint.names import FUNCTIONS, UNKNOWN, Scope, arguments_of, dotted, parts_of, unwrapped
from loopaware_pool.cli.lint.rules import (
    ACQUIRES,
    CALLS,
    LIBRARIES,
    LOOP_BOUND_POOLS,
    POOLS,
    RULES,
    Finding,
    canonical,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["check_source"]

_NOQA: Final = re.compile(rb"#\s*noqa(\s*:(?P<codes>[A-Z0-9,\s]+))?", re.IGNORECASE)
_POOL_NAME: Final = re.compile(r"(^|_)pool$", re.IGNORECASE)
_CONNECTION_NAME: Final = re.compile(r"(^|_)(conn|connection|pgconn|cnx)$", re.IGNORECASE)
_REMOVALS: Final = {"add_reader": "remove_reader", "add_writer": "remove_writer"}


def check_source(source: bytes, path: str) -> list[Finding]:
    """
    Check one file.

    Args:
        source: Its bytes; an encoding is declared as Python wants it.
        path: Its name, for the findings.

    Returns:
        What was found and is not suppressed, in order. A file that is no Python is one finding, `LAP000`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the compiler has to say of others' code
            tree = ast.parse(source)
        checker = _Checker(tree, path)
        checker.visit(tree)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None) or 1
        reason = getattr(error, "msg", None) or str(error) or type(error).__name__
        return [Finding(path, line, 1, "LAP000", f"this is not Python that can be read: {reason}", line)]
    lines = source.splitlines()
    return sorted(found for found in checker.found if not _is_suppressed(found, lines))


def _is_suppressed(found: Finding, lines: Sequence[bytes]) -> bool:
    """Whether a comment on the first or the last line of what was found names its code, or none."""
    comments = (_NOQA.search(lines[number - 1]) for number in (found.line, found.last_line))
    return any(
        comment is not None and (comment["codes"] is None or found.code.encode() in comment["codes"].upper())
        for comment in comments
    )


class _Checker(ast.NodeVisitor):
    """Walks through a module with the names of each scope at hand."""

    def __init__(self, tree: ast.Module, path: str) -> None:
        self.found: list[Finding] = []
        self._path = path
        self._scope = Scope(tree)
        self._around: list[ast.AST] = []
        self._uses_library = any(_imports_library(node) for node in ast.walk(tree))
        self._pool_attributes = self._find_pool_attributes(tree)

    # ---- the walk ----

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.Call):
            self._check_call(node)
        elif isinstance(node, ast.Await):
            self._check_await(node)
        elif isinstance(node, ast.ClassDef):
            self._check_bases(node)
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            self._visit_scope(node)
        else:
            self._around.append(node)
            self.generic_visit(node)
            self._around.pop()

    def _visit_scope(self, node: ast.AST) -> None:
        """Visit what belongs to the scope around *node* there, and the rest in its own."""
        children = list(ast.iter_child_nodes(node))
        body = (
            [node.body] if isinstance(node, ast.Lambda) else [each for each in children if isinstance(each, ast.stmt)]
        )
        for child in children:
            if child not in body:  # decorators, defaults, annotations, bases
                self.visit(child)
        outer, self._scope = self._scope, Scope(node, self._scope)
        self._around.append(node)
        for child in body:
            self.visit(child)
        self._around.pop()
        self._scope = outer

    # ---- calls ----

    def _check_call(self, node: ast.Call) -> None:
        meanings = {canonical(each) for each in self._scope.resolve(node.func)}
        codes = {CALLS.get(each, UNKNOWN) for each in meanings}
        if UNKNOWN not in codes:
            made_early = meanings <= LOOP_BOUND_POOLS and self._is_import_time() and not _is_opened_later(node)
            self._add(node, "LAP007" if made_early else min(codes), min(meanings))
        if isinstance(node.func, ast.Attribute) and node.func.attr in _REMOVALS and node.args:
            self._check_reader(node, node.func.attr)

    def _check_bases(self, node: ast.ClassDef) -> None:
        for base in node.bases:
            names = {canonical(each) for each in self._scope.resolve(base)}
            if names <= LOOP_BOUND_POOLS:
                self._add(base, CALLS[min(names)], min(names))

    def _check_reader(self, node: ast.Call, method: str) -> None:
        if not self._uses_library or not self._is_drivers_fileno(node.args[0]):
            return
        home = self._class() or self._function() or self._around[0]
        if not _calls(home, {_REMOVALS[method]}):
            self._add(node, "LAP006", method)

    def _is_drivers_fileno(self, node: ast.expr) -> bool:
        """Whether *node* is `connection.fileno()`, or a name that was given it, or such a connection."""
        if isinstance(node, ast.Name):
            given = _values_of(node.id, self._function() or self._around[0])
            return any(self._is_drivers_fileno(value) for value in given if isinstance(value, ast.Call))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "fileno":
            return bool(_CONNECTION_NAME.search(parts_of(node.func.value)))
        return False

    # ---- leases ----

    def _check_await(self, node: ast.Await) -> None:
        call = _awaited_call(node)
        if call is None or not isinstance(call.func, ast.Attribute) or call.func.attr not in ACQUIRES:
            return
        if not self._uses_library or not self._is_pool(call.func.value):
            return
        if not self._is_given_back(node, ACQUIRES[call.func.attr]):
            self._add(node, "LAP008", f"{dotted(call.func) or call.func.attr}()")

    def _is_given_back(self, node: ast.Await, givers: frozenset[str]) -> bool:
        statement = next(each for each in reversed(self._around) if isinstance(each, ast.stmt))
        if isinstance(statement, (ast.Return, ast.With, ast.AsyncWith)):
            return True  # it is the caller's now, or the block's
        if any(_enters(each) for each in self._around if isinstance(each, ast.Call)):
            return True
        function = self._function()
        handed_on = _names_given_by(statement)
        if function is not None and any(
            _gives_back(each, givers) or _returns(each, handed_on) for each in ast.walk(function)
        ):
            return True
        owner = self._class()
        return owner is not None and _is_kept_by_self(statement) and _calls(owner, givers)

    def _is_pool(self, node: ast.expr) -> bool:
        """Whether *node* is a pool: by where it came from, by its annotation, or by its name."""
        node = unwrapped(node)
        if isinstance(node, ast.Name) and self._is_annotated_as_pool(node.id):
            return True
        name = parts_of(node)
        return name in self._pool_attributes or bool(_POOL_NAME.search(name))

    def _is_annotated_as_pool(self, name: str) -> bool:
        function = self._function()
        if function is None:
            return False
        return any(
            argument.arg == name and argument.annotation is not None and self._names_pool(argument.annotation)
            for argument in arguments_of(function.args)
        )

    def _names_pool(self, node: ast.expr) -> bool:
        if isinstance(node, ast.Subscript):
            node = node.value
        return bool({canonical(each) for each in self._scope.resolve(node)} & POOLS)

    def _find_pool_attributes(self, tree: ast.Module) -> set[str]:
        """List the names and attributes that are given a pool anywhere in the module."""
        found = set()
        for node in ast.walk(tree):
            if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
                value = unwrapped(node.value)
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            elif isinstance(node, ast.withitem) and node.optional_vars is not None:
                value, targets = unwrapped(node.context_expr), [node.optional_vars]
            else:
                continue
            if isinstance(value, ast.Call) and self._names_pool(value.func):
                found |= {parts_of(target) for target in targets}
        return found - {""}

    # ---- where it is ----

    def _function(self) -> ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | None:
        return next((each for each in reversed(self._around) if isinstance(each, FUNCTIONS)), None)

    def _class(self) -> ast.ClassDef | None:
        return next((each for each in reversed(self._around) if isinstance(each, ast.ClassDef)), None)

    def _is_import_time(self) -> bool:
        return self._function() is None and not any(map(_is_main_guard, self._around))

    def _add(self, node: ast.expr, code: str, name: str) -> None:
        message = RULES[code].message.format(name=name)
        last_line = node.end_lineno or node.lineno
        self.found.append(Finding(self._path, node.lineno, node.col_offset + 1, code, message, last_line))


# ---- what a piece of source is ----


def _imports_library(node: ast.AST) -> bool:
    if isinstance(node, ast.Import):
        return any(alias.name.partition(".")[0] in LIBRARIES for alias in node.names)
    return isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").partition(".")[0] in LIBRARIES


def _is_main_guard(node: ast.AST) -> bool:
    """Whether *node* is `if __name__ == "__main__":`."""
    return isinstance(node, ast.If) and any(
        isinstance(each, ast.Name) and each.id == "__name__" for each in ast.walk(node.test)
    )


def _is_opened_later(node: ast.Call) -> bool:
    """Whether a pool of psycopg_pool's is made with `open=False`."""
    return any(
        each.arg == "open" and isinstance(each.value, ast.Constant) and each.value.value is False
        for each in node.keywords
    )


def _awaited_call(node: ast.Await) -> ast.Call | None:
    """Find the call that is awaited, if by way of `wait_for`."""
    call = node.value
    if isinstance(call, ast.Call) and parts_of(call.func) in ("wait_for", "shield") and call.args:
        call = call.args[0]
    return call if isinstance(call, ast.Call) else None


def _enters(node: ast.Call) -> bool:
    return parts_of(node.func) in ("enter_async_context", "push_async_exit", "push_async_callback")


def _gives_back(node: ast.AST, givers: Iterable[str]) -> bool:
    """Whether *node* is a `try` that gives back, or closes, in its `finally`."""
    if not isinstance(node, (ast.Try, ast.TryStar)):
        return False
    return any(_calls(each, {*givers, "close", "terminate"}) for each in node.finalbody)


def _returns(node: ast.AST, names: set[str]) -> bool:
    return isinstance(node, ast.Return) and isinstance(node.value, ast.Name) and node.value.id in names


def _names_given_by(statement: ast.stmt) -> set[str]:
    """List the names that an assignment binds."""
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _calls(node: ast.AST, methods: Iterable[str]) -> bool:
    """Whether one of *methods* is called, or handed on, somewhere in *node*."""
    return any(isinstance(each, ast.Attribute) and each.attr in methods for each in ast.walk(node))


def _is_kept_by_self(statement: ast.stmt) -> bool:
    """Whether the lease becomes an attribute: what gives it back is another method."""
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    return any(isinstance(target, (ast.Attribute, ast.Subscript)) for target in targets)


def _values_of(name: str, home: ast.AST) -> list[ast.expr]:
    """List what *name* is given anywhere in *home*."""
    return [
        node.value
        for node in ast.walk(home)
        if isinstance(node, ast.Assign)
        and any(isinstance(target, ast.Name) and target.id == name for target in node.targets)
    ]
