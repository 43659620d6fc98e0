"""The role for producers suffices for each producer, and a reader's does not."""

from __future__ import annotations

from collections.abc import Generator

import psycopg
import pytest

import nursery_queue as nq

from tests.producers.worlds import Side, World
from tests.support.roles import Roles, made_roles


Greet = nq.TaskType[[str], str]


@pytest.fixture
def roles(dsn: str) -> Generator[Roles]:
    with made_roles(dsn, "nursery_queue") as roles:
        yield roles


def test_the_role_for_producers_suffices(roles: Roles, world: World, greet: Greet) -> None:
    """One task, many, keys, by name, for later, and cancelled: all of it is allowed."""

    async def scenario(side: Side) -> list[nq.TaskRef]:
        by_name = nq.TaskRequest.by_name("greet", {"name": "Bob"})
        refs = [await side.enqueue(greet, "Ann"), await side.enqueue("greet", name="Cy")]
        refs += await side.call("enqueue_many", [greet.bind("Dan"), by_name])
        keyed = by_name.options(dedup_key="k", on_complete="told", context=[1], run_after=60)
        refs += await side.call("enqueue_many", [keyed, keyed])
        assert await side.call("cancel", refs[0])
        await side.commit()
        return refs

    refs = world.play(roles.login["producer"], scenario)

    assert [ref.created for ref in refs] == [True] * 5 + [False]
    with psycopg.connect(roles.admin) as session:
        states = session.execute(
            "select state from nursery_queue.task_status order by id"
        ).fetchall()
    assert states == [("cancelled",), ("ready",), ("ready",), ("ready",), ("scheduled",)]


def test_a_reader_enqueues_nothing(roles: Roles, world: World, greet: Greet) -> None:
    """With the rights of a reader every producer is refused, and nothing is stored."""

    async def scenario(side: Side) -> None:
        with pytest.raises(Exception, match="permission denied"):
            await side.enqueue(greet, "Ann")
        await side.rollback()

    world.play(roles.login["reader"], scenario)

    with psycopg.connect(roles.admin) as session:
        assert session.execute("select count(*) from nursery_queue.task").fetchone() == (0,)
