"""Servers of their own, for tests of what crosses a release."""

from __future__ import annotations

import psycopg
import pytest

from loopaware_pool.testing.embedded_server import EmbeddedServer
from session_state import ACCENTED_ROLE, ODD_ROLE, PLAIN_ROLE, TREACHEROUS_ROLES


@pytest.fixture(scope="session")
def dirty_server():
    """A server of its own: roles, functions and a reload would disturb others."""
    with EmbeddedServer() as server:
        with psycopg.connect(server.dsn, autocommit=True) as admin:
            for role in (PLAIN_ROLE, ODD_ROLE, ACCENTED_ROLE, *TREACHEROUS_ROLES):
                admin.execute(psycopg.sql.SQL("CREATE ROLE {}").format(psycopg.sql.Identifier(role)))
                admin.execute(
                    psycopg.sql.SQL("GRANT {} TO {}").format(
                        psycopg.sql.Identifier(PLAIN_ROLE), psycopg.sql.Identifier(role)
                    )
                    if role != PLAIN_ROLE
                    else "SELECT 1"
                )
            admin.execute("""
                CREATE SCHEMA dirt;
                CREATE FUNCTION dirt.by_function() RETURNS text LANGUAGE sql AS
                    $$ SELECT set_config('app.tenant', '7', false) $$;
                CREATE FUNCTION materialized(int) RETURNS boolean LANGUAGE sql AS
                    $$ SELECT dirt.by_function() IS NULL $$;
                CREATE TABLE dirt.target (n int);
                CREATE TABLE dirt.copied (n int);
                CREATE TABLE dirt.kept (n int);
                CREATE FUNCTION dirt.by_trigger() RETURNS trigger LANGUAGE plpgsql AS
                    $$ BEGIN PERFORM set_config('app.tenant', '7', false); RETURN NEW; END $$;
                CREATE TRIGGER dirties BEFORE INSERT ON dirt.target FOR EACH ROW EXECUTE FUNCTION dirt.by_trigger();
            """)
        yield server


@pytest.fixture
def address(dirty_server):
    return dirty_server.dsn


@pytest.fixture(scope="session")
def bank():
    """A server of its own: a schema and a role to be lured into, and a table whose trigger does whatever it is told."""
    with EmbeddedServer(settings={"max_locks_per_transaction": 128}) as server:
        with psycopg.connect(server.dsn, autocommit=True) as admin:
            admin.execute("""
                CREATE ROLE low;
                CREATE ROLE duty;
                CREATE ROLE svc LOGIN PASSWORD 'svc';
                CREATE SCHEMA evil;
                CREATE TABLE public.inbox (who text, tenant text);
                CREATE TABLE evil.inbox (who text, tenant text);
                CREATE TABLE public.words (word text);
                CREATE TYPE public.wrapped AS (number int);
                CREATE TABLE public.door (orders text);
                CREATE FUNCTION public.obey() RETURNS trigger LANGUAGE plpgsql AS
                    $$ BEGIN EXECUTE NEW.orders; RETURN NEW; END $$;
                CREATE TRIGGER obeys BEFORE INSERT ON public.door FOR EACH ROW EXECUTE FUNCTION public.obey();
                GRANT USAGE ON SCHEMA evil, public TO low, duty, svc;
                GRANT ALL ON ALL TABLES IN SCHEMA evil, public TO low, duty, svc;
            """)
        yield server


@pytest.fixture
def admin(bank):
    with psycopg.connect(bank.dsn, autocommit=True) as connection:
        connection.execute("TRUNCATE public.inbox, evil.inbox, public.words, public.door")
        yield connection
