"""A person or a script with psql, who signs somebody up and asks for the welcome mail."""

from __future__ import annotations

import csv
import json

from collections.abc import Callable
from pathlib import Path

import pytest

import nursery_queue as nq

from tests.support.psql import Psql


INSERT = """
insert into usr (email) values ('ann@example.org');
insert into nursery_queue.task (task_type, params)
values ('SEND_EMAIL_WELCOME', '{"email": "ann@example.org"}');
"""
# The user and the task in one statement: neither is there without the other.
BRANCH = """
with new_user as (
    insert into usr (email) values ('ann@example.org') returning email
)
insert into nursery_queue.task (task_type, params)
select 'SEND_EMAIL_WELCOME', jsonb_build_object('email', email) from new_user;
"""
BOTH = """
with new_user as (
    insert into usr (email) values ('ann@example.org') returning id, email
), welcome as (
    insert into nursery_queue.task (task_type, params)
    select 'SEND_EMAIL_WELCOME', jsonb_build_object('email', email) from new_user
)
select from new_user;
"""
FUNCTION = """
insert into usr (email) values ('ann@example.org');
select from nursery_queue.enqueue('SEND_EMAIL_WELCOME', '{"email": "ann@example.org"}');
"""
CALLED_IN_BRANCH = """
with new_user as (
    insert into usr (email) values ('ann@example.org') returning email
)
select from new_user, nursery_queue.enqueue('SEND_EMAIL_WELCOME',
                                            jsonb_build_object('email', email));
"""
WAYS = {
    "insert": INSERT,
    "branch": BRANCH,
    "two branches": BOTH,
    "function": FUNCTION,
    "function in a branch": CALLED_IN_BRANCH,
}
STATEMENTS = {name: way for name, way in WAYS.items() if way.count(";") == 1}
STATES = "select task_type, state from nursery_queue.task_status order by id;"
USERS = "select email from usr order by id;"

every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
every_statement = pytest.mark.parametrize("statement", STATEMENTS.values(), ids=STATEMENTS)


# -- commit and rollback --------------------------------------------------------------------


@every_way
async def test_commit(
    way: str, psql: Psql, bell: Callable[[], int], worker: nq.Worker, sent: list[str]
) -> None:
    """What is committed is there for all, rings once, and is run."""
    psql(f"begin; {way} commit;")

    assert psql(USERS) == ["ann@example.org"]
    assert psql(STATES) == ["SEND_EMAIL_WELCOME|ready"]
    assert bell() == 1

    await worker.run_until_idle()

    assert sent == ["ann@example.org"]
    assert psql("select state, result from nursery_queue.task_status;") == [
        'succeeded|"welcomed ann@example.org"'
    ]


@every_way
async def test_rollback(
    way: str,
    psql: Psql,
    bell: Callable[[], int],
    nothing_stored: Callable[[], bool],
    worker: nq.Worker,
    sent: list[str],
) -> None:
    """What is rolled back was never there: no user, no task, no notification."""
    psql(f"begin; {way} rollback;")

    assert bell() == 0
    assert nothing_stored()

    await worker.run_until_idle()

    assert sent == []


@every_way
def test_nobody_sees_it_before(way: str, psql: Psql) -> None:
    """Until the commit another session sees neither the user nor the task."""
    count = "select (select count(*) from usr), (select count(*) from nursery_queue.task);"
    # One psql within the other: the inner one is another session.
    inner = f'{psql.program} --no-psqlrc -At --dbname "{psql.dsn}" --command "{count}"'

    assert psql(f"begin; {way}\n\\! {inner}\n{count}\ncommit;") == ["0|0", "1|1"]


@every_way
def test_an_error_later_on(way: str, psql: Psql, nothing_stored: Callable[[], bool]) -> None:
    """A transaction in which something fails leaves nothing, even if told to commit."""
    done = psql.finished(f"begin; {way} select 1/0; commit;", stop=False)

    assert "division by zero" in done.stderr
    assert nothing_stored()


@every_way
def test_a_session_that_ends(way: str, psql: Psql, nothing_stored: Callable[[], bool]) -> None:
    """Who leaves without a commit leaves nothing."""
    psql(f"begin; {way}")

    assert nothing_stored()


@every_way
def test_a_savepoint(way: str, psql: Psql) -> None:
    """Rolled back to a savepoint, the rest of the transaction is committed without it."""
    psql(
        f"begin; insert into usr (email) values ('bob@example.org');"
        f" savepoint before; {way} rollback to before; commit;"
    )

    assert psql(USERS) == ["bob@example.org"]
    assert psql(STATES) == []


# -- one statement ------------------------------------------------------------------------


@every_statement
def test_one_statement_needs_no_transaction(statement: str, psql: Psql) -> None:
    """The sign-up statement stores both by itself."""
    psql(statement)

    assert psql(USERS) == ["ann@example.org"]
    assert psql(STATES) == ["SEND_EMAIL_WELCOME|ready"]


@every_statement
def test_a_user_who_is_there_already(statement: str, psql: Psql) -> None:
    """If the user cannot be stored, no mail is sent."""
    psql("insert into usr (email) values ('ann@example.org');")

    assert "usr_email_key" in psql.refusal(statement)
    assert psql(STATES) == []


@every_statement
def test_a_task_that_is_refused(
    statement: str, psql: Psql, nothing_stored: Callable[[], bool]
) -> None:
    """If the task cannot be stored, there is no user either."""
    wrong = statement.replace("'SEND_EMAIL_WELCOME'", "''")

    assert "task_task_type_check" in psql.refusal(wrong)
    assert nothing_stored()


def test_a_user_who_is_passed_over(psql: Psql) -> None:
    """With `on conflict do nothing` only those who are new get a mail."""
    psql(BRANCH)
    psql(
        """
        with new_user as (
            insert into usr (email) values ('ann@example.org'), ('bob@example.org')
                on conflict do nothing returning email
        )
        insert into nursery_queue.task (task_type, params)
        select 'SEND_EMAIL_WELCOME', jsonb_build_object('email', email) from new_user;
        """
    )
    emails = psql("select params ->> 'email' from nursery_queue.task order by id;")

    assert emails == ["ann@example.org", "bob@example.org"]


# -- what the function is for ----------------------------------------------------------------


def test_a_key_that_is_taken(psql: Psql) -> None:
    """The function answers with the live task of that key, and the transaction goes on."""
    enqueue = "select * from nursery_queue.enqueue('SEND_EMAIL_WELCOME', dedup_key => 'ann');"
    other = "insert into usr (email) values ('bob@example.org');"

    assert psql(f"{enqueue} begin; {enqueue} {other} commit;") == ["1|t", "1|f"]
    assert psql(STATES) == ["SEND_EMAIL_WELCOME|ready"]
    assert psql(USERS) == ["bob@example.org"]


def test_a_key_that_is_taken_and_a_plain_insert(psql: Psql) -> None:
    """A plain insert with the key of a live task is an error, as for any unique column."""
    insert = (
        "insert into nursery_queue.task (task_type, dedup_key) values ('SEND_EMAIL_WELCOME', 'a');"
    )
    psql(insert)

    assert "dedup_pkey" in psql.refusal(insert)
    assert psql(STATES) == ["SEND_EMAIL_WELCOME|ready"]


def test_a_key_that_was_rolled_back(psql: Psql) -> None:
    """A key is free again when the transaction that took it has been rolled back."""
    enqueue = "select created from nursery_queue.enqueue('SEND_EMAIL_WELCOME', dedup_key => 'a');"

    assert psql(f"begin; {enqueue} rollback; {enqueue}") == ["t", "t"]


async def test_options(psql: Psql, worker: nq.Worker, sent: list[str]) -> None:
    """Priority and time are options of the function and columns of the table alike."""
    psql(
        """
        select from nursery_queue.enqueue('SEND_EMAIL_WELCOME', '{"email": "last"}');
        select from nursery_queue.enqueue('SEND_EMAIL_WELCOME', '{"email": "first"}',
                                          priority => 1);
        insert into nursery_queue.task (task_type, params, priority)
        values ('SEND_EMAIL_WELCOME', '{"email": "very first"}', 2);
        select from nursery_queue.enqueue('SEND_EMAIL_WELCOME', run_after => 3600);
        insert into nursery_queue.task (task_type, run_at)
        values ('SEND_EMAIL_WELCOME', now() + interval '1 hour');
        """
    )
    await worker.run_until_idle()

    assert sent == ["very first", "first", "last"]
    assert [row.split("|")[1] for row in psql(STATES)] == ["succeeded"] * 3 + ["scheduled"] * 2


async def test_cancel(psql: Psql, worker: nq.Worker, sent: list[str]) -> None:
    """What is cancelled never starts; rolled back, the cancellation has not happened."""
    psql(BRANCH)
    cancel = "select nursery_queue.cancel(1);"

    assert psql(f"begin; {cancel} rollback;") == ["t"]
    assert psql(STATES) == ["SEND_EMAIL_WELCOME|ready"]
    assert psql(cancel + cancel) == ["t", "f"]
    assert psql(STATES) == ["SEND_EMAIL_WELCOME|cancelled"]

    await worker.run_until_idle()

    assert sent == []


# -- \copy ---------------------------------------------------------------------------------


async def test_copy(psql: Psql, worker: nq.Worker, sent: list[str], tmp_path: Path) -> None:
    r"""\copy stores a file of tasks; they run in its order."""
    emails = [f"{i}@example.org" for i in range(500)]
    with (tmp_path / "tasks.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(
            ("SEND_EMAIL_WELCOME", json.dumps({"email": email})) for email in emails
        )
    copy = "\\copy nursery_queue.task (task_type, params) from 'tasks.csv' with (format csv)\n"
    psql(f"begin;\n{copy}rollback;", cwd=tmp_path)

    assert psql(STATES) == []

    psql(f"begin;\n{copy}commit;", cwd=tmp_path)
    await worker.run_until_idle()

    assert sent == emails
    assert psql("select distinct state from nursery_queue.task_status;") == ["succeeded"]


def test_copy_with_a_bad_line(psql: Psql, nothing_stored: Callable[[], bool]) -> None:
    r"""\copy stores all tasks or none."""
    said = psql.refusal(
        "\\copy nursery_queue.task (task_type, params) from stdin\n"
        'SEND_EMAIL_WELCOME\t{"email": "a"}\n'
        "SEND_EMAIL_WELCOME\tnot JSON\n"
        "\\.\n"
    )

    assert "invalid input syntax for type json" in said
    assert nothing_stored()
