"""Schedules in plain SQL: what the table takes, rows that cannot fire, rows that are locked."""

from __future__ import annotations

import datetime as dt
import logging

import psycopg
import pytest
import trio

from psycopg import errors

import nursery_queue as nq

from nursery_queue._core._when import Cron, Every
from nursery_queue._pg._postgres_store import PostgresStore
from nursery_queue.testing import VirtualTime
from tests.pg.queries import Session
from tests.support.command_line import rows
from tests.support.workers import working


INSERT = "insert into nursery_queue.schedule (name, task_type, {}) values ('s', 'note', {})"
REFUSING = """
    create function refuse() returns trigger language plpgsql as
        $$ begin raise check_violation using message = 'no such thing'; end $$;
    create trigger refuse before insert on nursery_queue.task
        for each row when (new.params ? 'bad') execute function refuse();
"""


@pytest.fixture
def app() -> nq.App:
    app = nq.App()

    @app.task(name="note")
    async def note(ctx: nq.TaskContext, bad: bool = False) -> str:
        return str(ctx.tick)

    return app


@pytest.mark.parametrize(
    "expression",
    [
        *("* * * * *", "0 3 * * *", "*/5 1-5,9 1,15 JAN-MAR,Jul mon-fri", "0 0 L * *"),
        *("0 0 LW * *", "0 0 * * 5L", "0 0 * * MON#2", "5/15 */2 1-31/3 */2 0-7", " 0  0 * * 7 "),
        *("@hourly", "@Daily", "@midnight", "@weekly", "@monthly", "@yearly", "@annually"),
        *("0 0 1,L * *", "0 0 * * 1L,3#1", "0-59 0-23 1-31 1-12 0-6", "00 03 01 02 07"),
        *("0 0 * * 05L,01#02,MON#02", "0 0 * * 01-05,FRI"),
    ],
)
def test_what_is_an_expression(session: Session, expression: str) -> None:
    """Whatever Cron takes the table takes, too."""
    Cron(expression)

    session.execute(INSERT.format("cron", "%s").encode(), [expression])


@pytest.mark.parametrize(
    ("columns", "values", "said"),
    [
        ("cron", "'at three'", "'at three' is no cron expression"),
        ("cron", "'* * * *'", "no cron expression"),
        ("cron", "'* * * * * *'", "no cron expression"),
        ("cron", "'@reboot'", "no cron expression"),
        ("cron, tz", "'@daily', 'Europe Berlin'", "'Europe Berlin' is no time zone"),
        ("cron, tz", "'@daily', '../etc'", "no time zone"),
        ("cron, every", "'@daily', 60", "schedule_has_cron_or_every"),
        ("params", "'{}'", "schedule_has_cron_or_every"),
        ("every", "0.5", "schedule_every_check"),
        ("every", "'NaN'", "schedule_every_check"),
        ("every, params", "60, '[]'", "schedule_params_check"),
        ("every, misfire", "60, 'never'", "schedule_misfire_check"),
        ("every, overlap", "60, 'maybe'", "schedule_overlap_check"),
        ("every, jitter", "60, -1", "schedule_jitter_check"),
        ("every, key", "60, ''", "schedule_key_check"),
    ],
)
def test_what_is_no_schedule(session: Session, columns: str, values: str, said: str) -> None:
    """What could never fire is refused by the table, and the part at fault is named."""
    with pytest.raises(errors.CheckViolation) as refused:
        session.execute(INSERT.format(columns, values).encode())

    assert said in str(refused.value)


async def test_by_plain_sql(migrated: str, app: nq.App, virtual_time: VirtualTime) -> None:
    """Workers hear of rows that are inserted, paused, resumed and deleted, without any poll."""

    async def fired() -> int:
        return len(await client.list_tasks())

    async with nq.connect(migrated) as client, working(nq.Worker(app, client, poll_interval=0)):
        await trio.sleep(60 - virtual_time.now().timestamp() % 60)
        async with client.transaction() as tx:
            await tx.execute(INSERT.format("every", "60"))
        await trio.sleep(121)
        assert await fired() == 2
        async with client.transaction() as tx:
            await tx.execute("update nursery_queue.schedule set paused = true")
        await trio.sleep(300)
        assert await fired() == 2
        async with client.transaction() as tx:
            await tx.execute("update nursery_queue.schedule set paused = false")
        await trio.sleep(1)
        assert await fired() == 3
        async with client.transaction() as tx:
            await tx.execute("update nursery_queue.schedule set every = null, cron = '*/2 * * * *'")
        await trio.sleep(121)
        assert await fired() == 4
        async with client.transaction() as tx:
            await tx.execute("delete from nursery_queue.schedule")
        await trio.sleep(180)
        assert await fired() == 4
        stored = await client.list_tasks(payloads=True)

    assert {task.task_type for task in stored} == {"note"}
    ticks = rows(migrated, "select schedule, tick from nursery_queue.task order by id")
    assert [name for name, _ in ticks] == ["s"] * 4
    assert all(tick == tick.replace(second=0, microsecond=0) for _, tick in ticks)


async def test_a_row_that_is_refused_is_not_told(
    migrated: str, app: nq.App, virtual_time: VirtualTime, caplog: pytest.LogCaptureFixture
) -> None:
    """What the server says of a row that it refuses leaves out the row: it has the params."""
    rows(
        migrated,
        "alter table nursery_queue.task add constraint narrow check (not params ? 'bad'); select 1",
    )
    async with nq.connect(migrated) as client, working(nq.Worker(app, client)):
        await client.set_schedule("s", nq.Every(60), app["note"].bind(bad=True))
        caplog.set_level(logging.ERROR, "nursery_queue")
        await trio.sleep(70)
        status = await client.schedule("s")

    assert status is not None
    for text in (status.error or "", caplog.text):
        assert '"narrow"' in text
        assert "Failing row" not in text


async def test_rows_that_cannot_fire(
    migrated: str, app: nq.App, virtual_time: VirtualTime, caplog: pytest.LogCaptureFixture
) -> None:
    """A zone that is unknown and a task that is refused are told of once; the others fire."""
    rows(migrated, REFUSING + "select 1")
    async with nq.connect(migrated) as client, working(nq.Worker(app, client)):
        await trio.sleep(60 - virtual_time.now().timestamp() % 60)
        await client.set_schedule("good", nq.Every(60), "note")
        await client.set_schedule("refused", nq.Every(60), app["note"].bind(bad=True))
        async with client.transaction() as tx:
            await tx.execute(
                "insert into nursery_queue.schedule (name, task_type, cron, tz)"
                " values ('nowhere', 'note', '* * * * *', 'Mars/Olympus'),"
                "        ('never', 'note', '0 0 31 2 *', 'UTC')"
            )
        caplog.set_level(logging.ERROR, "nursery_queue")
        await trio.sleep(330)
        found = {each.name: each for each in await client.schedules()}
        told = sorted(record.getMessage() for record in caplog.records)

        assert found["good"].fired == 5
        assert [line.split(" cannot fire: ")[0] for line in told] == [
            "schedule 'never'",
            "schedule 'nowhere'",
            "schedule 'refused'",
        ]
        assert "'31' of '2'" in (found["never"].error or "")
        assert "no time zone 'Mars/Olympus'" in (found["nowhere"].error or "")
        assert (found["nowhere"].when, found["nowhere"].next_at) == (None, None)
        assert "no such thing" in (found["refused"].error or "")
        assert (found["refused"].fired, found["refused"].when) == (0, Every(60))

        async with client.transaction() as tx:  # mended
            await tx.execute("update nursery_queue.schedule set params = '{}' where error <> ''")
            await tx.execute("update nursery_queue.schedule set tz = 'UTC' where name = 'nowhere'")
        await trio.sleep(61)
        again = {each.name: each for each in await client.schedules()}

    assert (again["refused"].error, again["nowhere"].error) == (None, None)
    assert (again["refused"].fired, again["nowhere"].fired) == (2, 1)  # one for what passed


async def test_a_locked_row(migrated: str, app: nq.App, virtual_time: VirtualTime) -> None:
    """A row that an open transaction holds keeps no other waiting, and fires afterwards."""
    async with nq.connect(migrated) as client, working(nq.Worker(app, client)):
        start = virtual_time.now()
        await trio.sleep(60 - start.timestamp() % 60)
        for name in "held", "free":
            await client.set_schedule(name, nq.Every(60), "note")
        await trio.sleep(30)
        async with client.transaction() as tx:
            await tx.execute("select from nursery_queue.schedule where name = 'held' for update")
            await trio.sleep(50)
            found = {each.name: each.fired for each in await client.schedules()}
            assert found == {"held": 0, "free": 1}
        await trio.sleep(1)
        found = {each.name: each.fired for each in await client.schedules()}

    assert found == {"held": 1, "free": 1}


@pytest.mark.parametrize("column", ["since", "look_at", "next_at", "last_tick", "resumed_at"])
@pytest.mark.parametrize("value", ["infinity", "-infinity", "0044-03-15 BC", "9999-12-31 23:00-05"])
def test_no_instant(session: Session, column: str, value: str) -> None:
    """An instant that no worker could read is refused, as it would keep all of them from firing."""
    session.execute(INSERT.format("every", "60").encode())

    with pytest.raises(errors.CheckViolation, match=f"schedule_{column}_check"):
        session.execute(f"update nursery_queue.schedule set {column} = %s".encode(), [value])


async def test_a_row_that_cannot_be_read(
    migrated: str, app: nq.App, virtual_time: VirtualTime
) -> None:
    """Whatever makes a row unreadable, it is held, says why, and the others fire."""
    unreadable = "alter table nursery_queue.schedule drop constraint schedule_since_check; select 1"
    rows(migrated, unreadable)
    async with nq.connect(migrated) as client, working(nq.Worker(app, client)):
        await trio.sleep(60 - virtual_time.now().timestamp() % 60)
        for name in "bad", "good":
            await client.set_schedule(name, nq.Every(60), "note")
        await trio.sleep(1)
        rows(
            migrated,
            "update nursery_queue.schedule set since = '-infinity' where name = 'bad' returning 1",
        )
        await trio.sleep(121)
        good = await client.schedule("good")
        error = rows(migrated, "select error from nursery_queue.schedule where name = 'bad'")

    assert good is not None
    assert good.fired == 2
    assert "DataError" in error[0][0]


@pytest.mark.parametrize("running", [True, False])
async def test_a_task_to_cancel_that_is_locked(
    migrated: str, app: nq.App, virtual_time: VirtualTime, running: bool
) -> None:
    """A transaction that has cancelled a schedule's task keeps that one waiting, and no other."""

    @app.task(name="long")
    async def long() -> None:
        await trio.sleep_forever()

    queues = ["default", "long"] if running else ["default"]
    async with (
        nq.connect(migrated) as client,
        working(nq.Worker(app, client, queues=queues, grace=0)),
    ):
        await trio.sleep(60 - virtual_time.now().timestamp() % 60)
        await client.set_schedule(
            "held", nq.Every(60), long.options(queue="long"), overlap="cancel"
        )
        await client.set_schedule("free", nq.Every(5), "note")
        await trio.sleep(61)
        held = await client.schedule("held")
        assert held is not None
        assert held.last_task_id is not None
        async with client.transaction() as tx:
            await tx.cancel(held.last_task_id)
            await trio.sleep(90)
            found = {each.name: each.fired for each in await client.schedules()}
            assert found == {"held": 1, "free": 30}
        await trio.sleep(1)
        again = await client.schedule("held")

    assert again is not None
    assert (again.fired, again.error, again.last_tick) == (2, None, held.next_at)


@pytest.mark.parametrize("new", [True, False])
async def test_a_row_that_is_held_at_the_start(
    migrated: str, app: nq.App, virtual_time: VirtualTime, new: bool
) -> None:
    """A worker that starts fires its other schedules, and stores that one when it is free."""
    app.schedule("held", nq.Every(60), "note")
    app.schedule("free", nq.Every(60), "note")
    await trio.sleep(60 - virtual_time.now().timestamp() % 60)
    async with nq.connect(migrated) as client, client.transaction() as editing:
        await client.set_schedule("other", nq.Every(60), "note")
        if new:
            await editing.execute(INSERT.replace("'s'", "'held'").format("every", "60"))
        else:
            await client.set_schedule("held", nq.Every(30), "note")
            await editing.execute(
                "select from nursery_queue.schedule where name = 'held' for update"
            )
        async with working(nq.Worker(app, client)), working(nq.Worker(app, client)):
            await trio.sleep(121)
            found = {each.name: each.fired for each in await client.schedules()}
            assert (found["free"], found["other"], found.get("held", 0)) == (2, 2, 0)
            await editing.execute("commit and chain")
            await trio.sleep(10)
            held = await client.schedule("held")

    assert held is not None
    assert (held.app, held.when) == ("main", nq.Every(60))


async def test_all_or_nothing(migrated: str, app: nq.App) -> None:
    """A tick is noted, its task stored and the schedule moved on together, or nothing is."""
    store = PostgresStore(migrated)
    async with nq.connect(migrated) as client:
        await client.set_schedule("s", nq.Every(60), "note")
        now = await store.now()
        tick = (now - dt.timedelta(seconds=now.timestamp() % 60)).isoformat()
        firing = (
            f'[{{"name": "s", "since": "{tick}", "look_at": "{tick}", "skipped": 0,'
            f' "cancels": false, "ticks": [{{"at": "{tick}"}}]}}]'
        )
        with pytest.raises(psycopg.errors.RaiseException):
            async with client.transaction() as tx:
                await tx.execute("select nursery_queue.fire(%s)", [firing])
                await tx.execute("do $$ begin raise 'no'; end $$")
        status = await client.schedule("s")

        assert status is not None
        assert (status.fired, await client.list_tasks()) == (0, [])
        assert await store.backfill("s", [dt.datetime.fromisoformat(tick)], dry_run=True) == 1
    await store.aclose()
