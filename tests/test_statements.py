"""
Statements that are judged harmless do leave a session as it was: all of a kind by hand, the others by chance.

A corpus is held against PostgreSQL's own grammar, and run on a server where functions and types have treacherous
names. The same statements are tried every time. `LOOPAWARE_TEST_EXPLORE=20000` tries that many others of each kind,
from `LOOPAWARE_TEST_SEED` if that is set.
"""

from __future__ import annotations

import os
import random
from contextlib import contextmanager
from itertools import islice
from uuid import uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from pglast import get_postgresql_version
from psycopg.conninfo import make_conninfo
from psycopg.pq import TransactionStatus

import sql_corpus
from loopaware_pool.asyncpg import sql_effects as statements_module
from loopaware_pool.asyncpg.sql_effects import (
    LONGEST_STATEMENT,
    STATEMENTS_REMEMBERED,
    is_known_to_leave_session_unchanged,
    leaves_session_unchanged,
)
from sql_tree import objections

EXPLORE = int(os.environ.get("LOOPAWARE_TEST_EXPLORE", "0"))
EXAMPLES = EXPLORE or 500
SEED = int(os.environ.get("LOOPAWARE_TEST_SEED", "0")) or (random.randrange(2**32) if EXPLORE else 1)

HARMLESS = [
    "SELECT 1",
    "select 1;",
    "SELECT * FROM orders WHERE id = $1",
    "select o.id, o.total::numeric from shop.orders o where o.name like 'x%' and o.kind not ilike $2",
    'SELECT "Name" FROM "Orders" AS "o" ORDER BY "o"."Name" LIMIT 10 OFFSET 5',
    "SELECT count(*) FILTER (WHERE a > 1) OVER (PARTITION BY b) FROM t",
    "SELECT a FROM t GROUP BY (a), b HAVING max(b) > any($1::int[])",
    "WITH a AS MATERIALIZED (SELECT 1), b AS NOT MATERIALIZED (SELECT 2) SELECT * FROM a, b",
    "INSERT INTO orders (id, name) VALUES ($1, $2), (3, 'x') ON CONFLICT (id) DO UPDATE SET name = excluded.name",
    'INSERT INTO "shop" . "Orders" (id) SELECT 1 RETURNING id',
    "UPDATE orders SET total = total + 1, changed = now() WHERE id IN (SELECT id FROM late) RETURNING *",
    "DELETE FROM orders USING late WHERE orders.id = late.id AND placed < date '2020-01-01' AT TIME ZONE 'UTC'",
    "VALUES (1, 'a'), (2, 'b')",
    "/* a comment */ SELECT 1 -- and another\n",
    "SELECT CASE WHEN a = 'x' THEN 'y' ELSE coalesce(b, 'z') END FROM t JOIN u USING (id)",
    "SELECT extract(epoch FROM a - interval '1 day'), substring(b from 1 for 2), n'x' FROM t",
    "SELECT data ->> 'key', data @> '{}'::jsonb FROM t FOR UPDATE SKIP LOCKED",
    "SELECT 'it''s; SET x = 1 -- no comment', \"a;b\" FROM t",
    "SELECT pg_advisory_xact_lock(1), nextval('s')",
    "UPDATE orders SET taken = pg_try_advisory_xact_lock(id) WHERE setting = 'pg_settings'",
    "SELECT name, setting FROM pg_catalog.pg_settings WHERE name LIKE 'a%'",
    "WITH a AS (INSERT INTO b (c) SELECT d FROM e RETURNING f), g AS (SELECT 1) INSERT INTO h SELECT * FROM a, g",
    "SELECT row_number() OVER (), sum(a) FILTER (WHERE b) OVER (ORDER BY c), max(d) OVER w FROM t WINDOW w AS ()",
    "SELECT DISTINCT ON (a) a, first FROM t WHERE lower(b) LIKE 'x' AND t.first NOT LIKE 'y' AND t.c[1] ILIKE 'z'",
    "SELECT 1 / 2 * 3, '/*', \"/*\" /**/ -- /*",
    "SELECT größe FROM maße",
    "BEGIN",
    "begin transaction isolation level repeatable read, read only;",
    "START TRANSACTION READ WRITE",
    "COMMIT AND NO CHAIN",
    "END",
    "ROLLBACK WORK",
    "ABORT",
    'SAVEPOINT "a"',
    "ROLLBACK TO SAVEPOINT a",
    "RELEASE a",
]
SUSPECT = [
    "",
    ";",
    "-- nothing",
    "SET work_mem = '5MB'",
    "RESET ALL",
    "BEGIN; SET a.b = 1",
    "COMMIT; SET a.b = 1",
    "COMMIT PREPARED 'a'",
    "ROLLBACK PREPARED 'a'",
    "PREPARE TRANSACTION 'a'",
    "SET TRANSACTION READ ONLY",
    "SET LOCAL a.b = 1",
    "LISTEN a",
    "NOTIFY a",
    "LOCK TABLE a",
    "DO $$ BEGIN END $$",
    "CALL a()",
    "COPY a TO STDOUT",
    "CREATE TEMP TABLE a (b int)",
    "EXPLAIN ANALYZE SELECT a()",
    "DECLARE a CURSOR WITH HOLD FOR SELECT 1",
    "PREPARE a AS SELECT 1",
    "EXECUTE a",
    "DISCARD ALL",
    "SHOW a",
    "SELECT 1; SET a.b = 1",
    "SELECT 1;; SELECT 2",
    "SELECT set_config('a.b', '1', false)",
    "SELECT SET_CONFIG ('a.b', '1', false)",
    'SELECT "set_config"(1)',
    "SELECT pg_catalog.set_config('a.b', '1', false)",
    "SELECT pg_catalog . count (*)",
    "SELECT set_config/**/(1)",
    "SELECT set_config--\n(1)",
    "SELECT /* /* nested */ set_config(1) */ 1",
    "SELECT /* /* */ ' */ pg_advisory_lock(42) /* ' */",
    "SELECT /* /* */ ' */ */ pg_advisory_lock(42) -- '",
    "SELECT /* /**/ ' */ pg_advisory_lock(42) /* ' */",
    "SELECT 1 +/* /* */ ' */ pg_advisory_lock(42) /* ' */",
    "SELECT 1 /* unterminated",
    'SELECT U&"\\0073et_config"(1)',
    "SELECT U&\"!0073et_config\" UESCAPE '!' (1)",
    "SELECT * FROM mine(1)",
    "SELECT * FROM a, LATERAL mine(a.b)",
    "SELECT * INTO a FROM b",
    "SELECT $$a$$",
    "SELECT $a$a$a$",
    "SELECT '\\', set_config('a.b', '1', false), '\\'",
    "SELECT 1::mine",
    "SELECT 1::text.mine",
    'SELECT 1::"mine"',
    "SELECT CAST(1 AS mine)",
    "SELECT mine '1'",
    "SELECT a.date '1'",
    "SELECT like 'a'",
    "SELECT DISTINCT NOT like 'a'",
    "SELECT over(1)",
    "SELECT filter(1), by(1), materialized(1), zone(1)",
    "SELECT NOT materialized(1)",
    "SELECT NOT materialized '1'",
    "SELECT DISTINCT ON (a) filter(1) FROM b",
    "SELECT DISTINCT ON (a) over(1) FROM b",
    "SELECT DISTINCT ON (a) over() FROM b",
    "SELECT DISTINCT ON (a) filter '1' FROM b",
    "SELECT DISTINCT ON (a) like '1' FROM b",
    "SELECT DISTINCT ON (a) '1' FROM b",
    "SELECT count(1) '1'",
    "SELECT * FROM a TABLESAMPLE count(1)",
    "SELECT public.n'1'",
    "SELECT public . N'1'",
    "SELECT a ILIKE like 'a'",
    "SELECT a FROM b ORDER BY like 'a'",
    "SELECT now() AT TIME ZONE like 'a'",
    "SELECT trim(LEADING like 'a' FROM b)",
    "SELECT a BETWEEN SYMMETRIC like 'a' AND b",
    "SELECT count(*) OVER (ORDER BY a ROWS like 'a' PRECEDING)",
    "WITH RECURSIVE a AS (SELECT 1) CYCLE b SET c TO true DEFAULT like 'a' USING d SELECT 1",
    "SELECT insert INTO a FROM b",
    "SELECT (1) insert INTO a FROM b",
    "WITH a AS (SELECT 1) SELECT count(*) insert INTO b FROM a",
    "INSERT INTO a SELECT insert INTO b FROM c",
    "UPDATE pg_settings SET setting = 'x' WHERE name = 'a.b'",
    "UPDATE PG_Settings SET setting = 'x'",
    "UPDATE pg_catalog.pg_settings AS s SET setting = 'x'",
    'UPDATE "pg_catalog" . "pg_settings" SET setting = \'x\'',
    "UPDATE ONLY pg_settings SET setting = 'x'",
    "UPDATE/**/pg_settings/**/s SET setting = 'x' FROM a WHERE s.name = a.name",
    "WITH a AS (UPDATE pg_settings SET setting = 'x' RETURNING 1) SELECT * FROM a",
    "INSERT INTO a SELECT 1 RETURNING (WITH a AS (DELETE FROM pg_catalog.pg_settings) SELECT 1)",
    "INSERT INTO pg_settings (name) VALUES ('a.b')",
    "INSERT INTO pg_notify (name) VALUES ('a.b')",
    "DELETE FROM pg_settings",
    "DELETE FROM information_schema.sql_features",
    "SELECT 1 FROM a JOIN b ON conflict(1)",
    "SELECT a.select (1)",
    "SELECT 'unterminated",
    'SELECT "unterminated',
    "SELECT `a`",
    "SELECT \u00a0mine(1)",
    "SELECT (5::bigint).pg_advisory_lock",
    "SELECT ($1::bigint).pg_advisory_lock",
    'SELECT (5::bigint)."pg_advisory_lock"',
    "SELECT (ARRAY[5::bigint])[1].pg_advisory_lock",
    "SELECT $1.pg_advisory_lock",
    "SELECT g.pg_advisory_lock FROM generate_series(1, 2) g",
    "SELECT (0.5::float8).setseed",
    "SELECT ('SELECT mine(1)'::text).ts_stat",
    "SELECT '" + "x" * LONGEST_STATEMENT + "'",
]


@pytest.mark.parametrize("statement", HARMLESS)
def test_what_services_send_all_day_is_harmless(statement):
    """Else nothing would be gained."""
    assert leaves_session_unchanged(statement)


@pytest.mark.parametrize("statement", SUSPECT)
def test_whatever_is_not_known_is_suspect(statement):
    """A kind of statement, a function, a type, a second statement, a way to write one of these."""
    assert not leaves_session_unchanged(statement)


def test_a_text_is_judged_when_it_comes_again(monkeypatch):
    """One look at each text that comes more than once, and none at those that do not."""
    judged = []
    monkeypatch.setattr(
        statements_module,
        "leaves_session_unchanged",
        lambda text: judged.append(text) or leaves_session_unchanged(text),
    )
    texts = [f"SELECT {number} AS remembered" for number in range(3)]
    assert [is_known_to_leave_session_unchanged(text) for text in texts] == [False, False, False]
    assert judged == []
    assert [is_known_to_leave_session_unchanged(text) for text in [*texts, *texts]] == [True] * 6
    assert judged == texts
    for _ in range(3):
        assert not is_known_to_leave_session_unchanged("SET a.remembered = 1")
    assert judged == [*texts, "SET a.remembered = 1"]


def test_texts_are_remembered_within_bounds():
    """However many there are, and however long one is."""
    for number in range(2 * STATEMENTS_REMEMBERED + 10):
        for _ in range(2):
            is_known_to_leave_session_unchanged(f"SELECT {number}")
    assert 0 < len(statements_module._verdicts) <= STATEMENTS_REMEMBERED
    assert 0 < len(statements_module._seen_once) <= STATEMENTS_REMEMBERED
    for _ in range(3):
        assert not is_known_to_leave_session_unchanged("SELECT '" + "x" * LONGEST_STATEMENT + "'")
    assert all(len(text) <= LONGEST_STATEMENT for text in statements_module._verdicts)


# ---- against PostgreSQL's grammar ----


def keywords_in_some_positions(seed, count):
    step = max(1, sql_corpus.POSITIONS // count)
    return islice(sql_corpus.keywords_in_every_position(), seed % step, None, step)


KINDS = {
    "generated": sql_corpus.generated,
    "mutated": sql_corpus.mutated,
    "keywords": keywords_in_some_positions,
    "scattered": sql_corpus.scattered,
}
SIZES = [("generated", 12_000), ("mutated", 12_000), ("keywords", 40_000), ("scattered", 30_000)]


def harmless(kind, count):
    return (statement for statement in KINDS[kind](SEED, count) if leaves_session_unchanged(statement))


@pytest.mark.parametrize(("kind", "count"), SIZES)
def test_what_is_harmless_by_its_text_is_harmless_by_its_parse_tree(kind, count):
    """By a rule that knows nothing of the other; what does not parse is refused by the server, and leaves nothing."""
    opinions = {statement: objections(statement) for statement in harmless(kind, EXPLORE or count)}
    parsed = {statement: found for statement, found in opinions.items() if found is not None}
    assert {statement: found for statement, found in parsed.items() if found} == {}, f"seed {SEED}"
    assert len(parsed) > 200  # or the corpus has nothing to say


def test_the_parse_tree_tells_what_is_suspect():
    """Else it would agree with anything."""
    assert [statement for statement in [*HARMLESS, *sql_corpus.ORDINARY] if objections(statement) != []] == []
    for suspect in [
        "SET work_mem = '5MB'",
        "SELECT 1; SELECT 2",
        "COMMIT PREPARED 'a'",
        "SELECT mine(1)",
        "SELECT pg_catalog.set_config('a.b', '1', false)",
        "SELECT 1 WHERE NOT materialized(1)",
        "SELECT 1::mine",
        "SELECT public.n'1'",
        "SELECT 1 OPERATOR(public.+) 1",
        "SELECT 1 INTO a",
        "SELECT * FROM a TABLESAMPLE mine(1)",
        "WITH a AS (UPDATE pg_settings SET setting = 'x' RETURNING 1) SELECT * FROM a",
        "DELETE FROM information_schema.sql_features",
    ]:
        assert objections(suspect), suspect
    assert objections("SELECT FROM WHERE") is None


def test_what_is_ordinary_is_harmless_but_for_what_is_in_no_list():
    """Else nothing would be gained."""
    assert [statement for statement in sql_corpus.ORDINARY if not leaves_session_unchanged(statement)] == [
        "SELECT id, total::numeric(10, 2), trim(BOTH 'x' FROM name) FROM orders",
    ]


# ---- against a server ----

STATE = """
SELECT (SELECT array_agg(name || '=' || setting ORDER BY name) FROM pg_catalog.pg_settings WHERE source = 'session'),
       pg_catalog.current_setting('app.tenant', true),
       (SELECT count(*) FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND pid = pg_catalog.pg_backend_pid()),
       (SELECT count(*) FROM pg_catalog.pg_cursors WHERE is_holdable),
       (SELECT array_agg(c) FROM pg_catalog.pg_listening_channels() c),
       current_user
"""
CLEAN = "SET app.tenant = ''; SELECT pg_catalog.pg_advisory_unlock_all(); UNLISTEN *; CLOSE ALL; RESET ROLE"
# Names that a careless reader takes for keywords, and that functions and types can have all the same.
TREACHEROUS = ("by", "conflict", "filter", "like", "materialized", "mine", "over", "zone", "escape", "both", "set")
MAKE = """
    CREATE FUNCTION soil() RETURNS boolean LANGUAGE sql AS
        $$ SELECT pg_catalog.set_config('app.tenant', '7', false) IS NOT NULL $$;
    CREATE TABLE target (n int, s text);
    CREATE TABLE sink (n int, s text);
"""
FILL = """
    TRUNCATE target, sink, orders, late, accounts, shop."Orders";
    INSERT INTO target VALUES (1, 'a'), (2, 'b');
    INSERT INTO orders (id, name, total, kind, placed, data, tags) VALUES (1, 'a', 2, 'x', now(), '{"a": [1]}', '{a}');
    INSERT INTO late VALUES (1, 'a', now()), (2, 'b', now());
    INSERT INTO shop."Orders" VALUES (1, 'a');
"""
# Known to the grammar alone, or written by it as another name.
CALLS_OF_THE_GRAMMAR = {"coalesce", "greatest", "least", "nullif", "row", "trim"}
TYPES_OF_THE_GRAMMAR = {
    "bigint",
    "boolean",
    "character",
    "decimal",
    "double",
    "float",
    "int",
    "integer",
    "real",
    "smallint",
}
# What they change is over with the transaction, or is no part of what a reset restores.
VOLATILE = {
    "clock_timestamp",
    "gen_random_uuid",
    "lastval",
    "nextval",
    "pg_advisory_xact_lock",
    "pg_notify",
    "pg_sleep",
    "pg_try_advisory_xact_lock",
    "random",
}


def traps():
    """Have each name that is in no list of the judge's dirty the session: as a function, and as a type."""
    names = {*sql_corpus.KEYWORDS, *TREACHEROUS}
    for name in sorted(names - statements_module._FUNCTIONS):
        for arguments in ("", "n int", "s text"):
            yield f'CREATE FUNCTION "{name}"({arguments}) RETURNS boolean LANGUAGE sql AS $$ SELECT soil() $$'
    # A type by the name of a function is called as one: `count('a')` casts.
    for name in sorted(names - statements_module._FUNCTIONS - statements_module._TYPES - {"target"}):
        yield f'CREATE DOMAIN "{name}" AS text CHECK (soil())'


@pytest.fixture(scope="module")
def session(dsn):
    """A session of a database in which treacherous names dirty it."""
    name = f"statements_{uuid4().hex[:8]}"
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        try:
            with psycopg.connect(make_conninfo(dsn, dbname=name), autocommit=True) as connection:
                connection.execute(MAKE + sql_corpus.TABLES + FILL)
                connection.execute(";".join(traps()))
                connection.execute(CLEAN)
                yield connection
        finally:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_what_is_known_by_name_is_the_servers_own_and_changes_no_session(session):
    """Each function and type of the lists is in pg_catalog, and no function changes more than a sequence."""
    found = dict(
        session.execute(
            "SELECT proname::text, bool_or(provolatile = 'v') FROM pg_catalog.pg_proc"
            " WHERE pronamespace = 'pg_catalog'::regnamespace AND proname = ANY (%s) GROUP BY 1",
            [list(statements_module._FUNCTIONS)],
        ).fetchall()
    )
    assert statements_module._FUNCTIONS - found.keys() == CALLS_OF_THE_GRAMMAR
    assert {name for name, is_volatile in found.items() if is_volatile} <= VOLATILE
    # Such a function would convert to types that stand behind it, as `json_to_record(a) AS (b type)` does.
    assert not session.execute(
        "SELECT proname FROM pg_catalog.pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace"
        " AND prokind = 'f' AND prorettype = 'record'::regtype AND proargmodes IS NULL AND proname = ANY (%s)",
        [list(statements_module._FUNCTIONS)],
    ).fetchall()
    types = session.execute(
        "SELECT typname::text FROM pg_catalog.pg_type WHERE typnamespace = 'pg_catalog'::regnamespace AND typtype = 'b'"
    )
    assert statements_module._TYPES.difference(name for (name,) in types) == TYPES_OF_THE_GRAMMAR


@contextmanager
def limited(session):
    """Have statements end that would not end by themselves. What the test itself asks of the server has its time."""
    session.execute("SET statement_timeout = '200ms'")
    try:
        yield
    finally:
        session.execute("RESET statement_timeout")


def run(session, statement):
    """Have the server run a statement by itself; tell whether it did."""
    try:
        session.execute(statement.encode(), prepare=False)
    except psycopg.Error:
        return False
    finally:
        if session.info.transaction_status != TransactionStatus.IDLE:
            session.execute("ROLLBACK")
    return True


@pytest.mark.parametrize(("kind", "count"), SIZES)
def test_what_is_harmless_by_its_text_changes_no_session(session, kind, count):
    """However treacherous the names of functions and types are."""
    before = session.execute(STATE).fetchone()
    has_our_grammar = session.info.server_version // 10_000 == get_postgresql_version()[0]
    statements = harmless(kind, EXPLORE or count)
    if has_our_grammar:
        statements = (statement for statement in statements if objections(statement) is not None)
    ran = 0
    while batch := list(islice(statements, 40)):
        with limited(session):
            ran += sum(run(session, statement) for statement in batch)
        if session.execute(STATE).fetchone() != before:
            session.execute(CLEAN)
            pytest.fail(f"seed {SEED}: one of these changed the session: {batch}")
        session.execute(FILL)
    assert ran > 50  # or the corpus has nothing to say


gaps = st.sampled_from([" ", " ", " ", "", "\n", "/**/", "/* x */", "--x\n", "\t", "\v", "/* ' */", "--'\n"])
strings = st.sampled_from(["'a'", "''", "'a''b'", "';'", "'--'", "'/*'", "'\"'", "e'a'", "E'\\''", "$$a$$", "U&'a'"])
treacherous = st.sampled_from(
    [*TREACHEROUS, "soil", "count", "public.mine", "Mine", '"mine"', "set_config", "pg_advisory_lock"]
)
KEYWORDS = """
    select not distinct all any and or as in on by from where like ilike between case when then else end is null group
    order partition using join limit offset union values returning exists array lateral
"""
keywords = st.sampled_from(KEYWORDS.split())


def joined(*parts):
    """Write *parts* one after the other, with something between them that may be nothing."""

    @st.composite
    def build(draw):
        return "".join(
            piece + draw(gaps)
            for part in parts
            for piece in [draw(part) if isinstance(part, st.SearchStrategy) else part]
        )

    return build()


def calls(expressions):
    return st.one_of(
        joined(treacherous, "(", st.sampled_from(["1", "", "'a', 'b', false"]), ")"),
        joined(treacherous, strings),
        joined("'a'", "::", treacherous),
        joined("cast", "(", "'a'", "as", treacherous, ")"),
        joined(st.sampled_from(["coalesce", "count", "max", "now", "lower"]), "(", expressions, ")"),
        joined("(", "select", expressions, ")"),
        joined("case", "when", expressions, "then", expressions, "end"),
        joined(expressions, st.sampled_from(["=", "||", "and", "like", "not like", "in"]), expressions),
        joined(keywords, expressions),
        joined(expressions, keywords, treacherous, "(", "1", ")"),
    )


expressions = st.recursive(
    st.one_of(st.sampled_from(["1", "n", "s", "null", "true", "t.n", "(1)", '"n"', "2.5"]), strings),
    calls,
    max_leaves=5,
)
sources = st.one_of(
    st.sampled_from(
        ["target", "target t", "public.target as t", "(select 1 as n) x", "target t join target u on true"]
    ),
    joined("target t join target u on", expressions),
    joined(treacherous, "(", "1", ")"),
    joined("target t , lateral", treacherous, "(", "1", ")"),
)
signs = st.sampled_from(list("().,;:*=$1"))
statements = st.one_of(
    joined("select", expressions),
    joined("select", expressions, ",", expressions, "from", sources, "where", expressions),
    joined("select", "count(*)", treacherous, "(", "where true", ")", "from", sources),
    joined("with", "x", "as", "(", "select", expressions, ")", "select", "*", "from", "x"),
    joined("insert into", "sink", "(", "n", ")", "values", "(", expressions, ")"),
    joined("insert into", "sink", "select", "1", "from", sources),
    joined("update", "sink", "set", "s", "=", expressions, "where", expressions),
    joined("delete from", "sink", "where", expressions, "returning", expressions),
    joined("values", "(", expressions, ")", ",", "(", expressions, ")"),
    joined("select", expressions, ";", "set", "app.tenant", "=", "'7'"),
    joined("select", "*", "into", "temp", "x", "from", sources),
    joined(
        st.lists(st.one_of(keywords, treacherous, strings, st.sampled_from(list("().,;:*=$1"))), max_size=9).map(
            " ".join
        )
    ),
)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(statement=statements)
def test_whatever_changes_a_session_was_suspect(session, statement):
    """Run anything at all; if the session is not what it was, its text was suspect."""
    before = session.execute(STATE).fetchone()
    try:
        with limited(session):
            session.execute(statement.encode(), prepare=False)
        outcome = "run"
    except psycopg.Error:
        outcome = "refused"
    after = session.execute(STATE).fetchone()
    verdict = "harmless" if leaves_session_unchanged(statement) else "suspect"
    event(f"{outcome}, {verdict}{'' if before == after else ', dirty'}")
    if before != after:
        session.execute(CLEAN)
        assert not leaves_session_unchanged(statement)
