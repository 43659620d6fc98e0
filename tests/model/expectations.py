"""What a verb has to do, told from what is there: a few lines each, and none of the stores'."""

from __future__ import annotations

import datetime as dt
import math

from collections.abc import Sequence
from uuid import UUID

from nursery_queue._core._debounce import Debounce
from nursery_queue._core._filters import CancelFilter
from nursery_queue._core._model import Claim, Fence, NewTask, Refusal, Settlement
from tests.model.ledger import GONE, WAITING
from tests.model.picture import Picture, Task


def placed(task: NewTask, now: dt.datetime) -> tuple[str, dt.datetime]:
    """Return where a new task is, and from when on it may start."""
    due = task.run_at or now + dt.timedelta(seconds=task.run_after)
    return ("scheduled" if due > now else "ready"), due


def replaceable(task: Task) -> bool:
    """Whether a debounced call replaces a task: it has not started, so far as anybody knows."""
    return task.place in WAITING and not task.log and not task.position.suspect


def debounced(task: Task | None, wait: Debounce, now: dt.datetime) -> dt.datetime:
    """Return from when on a task may start that waits for the last of many calls."""
    due = now + dt.timedelta(seconds=wait.wait)
    if task is None or wait.max_wait is None:
        return due
    return max(now, min(due, task.created_at + dt.timedelta(seconds=wait.max_wait)))


def ended(place: str, keep_for: float | None) -> str:
    return GONE if keep_for == 0 else place


def current(picture: Picture, fence: Fence) -> bool:
    """Whether a fence is that of a claim that is held."""
    task = picture.tasks.get(fence.task_id)
    return task is not None and (task.place, task.position.epoch) == ("running", fence.epoch)


def refusal(picture: Picture, settlement: Settlement) -> Refusal | None:
    if not current(picture, settlement.fence):
        return Refusal.STALE
    requested = picture.tasks[settlement.fence.task_id].position.cancel_requested
    return Refusal.CANCEL_REQUESTED if requested and not settlement.state.is_final else None


def settled(settlement: Settlement) -> str:
    """Return where a settlement that is accepted takes a task."""
    state = settlement.state
    return ended(state.value, settlement.keep_for) if state.is_final else state.value


def cancelled(task: Task) -> str:
    """Return where a live task is after somebody has asked for it to be cancelled."""
    return "running" if task.place == "running" else ended("cancelled", task.asked.keep_for)


def fits(task: Task, which: CancelFilter) -> bool:
    return (
        which.queue in (None, task.asked.queue)
        and which.task_type in (None, task.asked.task_type)
        and (which.before is None or task.created_at < which.before)
    )


def due(picture: Picture, now: dt.datetime) -> list[int]:
    return [
        number
        for number, task in picture.tasks.items()
        if task.place == "scheduled"
        and task.position.due_at is not None
        and task.position.due_at <= now
    ]


def expired(picture: Picture, now: dt.datetime) -> list[int]:
    return [
        number
        for number, task in picture.tasks.items()
        if task.position.expires_at is not None and task.position.expires_at <= now
    ]


def abandoned(picture: Picture, now: dt.datetime) -> dict[int, Task]:
    """Return the running tasks of workers that are dead, or not known."""
    alive = {worker_id for worker_id, worker in picture.workers.items() if worker.alive(now)}
    return {
        number: task
        for number, task in picture.tasks.items()
        if task.place == "running" and task.position.worker_id not in alive
    }


def lost(task: Task, max_lost: int) -> str:
    """Return where a task goes whose worker is gone."""
    position = task.position
    if position.started and position.lost + 1 >= max_lost:
        return ended("failed", task.asked.keep_for)
    return ended("cancelled", task.asked.keep_for) if position.cancel_requested else "ready"


def given_back(task: Task, *, lost: int) -> tuple[int, int]:
    """Return attempts and losses of a task after an attempt that does not count."""
    return task.position.attempt - 1, task.position.lost + lost


def held(picture: Picture, worker_id: UUID) -> dict[int, Task]:
    return {
        number: task
        for number, task in picture.tasks.items()
        if task.place == "running" and task.position.worker_id == worker_id
    }


def known(picture: Picture, now: dt.datetime) -> set[str]:
    """Return the task types of all workers that live."""
    alive = [worker for worker in picture.workers.values() if worker.alive(now)]
    return {task_type for worker in alive for task_type in worker.task_types}


def room(picture: Picture, queue: str) -> float:
    """Return how many tasks of a queue may start."""
    pool = picture.pools.get(queue)
    if pool is None or (not pool.paused and pool.max_running is None):
        return math.inf
    running = sum(
        task.place == "running" and task.asked.queue == queue for task in picture.tasks.values()
    )
    return 0 if pool.paused else (pool.max_running or 0) - running


def check_claims(
    picture: Picture, claims: Sequence[Claim], task_types: Sequence[str], limit: int
) -> None:
    """See that claims are of tasks that could be claimed, in the order of the queue."""
    assert len(claims) <= limit
    for one in claims:
        task = picture.tasks[one.fence.task_id]
        assert task.place == "ready"
        assert task.asked.task_type == one.task_type in task_types
        assert (one.attempt, one.fence.epoch) == (
            task.position.attempt + 1,
            task.position.epoch + 1,
        )
