"""A second opinion on what a statement leaves in its session: by PostgreSQL's own grammar, not by the text."""

from __future__ import annotations

import json
import re

from pglast.parser import ParseError, parse_sql_json

from loopaware_pool.asyncpg.sql_effects import _FUNCTIONS, _TYPES

__all__ = ["objections"]


def _words(text):
    return frozenset(text.split())


STATEMENTS = _words("SelectStmt InsertStmt UpdateStmt DeleteStmt TransactionStmt")
# What a harmless statement is made of. Whatever is not here calls something, or is not known.
NODES = STATEMENTS | _words("""
    A_ArrayExpr A_Const A_Expr A_Indices A_Indirection A_Star Alias BoolExpr Boolean BooleanTest CaseExpr CaseWhen
    CoalesceExpr CollateClause ColumnDef ColumnRef CommonTableExpr CurrentOfExpr DefElem FuncCall GroupingSet IndexElem
    Integer JoinExpr JsonIsPredicate List LockingClause MinMaxExpr MultiAssignRef NamedArgExpr NullTest ParamRef
    RangeFunction RangeSubselect RangeVar ResTarget RowExpr SQLValueFunction SetToDefault SortBy String SubLink TypeCast
    WindowDef XmlExpr
""")
TRANSACTION_CONTROL = {
    f"TRANS_STMT_{kind}" for kind in ("BEGIN", "START", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE", "ROLLBACK_TO")
}
# What the grammar itself writes as pg_catalog.name, for `AT TIME ZONE`, `numeric(10)` and their like.
CALLS_BY_SYNTAX = _words("""
    btrim extract is_normalized like_escape ltrim overlaps overlay position rtrim similar_to_escape substring
    system_user timezone
""")
TYPES_BY_SYNTAX = _words("""
    bit bool bpchar float4 float8 int2 int4 int8 interval json numeric time timestamp timestamptz timetz varbit varchar
""")


class _NotOfPostgresql(Exception):
    pass


def objections(statement):
    """
    Say what about *statement* may leave something in its session.

    Returns:
        A list, empty for a harmless one; None if it does not parse. The server refuses it then, and a lease with an
        error is one that may have left something, whatever its text is judged to be.
    """
    found = []
    try:
        statements = json.loads(parse_sql_json(statement)).get("stmts", [])
        if len(statements) != 1 or statements[0]["stmt"].keys() - STATEMENTS:
            found.append("not one statement of a known kind")
        _walk(statements, found)
    except (ParseError, _NotOfPostgresql):
        return None
    return found


def _walk(node, found):
    if isinstance(node, list):
        for one in node:
            _walk(one, found)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key[0].isupper() and key not in NODES:
                found.append(key)
            if key in _CHECKS and not _CHECKS[key](value):
                found.append(f"{key}: {json.dumps(value)[:200]}")
            if key != "coldeflist":  # none of our functions converts to the types there, they are compared
                _walk(value, found)


def _is_known_name(parts, ours, by_syntax):
    names = [part["String"]["sval"] for part in parts]
    return names[0] in ours if len(names) == 1 else names[0] == "pg_catalog" and names[1] in by_syntax


def _is_known_function(call):
    return _is_known_name(call["funcname"], _FUNCTIONS, CALLS_BY_SYNTAX)


def _is_known_type(type_name):
    is_plain = type_name.keys().isdisjoint({"setof", "pct_type"})
    return is_plain and _is_known_name(type_name["names"], _TYPES, TYPES_BY_SYNTAX)


def _is_sql_cast(cast):
    # libpg_query takes `date $1`, a parameter in place of a literal's string. PostgreSQL does not.
    if "ParamRef" in cast["arg"] and cast.get("location") == -1:
        raise _NotOfPostgresql
    return True


def _writes_to_no_system_relation(change):
    relation = change["relation"]
    return not re.match("pg_", relation["relname"]) and not re.match(
        "pg_|information_schema$", relation.get("schemaname", "")
    )


def _calls_no_function_as_column(reference):
    """Whether `row.name` names a column: a function of one argument is called if there is none."""
    names = [part["String"]["sval"] for part in reference if "String" in part]
    return not any(re.match("pg_(try_)?advisory_|pg_replication_origin_|setseed|ts_stat", name) for name in names)


_CHECKS = {
    "fields": lambda fields: _calls_no_function_as_column(fields[1:]),
    "indirection": _calls_no_function_as_column,
    "DeleteStmt": _writes_to_no_system_relation,
    "InsertStmt": _writes_to_no_system_relation,
    "UpdateStmt": _writes_to_no_system_relation,
    "TransactionStmt": lambda statement: statement["kind"] in TRANSACTION_CONTROL,
    "FuncCall": _is_known_function,
    "XmlExpr": lambda expression: expression["op"] == "IS_DOCUMENT",
    "TypeCast": _is_sql_cast,
    "typeName": _is_known_type,
    "intoClause": lambda _: False,
    # An operator may be one of yours, but not one that is named in full.
    "A_Expr": lambda expression: len(expression.get("name", [])) <= 1,
    "SubLink": lambda link: len(link.get("operName", [])) <= 1,
    "SortBy": lambda order: len(order.get("useOp", [])) <= 1,
}
