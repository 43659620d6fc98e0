"""A database of the stock is as new for every test that gets it."""

from __future__ import annotations

import contextlib

import psycopg
import pytest

from tests.support.databases import Stock


TASK = "insert into nursery_queue.task (task_type, run_at) values ('t', default), ('t', '2100-1-1')"
AGAIN = {  # done by a test, what the next one asks, and what it is to hear
    "rows": (TASK, "select count(*) from nursery_queue.task_status", 0),
    "numbers": (TASK, "select nextval('nursery_queue.task_id_seq')", 1),
    "numbers without rows": (
        "select nextval('nursery_queue.task_id_seq')",
        "select nextval('nursery_queue.task_id_seq')",
        1,
    ),
    "a table": (
        "create table mine (x int primary key); create view yours as select * from mine",
        "select count(*) from pg_class where relname in ('mine', 'mine_pkey', 'yours')",
        0,
    ),
    "a schema": (
        "create schema other; create table other.t (x serial); create schema third",
        "select count(*) from pg_namespace where nspname in ('other', 'third')",
        0,
    ),
    "a temporary table": (
        "create temp table mine (x int)",
        "select count(*) from pg_class where relname = 'mine'",
        0,
    ),
    "an aborted transaction": (
        f"begin; {TASK}; rollback",
        "select count(*) from nursery_queue.task",
        0,
    ),
    "a rolled back change": (
        "begin; drop table nursery_queue.task cascade; rollback",
        "select count(*) from nursery_queue.task",
        0,
    ),
}
ANOTHER = {
    "a migration": "insert into nursery_queue.migration (version, name, checksum)"
    " values (99, '', '')",
    "a dropped trigger": "drop trigger place on nursery_queue.task",
    "another function": "create or replace function nursery_queue.now() returns timestamptz"
    " language sql stable return statement_timestamp()",
    "an index": "create index on nursery_queue.task (task_type)",
    "a privilege": "grant select on nursery_queue.task to public",
    "statistics": f"{TASK}; analyze nursery_queue.task",
    "a setting": "do $$ begin execute format('alter database %I set plan_cache_mode = auto',"
    " current_database()); end $$",
    "a default": "alter default privileges grant select on tables to public",
}


@pytest.mark.parametrize("what", AGAIN)
def test_as_new(migrated_databases: Stock, what: str) -> None:
    """What a test leaves in it is not there for the next one, and the database is the same."""
    statement, question, answer = AGAIN[what]
    with migrated_databases.lend() as database:
        with psycopg.connect(database.dsn, autocommit=True) as session:
            session.execute(statement.encode())
        first = database.dsn

    with migrated_databases.lend() as database:
        assert database.dsn == first
        assert database.ask(question) == [(answer,)]


@pytest.mark.parametrize("what", ANOTHER)
def test_not_as_new(migrated_databases: Stock, what: str) -> None:
    """A database whose schema or settings were changed is thrown away."""
    with migrated_databases.lend() as database:
        with psycopg.connect(database.dsn, autocommit=True) as session:
            session.execute(ANOTHER[what].encode())
        first = database.dsn

    with migrated_databases.lend() as database:
        assert database.dsn != first
    name = first.split("dbname=")[1].split()[0]
    with psycopg.connect(migrated_databases.server) as session:
        query = "select count(*) from pg_database where datname = %s"
        assert session.execute(query, [name]).fetchone() == (0,)


def test_the_sessions_of_a_test_end(migrated_databases: Stock) -> None:
    """A session that a test forgot does not meet the next one, whatever it was doing."""
    with migrated_databases.lend() as database:
        forgotten = psycopg.connect(database.dsn)
        forgotten.execute("lock table nursery_queue.task; listen nursery_queue")
        first = database.dsn

    with migrated_databases.lend() as database:
        assert database.dsn == first
        with pytest.raises(psycopg.OperationalError):
            forgotten.execute("select 1")
        forgotten.close()


def test_two_at_a_time(migrated_databases: Stock) -> None:
    """Whoever asks for a database while another has one gets one of his own."""
    with migrated_databases.lend() as one, migrated_databases.lend() as two:
        assert one.dsn != two.dsn


@pytest.mark.parametrize("busy", [False, True])
def test_connections_that_are_left(migrated_databases: Stock, busy: bool) -> None:
    """An open connection of ours is told of; one that is closed is not, even in a statement."""
    with (
        migrated_databases.lend() as database,
        psycopg.connect(database.dsn, application_name="somebody else"),
        contextlib.closing(psycopg.connect(database.dsn, application_name="nursery_queue")) as ours,
    ):
        database.patience = 0.2
        assert [left[1] for left in database.connections_left()] == ["nursery_queue"]
        database.patience = 10.0
        if busy:
            ours.pgconn.send_query(b"select pg_sleep(100)")
        ours.close()
        assert database.connections_left() == []


def test_the_stock_notices_its_own_session(migrated_databases: Stock) -> None:
    """A test may end all sessions there are: that of the stock is opened again."""
    with migrated_databases.lend() as database:
        with psycopg.connect(database.dsn, autocommit=True) as session:
            session.execute(TASK.encode())
            session.execute(
                "select pg_terminate_backend(pid, 1000) from pg_stat_activity"
                " where datname = current_database() and pid <> pg_backend_pid()"
            )
        first = database.dsn

    with migrated_databases.lend() as database:
        assert database.dsn == first
        assert database.ask("select count(*) from nursery_queue.task") == [(0,)]
