"""Everything that can be asked; the stores are to give the same answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs

from nursery_queue._core._filters import TaskFilter
from tests.model.picture import PARKED, Picture
from tests.model.sides import Side, Sides
from tests.model.wishes import TYPES


async def ask(
    sides: Sides, picture: Picture, what: str, numbers: Sequence[int], which: TaskFilter
) -> None:
    """Ask both stores something, and see that the answer fits the tables."""
    tasks = picture.tasks
    match what:
        case "status":
            found = await sides.both(
                lambda side: side.store.status_many(side.ids(numbers), payloads=which.payloads)
            )
            assert [one and one.id for one in found] == [n if n in tasks else None for n in numbers]
        case "list":
            found = await sides.both(lambda side: _page(side, which))
            assert len(found) <= which.limit
        case "attempts":
            log = await sides.both(lambda side: side.store.attempts(side.id(numbers[0])))
            assert [one.number for one in log] == list(range(1, len(log) + 1))
        case "queues":
            found = await sides.both(lambda side: side.store.queues())
            live = sum(one.scheduled + one.ready + one.running for one in found)
            assert live == sum(task.live for task in tasks.values())
        case "workers":
            assert {one.id for one in await sides.both(_workers)} == set(picture.workers)
        case "backlog":
            if not any(task.place == PARKED for task in tasks.values()):
                await sides.both(lambda side: _backlog(side, which))
        case _:
            stats = await sides.both(_stats)
            assert sum(sum(states.values()) for states in stats.queues.values()) == len(tasks)


async def _page(side: Side, which: TaskFilter) -> Any:
    after = None if which.after is None else side.id(which.after)
    return await side.store.list_tasks(attrs.evolve(which, after=after))


async def _backlog(side: Side, which: TaskFilter) -> Any:
    types = [which.task_type or TYPES[0]]
    queues = None if which.queue is None else [which.queue]
    return await side.store.backlog(types, queues=queues, most=1000)  # else it is any that many


async def _workers(side: Side) -> Any:
    return sorted(await side.store.workers(), key=lambda worker: worker.id)


async def _stats(side: Side) -> Any:
    """Count everything. Where there is nothing to count a store may say so or say nothing."""
    stats = await side.store.stats()
    queues = {
        queue: counted
        for queue, states in stats.queues.items()
        if (counted := {state: count for state, count in states.items() if count})
    }
    return attrs.evolve(stats, queues=queues, workers=sorted(stats.workers, key=lambda w: w.id))
