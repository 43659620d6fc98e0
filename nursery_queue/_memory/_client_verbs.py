"""The verbs of `MemoryStore` for the client."""

from __future__ import annotations

import itertools

from collections.abc import Sequence
from typing import Unpack

import attrs

from nursery_queue._core._filters import CancelFilter, TaskFilter
from nursery_queue._core._model import Attempt, NewTask, Outcome, TaskRef, TaskStatus
from nursery_queue._core._queue_changes import QueueChanges
from nursery_queue._core._reasons import Why
from nursery_queue._core._states import Event, State, sources, transition
from nursery_queue._core._streams import StreamPage, StreamRequest, StreamWrite, insist_on
from nursery_queue._store import Bell

from ._memory_reasons import Reasons
from ._memory_rows import Position, check_task, execution, fits
from ._memory_streams import page
from ._memory_verbs import MemoryVerbs


PAGE = 5000  # tasks that one call of `cancel_some` looks at


@attrs.define(eq=False)
class ClientVerbs(MemoryVerbs):
    """The verbs of `ClientStore`."""

    async def enqueue(self, tasks: Sequence[NewTask], *, copy: bool = False) -> list[TaskRef]:
        del copy
        await self._begin()
        tasks = [self._tables.as_declared(task) for task in tasks]
        for task in tasks:
            check_task(task)
        refs = [self._tables.insert(task) for task in tasks]
        if any(self._tables.rings(task) for task in tasks):
            self._ring(Bell.WORK)
        return refs

    async def cancel(self, task_id: int, *, running: bool = True) -> bool:
        await self._begin()
        done = self._tables.cancel(task_id, running=running)
        self._ring_all()  # a task that tells of it is work
        return done

    async def cancel_some(
        self, which: CancelFilter, *, after: int, upto: int, dry_run: bool
    ) -> tuple[int | None, int]:
        await self._begin()
        tables = self._tables
        ids = sorted(task_id for task_id in tables.tasks if after < task_id <= upto)[:PAGE]
        fitting = [
            task_id
            for task_id in ids
            if not tables.places[task_id].state.is_final and fits(tables.tasks[task_id], which)
        ]
        if not dry_run:
            for task_id in fitting:
                tables.cancel(task_id, running=True)
        self._ring_all()  # tasks that tell of it are work
        return (ids[-1] if ids else None), len(fitting)

    async def retry(self, task_id: int) -> bool:
        await self._begin()
        tables = self._tables
        place = tables.places.get(task_id)
        if place is None or place.state not in sources(Event.REVIVE):
            return False
        key = tables.tasks[task_id].asked.dedup_key
        if key is not None:
            if tables.holder(key) not in (None, task_id):
                return False
            if tables.dedup.get(key) != task_id:
                tables.taken_until.pop(key, None)
            tables.dedup[key] = task_id
        state = transition(place.state, Event.REVIVE)
        tables.places[task_id] = Position(state=state, epoch=place.epoch, ready_at=tables.now())
        self._ring(Bell.WORK)
        return True

    async def status_many(
        self, task_ids: Sequence[int], *, payloads: bool = False
    ) -> list[TaskStatus | None]:
        await self._begin()
        return [self._tables.status(task_id, payloads=payloads) for task_id in task_ids]

    async def attempts(self, task_id: int) -> list[Attempt]:
        await self._begin()
        log = list(self._tables.log.get(task_id, ()))
        place = self._tables.places.get(task_id)
        if place is not None and place.state is State.RUNNING:
            number = log[-1].number + 1 if log else 1
            log.append(
                execution(task_id, number, place, Outcome.RUNNING, self._tables.name_of(place))
            )
        return log

    async def why(self, task_ids: Sequence[int]) -> list[Why]:
        await self._begin()
        reasons = Reasons(self._tables, self._tables.now())
        return [reasons.why(task_id) for task_id in task_ids]

    async def list_tasks(self, which: TaskFilter) -> list[TaskStatus]:
        await self._begin()
        every = (
            self._tables.status(task_id, payloads=which.payloads, result=which.payloads)
            for task_id in sorted(self._tables.tasks, reverse=True)
        )
        matching = (
            status
            for status in every
            if status is not None
            and which.state in (None, status.state)
            and which.queue in (None, status.queue)
            and which.task_type in (None, status.task_type)
            and (which.after is None or status.id < which.after)
        )
        return list(itertools.islice(matching, which.limit))

    async def configure(self, queue: str, **changes: Unpack[QueueChanges]) -> None:
        await self._begin()
        setting = self._tables.setting(queue)
        self._set_queue(queue, attrs.evolve(setting, **changes))
        self._ring(Bell.WORK, Bell.CANCEL)

    async def write_stream(self, write: StreamWrite) -> None:
        await self._begin()
        insist_on(self._tables.write_stream(write), write)
        self._ring(Bell.STREAM, task_id=write.fence.task_id)

    async def read_streams(self, requests: Sequence[StreamRequest]) -> list[StreamPage | None]:
        await self._begin()
        return [self._read(request) for request in requests]

    def _read(self, asked: StreamRequest) -> StreamPage | None:
        if (place := self._tables.places.get(asked.task_id)) is None:
            return None
        stream = self._tables.streams.get(asked.task_id, {}).get(asked.name)
        return page(stream, asked, finished=place.state.is_final)
