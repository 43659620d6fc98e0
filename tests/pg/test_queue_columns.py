"""The columns of `queue` in plain SQL: what the table takes, and what it says otherwise."""

from __future__ import annotations

from collections.abc import Generator

import psycopg
import pytest

from nursery_queue._pg._postgres_store import PostgresStore
from nursery_queue._store import Bell
from tests.support.listening import listening


@pytest.fixture
def session(migrated: str) -> Generator[psycopg.Connection]:
    """Give a session with a queue `calls` that has nothing set."""
    with psycopg.connect(migrated, autocommit=True) as session:
        session.execute("insert into nursery_queue.queue (name) values ('calls')")
        yield session


def change(session: psycopg.Connection, changes: str) -> None:
    session.execute(f"update nursery_queue.queue set {changes} where name = 'calls'".encode())


def rate(session: psycopg.Connection, prefix: str) -> object:
    columns = ", ".join(f"{prefix}rate_{part}" for part in ("count", "per", "burst"))
    return session.execute(f"select {columns} from nursery_queue.queue".encode()).fetchone()


@pytest.mark.parametrize("prefix", ["", "key_"])
def test_a_rate(session: psycopg.Connection, prefix: str) -> None:
    """A rate without a burst has one of 0, a burst beside it stays, and all of it goes at once."""
    seen: list[object] = []
    for changes in (
        "{0}rate_count = 1000, {0}rate_per = 60",
        "{0}rate_burst = 20",
        "{0}rate_count = 100, {0}rate_per = 0.5",
        "{0}rate_burst = null",
        "{0}rate_count = null, {0}rate_per = null",
    ):
        change(session, changes.format(prefix))
        seen.append(rate(session, prefix))

    assert seen == [
        (1000, 60.0, 0),
        (1000, 60.0, 20),
        (100, 0.5, 20),
        (100, 0.5, 0),
        (None, None, None),
    ]


@pytest.mark.parametrize("prefix", ["", "key_"])
@pytest.mark.parametrize(
    ("changes", "constraint"),
    [
        ("{0}rate_count = 1", "{0}rate_has_both_count_and_per_or_nothing"),
        ("{0}rate_per = 1", "{0}rate_has_both_count_and_per_or_nothing"),
        ("{0}rate_count = 0, {0}rate_per = 1", "{0}rate_count_of_1_or_more"),
        ("{0}rate_count = 1, {0}rate_per = 0", "{0}rate_per_above_0_and_at_most_100_years"),
        ("{0}rate_count = 1, {0}rate_per = -1", "{0}rate_per_above_0_and_at_most_100_years"),
        ("{0}rate_count = 1, {0}rate_per = 'nan'", "{0}rate_per_above_0_and_at_most_100_years"),
        ("{0}rate_count = 1, {0}rate_per = 'inf'", "{0}rate_per_above_0_and_at_most_100_years"),
        (
            "{0}rate_count = 1, {0}rate_per = 1, {0}rate_burst = -1",
            "{0}rate_burst_of_0_or_more",
        ),
        (
            "{0}rate_count = 1000001, {0}rate_per = 1",
            "{0}rate_up_to_a_million_starts_a_second",
        ),
        (
            "{0}rate_count = 1, {0}rate_per = 2e9, {0}rate_burst = 2",
            "{0}rate_worth_of_burst_up_to_100_years",
        ),
    ],
)
def test_what_is_no_rate(
    session: psycopg.Connection, prefix: str, changes: str, constraint: str
) -> None:
    """A part of a rate, and a number out of its bounds, is refused by a constraint that says so."""
    with pytest.raises(psycopg.errors.CheckViolation) as caught:
        change(session, changes.format(prefix))

    assert caught.value.diag.constraint_name == "queue_" + constraint.format(prefix)
    assert rate(session, prefix) == (None, None, None)


def test_the_other_columns(session: psycopg.Connection) -> None:
    """A negative limit is refused, and so is a declaration that is no object."""
    for changes, constraint in (
        ("max_running_per_key = -1", "queue_max_running_per_key_of_0_or_more"),
        ("declared = '[]'", "queue_declared_as_an_object"),
    ):
        with pytest.raises(psycopg.errors.CheckViolation, match=constraint):
            change(session, changes)


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
@pytest.mark.parametrize("column", ["max_running", "max_running_per_key"])
def test_a_limit_set_from_a_snapshot_is_refused(
    session: psycopg.Connection, column: str, isolation: str
) -> None:
    """Such a transaction may not see all tasks that run, and is told what to do instead."""
    session.execute(f"begin isolation level {isolation}".encode())

    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="of queue calls") as told:
        change(session, f"{column} = 2")

    assert "begin isolation level read committed" in (told.value.diag.message_hint or "")


async def test_every_change_is_news(store: PostgresStore, session: psycopg.Connection) -> None:
    """Each column of a limit or rate rings when it is changed: what it allows may start at once."""
    async with listening(store, [Bell.WORK, Bell.CANCEL]) as ear:
        for changes in (
            "max_running = 2",
            "max_running_per_key = 2",
            "rate_count = 2, rate_per = 60",
            "rate_count = 3",
            "rate_per = 30",
            "rate_burst = 5",
            "key_rate_count = 2, key_rate_per = 60",
            "key_rate_count = 3",
            "key_rate_per = 30",
            "key_rate_burst = 5",
            "rate_count = null, rate_per = null",
            "key_rate_count = null, key_rate_per = null",
            "max_running_per_key = null",
        ):
            before = dict(ear.heard)
            change(session, changes)
            for bell, rung in before.items():
                await ear.hears(bell, after=rung)
