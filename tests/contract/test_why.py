"""Why tasks are where they are: every reason, alone and with others, in words and as data."""

from __future__ import annotations

import datetime as dt

from collections.abc import Sequence

import pytest

from nursery_queue._core._rate import Rate
from nursery_queue._core._reasons import Reason, ReasonCode, Unattended, Why
from nursery_queue._core._states import Event, State
from nursery_queue._store import Store
from nursery_queue.testing import VirtualTime
from tests.support.store_steps import (
    ERROR,
    LEASE,
    TYPE,
    a_task,
    add,
    claim,
    claim_one,
    claimed_once,
    hire,
    settle,
)


NEXT = Reason(
    ReasonCode.BEHIND,
    "it is next: it starts as soon as a worker has a slot free",
    {"ahead": 0, "better": 0, "pace": None},
)


async def why(store: Store, task_id: int) -> Why:
    (found,) = await store.why([task_id])
    return found


async def codes(store: Store, task_id: int) -> Sequence[ReasonCode]:
    return (await why(store, task_id)).codes


async def only(store: Store, task_id: int, state: State | None = State.READY) -> Reason:
    """Return the only reason of a task that is in this state."""
    found = await why(store, task_id)
    assert found.state is state
    (reason,) = found.reasons
    return reason


async def test_what_there_is_not(store: Store) -> None:
    """Ids without a task have no state, and the one reason that there is no such task."""
    task_id = await add(store)
    missing = [10**12, -1, 2**70]

    *found, known = await store.why([*missing, task_id])

    assert [each.state for each in found] == [None, None, None]
    assert [each.reasons for each in found] == [
        (
            Reason(
                ReasonCode.UNKNOWN, f"there is no task {id_}: it never existed, or has been pruned"
            ),
        )
        for id_ in missing
    ]
    assert known.state is State.READY
    assert await store.why([]) == []


async def test_later(store: Store, virtual_time: VirtualTime) -> None:
    """A task that is not due says when it is; once it is, it is next, also before it is moved."""
    await hire(store, lease=1000.0)
    due = virtual_time.now() + dt.timedelta(seconds=60.25)
    task_id = await add(store, run_after=60.25)

    text = f"it is due at {due.replace(tzinfo=None).isoformat(' ', 'milliseconds')} UTC"
    assert await only(store, task_id, State.SCHEDULED) == Reason(
        ReasonCode.DUE_LATER, text, {"at": due}
    )
    virtual_time.advance(60.25)
    assert await only(store, task_id, State.SCHEDULED) == NEXT
    await store.promote()
    assert await only(store, task_id) == NEXT


@pytest.mark.parametrize("event", [Event.RETRY, Event.SNOOZE, Event.DEFER])
async def test_later_again(store: Store, event: Event) -> None:
    """So does a task that goes round again after a while, whatever the cause."""
    task = await claimed_once(store)

    await settle(store, task.fence, event)

    assert await codes(store, task.id) == (ReasonCode.DUE_LATER,)


async def test_no_worker(store: Store, virtual_time: VirtualTime) -> None:
    """Without a worker whose lease holds and that takes tasks, that is the reason."""
    task_id = await add(store)
    nobody = Reason(ReasonCode.NO_WORKERS, "no worker is alive", {"draining": 0})

    assert await only(store, task_id) == nobody
    worker = await hire(store)
    assert await only(store, task_id) == NEXT
    await store.heartbeat(worker, draining=True)
    assert await only(store, task_id) == Reason(
        ReasonCode.NO_WORKERS,
        "no worker takes tasks: those alive are shutting down",
        {"draining": 1},
    )
    virtual_time.advance(LEASE + 1)
    assert await only(store, task_id) == nobody


@pytest.mark.parametrize(
    ("known", "like"),
    [
        ("sand_mail", "sand_mail"),
        ("SEND_MAIL", "SEND_MAIL"),
        ("app.send_mail", "app.send_mail"),
        ("send_mails", "send_mails"),
        ("company.accounts.send_mail", "company.accounts.send_mail"),
        ("other", None),
        ("send_a_letter_by_the_old_post", None),
    ],
)
async def test_a_type_that_none_knows(store: Store, known: str, like: str | None) -> None:
    """The reason names the nearest that some worker knows, if it is near, parked or not."""
    await hire(store, task_types=["zzz", known])
    await hire(store)
    task_id = await add(store, task_type="send_mail")
    text = "none of the workers alive (2) knows task type send_mail"
    text += "" if like is None else f"; the nearest name that one knows is {like}"
    expected = Reason(
        ReasonCode.UNKNOWN_TYPE, text, {"task_type": "send_mail", "workers": 2, "nearest": like}
    )

    assert await only(store, task_id) == expected
    await store.park()
    assert await only(store, task_id) == expected
    await hire(store, task_types=["send_mail"])
    assert await only(store, task_id) == NEXT
    await store.unpark(["send_mail"])
    assert await only(store, task_id) == NEXT


async def test_a_queue_that_none_serves(store: Store) -> None:
    """Nor is it served by those that do not know the task's type."""
    await hire(store, queues=["default", "mail"])
    task_id = await add(store, queue="calls")
    details = {"queue": "calls", "task_type": TYPE}

    assert await only(store, task_id) == Reason(
        ReasonCode.QUEUE_NOT_SERVED,
        "none of the workers alive (1) serves queue calls",
        {**details, "workers": 1},
    )
    await hire(store, queues=["calls"], task_types=["other"])
    assert await only(store, task_id) == Reason(
        ReasonCode.QUEUE_NOT_SERVED,
        "none of the workers alive (2) that know task type work serves queue calls",
        {**details, "workers": 2},
    )
    stranger = await add(store, queue="letters", task_type="unwritten")
    assert await codes(store, stranger) == (ReasonCode.UNKNOWN_TYPE, ReasonCode.QUEUE_NOT_SERVED)
    await hire(store)
    assert await only(store, task_id) == NEXT


async def test_a_paused_queue(store: Store) -> None:
    """A paused queue is a reason, for tasks that are not due yet as well."""
    await hire(store)
    task_id, later = await add(store), await add(store, run_after=60)
    await store.configure("default", paused=True)

    assert await only(store, task_id) == Reason(
        ReasonCode.QUEUE_PAUSED, "queue default is paused", {"queue": "default"}
    )
    assert await codes(store, later) == (ReasonCode.DUE_LATER, ReasonCode.QUEUE_PAUSED)
    await store.configure("default", paused=False)
    assert await only(store, task_id) == NEXT


async def test_a_full_queue(store: Store) -> None:
    """The limit of a queue is one, as long as it is reached, and names who holds the slots."""
    worker = await hire(store, name="vera")
    await store.configure("default", max_running=2)
    refs = await store.enqueue([a_task() for _ in range(3)])
    held = await claim(store, worker)
    last = refs[2].id

    assert await only(store, last) == Reason(
        ReasonCode.QUEUE_LIMIT,
        "2 tasks of queue default run, and at most 2 may",
        {
            "queue": "default",
            "running": 2,
            "max": 2,
            "held_by": [{"task_id": ref.id, "worker": "vera"} for ref in refs[:2]],
        },
    )
    await settle(store, held[0], Event.SUCCEED)
    assert await only(store, last) == NEXT
    await store.configure("default", max_running=0)
    reason = await only(store, last)
    assert (reason.code, reason.details["max"]) == (ReasonCode.QUEUE_LIMIT, 0)
    await store.configure("default", max_running=None)
    assert await only(store, last) == NEXT


async def test_a_queue_with_many_slots(store: Store) -> None:
    """Of very many that hold the slots five are named, and all are counted."""
    worker = await hire(store)
    await store.configure("default", max_running=8)
    await store.enqueue([a_task() for _ in range(8)])
    await claim(store, worker)

    reason = await only(store, await add(store))

    assert (reason.details["running"], len(reason.details["held_by"])) == (8, 5)


async def test_a_full_key(store: Store) -> None:
    """The limit of a key holds tasks with this key alone."""
    worker = await hire(store, name="vera")
    await store.configure("default", max_running_per_key=1)
    first, _ = await add(store, key="a"), await add(store)
    held, _ = await claim(store, worker)
    same, other, none = await add(store, key="a"), await add(store, key="b"), await add(store)

    assert await only(store, same) == Reason(
        ReasonCode.KEY_LIMIT,
        "1 tasks with key a in queue default run, and at most 1 of a key may",
        {
            "queue": "default",
            "key": "a",
            "running": 1,
            "max": 1,
            "held_by": [{"task_id": first, "worker": "vera"}],
        },
    )
    assert await only(store, other) == NEXT
    assert await only(store, none) == NEXT
    await settle(store, held, Event.SUCCEED)
    assert await only(store, same) == NEXT


@pytest.mark.parametrize("key", [None, "a"])
async def test_a_rate(store: Store, virtual_time: VirtualTime, key: str | None) -> None:
    """The rate of a queue, or of a key, is one until the instant that it names."""
    worker = await hire(store, lease=1000.0)
    rate = Rate(2, per=60, burst=1)
    if key is None:
        await store.configure("default", rate=rate)
    else:
        await store.configure("default", rate_per_key=rate)
    refs = await store.enqueue([a_task(key=key) for _ in range(3)])
    assert len(await claim(store, worker)) == 2
    until = virtual_time.now() + dt.timedelta(seconds=30)
    virtual_time.advance(12.5)
    of = "" if key is None else "key a in "

    assert await only(store, refs[2].id) == Reason(
        ReasonCode.RATE_LIMITED,
        f"the rate of {of}queue default, 2 in 60 s, lets none start before"
        f" {until.replace(tzinfo=None).isoformat(' ', 'milliseconds')} UTC",
        {"queue": "default", "key": key, "until": until, "count": 2, "per": 60.0, "burst": 1},
    )
    virtual_time.advance(17.5)
    assert await only(store, refs[2].id) == NEXT
    assert len(await claim(store, worker)) == 1


async def test_behind_others(store: Store, virtual_time: VirtualTime) -> None:
    """Ready tasks of the same lane that are older go before it, and ones of better priority."""
    worker = await hire(store, lease=1000.0)
    await store.enqueue([a_task(task_type="other"), a_task(queue="q"), a_task(key="k")])
    refs = await store.enqueue([a_task(priority=priority) for priority in (0, 0, 0, 1, 2, 0, 0)])
    for _ in range(3):
        virtual_time.advance(9)
        await settle(store, await claim_one(store, worker), Event.SUCCEED)

    assert await only(store, refs[5].id) == Reason(
        ReasonCode.BEHIND,
        "before it go 3 tasks of its queue, type, priority and key, and 0 of a better priority;"
        " its queue has ended 0.03 tasks a second lately",
        {"ahead": 3, "better": 0, "pace": 0.03},
    )
    await store.enqueue([a_task(priority=1)])
    assert (await only(store, refs[0].id)).details["better"] == 1
    assert (await only(store, refs[6].id)).details["ahead"] == 4


async def test_running(store: Store, virtual_time: VirtualTime) -> None:
    """A claimed task says who has it, since when, and how long that worker's lease lasts yet."""
    began = virtual_time.now()
    worker = await hire(store, name="vera", host="here", pid=17)
    first, second = await add(store), await add(store)
    await claim(store, worker, at_once=1)
    virtual_time.advance(10)
    since = f"{began.replace(tzinfo=None).isoformat(' ', 'milliseconds')} UTC"
    details = {
        "worker": "vera",
        "worker_id": str(worker),
        "host": "here",
        "pid": 17,
        "since": began,
        "lease_left": LEASE - 10,
        "cancel_requested": False,
    }

    text = f"it runs on worker vera (host here, pid 17) since {since}"
    assert await only(store, first, State.RUNNING) == Reason(ReasonCode.RUNNING, text, details)
    assert await only(store, second, State.RUNNING) == Reason(
        ReasonCode.HELD_AHEAD,
        "it is claimed, not known to have started, by worker vera (host here, pid 17)"
        f" since {since}",
        details,
    )
    await store.cancel(first)
    virtual_time.advance(LEASE)
    assert await only(store, first, State.RUNNING) == Reason(
        ReasonCode.RUNNING,
        f"{text}; the lease of that worker has run out; it is to be cancelled",
        details | {"lease_left": -10.0, "cancel_requested": True},
    )
    await store.deregister(worker)
    gone = await only(store, first, State.RUNNING)
    assert gone.text.startswith("it runs on a worker that is not registered any more since ")
    assert (gone.details["worker"], gone.details["lease_left"]) == (None, None)


@pytest.mark.parametrize(
    ("event", "words", "error"),
    [
        (Event.SUCCEED, "it succeeded at", None),
        (Event.FAIL, "it failed at", "ValueError: no good"),
        (Event.CANCEL, "it was cancelled at", None),
    ],
)
async def test_finished(
    store: Store, virtual_time: VirtualTime, event: Event, words: str, error: str | None
) -> None:
    """A task that has ended says how, and when."""
    task = await claimed_once(store)
    virtual_time.advance(1.5)
    await settle(store, task.fence, event, error=ERROR if error else None)
    at = virtual_time.now()

    reason = await only(store, task.id, found_state(event))

    text = f"{words} {at.replace(tzinfo=None).isoformat(' ', 'milliseconds')} UTC"
    assert reason == Reason(
        ReasonCode.FINISHED, text, {"how": found_state(event).value, "at": at, "error": error}
    )


def found_state(event: Event) -> State:
    return {
        Event.SUCCEED: State.SUCCEEDED,
        Event.FAIL: State.FAILED,
        Event.CANCEL: State.CANCELLED,
    }[event]


async def test_all_at_once(store: Store) -> None:
    """Every reason that holds is given, the strongest first, until none is left but its turn."""
    worker = await hire(store, queues=["q"], task_types=["x"])
    await store.configure("q", max_running=1, max_running_per_key=1)
    await store.configure("q", rate=Rate(1, per=60), rate_per_key=Rate(1, per=60))
    await store.enqueue([a_task(task_type="x", queue="q", key="k")])
    (running,) = await claim(store, worker, task_types=["x"])
    await store.heartbeat(worker, draining=True)
    await hire(store, queues=["default"], task_types=["y"])
    await store.configure("q", paused=True)
    refs = await store.enqueue(
        [a_task(queue="q", key="k"), a_task(queue="q", key="k"), a_task(queue="q", run_after=60)]
    )
    every = [
        ReasonCode.UNKNOWN_TYPE,
        ReasonCode.QUEUE_NOT_SERVED,
        ReasonCode.QUEUE_PAUSED,
        ReasonCode.QUEUE_LIMIT,
        ReasonCode.KEY_LIMIT,
        ReasonCode.RATE_LIMITED,
        ReasonCode.RATE_LIMITED,
        ReasonCode.BEHIND,
    ]

    assert [*await codes(store, refs[1].id)] == every
    assert [*await codes(store, refs[0].id)] == every[:-1]
    assert [*await codes(store, refs[2].id)] == [
        ReasonCode.DUE_LATER,
        *every[:4],
        ReasonCode.RATE_LIMITED,
    ]
    await hire(store)
    await store.configure("q", paused=False)
    await settle(store, running, Event.SUCCEED)
    await store.configure("q", rate=None, rate_per_key=None)
    assert await only(store, refs[0].id) == NEXT


async def test_what_no_worker_takes(store: Store, virtual_time: VirtualTime) -> None:
    """Queues that none serves and types that none knows are named, if they have ready tasks."""
    await store.enqueue(
        [
            a_task(),
            a_task(queue="mail"),
            a_task(queue="calls", task_type="x"),
            a_task(queue="later", task_type="later", run_after=60),
            a_task(task_type="y"),
        ]
    )

    assert await store.unattended(most=9) == Unattended()
    one = await hire(store, queues=["default"])
    await hire(store, queues=["empty"], task_types=["unused"], lease=LEASE + 2)
    everything = Unattended(queues=("calls", "mail"), task_types=("x", "y"))
    assert await store.unattended(most=9) == everything
    await store.park()
    assert await store.unattended(most=9) == everything
    assert await store.unattended(most=1) == Unattended(queues=("calls",), task_types=("x",))
    two = await hire(store, task_types=["y"])
    assert await store.unattended(most=9) == Unattended(task_types=("x",))
    await store.heartbeat(two, draining=True)
    assert await store.unattended(most=9) == everything
    await store.deregister(one)
    assert "default" in (await store.unattended(most=9)).queues
    virtual_time.advance(LEASE + 3)
    assert await store.unattended(most=9) == Unattended()
