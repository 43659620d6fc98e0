"""Schedules on running workers: exact, once each, declared by code, changed at run time."""

from __future__ import annotations

import datetime as dt
import logging

from collections.abc import Sequence
from contextlib import AsyncExitStack

import attrs
import pytest
import trio

import nursery_queue as nq

from nursery_queue._core._errors import TransientError
from nursery_queue.testing import VirtualTime, perform, performing
from tests.support.flaky_store import FlakyStore
from tests.support.workers import working


MINUTE = dt.timedelta(minutes=1)


@attrs.define
class Diary:
    """What has run: the instant it stands for, and when it did."""

    app: nq.App = attrs.field(factory=nq.App)
    clock: VirtualTime | None = None
    ran: list[tuple[dt.datetime | None, dt.datetime]] = attrs.field(
        factory=list["tuple[dt.datetime | None, dt.datetime]"]
    )
    note: nq.TaskType[[], None] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.note = self.app.task(name="note")(self._note)

    async def _note(self, ctx: nq.TaskContext) -> None:
        assert self.clock is not None
        self.ran.append((ctx.tick, self.clock.now()))

    @property
    def ticks(self) -> Sequence[dt.datetime | None]:
        return [tick for tick, _ in self.ran]


@pytest.fixture
def diary() -> Diary:
    return Diary()


async def whole_minute(clock: VirtualTime) -> dt.datetime:
    """Let the clock stand at a whole minute, which is returned."""
    await trio.sleep(60 - clock.now().timestamp() % 60)
    return clock.now()


async def test_exact(either: nq.Client, diary: Diary, virtual_time: VirtualTime) -> None:
    """Each tick's task runs at its instant, whatever the fraction, with the tick in its context."""
    diary.clock = virtual_time
    start = await whole_minute(virtual_time)
    diary.app.schedule("s", nq.Every(0.7 + 1), diary.note)
    diary.app.schedule("t", nq.Cron("*/2 * * * *", tz="Europe/Berlin"), diary.note)

    async with working(nq.Worker(diary.app, either)):
        await trio.sleep(600)

    expected = nq.preview(nq.Every(1.7), 400, start) + nq.preview(nq.Cron("*/2 * * * *"), 9, start)
    expected = sorted(tick for tick in expected if tick < start + 10 * MINUTE)
    assert sorted(filter(None, diary.ticks)) == expected
    late = [ran - tick for tick, ran in diary.ran if tick is not None]
    assert max(late) < dt.timedelta(milliseconds=1)


async def test_sugar(either: nq.Client, virtual_time: VirtualTime) -> None:
    """A task type may say itself when it runs; its schedule has its name."""
    app, ticks = nq.App(), list[dt.datetime | None]()

    @app.task(name="refresh", schedule=nq.Cron("*/5 * * * *"))
    async def refresh(ctx: nq.TaskContext) -> None:
        ticks.append(ctx.tick)

    start = await whole_minute(virtual_time)
    async with working(nq.Worker(app, either)):
        await trio.sleep(601)

    expected = nq.preview(nq.Cron("*/5 * * * *"), 2, start)
    assert ticks == expected
    status = await either.schedule("refresh")
    assert status is not None
    assert (status.when, status.app, status.source) == (nq.Cron("*/5 * * * *"), "main", "code")
    assert app.schedules == {"refresh": nq.Cron("*/5 * * * *")}


async def test_three_workers_and_a_kill(
    either: nq.Client, diary: Diary, virtual_time: VirtualTime
) -> None:
    """However many workers there are and come and go, each tick has one task."""
    diary.clock = virtual_time
    start = await whole_minute(virtual_time)
    for number in range(5):
        diary.app.schedule(f"s{number}", nq.Every(60), diary.note)

    async with working(nq.Worker(diary.app, either)):
        for _ in range(10):
            async with AsyncExitStack() as stack:
                for _ in range(2):
                    await stack.enter_async_context(working(nq.Worker(diary.app, either)))
                await trio.sleep(90)
        await trio.sleep(1)  # the last ticks are at this very instant

    assert len(diary.ran) == 5 * 15
    assert set(diary.ticks) == {start + number * MINUTE for number in range(1, 16)}


async def test_stored_when_ready(
    either: nq.Client, diary: Diary, virtual_time: VirtualTime
) -> None:
    """A worker that is ready has stored its schedules, and its App's name with them."""
    app = nq.App(name="shop")
    app.schedule("s", nq.Every(3600), diary.app["note"].options(queue="mail"))
    async with working(nq.Worker(app, either)):
        status = await either.schedule("s")

        assert status is not None
        assert (status.app, status.queue, status.task_type) == ("shop", "mail", "note")


async def test_keys(either: nq.Client, virtual_time: VirtualTime) -> None:
    """A tick's task has the key that its schedule says, or none, or else the one it declares."""
    app, keys = nq.App(), dict[str, str | None]()

    @app.task(key="customer")
    async def call(customer: str = "c-0") -> None: ...

    requests: dict[str, nq.TaskType[..., None] | nq.TaskRequest] = {
        "said": call.options(key="c-17"),
        "none": call.options(key=None).bind(customer="c-18"),
        "bound": call.bind(customer="c-19"),
        "left out": call,
    }
    for name, request in requests.items():
        app.schedule(name, nq.Every(60), request)
    async with working(nq.Worker(app, either)):
        for name, request in requests.items():
            await either.set_schedule(f"{name} at run time", nq.Every(60), request)
        for status in await either.schedules():
            await either.trigger(status.name)
            keys[status.name] = (await either.list_tasks(limit=1))[0].key

    expected = {"said": "c-17", "none": None, "bound": "c-19", "left out": "c-0"}
    assert keys == expected | {f"{name} at run time": key for name, key in expected.items()}


async def test_a_key_that_code_makes(either: nq.Client, virtual_time: VirtualTime) -> None:
    """A key that is declared as a function is made where the call is bound, also for ticks."""
    app = nq.App()

    def of_customer(customer: int) -> str | None:
        return f"c-{customer}" if customer else None

    @app.task(name="work", key=of_customer)
    async def work(customer: int = 7) -> None: ...

    app.schedule("declared", nq.Every(60), work.bind(8))
    async with working(nq.Worker(app, either)):
        await either.set_schedule("left out", nq.Every(60), work)
        await either.set_schedule("said", nq.Every(60), work.options(key="k").bind(9))
        await either.set_schedule("none", nq.Every(60), work.bind(0))
        await trio.sleep(61)
        keys = {task.key for task in await either.list_tasks()}

    assert keys == {"c-8", "c-7", "k", None}


async def test_too_much_at_once(store: FlakyStore, diary: Diary, virtual_time: VirtualTime) -> None:
    """What takes too long for one transaction is done in smaller ones, and then as ever."""
    asked: list[tuple[int, int]] = []

    def note(verb: str, *_: object, **options: int) -> None:
        if verb == "fire_schedules":
            asked.append((options["most"], options["ticks"]))

    diary.clock = virtual_time
    diary.app.schedule("s", nq.Every(60), diary.note)
    store.tell = note
    async with working(nq.Worker(diary.app, nq.Client(store))):
        assert set(asked) == {(100, 1000)}
        store.raises["fire_schedules"] = TransientError("no answer in time")
        await trio.sleep(100)
        store.mend()
        await trio.sleep(900)

    assert (1, 500) in asked
    assert (1, 250) in asked
    assert asked[-1] == (100, 1000)


async def test_set_while_it_sleeps(
    either: nq.Client, diary: Diary, virtual_time: VirtualTime
) -> None:
    """A schedule that is stored, changed or resumed while a worker sleeps is fired in time."""
    diary.clock = virtual_time
    start = await whole_minute(virtual_time)
    async with working(nq.Worker(diary.app, either, poll_interval=0)):
        await trio.sleep(600)
        await either.set_schedule("s", nq.Every(60), "note")
        await trio.sleep(90)
        assert await either.pause_schedule("s")
        await trio.sleep(600)
        assert await either.resume_schedule("s")
        await trio.sleep(1)
        assert await either.delete_schedule("s")
        await trio.sleep(600)

    resumed = start + dt.timedelta(seconds=1290)
    assert [tick for tick, _ in diary.ran] == [start + 11 * MINUTE, start + 21 * MINUTE]
    assert diary.ran[1][1] - resumed < dt.timedelta(seconds=1)


async def test_waiting_costs_nothing(store: FlakyStore, virtual_time: VirtualTime) -> None:
    """A worker with nothing to fire asks the store a few times, however long it waits."""
    app = nq.App()
    async with working(nq.Worker(app, nq.Client(store), poll_interval=0)):
        await trio.sleep(600)

    assert store.calls["fire_schedules"] < 20


@pytest.mark.parametrize("overlap", ["skip", "cancel"])
async def test_overlap(either: nq.Client, overlap: nq.Overlap, virtual_time: VirtualTime) -> None:
    """A run that takes longer than a minute lets the next be skipped, or is cancelled for it."""
    app, ended = nq.App(), list[str]()

    @app.task(name="slow", retry=None)
    async def slow(ctx: nq.TaskContext) -> None:
        try:
            await trio.sleep(90)
        except trio.Cancelled:
            ended.append(str(ctx.cancel_reason))
            raise
        ended.append("well")

    await whole_minute(virtual_time)
    app.schedule("s", nq.Every(60), slow, overlap=overlap)
    async with working(nq.Worker(app, either)):
        await trio.sleep(60 * 4 + 40)
        status = await either.schedule("s")

    assert status is not None
    if overlap == "skip":
        assert (status.fired, status.skipped) == (2, 2)
        assert ended == ["well", "well"]
    else:
        assert (status.fired, status.skipped) == (4, 0)
        assert ended[:3] == ["cancelled"] * 3


async def test_trigger(either: nq.Client, diary: Diary, virtual_time: VirtualTime) -> None:
    """A schedule that is triggered runs at once, for no tick, and its next tick comes as ever."""
    diary.clock = virtual_time
    start = await whole_minute(virtual_time)
    diary.app.schedule("s", nq.Every(60), diary.note)
    async with working(nq.Worker(diary.app, either)):
        await trio.sleep(10)
        await either.result(await either.trigger("s"))
        await trio.sleep(51)

    assert diary.ticks == [None, start + MINUTE]
    with pytest.raises(nq.UnknownSchedule, match="no schedule 'x'"):
        await either.trigger("x")


async def test_until_idle(either: nq.Client, diary: Diary, virtual_time: VirtualTime) -> None:
    """A worker that ends when it is idle has run what was due, and waits for no tick."""
    diary.clock = virtual_time
    start = await whole_minute(virtual_time)
    diary.app.schedule("s", nq.Every(60), diary.note)
    await nq.Worker(diary.app, either).run_until_idle()
    assert diary.ran == []
    await trio.sleep(150)

    await nq.Worker(diary.app, either).run_until_idle()

    assert diary.ticks == [start + 2 * MINUTE]


async def test_a_name_that_two_apps_declare(
    either: nq.Client, diary: Diary, virtual_time: VirtualTime, caplog: pytest.LogCaptureFixture
) -> None:
    """The second is told so in its log, and the schedule stays that of the first."""
    other = nq.App(name="other")
    diary.app.schedule("s", nq.Every(60), diary.note)
    other.schedule("s", nq.Every(5), "note")
    async with working(nq.Worker(diary.app, either)):
        caplog.set_level(logging.ERROR, "nursery_queue")
        async with working(nq.Worker(other, either)):
            await trio.sleep(1)
            status = await either.schedule("s")

    assert status is not None
    assert (status.app, status.when) == ("main", nq.Every(60))
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == (
        "schedule 's' of this app is not stored, and does not fire: "
        "the App 'main' has a schedule of this name"
    )


async def test_an_outage(store: FlakyStore, diary: Diary, virtual_time: VirtualTime) -> None:
    """When the store is back, what passed meanwhile runs; a lost answer makes nothing run twice."""
    diary.clock = virtual_time
    start = await whole_minute(virtual_time)
    diary.app.schedule("s", nq.Every(60), diary.note)
    async with working(nq.Worker(diary.app, nq.Client(store))):
        await trio.sleep(50)
        store.raises["fire_schedules"] = TransientError("away")
        await trio.sleep(15)
        del store.raises["fire_schedules"]
        await trio.sleep(45)
        store.raises_after["fire_schedules"] = TransientError("cut off")
        await trio.sleep(15)
        del store.raises_after["fire_schedules"]
        await trio.sleep(40)

    assert diary.ticks == [start + MINUTE, start + 2 * MINUTE]


async def test_a_lost_lease(store: FlakyStore, diary: Diary, virtual_time: VirtualTime) -> None:
    """Registered anew after an outage, a worker fires its schedules again, which no other may."""
    diary.clock = virtual_time
    start = await whole_minute(virtual_time)
    diary.app.schedule("s", nq.Every(60), diary.note)
    async with working(nq.Worker(diary.app, nq.Client(store))):
        await trio.sleep(1)
        store.break_down()
        await trio.sleep(60)
        other = nq.App()
        async with working(nq.Worker(other, nq.Client(store.inner))):  # without the schedule
            await trio.sleep(60)
            store.mend()
            await trio.sleep(240)

    assert start + 5 * MINUTE in diary.ticks
    assert len(diary.ticks) == len(set(diary.ticks))


async def test_a_handler_alone(virtual_time: VirtualTime) -> None:
    """A handler that is performed stands for no tick, unless the test says so."""
    app = nq.App()

    @app.task
    async def say(ctx: nq.TaskContext) -> str | None:
        return None if ctx.tick is None else ctx.tick.isoformat()

    tick = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    assert await perform(say) is None
    assert await performing(tick=tick)(say) == tick.isoformat()


# -- backfill ----------------------------------------------------------------------


async def test_backfill(either: nq.Client, diary: Diary, virtual_time: VirtualTime) -> None:
    """Every tick of the time asked for that had none has its task, and no tick has two."""
    diary.clock = virtual_time
    start = await whole_minute(virtual_time)
    diary.app.schedule("s", nq.Every(60), diary.note, overlap="skip")
    hour = dt.timedelta(hours=1)
    done: list[tuple[int, int]] = []
    async with working(nq.Worker(diary.app, either)):
        await trio.sleep(601)
        assert await either.backfill("s", start - 19 * hour, start + hour, dry_run=True) == 1190
        assert await either.backfill(
            "s", start - 19 * hour, start, progress=lambda count, total: done.append((count, total))
        ) == (19 * 60)
        assert await either.backfill("s", start - 19 * hour, start + MINUTE) == 1
        await trio.sleep(1)

    assert done == [(500, 1140), (1000, 1140), (1140, 1140)]
    assert len(set(diary.ticks)) == len(diary.ticks) == 1151
    assert min(filter(None, diary.ticks)) == start - 19 * hour


async def test_no_backfill(either: nq.Client, virtual_time: VirtualTime) -> None:
    """Too many ticks, ones that are remembered no more, and unknown names are refused."""
    await either.set_schedule("s", nq.Every(60), "note")
    await either.set_schedule("t", nq.Every(1), "note")
    now = virtual_time.now()
    day = dt.timedelta(days=1)

    for dry_run in True, False:
        with pytest.raises(ValueError, match=r"10,080 ticks from .* at most 10,000"):
            await either.backfill("s", now - 7 * day, now, dry_run)
        with pytest.raises(ValueError, match="more than 100,000 ticks"):
            await either.backfill("t", now - 7 * day, now, dry_run)
        with pytest.raises(ValueError, match=r"30 days .* repeat=True"):
            await either.backfill("s", now - 30 * day, now - 29 * day, dry_run)
        with pytest.raises(nq.UnknownSchedule, match="no schedule 'x'"):
            await either.backfill("x", now - day, now, dry_run)
    with pytest.raises(ValueError, match="since must be timezone-aware"):
        await either.backfill("s", dt.datetime(2026, 1, 1), now)  # noqa: DTZ001  # refused
    assert await either.backfill("s", now - 30 * day, now - 29 * day, repeat=True) == 1440
    assert await either.backfill("s", now - 30 * day, now - 29 * day, repeat=True) == 0
    assert await either.backfill("s", now, now - day) == 0


async def test_a_backfill_to_the_ends_of_time(either: nq.Client, virtual_time: VirtualTime) -> None:
    """Where there are no instants there are no ticks."""
    first, last = dt.datetime.min.replace(tzinfo=dt.UTC), dt.datetime.max.replace(tzinfo=dt.UTC)
    await either.set_schedule("s", nq.Every(dt.timedelta(days=36500)), "note")

    count = await either.backfill("s", first, last, repeat=True)

    assert count == 100
    assert await either.backfill("s", first, last, repeat=True) == 0
