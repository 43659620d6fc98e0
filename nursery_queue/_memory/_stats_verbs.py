"""The verbs of `MemoryStore` that count rows of its tables."""

from __future__ import annotations

import datetime as dt
import itertools

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import attrs

from nursery_queue._core._model import QueueStatus, Stats, UnknownTypeStats, WorkerStatus
from nursery_queue._core._states import State
from nursery_queue._core._tally import Way, counters_of

from ._memory_rows import Task
from ._memory_verbs import MemoryVerbs
from ._tables import Tables


@attrs.define(eq=False)
class StatsVerbs(MemoryVerbs):
    """The counts of the store. Each verb reads everything."""

    async def queues(self) -> list[QueueStatus]:
        await self._begin()
        tables = self._tables
        live: dict[str, Counter[State]] = defaultdict(Counter)
        for task_id, place in tables.places.items():
            if not place.state.is_final:
                live[tables.tasks[task_id].queue][place.state] += 1
        return [
            tables.setting(name).status(name, live[name])
            for name in sorted({*tables.settings, *live})
        ]

    async def workers(self) -> list[WorkerStatus]:
        await self._begin()
        return _workers(self._tables)

    async def stats(self) -> Stats:
        await self._begin()
        tables = self._tables
        queues: dict[str, Counter[State]] = defaultdict(Counter)
        ways: dict[str, Counter[Way]] = defaultdict(Counter)
        for task_id, place in tables.places.items():
            queue = tables.tasks[task_id].queue
            queues[queue][place.state] += 1
            log = tables.log.get(task_id, ())
            ways[queue].update((attempt.outcome, attempt.final) for attempt in log)
            ways[queue].update(tables.earlier.get(task_id, ()))
        due = Counter(task.queue for task in _due(tables))
        counters = {
            queue: counters_of(ways[queue], running=states[State.RUNNING], backlog=due[queue])
            for queue, states in queues.items()
        }
        return Stats(
            queues={queue: dict(+states) for queue, states in queues.items()},
            workers=_workers(tables),
            unknown_task_types=_unknown_types(tables),
            counters=counters,
        )

    async def backlog(
        self, task_types: Sequence[str], *, queues: Sequence[str] | None, most: int
    ) -> int:
        await self._begin()
        here = (
            task
            for task in _due(self._tables)
            if task.asked.task_type in task_types and (queues is None or task.queue in queues)
        )
        return sum(1 for _ in itertools.islice(here, most))


def _due(tables: Tables) -> Iterator[Task]:
    """Yield the tasks that wait for a worker: ready, or about to be."""
    now = tables.now()
    for task_id, place in tables.places.items():
        late = place.due_at is not None and place.due_at <= now
        if place.state is State.READY or late:
            yield tables.tasks[task_id]


def _unknown_types(tables: Tables) -> dict[str, UnknownTypeStats]:
    now = tables.now()
    alive = [worker for worker in tables.workers.values() if worker.alive(now)]
    known = {name for worker in alive for name in worker.info.task_types}
    since: dict[str, list[dt.datetime]] = defaultdict(list)
    for task_id, place in tables.places.items():
        task = tables.tasks[task_id]
        if place.state is State.READY and task.asked.task_type not in known:
            since[task.asked.task_type].append(place.ready_at or task.run_at)
    return {name: UnknownTypeStats(len(due), min(due)) for name, due in sorted(since.items())}


def _workers(tables: Tables) -> list[WorkerStatus]:
    now = tables.now()
    return [
        WorkerStatus(
            id=worker_id,
            name=worker.info.name,
            host=worker.info.host,
            pid=worker.info.pid,
            queues=worker.info.queues,
            task_types=worker.info.task_types,
            started_at=worker.started_at,
            heartbeat_at=worker.heartbeat_at,
            draining=worker.draining,
            alive=worker.alive(now),
            running=len(tables.held(worker_id)),
        )
        for worker_id, worker in tables.workers.items()
    ]
