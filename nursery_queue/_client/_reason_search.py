"""Finds the tasks that a reason holds."""

from __future__ import annotations

import attrs

from nursery_queue._core._filters import TaskFilter
from nursery_queue._core._model import TaskStatus
from nursery_queue._core._reasons import STATES, ReasonCode
from nursery_queue._store import ClientStore


LOOK = 2000  # tasks of each state that one search looks at
BATCH = 100  # tasks to be asked about in one statement


async def held_by(store: ClientStore, reason: ReasonCode, which: TaskFilter) -> list[TaskStatus]:
    """Return a page of the tasks that *reason* holds, newest first.

    Looks at the newest `LOOK` tasks of each state that fit *which*, below its `after`: in a page
    that has fewer than its limit, older ones may be missing.
    """
    states = sorted(STATES[reason] if which.state is None else STATES[reason] & {which.state})
    lean = attrs.evolve(which, limit=LOOK, payloads=False)
    fitting = [
        task for state in states for task in await store.list_tasks(attrs.evolve(lean, state=state))
    ]
    fitting.sort(key=lambda task: task.id, reverse=True)
    found: list[TaskStatus] = []
    for begin in range(0, len(fitting), BATCH):
        batch = fitting[begin : begin + BATCH]
        answers = await store.why([task.id for task in batch])
        found += [task for task, why in zip(batch, answers, strict=True) if reason in why.codes]
        if len(found) >= which.limit:
            break
    del found[which.limit :]
    if not which.payloads:
        return found
    whole = await store.status_many([task.id for task in found], payloads=True)
    return [task for task in whole if task is not None]
