"""Triggers of the user's that leave rows out: an enqueue answers ids of its own tasks, or fails."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import psycopg
import pytest

import nursery_queue as nq

from tests.pg.queries import Session, rows


LEAVE_OUT = """
    create function leave_out() returns trigger language plpgsql as $$
    begin
        return case when new.params ? 'bad' then null else new end;
    end
    $$;
    create trigger leave_out before insert on nursery_queue.task
        for each row execute function leave_out();
"""
# All is said that a trigger would fill in.
GOOD, BAD = (
    nq.TaskRequest.by_name("work", {name: 1}, queue="q", priority=0, on_complete=None)
    for name in ("good", "bad")
)
KEYED = BAD.options(dedup_key="k")


async def in_a_transaction(client: nq.Client) -> object:
    async with client.transaction() as tx:
        return await tx.enqueue_many([GOOD, BAD])


WAYS: dict[str, Callable[[nq.Client], Awaitable[object]]] = {
    "one": lambda client: client.enqueue_many([BAD]),
    "many": lambda client: client.enqueue_many([GOOD, BAD, GOOD]),
    "keyed": lambda client: client.enqueue_many([GOOD, KEYED, GOOD]),
    "copied": lambda client: client.enqueue_many([GOOD, BAD, GOOD], copy=True),
    "in a transaction": in_a_transaction,
}


@pytest.mark.parametrize("way", WAYS)
async def test_a_task_that_is_left_out_fails_the_enqueue(session: Session, way: str) -> None:
    """Nothing of it is stored, the error says why, and what is not left out can be stored."""
    session.execute(LEAVE_OUT.encode())
    session.commit()
    async with nq.connect(session.info.dsn) as client:
        with pytest.raises(psycopg.errors.RaiseException, match=r"1 of the tasks .* left out"):
            await WAYS[way](client)
        assert rows(session, "task") == rows(session, "ready") == rows(session, "dedup") == 0
        assert len(await client.enqueue_many([GOOD, GOOD.options(dedup_key="k")])) == 2


def test_the_function_fails_too(session: Session) -> None:
    """`nursery_queue.enqueue` does not answer null for an id."""
    session.execute(LEAVE_OUT.encode())
    with pytest.raises(psycopg.errors.RaiseException, match=r"1 of the tasks .* left out"):
        session.execute("""select nursery_queue.enqueue('work', '{"bad": 1}')""")


@pytest.mark.parametrize("way", ["one", "many", "keyed", "copied"])
async def test_where_triggers_do_not_fire_nothing_is_stored(session: Session, way: str) -> None:
    """As a replica the server would store tasks that are nowhere, so it does not."""
    alter = f'alter database "{session.info.dbname}" set session_replication_role = replica'
    session.execute(alter.encode())
    session.commit()
    async with nq.connect(session.info.dsn) as client:
        with pytest.raises(psycopg.errors.RaiseException, match="session_replication_role"):
            await WAYS[way](client)
    assert rows(session, "task") == 0


AUDITED = """
    create table audit (task_type text);
    create rule audited as on insert to nursery_queue.task
        do also insert into audit values (new.task_type);
"""


@pytest.mark.parametrize("way", ["one", "many", "keyed", "in a transaction"])
async def test_a_rule_may_do_something_else_as_well(session: Session, way: str) -> None:
    """An enqueue stores and answers its tasks, and the rule has seen each of them."""
    session.execute(AUDITED.encode())
    session.commit()
    async with nq.connect(session.info.dsn) as client:
        await WAYS[way](client)
    (seen,) = session.execute("select count(*) from audit").fetchall()
    assert seen[0] == rows(session, "task") == rows(session, "ready") > 0


async def test_a_trigger_finds_what_its_owner_has_on_the_search_path(session: Session) -> None:
    """The search path within an enqueue is that of the session, as with a plain insert."""
    session.execute("""
        create table audit (task_type text);
        create function note() returns trigger language plpgsql as $$
        begin
            insert into audit values (new.task_type);
            return new;
        end
        $$;
        create trigger note before insert on nursery_queue.task
            for each row execute function note();
    """)
    session.commit()
    async with nq.connect(session.info.dsn) as client:
        await client.enqueue_many([GOOD])
    assert session.execute("select task_type from audit").fetchall() == [("work",)]
