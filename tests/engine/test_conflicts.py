"""Handlers whose transactions meet a serialization failure or a deadlock."""

from __future__ import annotations

import itertools
import logging

from collections.abc import AsyncGenerator
from typing import Any

import psycopg
import pytest
import trio

from psycopg.conninfo import make_conninfo

import nursery_queue as nq

from nursery_queue._core._excuses import Excuse, excuse
from nursery_queue._psycopg._connection import Connection
from nursery_queue.testing import VirtualTime
from tests.support.workers import final, outcomes, state, working


SERIALIZABLE = "-c default_transaction_isolation=serializable"
READ = "select sum(amount) from account"
ADD = "update account set amount = amount + 1 where name = %s"
CONFLICTS = int(Excuse.CONFLICT.bound)


@pytest.fixture
async def db(migrated: str) -> AsyncGenerator[Connection]:
    """A connection of the test's own, with two accounts to write to."""
    connection = await Connection.connect(make_conninfo(migrated, options=SERIALIZABLE))
    await connection.execute("create table account (name text primary key, amount int not null)")
    await connection.execute("insert into account values ('a', 0), ('b', 0)")
    yield connection
    connection.abort()


@pytest.fixture
async def strict(migrated: str) -> AsyncGenerator[nq.Client]:
    """A client all whose transactions are serializable."""
    async with nq.connect(make_conninfo(migrated, options=SERIALIZABLE)) as client:
        yield client


@pytest.fixture
async def quick(migrated: str) -> AsyncGenerator[nq.Client]:
    """A client that is told of a deadlock at once."""
    async with nq.connect(make_conninfo(migrated, options="-c deadlock_timeout=10ms")) as client:
        yield client


async def amounts(db: Connection) -> list[int]:
    return [amount for (amount,) in await db.fetch("select amount from account order by name")]


def of_kind(kind: str, ctx: nq.TaskContext) -> Any:
    """Return what opens the transaction that a test is about."""
    return {"ctx.transaction": ctx.transaction, "client": ctx.client.transaction}[kind]()


async def test_a_heartbeat_does_not_conflict_with_a_handler(
    virtual_time: VirtualTime, app: nq.App, strict: nq.Client, db: Connection
) -> None:
    """A task that was claimed ahead runs once, though the worker notes what runs meanwhile."""
    runs: list[int] = []

    @app.task(transactional=True)
    async def add(ctx: nq.TaskContext) -> None:
        runs.append(ctx.task_id)
        await ctx.tx.execute(ADD, ["a"])
        await trio.sleep(0.5)

    refs = await strict.enqueue_many([add.bind() for _ in range(4)])
    worker = nq.Worker(app, strict, concurrency=1, prefetch=4, heartbeat=0.1)
    async with working(worker):
        for ref in refs:
            assert (await final(strict, ref)).state == "succeeded"

    assert len(runs) == 4


@pytest.mark.parametrize("kind", ["ctx.tx", "ctx.transaction", "client"])
@pytest.mark.parametrize("at_commit", [False, True], ids=["statement", "commit"])
async def test_a_serialization_failure_uses_up_no_attempt(
    app: nq.App, strict: nq.Client, db: Connection, kind: str, at_commit: bool
) -> None:
    """A handler with one attempt that meets conflicts runs again until it has gone through."""
    runs: list[int] = []

    async def add(tx: nq.Transaction) -> None:
        runs.append(1)
        await tx.execute(READ)
        if len(runs) <= 3:
            async with db.transaction():
                await db.execute(READ)
                await db.execute(ADD, ["b" if at_commit else "a"])
        await tx.execute(ADD, ["a"])

    @app.task(name="add", transactional=kind == "ctx.tx", retry=None)
    async def handler(ctx: nq.TaskContext) -> None:
        if kind == "ctx.tx":
            await add(ctx.tx)
        else:
            async with of_kind(kind, ctx) as tx:
                await add(tx)

    ref = await strict.enqueue("add")
    async with working(nq.Worker(app, strict)):
        status = await final(strict, ref)

    assert (status.state, status.attempt) == ("succeeded", 1)
    assert await outcomes(strict, ref) == ["interrupted"] * 3 + ["succeeded"]
    assert await amounts(db) == ([1, 3] if at_commit else [4, 0])
    failed = (await strict.attempts(ref))[0]
    assert failed.error_type == "psycopg.errors.SerializationFailure"


@pytest.mark.parametrize("kind", ["ctx.tx", "ctx.transaction"])
async def test_a_deadlock_uses_up_no_attempt(
    app: nq.App, quick: nq.Client, db: Connection, kind: str
) -> None:
    """Of two handlers that wait for one another, both succeed in one attempt each."""
    met: list[trio.Event] = [trio.Event(), trio.Event()]

    async def both(tx: nq.Transaction, mine: int) -> None:
        await tx.execute(ADD, ["ab"[mine]])
        met[mine].set()
        await met[1 - mine].wait()
        await tx.execute(ADD, ["ba"[mine]])

    @app.task(name="both", transactional=kind == "ctx.tx", retry=None)
    async def handler(ctx: nq.TaskContext, mine: int) -> None:
        if kind == "ctx.tx":
            await both(ctx.tx, mine)
        else:
            async with ctx.transaction() as tx:
                await both(tx, mine)

    refs = await quick.enqueue_many([nq.TaskRequest.by_name("both", {"mine": n}) for n in range(2)])
    async with working(nq.Worker(app, quick, concurrency=2)):
        ends = [await final(quick, ref) for ref in refs]

    assert [(end.state, end.attempt) for end in ends] == [("succeeded", 1)] * 2
    assert await amounts(db) == [2, 2]
    assert sorted([await outcomes(quick, ref) for ref in refs]) == [
        ["interrupted", "succeeded"],
        ["succeeded"],
    ]


async def conflict(ctx: nq.TaskContext) -> None:
    """Raise what a transaction raises that has met a conflict."""
    error = psycopg.errors.SerializationFailure("could not serialize access")
    excuse(error, Excuse.CONFLICT)
    raise error


async def test_conflicts_without_end_use_up_attempts_at_last(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client
) -> None:
    """After ten attempts in a row were given back one counts, so a task cannot go on for ever."""

    @app.task(name="unlucky", retry=nq.RetryPolicy(max_attempts=2))
    async def unlucky(ctx: nq.TaskContext) -> None:
        await conflict(ctx)

    ref = await either.enqueue(unlucky)
    async with working(nq.Worker(app, either)):
        status = await final(either, ref, within=1000)

    assert (status.state, status.attempt) == ("failed", 2)
    assert await outcomes(either, ref) == (["interrupted"] * CONFLICTS + ["failed"]) * 2


async def test_other_ends_begin_the_count_anew(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client
) -> None:
    """Only conflicts in a row are counted: a snooze in between begins anew."""
    runs: list[int] = []

    @app.task(name="mixed", retry=nq.RetryPolicy(max_attempts=2))
    async def mixed(ctx: nq.TaskContext) -> None:
        runs.append(1)
        if len(runs) > 2 * CONFLICTS:
            return
        if len(runs) == CONFLICTS:
            raise nq.Snooze(1)
        await conflict(ctx)

    ref = await either.enqueue(mixed)
    async with working(nq.Worker(app, either)):
        status = await final(either, ref, within=1000)

    assert (status.state, status.attempt) == ("succeeded", 1)


async def test_the_next_run_is_soon_and_ever_later(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client
) -> None:
    """The next run is a tenth of a second later, then twice as long each time."""
    starts: list[float] = []

    @app.task(name="unlucky", retry=None)
    async def unlucky(ctx: nq.TaskContext) -> None:
        starts.append(trio.current_time())
        if len(starts) <= CONFLICTS:
            await conflict(ctx)

    ref = await either.enqueue(unlucky)
    async with working(nq.Worker(app, either)):
        await final(either, ref, within=1000)

    waits = [after - before for before, after in itertools.pairwise(starts)]
    for number, wait in enumerate(waits):
        most = min(30.0, 0.1 * 2**number)
        assert 0.75 * most <= wait <= most + 0.01


@pytest.mark.parametrize(
    ("raises", "expected"),
    [
        ("wrapped", ["interrupted", "succeeded"]),
        ("in a group", ["interrupted", "succeeded"]),
        ("beside a fault", ["failed"]),
        ("do not retry", ["failed"]),
        ("retry after", ["failed"]),
    ],
)
async def test_what_is_excused(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client, raises: str, expected: list[str]
) -> None:
    """What has come of a conflict is excused; another fault, or what the handler asks for, wins."""
    runs: list[int] = []

    @app.task(name="fails", retry=None)
    async def fails(ctx: nq.TaskContext) -> None:
        runs.append(1)
        if len(runs) == 2:
            return
        try:
            await conflict(ctx)
        except psycopg.Error as exc:
            raise {
                "wrapped": RuntimeError("the order was not stored"),
                "in a group": ExceptionGroup("children", [exc]),
                "beside a fault": ExceptionGroup("children", [exc, ValueError("no")]),
                "do not retry": nq.DoNotRetry("no"),
                "retry after": nq.RetryAfter(1),
            }[raises] from (exc if raises not in {"in a group", "beside a fault"} else None)

    ref = await either.enqueue(fails)
    async with working(nq.Worker(app, either)):
        await final(either, ref, within=1000)

    assert await outcomes(either, ref) == expected


async def test_an_error_of_another_database_is_not_excused(
    app: nq.App, pg: nq.Client, db: Connection
) -> None:
    """A conflict on a connection that is not ours is the handler's own affair."""

    @app.task(retry=None)
    async def elsewhere(ctx: nq.TaskContext) -> None:
        raise psycopg.errors.DeadlockDetected("on the handler's own connection")

    ref = await pg.enqueue(elsewhere)
    await nq.Worker(app, pg).run_until_idle()

    assert await state(pg, ref) == "failed"


async def test_the_log_says_that_an_attempt_is_given_back(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client, caplog: pytest.LogCaptureFixture
) -> None:
    """One line for each attempt given back says why, and when the next one is."""
    runs: list[int] = []

    @app.task(name="unlucky", retry=None)
    async def unlucky(ctx: nq.TaskContext) -> None:
        runs.append(1)
        if len(runs) == 1:
            await conflict(ctx)

    with caplog.at_level(logging.INFO, "nursery_queue"):
        ref = await either.enqueue(unlucky)
        async with working(nq.Worker(app, either)):
            await final(either, ref)

    (line,) = [each.getMessage() for each in caplog.records if "given back" in each.getMessage()]
    assert line.startswith(
        f"task {ref.id} (unlucky, attempt 1) failed and is given back, again in 0."
    )
    assert line.endswith("could not serialize access")


async def test_a_conflict_of_a_single_verb_is_excused(
    app: nq.App, pg: nq.Client, migrated: str
) -> None:
    """Also where a handler has no transaction: an enqueue of its own that met a deadlock."""
    with psycopg.connect(migrated, autocommit=True) as session:
        session.execute("create sequence tries")
        session.execute(
            "create function deadlock() returns trigger language plpgsql as $$ begin"
            " if new.task_type = 'other' and nextval('tries') = 1 then"
            " raise deadlock_detected; end if; return new; end $$"
        )
        session.execute(
            "create trigger deadlock before insert on nursery_queue.task"
            " for each row execute function deadlock()"
        )

    @app.task(name="work", retry=None)
    async def work(ctx: nq.TaskContext) -> None:
        await ctx.client.enqueue("other")

    ref = await pg.enqueue(work)
    async with working(nq.Worker(app, pg)):
        await final(pg, ref)

    assert await outcomes(pg, ref) == ["interrupted", "succeeded"]
