"""What a caller has in a schema of their own, or a temporary one, changes nothing of ours."""

from __future__ import annotations

import psycopg
import pytest

from psycopg import sql

from tests.pg.queries import Session


# They name everything in full: a setting of its own would cost the one half of what it does for
# each row, and the triggers of a user's would run with that of the other.
NAMED_IN_FULL = {"as_declared", "store"}
TABLES = ("task", "dedup", "ready", "scheduled", "queue", "running", "task_type", "finished")
FUNCTIONS = (
    "now()",
    "statement_timestamp()",
    "current_setting(text, boolean)",
    "current_setting(text)",
    "set_config(text, text, boolean)",
    "make_interval(secs double precision)",
    "jsonb_typeof(jsonb)",
    "pg_notify(text, text)",
    "hashtextextended(text, integer)",
    "hashtextextended(text, bigint)",
    "cardinality(bigint[])",
    "format(text, regclass)",
)
OPERATORS = (
    ("=", "text", "text"),
    ("<>", "text", "text"),
    ("=", "bigint", "bigint"),
    ("=", "jsonb", "jsonb"),
    ("||", "text", "text"),
    ("||", "jsonb", "jsonb"),
    ("@@", "jsonb", "jsonpath"),
    ("->", "jsonb", "text"),
    ("->>", "jsonb", "text"),
    ("-", "jsonb", "text[]"),
    ("?", "jsonb", "text"),
    ("<=", "timestamptz", "timestamptz"),
    (">", "timestamptz", "timestamptz"),
    ("+", "timestamptz", "interval"),
    ("<>", "oid", "regclass"),
    ("<>", "regclass", "regclass"),
)


def poison(session: Session, schema: str) -> None:
    """Fill *schema* with functions and operators that raise as soon as they are called."""
    body = "language plpgsql as $$ begin raise exception 'hijacked'; end $$"
    for function in FUNCTIONS:
        session.execute(
            f"create function {schema}.{function} returns {_returns(function)} {body}".encode()
        )
    for number, (operator, left, right) in enumerate(OPERATORS):
        name = f"{schema}.evil_{number}"
        answers = "boolean" if operator in {"=", "<>", "@@", "?", "<=", ">"} else left
        session.execute(
            f"create function {name}({left}, {right}) returns {answers} {body}".encode()
        )
        create = f"create operator {schema}.{operator} (leftarg = {left}, rightarg = {right}"
        session.execute(f"{create}, function = {name})".encode())


def _returns(function: str) -> str:
    name = function.partition("(")[0]
    return {
        "now": "timestamptz",
        "statement_timestamp": "timestamptz",
        "make_interval": "interval",
        "pg_notify": "void",
        "hashtextextended": "bigint",
        "cardinality": "integer",
    }.get(name, "text")


def test_every_function_has_a_path_of_its_own(session: Session) -> None:
    """A function has a fixed search_path, or a body that was bound when it was made."""
    found = session.execute(
        "select proname from pg_proc where pronamespace = 'nursery_queue'::regnamespace"
        " and prosqlbody is null"
        " and not coalesce('search_path=pg_catalog, pg_temp' = any(proconfig), false)"
    ).fetchall()

    assert {name for (name,) in found} == NAMED_IN_FULL


def test_now_is_no_call(session: Session) -> None:
    """The clock is inlined where it is used: a claim pays for no function."""
    plan = session.execute(
        "explain (verbose, costs off) select from nursery_queue.ready"
        " where due_at <= nursery_queue.now()"
    ).fetchall()

    assert "statement_timestamp()" in str(plan)
    assert "nursery_queue.now()" not in str(plan)


@pytest.mark.parametrize("where", ["a schema", "the temporary schema"])
def test_objects_of_the_caller_change_nothing(session: Session, where: str) -> None:
    """Tables, functions and operators of the same names, in whatever is searched first."""
    if where == "a schema":
        session.execute("create schema evil")
        poison(session, "evil")
        session.execute("set search_path = evil, pg_catalog, pg_temp")
    else:
        session.execute("create temporary table anything ()")
        (temporary,) = session.execute("select pg_my_temp_schema()::regnamespace::text").fetchall()
        poison(session, str(temporary[0]))
        session.execute(
            sql.SQL("set search_path = {}, pg_catalog").format(sql.Identifier(temporary[0]))
        )
    for table in TABLES:
        create = (
            "create temporary table {} (mine text)"
            if "temp" in where
            else ("create table evil.{} (mine text)")
        )
        session.execute(sql.SQL(create).format(sql.Identifier(table)))
    for statement in (
        (
            "insert into nursery_queue.task (task_type, dedup_key, on_complete, backoff) values"
            " ('a', 'k', '{\"task_type\": \"b\"}', '{\"initial\": 1, \"maximum\": 2}')"
        ),
        "insert into nursery_queue.task (task_type) values ('c'), ('c'), ('d')",
        "select nursery_queue.enqueue('a', run_after => 60, dedup_key => 'l')",
        "select nursery_queue.enqueue('a', dedup_key => 'l')",
        (
            'select nursery_queue.enqueue_many(\'[{"task_type": "a", "params": "{}",'
            ' "run_after": 0, "dedup_key": "m", "on_complete": "null"}]\')'
        ),
        (
            'select nursery_queue.store(\'[{"task_type": "a", "params": "{}",'
            ' "run_after": 0, "on_complete": "null"}]\')'
        ),
        "select nursery_queue.cancel(1)",
        "insert into nursery_queue.queue (name, max_running) values ('default', 5)",
        "select nursery_queue.room('{default}', 5, 5, 5)",
        "select nursery_queue.park(5)",
        "select nursery_queue.unpark('{a}', 5)",
        "select nursery_queue.cancel_page(null, null, null, 0, 7, 9, false)",
        "select nursery_queue.forget_streams('{1}')",
        "select nursery_queue.read_streams('{1}', '{s}', '{0}', '{0}', 9, 9)",
        "select nursery_queue.write_stream(1, 1, 's', '{t}', '{a}')",
    ):
        session.execute(statement.encode())
    session.execute("reset search_path")
    found = session.execute(
        "select id, task_type, state from nursery_queue.task_status order by id"
    ).fetchall()

    assert found == [
        (1, "a", "cancelled"),
        (2, "c", "cancelled"),
        (3, "c", "cancelled"),
        (4, "d", "cancelled"),
        (5, "a", "cancelled"),
        (6, "a", "cancelled"),
        (7, "a", "cancelled"),
        (8, "b", "ready"),
    ]


def test_it_would_be_noticed(session: Session) -> None:
    """The poison works: what is not protected is hijacked."""
    session.execute("create schema evil")
    poison(session, "evil")
    session.execute("set search_path = evil, pg_catalog")
    with pytest.raises(psycopg.errors.RaiseException, match="hijacked"):
        session.execute("select 'a'::text = 'b'::text")
