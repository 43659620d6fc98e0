"""What is promised alike wherever the transaction is."""

from __future__ import annotations

import contextlib
import datetime as dt
import threading

from collections.abc import Generator, Sequence

import psycopg
import pytest
import trio

from psycopg.conninfo import make_conninfo

import nursery_queue as nq

from tests.producers.outside import Outside
from tests.producers.worlds import Side, World
from tests.support.waits import blocked


Greet = nq.TaskType[[str], str]


def test_rollback_leaves_nothing(outside: Outside, world: World, greet: Greet) -> None:
    """Rolled back: no row, no id that works, and nobody has been rung."""

    async def scenario(side: Side) -> list[nq.TaskRef]:
        refs = [await side.enqueue(greet, "Ann")]
        refs += await side.call("enqueue_many", [greet.bind("Bob")])
        await side.rollback()
        return refs

    refs = world.play(outside.dsn, scenario)

    assert [ref.created for ref in refs] == [True, True]
    assert outside.tasks() == []
    assert outside.rings() == 0
    assert trio.run(statuses, outside.dsn, refs, False) == [None, None]


def test_commit_makes_tasks_claimable(
    outside: Outside, world: World, app: nq.App, greet: Greet
) -> None:
    """Committed: workers are rung, and run the task."""

    async def scenario(side: Side) -> nq.TaskRef:
        ref = await side.enqueue(greet, "Ann")
        await side.commit()
        return ref

    ref = world.play(outside.dsn, scenario)

    assert outside.rings() == 1
    assert trio.run(worked, outside.dsn, app, ref) == "Hello, Ann!"


def test_nothing_is_committed_by_us(outside: Outside, world: World, greet: Greet) -> None:
    """Nobody else sees what was done before the owner of the transaction commits it."""

    async def scenario(side: Side) -> nq.TaskRef:
        first = await side.enqueue(greet, "Ann")
        await side.execute("insert into note values ('mine')")
        await side.call("enqueue_many", [greet.bind("Bob")])
        await side.call("status", first)
        await side.call("cancel", first)
        assert outside.tasks() == []
        assert outside.ask("select word from note") == []
        await side.commit()
        return first

    first = world.play(outside.dsn, scenario)

    assert outside.tasks() == [first.id, first.id + 1]
    assert outside.ask("select word from note") == [("mine",)]


def test_dedup_conflict(outside: Outside, world: World, greet: Greet) -> None:
    """A dedup key that is taken gives the first task's id, and the transaction goes on."""
    keyed = greet.options(dedup_key="ann")

    async def scenario(side: Side) -> list[nq.TaskRef]:
        refs = [await side.enqueue(keyed, "Ann"), await side.enqueue(keyed, "Ann")]
        refs += await side.call("enqueue_many", [greet.bind("Bob"), keyed.bind("Ann")])
        await side.execute("insert into note values ('mine')")
        await side.commit()
        return refs

    first, again, bob, once_more = world.play(outside.dsn, scenario)

    assert first.created
    assert again == once_more == nq.TaskRef(first.id, created=False)
    assert outside.tasks() == [first.id, bob.id]
    assert outside.ask("select word from note") == [("mine",)]


def test_dedup_race(outside: Outside, world: World, greet: Greet) -> None:
    """Of two transactions that want a key at once the second waits, and goes on with that task."""

    async def scenario(side: Side, others: int) -> None:
        ref = await side.enqueue(greet.options(dedup_key="ann"), "Ann")
        assert ref == nq.TaskRef(others, created=False)
        await side.execute("insert into note values ('mine')")
        await side.commit()

    with psycopg.connect(outside.dsn) as other:
        others = nq.producer(other).enqueue(greet.options(dedup_key="ann"), "Ann").id

        def commit_once_somebody_waits() -> None:
            while not blocked(outside.dsn):
                pass
            other.commit()

        thread = threading.Thread(target=commit_once_somebody_waits)
        thread.start()
        world.play(outside.dsn, lambda side: scenario(side, others))
        thread.join()

    assert outside.tasks() == [others]
    assert outside.ask("select word from note") == [("mine",)]


def test_ten_thousand_in_one_call(outside: Outside, world: World, greet: Greet) -> None:
    """10,000 tasks go in one call, and their ids come back in the order of the requests."""

    async def scenario(side: Side) -> list[nq.TaskRef]:
        refs: list[nq.TaskRef] = await side.call(
            "enqueue_many", [greet.bind(str(number)) for number in range(10_000)]
        )
        await side.commit()
        return refs

    refs = world.play(outside.dsn, scenario)

    stored = outside.ask("select id, (params ->> 'name')::int from nursery_queue.task order by 2")
    assert stored == [(ref.id, number) for number, ref in enumerate(refs)]
    assert len(refs) == 10_000
    assert outside.rings() == 1


def test_a_failing_statement(outside: Outside, world: World, greet: Greet) -> None:
    """A call that fails takes nothing with it: what was done before and after is committed."""
    verbs: list[tuple[str, list[object]]] = [
        ("enqueue", [greet, "Ann"]),
        ("enqueue_many", [[greet.options(dedup_key="x").bind("Ann")]]),
        ("cancel", [task.id for task in [greeting(outside.dsn, greet)]]),
        ("status", [1]),
    ]

    async def scenario(side: Side) -> None:
        with locked(outside.dsn), pytest.raises(side.errors, match="lock timeout"):
            await side.enqueue(greet, "first of all")
        await side.execute("insert into note values ('before')")
        with locked(outside.dsn):
            for verb, arguments in verbs:
                with pytest.raises(side.errors, match="lock timeout"):
                    await side.call(verb, *arguments)
        await side.execute("insert into note values ('after')")
        await side.enqueue(greet, "Bob")
        assert outside.ask("select word from note") == []
        await side.commit()

    world.play(make_conninfo(outside.dsn, options="-c lock_timeout=10ms"), scenario)

    assert outside.ask("select word from note") == [("before",), ("after",)]
    assert len(outside.tasks()) == 2


def test_a_transaction_that_has_failed_already(
    outside: Outside, world: World, greet: Greet
) -> None:
    """A transaction that its owner has let fail stays as it is, and says so."""

    async def scenario(side: Side) -> None:
        with pytest.raises(side.errors):
            await side.execute("select 1 / 0")
        with pytest.raises(side.errors, match=r"aborted|atomic"):
            await side.enqueue(greet, "Ann")
        await side.rollback()

    world.play(outside.dsn, scenario)

    assert outside.tasks() == []


def test_the_owners_savepoints(outside: Outside, world: World, greet: Greet) -> None:
    """What is enqueued in a savepoint of the owner's is rolled back with it, and only that."""

    async def scenario(side: Side) -> nq.TaskRef:
        kept = await side.enqueue(greet, "Ann")
        await side.execute("savepoint mine")
        await side.enqueue(greet, "Bob")
        await side.execute("rollback to savepoint mine")
        await side.commit()
        return kept

    kept = world.play(outside.dsn, scenario)

    assert outside.tasks() == [kept.id]


def test_cancel(outside: Outside, world: World, greet: Greet) -> None:
    """A task is cancelled with the commit; one that is unknown or has ended is not."""

    async def scenario(side: Side, task: nq.TaskRef) -> None:
        for_sure = await side.call("cancel", task), await side.call("cancel", task.id)
        hardly = [await side.call("cancel", unknown) for unknown in (10**6, 2**70)]
        assert (for_sure, hardly) == ((True, False), [False, False])
        assert outside.ask("select state from nursery_queue.task_status") == [("ready",)]
        await side.commit()

    task = greeting(outside.dsn, greet)
    world.play(outside.dsn, lambda side: scenario(side, task))

    assert outside.ask("select state from nursery_queue.task_status") == [("cancelled",)]


def test_cancel_what_runs(outside: Outside, world: World, app: nq.App) -> None:
    """What runs is cancelled, or with running=False may finish, but not go round again."""
    claims = "select cancel_requested_at is not null, cancel_interrupts from nursery_queue.running"

    async def scenario(side: Side, task_id: int) -> None:
        assert await side.call("cancel", task_id, running=False)
        await side.commit()

    @app.task(name="meanwhile")
    def meanwhile() -> list[object]:
        (task_id,) = outside.tasks()
        world.play(outside.dsn, lambda side: scenario(side, task_id))
        return [list(row) for row in outside.ask(claims)]

    with psycopg.connect(outside.dsn) as other:
        ref = nq.producer(other).enqueue(meanwhile)

    assert trio.run(worked, outside.dsn, app, ref) == [[True, False]]


def test_status_is_what_the_client_says(
    outside: Outside, world: World, app: nq.App, greet: Greet
) -> None:
    """Whatever the session makes of JSON and instants: a status is what `client.status` returns."""

    @app.task(name="fail", retry=None)
    async def fail() -> None:
        raise ValueError({"no": "luck"})

    @app.task(name="tell")
    async def tell(task_id: int, context: object, result: nq.Result) -> None: ...

    later = dt.datetime(2031, 2, 3, 4, 5, 6, 789, tzinfo=dt.timezone(dt.timedelta(hours=5)))
    with psycopg.connect(outside.dsn) as other:
        refs = nq.producer(other).enqueue_many(
            [
                greet.options(priority=3, queue="mail").bind("Ann \N{SNOWMAN}"),
                fail.bind(),
                greet.options(on_complete=tell, context={"a": [1, 2.5, None]}).bind("Bob"),
            ]
        )
    trio.run(worked, outside.dsn, app, refs[0])
    with psycopg.connect(outside.dsn) as other:
        refs += nq.producer(other).enqueue_many(
            [greet.options(run_at=later).bind("Cy"), greet.bind("Di")]
        )
        assert nq.producer(other).cancel(refs[-1])
    asked: list[nq.TaskRef | int] = [refs[3], refs[0].id, 10**6, *refs, 2**70]

    async def scenario(side: Side, payloads: bool) -> list[nq.TaskStatus | None]:
        found: list[nq.TaskStatus | None] = await side.call("status_many", asked, payloads=payloads)
        assert await side.call("status", refs[1], payloads=payloads) == found[4]
        assert await side.call("status", 10**6) is None
        return found

    for payloads in (False, True):
        found = world.play(outside.dsn, lambda side: scenario(side, payloads))  # noqa: B023  # at once
        assert found == trio.run(statuses, outside.dsn, asked, payloads)
        assert found[0] is not None
        assert found[0].run_at == later
        assert found[0].run_at.tzinfo is not None


def test_status_sees_the_transaction(outside: Outside, world: World, greet: Greet) -> None:
    """A transaction sees its own tasks, also those it has cancelled."""

    async def scenario(side: Side) -> list[nq.TaskStatus | None]:
        refs = await side.call("enqueue_many", [greet.bind("Ann"), greet.bind("Bob")])
        await side.call("cancel", refs[1])
        found: list[nq.TaskStatus | None] = await side.call("status_many", refs, payloads=True)
        await side.rollback()
        return found

    found = world.play(outside.dsn, scenario)

    assert [(each.state, each.params) for each in found if each] == [
        (nq.State.READY, {"name": "Ann"}),
        (nq.State.CANCELLED, {"name": "Bob"}),
    ]


def test_everything_that_can_be_said_of_a_task(
    outside: Outside, world: World, greet: Greet
) -> None:
    """All options arrive, by task type, by request and by name."""
    moment = dt.datetime(2031, 2, 3, tzinfo=dt.UTC)
    said = greet.options(
        queue="mail",
        priority=7,
        run_at=moment,
        retry=nq.RetryPolicy(max_attempts=3, initial=2.5),
        timeout=4,
        keep_for=5,
        on_complete="told",
        context={"percent": "%s %(x)s :name"},
    )

    async def scenario(side: Side) -> None:
        await side.enqueue(said, "Ann %s :x $1")
        await side.enqueue(greet.bind("Ann"))
        await side.enqueue("elsewhere", name="Ann")
        await side.commit()

    world.play(outside.dsn, scenario)

    assert outside.ask("""
        select task_type, params, queue, priority, run_at = '2031-02-03 00:00Z', max_attempts,
               (backoff ->> 'initial')::float8, timeout, keep_for, on_complete ->> 'task_type',
               context
          from nursery_queue.task order by id
    """) == [
        ("greet", {"name": "Ann %s :x $1"}, "mail", 7, True, 3, 2.5, 4.0, 5.0, "told",
         {"percent": "%s %(x)s :name"}),
        ("greet", {"name": "Ann"}, "default", 0, False, None, None, None, None, None, None),
        ("elsewhere", {"name": "Ann"}, "default", 0, False, None, None, None, None, None, None),
    ]  # fmt: skip


def test_what_is_refused_at_the_call(outside: Outside, world: World, greet: Greet) -> None:
    """What cannot be a task is refused before the database is asked, with a client's errors."""

    async def scenario(side: Side) -> None:
        with pytest.raises(TypeError, match="name"):
            await side.enqueue(greet)
        with pytest.raises(TypeError, match="enqueue takes a task type"):
            await side.enqueue(print)
        with pytest.raises(nq.PayloadTooLarge, match="greet"):
            await side.enqueue(greet, "x" * 1_000_001)
        with pytest.raises(TypeError, match="named by its id"):
            await side.call("cancel", "1")
        with pytest.raises(TypeError, match="named by its id"):
            await side.call("status", 1.0)
        if world.name != "nq-transaction":
            with pytest.raises(nq.PayloadTooLarge, match="the limit is 20"):
                await side.call_with({"max_params_bytes": 20}, "enqueue", greet, "x" * 20)
        await side.commit()

    world.play(outside.dsn, scenario)

    assert outside.tasks() == []


def test_nothing_to_do(outside: Outside, world: World) -> None:
    """No requests are no tasks and no question to the database."""

    async def scenario(side: Side) -> None:
        if world.name != "nq-transaction":  # that has its savepoint all the same
            with pytest.raises(side.errors):
                await side.execute("select 1 / 0")
        assert await side.call("enqueue_many", []) == []
        assert await side.call("status_many", []) == []
        assert await side.call("cancel", 2**70) is False
        await side.rollback()

    world.play(outside.dsn, scenario)


def greeting(dsn: str, greet: Greet) -> nq.TaskRef:
    with psycopg.connect(dsn) as connection:
        return nq.producer(connection).enqueue(greet, "Ann")


@contextlib.contextmanager
def locked(dsn: str) -> Generator[None]:
    """Let nobody else use the tables in the block."""
    with psycopg.connect(dsn, options="-c lock_timeout=5s") as connection:
        connection.execute("lock table nursery_queue.task, nursery_queue.dedup")
        connection.execute("lock table nursery_queue.ready, nursery_queue.running")
        yield
        connection.rollback()


async def statuses(
    dsn: str, tasks: Sequence[nq.TaskRef | int], payloads: bool
) -> list[nq.TaskStatus | None]:
    async with nq.connect(dsn) as client:
        return await client.status_many(tasks, payloads=payloads)


async def worked(dsn: str, app: nq.App, ref: nq.TaskRef) -> object:
    """Work until there is nothing to do, and return the result of a task."""
    async with nq.connect(dsn) as client:
        await nq.Worker(app, client).run_until_idle()
        return await client.result(ref)
