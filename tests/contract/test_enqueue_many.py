"""Storing many tasks at once, in one statement and by COPY: it must make no difference."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import math

from typing import Any

import pytest

import nursery_queue as nq

from nursery_queue._core._filters import TaskFilter
from nursery_queue._core._model import NewTask
from nursery_queue._core._retry import RetryPolicy
from nursery_queue._core._states import State
from nursery_queue._store import Store
from nursery_queue.testing import VirtualTime
from tests.support.store_steps import a_task, add, claim, count, hire, refusal, status


pytestmark = pytest.mark.parametrize("copy", [False, True], ids=["insert", "copy"])

AT = dt.datetime(2091, 5, 6, 7, 8, 9, 10, tzinfo=dt.timezone(dt.timedelta(hours=3)))


def mixed(i: int) -> NewTask:
    """Return the i-th of tasks that are all different."""
    return a_task(
        task_type=f"type {i % 7}",
        params=json.dumps({"i": i, "text": "x" * (i % 50)}),
        queue=f"q{i % 5}",
        priority=i % 11 - 5,
        run_after=60.0 * (i % 3 == 0),
        run_at=AT if i % 13 == 0 else None,
        max_attempts=i % 4 + 1 if i % 2 else None,
        backoff=RetryPolicy(initial=0.5, maximum=i + 1, factor=3, jitter=0.25) if i % 5 else None,
        timeout=[None, 1.5, 3, math.inf][i % 4],
        keep_for=[None, 0, 2.5][i % 3],
        on_complete='{"task_type": "tell"}' if i % 17 == 0 else None,
        context=json.dumps([i]) if i % 2 else None,
    )


@pytest.mark.parametrize("size", [0, 1, 10_000])
async def test_how_many(store: Store, copy: bool, size: int) -> None:
    """Ids are in the order of the tasks, and each task is what was asked."""
    tasks = [mixed(i) for i in range(size)]
    refs = await store.enqueue(tasks, copy=copy)
    found = await store.status_many([ref.id for ref in refs], payloads=True)

    assert len(refs) == size == await count(store)
    assert all(ref.created for ref in refs)
    assert [ref.id for ref in refs] == sorted({ref.id for ref in refs})
    for one, task in zip(found, tasks, strict=True):
        assert one is not None
        assert (one.task_type, one.queue, one.priority) == (
            task.task_type,
            task.queue,
            task.priority,
        )
        assert one.params == json.loads(task.params)
        assert one.context == (None if task.context is None else json.loads(task.context))
        assert one.on_complete == ("tell" if task.on_complete else None)


async def test_when_they_are_due(store: Store, virtual_time: VirtualTime, copy: bool) -> None:
    """Delays count from now; what is due now is ready."""
    tasks = [a_task(), a_task(run_after=90), a_task(run_at=AT, run_after=5), a_task(run_after=-1)]
    refs = await store.enqueue(tasks, copy=copy)
    now = (await status(store, await add(store))).created_at
    found = [await status(store, ref.id) for ref in refs]
    later = dt.timedelta(seconds=90)

    assert [one.state for one in found] == ["ready", "scheduled", "scheduled", "ready"]
    assert [one.run_at for one in found[:3]] == [now, now + later, AT]
    assert {one.created_at for one in found} == {now}


async def test_the_worker_gets_what_was_asked(store: Store, copy: bool) -> None:
    """A claim has the overrides of its task, and none where none was given."""
    tasks = [mixed(i) for i in range(60)]
    refs = await store.enqueue(tasks, copy=copy)
    asked = {ref.id: task for ref, task in zip(refs, tasks, strict=True)}
    names = [f"type {i}" for i in range(7)]
    claims = await claim(store, await hire(store, task_types=names), 100, task_types=names)

    assert len(claims) == sum(not task.run_after and not task.run_at for task in tasks)
    for one in claims:
        task = asked[one.fence.task_id]
        given = (task.max_attempts, task.timeout, task.keep_for, task.backoff)
        assert (one.max_attempts, one.timeout, one.keep_for, one.backoff) == given
        assert one.on_complete is (task.on_complete is not None)
    ranks = [(-(asked[one.fence.task_id].priority or 0), one.fence.task_id) for one in claims]
    assert ranks == sorted(ranks)


TEXTS = ["\\N", "\\.", "\t", "\n", "\r\n", "a\tb\\nc", "\\", "\\\\x41", '"', "é ☃ 😀", "%s {} $1"]


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
async def test_any_text(store: Store, copy: bool, text: str) -> None:
    """Text comes out as it went in, whatever it would mean in a protocol."""
    task = a_task(
        task_type=text, queue=text, params=json.dumps({text: text}), context=json.dumps(text)
    )
    (ref,) = await store.enqueue([task], copy=copy)
    (found,) = await store.status_many([ref.id], payloads=True)

    assert found is not None
    assert (found.task_type, found.queue) == (text, text)
    assert (found.params, found.context) == ({text: text}, text)


WRONG: list[dict[str, Any]] = [
    {"params": "[]"},
    {"params": "{"},
    {"params": '{"a": NaN}'},
]


@pytest.mark.parametrize("place", [0, 500, 999])
@pytest.mark.parametrize("wrong", WRONG, ids=str)
async def test_all_or_nothing(store: Store, copy: bool, wrong: dict[str, Any], place: int) -> None:
    """One that cannot be stored, wherever it is, and none is; the store goes on."""
    tasks = [a_task() for _ in range(1000)]
    tasks[place] = a_task(**wrong)
    with refusal():
        await store.enqueue(tasks, copy=copy)

    assert await count(store) == 0
    assert len(await store.enqueue(tasks[1:499], copy=copy)) == 498


@pytest.mark.parametrize("fails", [False, True])
async def test_in_a_transaction(store: Store, copy: bool, fails: bool) -> None:
    """They commit with the transaction they are part of, or not at all."""
    with contextlib.suppress(ZeroDivisionError):
        async with store.transaction() as tx:
            refs = await tx.enqueue([a_task() for _ in range(50)], copy=copy)

            assert await count(store) == 0
            assert await tx.cancel(refs[7].id)

            if fails:
                raise ZeroDivisionError

    assert await count(store, State.READY) == (0 if fails else 49)
    assert await count(store, State.CANCELLED) == (0 if fails else 1)


async def test_by_a_client(store: Store, app: nq.App, copy: bool) -> None:
    """What a client is given is checked in the same way, and a mixed list is fine."""
    client = nq.Client(store, max_params_bytes=1000)

    @app.task(queue="mail")
    async def mail(to: str) -> None: ...

    urgent = mail.options(priority=5, run_after=60)
    requests = [mail.bind("a"), nq.TaskRequest.by_name("elsewhere", {"x": 1}), urgent.bind("b")]
    refs = await client.enqueue_many(requests, copy=copy)
    async with client.transaction() as tx:
        refs += await tx.enqueue_many(requests, copy=copy)
    found = await client.status_many(refs)

    assert [one and (one.queue, one.priority, one.state.value) for one in found] == [
        ("mail", 0, "ready"),
        ("default", 0, "ready"),
        ("mail", 5, "scheduled"),
    ] * 2
    with pytest.raises(nq.PayloadTooLarge, match="1000"):
        await client.enqueue_many([*requests, mail.bind("x" * 1000)], copy=copy)
    assert len(await store.list_tasks(TaskFilter())) == 6
    assert await client.enqueue_many([], copy=copy) == []


async def test_keys(store: Store, app: nq.App, copy: bool) -> None:
    """By COPY nobody can look for tasks with the same key, so a key is refused, by name."""
    client = nq.Client(store)
    keyed = nq.TaskRequest.by_name("mail", {}, dedup_key="welcome 7")
    requests = [nq.TaskRequest.by_name("mail", {}), keyed]
    if not copy:
        await client.enqueue_many(requests, copy=copy)
        return
    with pytest.raises(ValueError, match=r"mail has the dedup_key 'welcome 7'"):
        await client.enqueue_many(requests, copy=True)
    with pytest.raises(ValueError, match="dedup_key"):
        async with client.transaction() as tx:
            await tx.enqueue_many(requests, copy=True)

    assert await count(store) == 0
