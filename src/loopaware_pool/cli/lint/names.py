"""What a name in a piece of source stands for, as far as its text tells: imports and aliases, scope by scope."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["FUNCTIONS", "UNKNOWN", "Scope", "arguments_of", "children_in_scope", "dotted", "parts_of", "unwrapped"]

# Stands for whatever the text does not tell.
UNKNOWN: Final = ""
FUNCTIONS: Final = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_SCOPES: Final = (*FUNCTIONS, ast.ClassDef)
_COMPREHENSIONS: Final = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


class Scope:
    """
    The names that a module, a class or a function binds.

    Args:
        node: What opens the scope.
        outer: The scope around it; None for a module.

    Attributes:
        names: Each name it binds, and what that may stand for.
        star_imports: Modules all of whose names it imports.
    """

    def __init__(self, node: ast.AST, outer: Scope | None = None) -> None:
        self.node = node
        self.outer = outer
        self.names: dict[str, set[str]] = {}
        self.star_imports: list[str] = []
        self._bind_arguments(node)
        for child in children_in_scope(node):
            self._bind(child)

    def meanings(self, name: str) -> set[str]:
        """Say what *name* may stand for here, by full names; `UNKNOWN` is one of them if something else is possible."""
        scope: Scope | None = self
        star_imports: list[str] = []
        while scope is not None:
            # A class's names are seen in its own body, and not from the functions in it.
            if name in scope.names and (scope is self or not isinstance(scope.node, ast.ClassDef)):
                return scope.names[name]
            star_imports += scope.star_imports
            scope = scope.outer
        return {f"{module}.{name}" for module in star_imports} or {UNKNOWN}

    def resolve(self, node: ast.expr) -> set[str]:
        """Say what a name, or a chain of attributes, may stand for."""
        if isinstance(node, ast.Name):
            return self.meanings(node.id)
        if isinstance(node, ast.Attribute):
            return {f"{found}.{node.attr}" if found else UNKNOWN for found in self.resolve(node.value)}
        return {UNKNOWN}

    def _add(self, name: str, meaning: str) -> None:
        self.names.setdefault(name, set()).add(meaning)

    def _bind_arguments(self, node: ast.AST) -> None:
        if isinstance(node, FUNCTIONS):
            for argument in arguments_of(node.args):
                self._add(argument.arg, UNKNOWN)

    def _bind(self, node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            for alias in node.names:
                self._add(alias.asname or alias.name.partition(".")[0], alias.name if alias.asname else _first(alias))
        elif isinstance(node, ast.ImportFrom):
            self._bind_import_from(node)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            self._add(node.name, UNKNOWN)
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                self._bind_target(target, node.value)
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            self._bind_target(node.target, node.value)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id not in self.names:
            self._add(node.id, UNKNOWN)

    def _bind_import_from(self, node: ast.ImportFrom) -> None:
        module = UNKNOWN if node.level else node.module or UNKNOWN
        for alias in node.names:
            if alias.name == "*":
                self.star_imports += [module] if module else []
            else:
                self._add(alias.asname or alias.name, f"{module}.{alias.name}" if module else UNKNOWN)

    def _bind_target(self, target: ast.expr, value: ast.expr) -> None:
        """Follow `create = asyncpg.create_pool`; of anything else, only the name is known."""
        if isinstance(target, ast.Name):
            chain = isinstance(value, (ast.Name, ast.Attribute))
            for meaning in self.resolve(value) if chain else {UNKNOWN}:
                self._add(target.id, meaning)


def children_in_scope(node: ast.AST) -> Iterator[ast.AST]:
    """Walk through what is below *node* in order, but not into functions and classes there."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, _SCOPES):
            yield from children_in_scope(child)


def arguments_of(arguments: ast.arguments) -> list[ast.arg]:
    """List a function's arguments."""
    rest = [each for each in (arguments.vararg, arguments.kwarg) if each is not None]
    return [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, *rest]


def dotted(node: ast.expr) -> str:
    """Write a chain of names as it stands in the source; empty if it is something else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        before = dotted(node.value)
        return f"{before}.{node.attr}" if before else ""
    return ""


def parts_of(node: ast.expr) -> str:
    """Name the last part of a chain, through calls and awaits: `pool` for `(await self.get().pool())`."""
    node = unwrapped(node)
    if isinstance(node, ast.Call):
        return parts_of(node.func)
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def unwrapped(node: ast.expr) -> ast.expr:
    """Take the `await` off."""
    return node.value if isinstance(node, ast.Await) else node


def _first(alias: ast.alias) -> str:
    return alias.name.partition(".")[0]
