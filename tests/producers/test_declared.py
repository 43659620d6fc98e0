"""Producers and plain SQL enqueue as it is declared."""

from __future__ import annotations

import psycopg
import pytest

import nursery_queue as nq

from tests.producers.outside import Outside
from tests.producers.worlds import Side, World


SEEN = """
    select queue, priority, key, on_complete ->> 'task_type', task_type
      from nursery_queue.task order by id
"""
DECLARE = """
    insert into nursery_queue.task_type (name, queue, priority, keep_for, on_complete,
                                         key_parameter, key_default)
    values ('greet', 'mail', 3, 60, '{"task_type": "told"}', 'name', 'Ann')
"""
ROW = ("mail", 3, "Ann", "told", "greet")


def test_by_name_as_workers_have_stored_it(outside: Outside, world: World) -> None:
    """Without the App what is left out is as the worker that started last has declared it."""
    outside.ask(DECLARE + " returning name")

    async def scenario(side: Side) -> None:
        await side.enqueue("greet", name="Ann")
        request = nq.TaskRequest.by_name("greet", {"name": "Ann"})
        keyed = request.options(dedup_key="k", queue="default", priority=0, key="c")
        await side.call("enqueue_many", [request, keyed])
        await side.commit()

    world.play(outside.dsn, scenario)

    assert outside.ask(SEEN) == [ROW, ROW, ("default", 0, "c", "told", "greet")]


def test_by_name_with_the_app(outside: Outside, world: World, app: nq.App) -> None:
    """With the App what is left out is as that declares it."""

    @app.task(name="greet", queue="cards", priority=-1, key="name")
    async def greet(name: str) -> None: ...

    async def scenario(side: Side) -> None:
        if isinstance(side.given, nq.Transaction):
            with pytest.raises(TypeError, match="app: give them to connect"):
                await side.call_with({"app": app}, "enqueue", "greet", name="Ann")
            return
        await side.call_with({"app": app}, "enqueue", "greet", name="Ann")
        await side.commit()

    world.play(outside.dsn, scenario)

    expected = [] if world.name == "nq-transaction" else [("cards", -1, "Ann", None, "greet")]
    assert outside.ask(SEEN) == expected


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("insert into nursery_queue.task (task_type) values ('greet')", ROW),
        ("insert into nursery_queue.task (task_type, queue) values ('greet', null)", ROW),
        ("select nursery_queue.enqueue('greet')", ROW),
        (
            (
                "insert into nursery_queue.task (task_type, queue, priority, on_complete)"
                " values ('greet', 'default', 0, null)"
            ),
            ("default", 0, "Ann", None, "greet"),
        ),
        (
            (
                "select nursery_queue.enqueue('greet', queue => 'default', priority => 0,"
                " on_complete => null)"
            ),
            ("default", 0, "Ann", None, "greet"),
        ),
        (
            "insert into nursery_queue.task (task_type) values ('unknown')",
            ("default", 0, None, None, "unknown"),
        ),
    ],
)
def test_plain_sql(outside: Outside, statement: str, expected: tuple[object, ...]) -> None:
    """A bare insert and the function leave to the declaration what they do not say."""
    outside.session.execute(DECLARE.encode())
    outside.session.execute(statement.encode())

    assert outside.ask(SEEN) == [expected]


def test_copy(outside: Outside) -> None:
    """COPY leaves out what it does not name, row by row of the type it is."""
    outside.session.execute(DECLARE.encode())
    with outside.session.cursor().copy("copy nursery_queue.task (task_type) from stdin") as copy:
        for name in ("greet", "unknown", "greet", "greet"):
            copy.write_row((name,))

    other = ("default", 0, None, None, "unknown")
    assert outside.ask(SEEN) == [ROW, other, ROW, ROW]


def test_what_is_declared_meanwhile_counts_from_the_next_transaction(outside: Outside) -> None:
    """A transaction goes on as it began, a later one is as declared then."""
    insert = "insert into nursery_queue.task (task_type) values ('greet')"
    with psycopg.connect(outside.dsn) as session:
        session.execute(insert)
        outside.session.execute(DECLARE.encode())
        session.commit()
        session.execute(insert)
        session.commit()

    assert outside.ask(SEEN) == [("default", 0, None, None, "greet"), ROW]
