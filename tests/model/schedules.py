"""A schedule: how it stands in both stores, what is done to it, and what has to come of it."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import datetime as dt
import functools

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID

from nursery_queue._core._model import NewTask, WorkerInfo
from nursery_queue._core._schedules import Fired, NewSchedule
from nursery_queue._core._when import Every
from tests.model import expectations as expect
from tests.model.picture import Picture
from tests.model.schedule_picture import Schedule
from tests.model.sides import Side
from tests.model.wishes import CREW


if TYPE_CHECKING:
    from tests.model.verbs import Verbs


NAME = "now and then"
AT_ONCE = 3  # ticks in one transaction
MANY = 1000  # ticks that are caught up with, at least


async def set_schedule(verbs: Verbs, every: float, changes: Mapping[str, Any]) -> None:
    """Make the schedule, or change it; its ticks count from now on if they are others."""
    asked = dict(changes)
    task = NewTask(task_type=asked.pop("task_type"), params="{}", queue="default", priority=7)
    new = NewSchedule(name=NAME, when=Every(every), task=task, **asked)
    before = verbs.picture.schedules.get(NAME)
    await verbs.sides.both(lambda side: side.store.set_schedule(new))
    await verbs.done("set_schedule")
    after = verbs.picture.schedules[NAME]
    assert (after.every, after.overlap) == (every, new.overlap)
    was_paused = before is not None and before.paused
    assert after.paused == (was_paused if new.paused is None else new.paused)
    same = before is not None and before.every == every
    assert after.since == (before.since if same and before else verbs.clock.now())


async def pause(verbs: Verbs, paused: bool) -> None:
    known = NAME in verbs.picture.schedules
    assert known == await verbs.sides.both(
        lambda side: side.store.pause_schedule(NAME, paused=paused)
    )
    await verbs.done("pause_schedule")
    assert not known or verbs.picture.schedules[NAME].paused == paused


async def delete(verbs: Verbs) -> None:
    known = NAME in verbs.picture.schedules
    assert known == await verbs.sides.both(lambda side: side.store.delete_schedule(NAME))
    await verbs.done("delete_schedule")
    assert NAME not in verbs.picture.schedules


async def trigger(verbs: Verbs) -> None:
    known = NAME in verbs.picture.schedules
    ref = await verbs.sides.both(lambda side: side.store.trigger(NAME))
    assert known == (ref is not None)
    now = verbs.clock.now()
    what = {"born": {ref.id: "ready"}, "telling": {ref.id: None}, "due": {ref.id: now}}
    await verbs.done("trigger", **(what if known else {}))


CHANGES: Mapping[str, Callable[[Verbs], Awaitable[None]]] = {
    "pause": functools.partial(pause, paused=True),
    "resume": functools.partial(pause, paused=False),
    "trigger": trigger,
    "delete": delete,
}


async def fire(verbs: Verbs, worker_id: UUID, kind: int) -> None:
    """Let a worker fire what is due; hold each tick to the rules."""
    before, now = verbs.picture, verbs.clock.now()
    info = WorkerInfo(id=worker_id, name="w", host="h", pid=1, task_types=CREW[kind], lease=30)

    async def fire(side: Side) -> Fired:
        fired = await side.store.fire_schedules(info, most=10, ticks=AT_ONCE)
        if worker_id not in before.workers:  # it is told nothing, or what is nothing to it
            return Fired(tasks=fired.tasks)
        assert not fired.contended, "nobody else is there"
        return fired

    fired: Fired = await verbs.sides.both(fire)
    row = before.schedules.get(NAME)
    # Numbers follow the ids, so those of the new ones are the next.
    first = verbs.sides.postgres.next_number
    ticks = await _new_ticks(verbs, fired.tasks)
    born = {first + index: "ready" for index in range(len(ticks))}
    to: dict[int, str] = {}
    if row is not None and row.overlap == "cancel" and ticks:
        unfinished = {each: before.tasks[each] for each in row.before if each in before.tasks}
        to = {each: expect.cancelled(task) for each, task in unfinished.items() if task.live}
    await verbs.done(
        "fire",
        to=to,
        born=born,
        telling=dict.fromkeys(born),
        due=dict(zip(born, ticks, strict=True)),
    )
    if row is None or worker_id not in before.workers:
        assert not ticks
        return
    assert not ticks or not row.paused
    _check(row, verbs.picture.schedules[NAME], ticks, before, now)
    twice = verbs.ticked.intersection(ticks)
    assert not twice, f"a second task for {twice}"
    verbs.ticked.update(ticks)


async def _new_ticks(verbs: Verbs, count: int) -> Sequence[dt.datetime]:
    """Return the ticks of the tasks that were stored last."""
    store: Any = verbs.sides.postgres.store
    async with store._pool.connection() as connection:
        rows = await connection.fetch(
            "select tick from nursery_queue.task order by id desc limit %(count)s",
            {"count": count},
        )
    return [tick for (tick,) in reversed(rows)]


def _check(
    row: Schedule, after: Schedule, ticks: Sequence[dt.datetime], before: Picture, now: dt.datetime
) -> None:
    """Hold what a schedule has fired, and what it says of it, to the rules."""
    passed = _between(row.every, row.since, after.since)
    assert set(ticks) <= set(passed), f"{ticks} are no ticks of it, or not due yet"
    assert all(tick <= now for tick in passed)
    assert after.fired - row.fired == len(ticks)
    assert after.skipped - row.skipped == len(passed) - len(ticks)
    if row.misfire == "all" and row.overlap == "allow":
        few = len(_between(row.every, row.since, now)) <= MANY
        assert len(ticks) == len(passed) or not few, f"of {passed}, {ticks} have fired"
    if row.overlap == "skip":
        busy = any(each in before.tasks and before.tasks[each].live for each in row.before)
        assert len(ticks) <= (0 if busy else 1)
    if row.overlap == "cancel":
        assert len(ticks) <= 1


def _between(every: float, after: dt.datetime, until: dt.datetime) -> list[dt.datetime]:
    """Return the instants of a schedule that come after one and not after the other."""
    step, epoch = dt.timedelta(seconds=every), dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    count = (until - epoch) // step - (after - epoch) // step
    first = epoch + ((after - epoch) // step + 1) * step
    return [first + index * step for index in range(count)]
