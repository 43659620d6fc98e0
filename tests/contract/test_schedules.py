"""Schedules: what becomes of their ticks, who fires them, and what code and programs may change."""

from __future__ import annotations

import datetime as dt
import uuid

from collections.abc import Sequence
from typing import Any

import attrs
import pytest
import trio

from nursery_queue._core._filters import TaskFilter
from nursery_queue._core._model import NewTask, TaskRef, TaskStatus, WorkerInfo
from nursery_queue._core._schedules import Fired, NewSchedule, ScheduleStatus
from nursery_queue._core._states import Event, State
from nursery_queue._core._when import Cron, Every
from nursery_queue._store import Bell, Store
from nursery_queue.testing import VirtualTime
from tests.support.listening import Step, listening
from tests.support.store_steps import LEASE, TYPE, claim, settle, state


MINUTE = dt.timedelta(minutes=1)


def a_schedule(name: str = "s", **changes: Any) -> NewSchedule:
    """Return one that fires every minute."""
    task = NewTask(task_type=TYPE, params="{}", queue=None, priority=None, on_complete="null")
    return attrs.evolve(NewSchedule(name=name, when=Every(60), task=task), **changes)


async def start(store: Store, *declared: NewSchedule, **changes: Any) -> WorkerInfo:
    """Register a worker whose code declares these, and store them."""
    usual: dict[str, Any] = {
        "id": uuid.uuid4(),
        "name": "w",
        "host": "h",
        "pid": 1,
        "task_types": [TYPE],
        "lease": LEASE,
        "schedules": [each.name for each in declared],
    }
    worker = WorkerInfo(**usual | changes)
    await store.register(worker)
    assert await store.declare_schedules(worker, declared) == []
    return worker


async def fire(store: Store, worker: WorkerInfo, most: int = 100, ticks: int = 1000) -> Fired:
    await store.heartbeat(worker.id, draining=False)
    return await store.fire_schedules(worker, most=most, ticks=ticks)


async def settled(store: Store) -> None:
    """Let the virtual clock stand at a whole minute."""
    now = await store.now()
    await trio.sleep(60 - now.timestamp() % 60)


async def the(store: Store, name: str = "s") -> ScheduleStatus:
    (status,) = await store.schedules(name)
    return status


async def tasks(store: Store) -> list[TaskStatus]:
    return list(reversed(await store.list_tasks(TaskFilter(limit=10_000, payloads=True))))


async def instants(store: Store, worker: WorkerInfo) -> Sequence[dt.datetime | None]:
    """Claim everything, and return which instants it stands for."""
    return [one.tick for one in await claim(store, worker.id, 10_000)]


async def test_each_tick_once(store: Store, virtual_time: VirtualTime) -> None:
    """At a tick there is one task, due then; before it none, and asking again adds none."""
    await settled(store)
    begun = await store.now()
    worker = await start(store, a_schedule())

    first = await fire(store, worker)
    assert (first.tasks, first.more, first.problems) == (0, False, ())
    assert first.next_in == pytest.approx(60)
    assert (await the(store)).next_at == begun + MINUTE
    await trio.sleep(59.5)
    assert (await fire(store, worker)).tasks == 0
    await trio.sleep(0.5)
    assert (await fire(store, worker)).tasks == 1
    again = await fire(store, worker)

    assert again.tasks == 0
    assert again.next_in == pytest.approx(60)
    (task,) = await tasks(store)
    assert (task.run_at, task.queue, task.state) == (begun + MINUTE, "default", State.READY)
    status = await the(store)
    assert (status.fired, status.skipped, status.last_tick) == (1, 0, begun + MINUTE)
    assert (status.last_task_id, status.next_at) == (task.id, begun + 2 * MINUTE)
    assert (status.source, status.app, status.when) == ("code", "main", Every(60))
    assert await instants(store, worker) == [begun + MINUTE]


async def test_two_workers(store: Store, virtual_time: VirtualTime) -> None:
    """However many workers fire at once, a tick has one task."""
    await settled(store)
    names = [f"s{number}" for number in range(20)]
    workers = [await start(store, *map(a_schedule, names)) for _ in range(3)]
    for worker in workers:
        await fire(store, worker)
    await trio.sleep(60)
    fired: list[int] = []

    async def often(worker: WorkerInfo) -> None:
        fired.extend([(await fire(store, worker, 3)).tasks for _ in range(5)])

    async with trio.open_nursery() as nursery:
        for worker in workers:
            nursery.start_soon(often, worker)
    while (last := await fire(store, workers[0])).more:
        fired.append(last.tasks)
    fired.append(last.tasks)

    assert sum(fired) == len(await tasks(store)) == 20
    assert {status.fired for status in await store.schedules()} == {1}


async def test_a_bounded_number_at_a_time(store: Store, virtual_time: VirtualTime) -> None:
    """No more schedules are moved on than asked for, the longest due first; the answer says so."""
    await settled(store)
    worker = await start(store, *[a_schedule(f"s{number}") for number in range(5)])
    await fire(store, worker)
    await trio.sleep(60)

    first = await fire(store, worker, 3)
    second = await fire(store, worker, 3)

    assert (first.tasks, first.more, first.contended) == (3, True, False)
    assert (second.tasks, second.more) == (2, False)


@pytest.mark.parametrize(
    ("misfire", "fired", "skipped"),
    [("latest", [5], 4), ("skip", [], 5), ("all", [1, 2, 3, 4, 5], 0)],
)
async def test_while_no_worker_lived(
    store: Store, virtual_time: VirtualTime, misfire: Any, fired: Sequence[int], skipped: int
) -> None:
    """Ticks that passed meanwhile have the newest, none or all of their tasks; others count."""
    await settled(store)
    begun = await store.now()
    schedule = a_schedule(misfire=misfire)
    await fire(store, first := await start(store, schedule))
    await store.deregister(first.id)
    await trio.sleep(5 * 60 + 30)

    worker = await start(store, schedule)
    assert (await fire(store, worker)).tasks == len(fired)

    assert await instants(store, worker) == [begun + number * MINUTE for number in fired]
    assert [task.run_at for task in await tasks(store)] == [await store.now()] * len(fired)
    status = await the(store)
    assert (status.fired, status.skipped) == (len(fired), skipped)
    assert status.next_at == begun + 6 * MINUTE
    await trio.sleep(30)
    assert (await fire(store, worker)).tasks == 1  # on time again


async def test_while_a_worker_lived(store: Store, virtual_time: VirtualTime) -> None:
    """A tick that is late on a living fleet is fired whatever is said of those that passed."""
    await settled(store)
    worker = await start(store, a_schedule(misfire="skip"))
    await fire(store, worker)
    await trio.sleep(20)
    other = await start(store, a_schedule(misfire="skip"))
    await trio.sleep(55)  # past the tick, and nobody has looked
    await store.heartbeat(other.id, draining=False)

    assert (await fire(store, worker)).tasks == 1
    assert (await the(store)).skipped == 0


@pytest.mark.parametrize(("misfire", "fired", "skipped"), [("latest", 1, 2), ("skip", 0, 3)])
async def test_while_it_was_paused(
    store: Store, virtual_time: VirtualTime, misfire: Any, fired: int, skipped: int
) -> None:
    """A paused schedule does not fire; what passed is dealt with when it is resumed."""
    await settled(store)
    worker = await start(store, a_schedule(misfire=misfire))
    await fire(store, worker)
    assert await store.pause_schedule("s", paused=True)
    for _ in range(3):
        await trio.sleep(60)
        assert (await fire(store, worker)) == Fired()
    now = await store.now()
    status = await the(store)
    assert (status.paused, status.next_at) == (True, now + MINUTE)
    await trio.sleep(1)

    assert await store.pause_schedule("s", paused=False)
    assert (await fire(store, worker)).tasks == fired

    status = await the(store)
    assert (status.paused, status.fired, status.skipped) == (False, fired, skipped)
    assert status.next_at == now + MINUTE


async def test_a_thousand_at_most(store: Store, virtual_time: VirtualTime) -> None:
    """Of very many ticks that passed the newest 1,000 are caught up with, and all are counted."""
    await settled(store)
    schedule = a_schedule(misfire="all", when=Every(1))
    await fire(store, first := await start(store, schedule))
    await store.deregister(first.id)
    await trio.sleep(4321.5)  # so that none falls on the very start
    worker = await start(store, schedule)

    fired = [await fire(store, worker)]
    while fired[-1].more:
        fired.append(await fire(store, worker))

    status = await the(store)
    assert sum(each.tasks for each in fired) == status.fired == 1000
    assert status.fired + status.skipped == 4321
    last = status.last_tick
    assert last is not None
    found = await instants(store, worker)
    assert found == [last - dt.timedelta(seconds=number) for number in reversed(range(1000))]


async def test_a_bounded_number_of_ticks(store: Store, virtual_time: VirtualTime) -> None:
    """What many schedules catch up with is fired bit by bit, and none waits for another's end."""
    await settled(store)
    begun = await store.now()
    declared = [a_schedule(f"s{number}", misfire="all", when=Every(2)) for number in range(12)]
    await fire(store, first := await start(store, *declared))
    await store.deregister(first.id)
    await trio.sleep(61)
    worker = await start(store, *declared)

    fired = [await fire(store, worker, ticks=100)]
    assert 100 <= fired[0].tasks <= 110
    fired.append(await fire(store, worker, ticks=100))
    assert all(each.last_tick for each in await store.schedules())
    while fired[-1].more:
        fired.append(await fire(store, worker, ticks=100))

    assert max(each.tasks for each in fired) <= 110
    assert {(each.fired, each.skipped) for each in await store.schedules()} == {(30, 0)}
    expected = [begun + dt.timedelta(seconds=2 * number) for number in range(1, 31)]
    assert sorted(filter(None, await instants(store, worker))) == sorted(expected * 12)


@pytest.mark.parametrize(
    ("overlap", "fired", "skipped", "cancelled"),
    [("allow", 2, 0, False), ("skip", 1, 1, False), ("cancel", 2, 0, True)],
)
@pytest.mark.parametrize("running", [True, False])
async def test_overlap(
    store: Store,
    virtual_time: VirtualTime,
    overlap: Any,
    fired: int,
    skipped: int,
    cancelled: bool,
    running: bool,
) -> None:
    """While the task before has not ended, a tick adds one, is skipped, or cancels that one."""
    await settled(store)
    worker = await start(store, a_schedule(overlap=overlap))
    await fire(store, worker)
    await trio.sleep(60)
    await fire(store, worker)
    (first,) = await tasks(store)
    claims = await claim(store, worker.id) if running else []
    await trio.sleep(60)

    await fire(store, worker)

    status = await the(store)
    assert (status.fired, status.skipped) == (fired, skipped)
    beat = await store.heartbeat(worker.id, draining=False)
    if running:
        assert len(beat.cancel_requests) == cancelled
        await settle(store, claims[0], Event.CANCEL if cancelled else Event.SUCCEED)
    else:
        waiting = State.CANCELLED if cancelled else State.READY
        assert await state(store, first.id) is waiting
        await store.cancel(first.id)
        await store.cancel(status.last_task_id or 0)
    await trio.sleep(60)
    await fire(store, worker)
    assert (await the(store)).fired == fired + 1


@pytest.mark.parametrize("misfire", ["latest", "skip"])
async def test_a_clock_that_was_ahead(
    store: Store, virtual_time: VirtualTime, misfire: Any
) -> None:
    """When the clock is set back, a schedule fires by what it says then, and no tick twice."""
    await settled(store)
    hour = dt.timedelta(hours=1)
    virtual_time.start += hour
    begun = await store.now()
    worker = await start(store, a_schedule(misfire=misfire))
    await fire(store, worker)
    await trio.sleep(60)
    await fire(store, worker)

    virtual_time.start -= hour
    await fire(store, worker)
    for _ in range(63):
        await trio.sleep(60)
        await fire(store, worker)

    assert sorted(task.run_at for task in await tasks(store)) == [
        begun - hour + number * MINUTE for number in range(2, 65)
    ]


async def test_overlap_of_what_passed(store: Store, virtual_time: VirtualTime) -> None:
    """Of several ticks at once, the first or the last has a task where one may run at a time."""
    await settled(store)
    begun = await store.now()
    declared = [
        a_schedule("first", misfire="all", overlap="skip"),
        a_schedule("last", misfire="all", overlap="cancel"),
    ]
    await fire(store, first := await start(store, *declared))
    await store.deregister(first.id)
    await trio.sleep(330)

    await fire(store, worker := await start(store, *declared))

    one, other = await the(store, "first"), await the(store, "last")
    assert (one.fired, one.skipped, one.last_tick) == (1, 4, begun + MINUTE)
    assert (other.fired, other.skipped, other.last_tick) == (1, 4, begun + 5 * MINUTE)
    assert {task.state for task in await tasks(store)} == {State.READY}
    assert len(await instants(store, worker)) == 2


async def test_jitter(store: Store, virtual_time: VirtualTime) -> None:
    """A task is due up to so much later than its tick, the same for everybody; others differ."""
    await settled(store)
    begun = await store.now()
    worker = await start(store, *[a_schedule(f"s{number}", jitter=30) for number in range(20)])
    await fire(store, worker)
    await trio.sleep(60)

    await fire(store, worker)

    late = [(task.run_at - begun - MINUTE).total_seconds() for task in await tasks(store)]
    assert all(0 <= each < 30 for each in late)
    assert len(set(late)) == 20
    assert max(late) - min(late) > 10
    await trio.sleep(30)
    await store.promote()
    assert await instants(store, worker) == [begun + MINUTE] * 20


async def test_what_its_tasks_are(store: Store, virtual_time: VirtualTime) -> None:
    """Params and options are those of the schedule; what it leaves out is as declared."""
    await settled(store)
    task = NewTask(
        task_type=TYPE,
        params='{"a": [1]}',
        queue="q",
        priority=7,
        key="c-17",
        run_after=30,
        max_attempts=2,
        timeout=5,
        keep_for=60,
        on_complete='{"task_type": "other"}',
        context='{"b": 2}',
    )
    worker = await start(store, a_schedule(task=task))
    await fire(store, worker)
    await trio.sleep(60)
    await fire(store, worker)

    (stored,) = await tasks(store)
    now = await store.now()
    assert (stored.params, stored.queue, stored.priority) == ({"a": [1]}, "q", 7)
    assert stored.key == "c-17"
    assert stored.run_at == now + dt.timedelta(seconds=30)
    assert (stored.on_complete, stored.context) == ("other", {"b": 2})
    assert (await the(store)).queue == "q"
    await trio.sleep(30)
    await store.promote()
    (one,) = await claim(store, worker.id)
    assert (one.max_attempts, one.timeout, one.keep_for) == (2, 5, 60)


# -- who fires, and who declares ---------------------------------------------------


async def test_another_app(store: Store, virtual_time: VirtualTime) -> None:
    """A schedule is fired by workers of its App alone, and another App cannot declare it."""
    await settled(store)
    mine = await start(store, a_schedule())
    other = await start(store, app="other")
    await fire(store, mine)
    await fire(store, other)
    await trio.sleep(60)
    assert (await fire(store, other)).tasks == 0
    assert (await the(store)).orphaned is False

    declared = a_schedule(when=Every(3600))
    (problem,) = await store.declare_schedules(
        attrs.evolve(other, schedules=["s"]), [declared, a_schedule("t")]
    )

    assert (problem.name, "'main'" in problem.error) == ("s", True)
    assert (await the(store)).when == Every(60)
    assert (await the(store, "t")).app == "other"
    assert (await fire(store, mine)).tasks == 1


async def test_orphaned(store: Store, virtual_time: VirtualTime) -> None:
    """Code without it has started and none that lives has it: it fires no more, until some has."""
    await settled(store)
    old, other = await start(store, a_schedule()), await start(store, a_schedule())
    new = await start(store)
    for worker in old, other, new:
        await fire(store, worker)
    await trio.sleep(60)
    for worker in old, other:
        await store.heartbeat(worker.id, draining=False)
    assert (await fire(store, new)).tasks == 1  # an old one lives: a rolling deploy drops nothing
    await store.deregister(old.id)
    assert (await the(store)).orphaned is False
    await store.deregister(other.id)

    assert (await the(store)).orphaned is True
    await trio.sleep(60)
    assert (await fire(store, new)).tasks == 0
    status = await the(store)
    assert (status.orphaned, status.next_at) == (True, None)
    again = await start(store, a_schedule())
    assert (await the(store)).orphaned is False
    assert (await fire(store, again)).tasks == 1  # its last tick, as no worker lived
    await trio.sleep(60)
    assert (await fire(store, again)).tasks == 1


async def test_orphaned_by_a_lease_that_ran_out(store: Store, virtual_time: VirtualTime) -> None:
    """A worker that died without a word declares nothing any more when its lease has run out."""
    await settled(store)
    await start(store, a_schedule())
    new = await start(store)
    await fire(store, new)
    await trio.sleep(LEASE - 5)
    await store.heartbeat(new.id, draining=False)
    assert (await the(store)).orphaned is False

    await trio.sleep(10)

    assert (await the(store)).orphaned is True
    assert (await fire(store, new)).tasks == 0


async def test_new_code_beside_old(store: Store, virtual_time: VirtualTime) -> None:
    """What only new code declares is orphaned when that is gone and old code goes on."""
    await settled(store)
    old, new = await start(store), await start(store, a_schedule())
    await fire(store, old)
    await store.deregister(new.id)
    await trio.sleep(60)

    assert (await the(store)).orphaned is True
    assert (await fire(store, old)).tasks == 0


async def test_nobody_lives(store: Store, virtual_time: VirtualTime) -> None:
    """Without any worker it is not orphaned: nobody has said that it is not wanted."""
    await store.deregister((await start(store, a_schedule())).id)

    assert (await the(store)).orphaned is False


async def test_declared_again(store: Store, virtual_time: VirtualTime) -> None:
    """What was edited stays until the code says something else; ticks go on as they were."""
    await settled(store)
    begun = await store.now()
    await start(store, a_schedule(), a_schedule("t"))
    await store.set_schedule(a_schedule(when=Every(3600), misfire="all"))
    await trio.sleep(30)
    await start(store, a_schedule(), a_schedule("t"))
    edited, other = await the(store), await the(store, "t")
    assert (edited.when, edited.misfire, edited.app) == (Every(3600), "all", "main")
    assert other.next_at == begun + MINUTE

    await start(store, a_schedule(when=Every(120)), a_schedule("t", overlap="skip"))

    changed, other = await the(store), await the(store, "t")
    assert (changed.when, changed.misfire) == (Every(120), "latest")
    assert (other.overlap, other.next_at) == ("skip", begun + MINUTE)


async def test_paused_at_run_time(store: Store, virtual_time: VirtualTime) -> None:
    """What an operator has paused stays so, unless that is what the code says anew."""
    await start(store, a_schedule())
    await store.pause_schedule("s", paused=True)

    await start(store, a_schedule(when=Every(120)))
    assert (await the(store)).paused is True
    await start(store, a_schedule(when=Every(120), paused=True))
    assert (await the(store)).paused is True
    await start(store, a_schedule(when=Every(120), paused=False))
    assert (await the(store)).paused is False


async def test_made_at_run_time(store: Store, virtual_time: VirtualTime) -> None:
    """It has no App, is never orphaned, and any worker fires it that knows its task type."""
    await settled(store)
    ignorant = await start(store, task_types=["other"], app="other")
    knowing = await start(store, app="another")
    await store.set_schedule(a_schedule())
    status = await the(store)
    assert (status.source, status.app, status.orphaned) == ("runtime", None, False)
    for worker in ignorant, knowing:
        await fire(store, worker)
    await trio.sleep(60)

    await store.heartbeat(knowing.id, draining=False)
    assert (await fire(store, ignorant)).tasks == 0
    assert (await fire(store, knowing)).tasks == 1


async def test_code_takes_over(store: Store, virtual_time: VirtualTime) -> None:
    """A schedule made at run time that code declares is the code's from then on."""
    await store.set_schedule(a_schedule(when=Every(3600)))

    await start(store, a_schedule())

    status = await the(store)
    assert (status.app, status.source, status.when) == ("main", "code", Every(60))


async def test_a_type_that_none_knows(store: Store, virtual_time: VirtualTime) -> None:
    """It is told of once; others fire; and it does so as soon as a worker knows the type."""
    await settled(store)
    task = NewTask(task_type="unheard of", params="{}")
    await store.set_schedule(a_schedule("bad", task=task))
    await store.set_schedule(a_schedule("good"))
    worker = await start(store)
    told = [each for _ in range(4) for each in (await fire(store, worker)).problems]
    assert [each.name for each in told] == ["bad"]
    assert "unheard of" in told[0].error
    assert (await the(store, "bad")).error == told[0].error
    await trio.sleep(61)
    assert (await fire(store, worker)).tasks == 1
    assert (await fire(store, worker)).problems == ()

    other = await start(store, task_types=["unheard of"])

    assert (await fire(store, other)).tasks == 1
    status = await the(store, "bad")
    assert (status.error, status.fired) == (None, 1)


async def test_a_worker_that_is_taken_for_dead(store: Store, virtual_time: VirtualTime) -> None:
    """A worker that is not registered any more fires nothing."""
    await settled(store)
    worker = await start(store, a_schedule())
    await fire(store, worker)
    await store.deregister(worker.id)
    await trio.sleep(60)

    assert (await store.fire_schedules(worker, most=9)).tasks == 0


# -- at run time -------------------------------------------------------------------


async def test_the_instant_of_a_change(store: Store, virtual_time: VirtualTime) -> None:
    """A tick at the very instant at which it is stored or changed does not fire."""
    await settled(store)
    begun = await store.now()
    worker = await start(store, a_schedule())
    assert (await fire(store, worker)).tasks == 0
    assert (await the(store)).next_at == begun + MINUTE
    await trio.sleep(60)

    await store.set_schedule(a_schedule(when=Cron("* * * * *")))

    assert (await fire(store, worker)).tasks == 0
    assert (await the(store)).next_at == begun + 2 * MINUTE


async def test_set_again(store: Store, virtual_time: VirtualTime) -> None:
    """Replacing a schedule keeps what it has done and, unless it is said, whether it is paused."""
    await settled(store)
    worker = await start(store)
    await store.set_schedule(a_schedule())
    await fire(store, worker)
    await trio.sleep(60)
    await fire(store, worker)
    await store.pause_schedule("s", paused=True)

    await store.set_schedule(a_schedule(jitter=5, paused=None))

    status = await the(store)
    assert (status.fired, status.jitter, status.paused) == (1, 5, True)
    await store.set_schedule(a_schedule(paused=False))
    assert (await the(store)).paused is False


async def test_delete(store: Store, virtual_time: VirtualTime) -> None:
    """A deleted schedule fires no more, and its tasks stay."""
    await settled(store)
    worker = await start(store, a_schedule())
    await fire(store, worker)
    await trio.sleep(60)
    await fire(store, worker)

    assert await store.delete_schedule("s") is True

    assert await store.delete_schedule("s") is False
    assert await store.schedules() == []
    await trio.sleep(60)
    assert (await fire(store, worker)) == Fired()
    assert len(await tasks(store)) == 1


async def test_trigger(store: Store, virtual_time: VirtualTime) -> None:
    """A task of it is stored at once, paused or not; it stands for no tick and moves none."""
    await settled(store)
    worker = await start(store, a_schedule(overlap="skip", paused=True))
    before = await the(store)

    ref = await store.trigger("s")

    assert ref is not None
    after = await the(store)
    assert (after.next_at, after.fired, after.last_task_id) == (before.next_at, 0, ref.id)
    assert await instants(store, worker) == [None]
    await store.pause_schedule("s", paused=False)
    await trio.sleep(60)
    await fire(store, worker)
    assert (await the(store)).skipped == 1  # it counts as the task before
    assert await store.trigger("unknown") is None


@pytest.mark.parametrize(("overlap", "skipped"), [("skip", 1), ("cancel", 0)])
async def test_trigger_beside_a_task(
    store: Store, virtual_time: VirtualTime, overlap: Any, skipped: int
) -> None:
    """A tick's task that has not ended counts as before, also when one was triggered after it."""
    await settled(store)
    worker = await start(store, a_schedule(overlap=overlap))
    await fire(store, worker)
    await trio.sleep(60)
    await fire(store, worker)
    (long,) = await claim(store, worker.id)
    for _ in range(2):
        await store.trigger("s")
        (short,) = await claim(store, worker.id)
        await settle(store, short, Event.SUCCEED)
    await trio.sleep(60)

    await fire(store, worker)

    assert (await the(store)).skipped == skipped
    beat = await store.heartbeat(worker.id, draining=False)
    assert len(beat.cancel_requests) == 1 - skipped
    await settle(store, long, Event.CANCEL if beat.cancel_requests else Event.SUCCEED)
    for one in await claim(store, worker.id):
        await settle(store, one, Event.SUCCEED)
    await trio.sleep(60)
    assert (await fire(store, worker)).tasks == 1


async def test_backfill(store: Store, virtual_time: VirtualTime) -> None:
    """Ticks that had no task get one each, whatever overlap and pause say; others none."""
    await settled(store)
    begun = await store.now()
    worker = await start(store, a_schedule(overlap="skip"))
    await fire(store, worker)
    await trio.sleep(60)
    await fire(store, worker)
    await store.pause_schedule("s", paused=True)
    wanted = [begun + number * MINUTE for number in range(-2, 2)]
    assert await store.backfill("s", wanted, dry_run=True) == 3
    assert len(await tasks(store)) == 1

    assert await store.backfill("s", wanted, dry_run=False) == 3

    assert await store.backfill("s", wanted, dry_run=True) == 0
    assert await store.backfill("s", wanted, dry_run=False) == 0
    assert sorted(filter(None, await instants(store, worker))) == wanted
    assert (await the(store)).fired == 4
    assert await store.backfill("unknown", wanted, dry_run=False) is None
    assert await store.backfill("unknown", wanted, dry_run=True) is None


async def test_a_tick_that_was_backfilled(store: Store, virtual_time: VirtualTime) -> None:
    """A tick that has had its task ahead of time has no other one when it comes."""
    await settled(store)
    begun = await store.now()
    worker = await start(store, a_schedule())
    await fire(store, worker)
    await store.backfill("s", [begun + MINUTE], dry_run=False)
    await trio.sleep(60)

    assert (await fire(store, worker)).tasks == 0
    assert len(await tasks(store)) == 1


async def test_ticks_are_remembered(store: Store, virtual_time: VirtualTime) -> None:
    """For 30 days, however soon the task is deleted; then the tick may have another task."""
    await settled(store)
    begun = await store.now()
    task = attrs.evolve(a_schedule().task, keep_for=0)
    worker = await start(store, a_schedule(task=task), lease=1e9)
    await fire(store, worker)
    await trio.sleep(60)
    await fire(store, worker)
    (only,) = await claim(store, worker.id)
    await settle(store, only, Event.SUCCEED, keep_for=0)
    await trio.sleep(30 * 86_400 - 1)
    assert await store.forget_ticks() == 0
    assert await store.backfill("s", [begun + MINUTE], dry_run=True) == 0

    await trio.sleep(1)

    assert await store.forget_ticks() == 1
    assert await store.backfill("s", [begun + MINUTE], dry_run=True) == 1


async def test_changes_ring(store: Store) -> None:
    """Workers hear of a schedule that is stored, paused, resumed or declared."""
    worker = await start(store)
    async with listening(store, [Bell.SCHEDULE]) as ear:
        steps: list[Step] = [
            lambda: store.set_schedule(a_schedule()),
            lambda: store.pause_schedule("s", paused=True),
            lambda: store.pause_schedule("s", paused=False),
            lambda: store.declare_schedules(
                attrs.evolve(worker, schedules=["s"]), [a_schedule(when=Every(5))]
            ),
        ]
        for step in steps:
            before = ear.heard[Bell.SCHEDULE]
            await step()
            await ear.hears(Bell.SCHEDULE, after=before)


async def test_names_are_told_apart(store: Store) -> None:
    """One is asked for by its name, all of them by none, in the order of names."""
    for name in "b", "a", "c":
        await store.set_schedule(a_schedule(name))

    assert [each.name for each in await store.schedules()] == ["a", "b", "c"]
    assert [each.name for each in await store.schedules("b")] == ["b"]
    assert await store.schedules("d") == []
    assert isinstance(await store.trigger("a"), TaskRef)
