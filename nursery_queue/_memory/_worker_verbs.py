"""The verbs of `MemoryStore` for the worker."""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import heapq

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from uuid import UUID

import attrs

from nursery_queue._core._heartbeat import Beat, Seen
from nursery_queue._core._model import (
    CancelRequest,
    Claim,
    Claimed,
    Fence,
    Held,
    Outcome,
    QueueSlots,
    Refusal,
    Settlement,
    Spot,
    WorkerInfo,
)
from nursery_queue._core._outcome import allowed_losses, give_back, settle_lost
from nursery_queue._core._states import Event, State, transition
from nursery_queue._store import Bell, TellLost, tell_nobody

from ._memory_rows import Position, Task, Worker, check_settlement, order
from ._memory_verbs import MemoryVerbs


BATCH = 1000


@attrs.define(eq=False)
class WorkerVerbs(MemoryVerbs):
    """The verbs of `WorkerStore`."""

    def room_for(self, handlers: int) -> AbstractContextManager[int]:
        return contextlib.nullcontext(handlers)

    async def register(self, worker: WorkerInfo) -> None:
        await self._begin()
        now = self._tables.now()
        self._tables.workers[worker.id] = Worker(worker, now, now)
        self._tables.declared.update({each.name: each for each in worker.declared})

    async def heartbeat(self, worker_id: UUID, *, draining: bool) -> Beat:
        await self._begin()
        now, workers = self._tables.now(), self._tables.workers
        if (worker := workers.get(worker_id)) is None:
            return Beat(registered=False)
        worker.heartbeat_at, worker.draining = now, draining
        requests = [
            CancelRequest(fence=Fence(task_id, place.epoch), interrupt=place.cancel_interrupts)
            for task_id, place in self._tables.held(worker_id)
            if place.cancel_requested
        ]
        late = [other.late(now) for other in workers.values() if other.is_late(now)]
        return Beat(registered=True, cancel_requests=requests, late=late)

    async def deregister(self, worker_id: UUID) -> None:
        await self._begin()
        self._tables.workers.pop(worker_id, None)

    async def claim(
        self,
        worker_id: UUID,
        task_types: Sequence[str],
        *,
        limit: int,
        queue_slots: Sequence[QueueSlots] | None = None,
        at_once: int | None = None,
        after: Spot | None = None,
    ) -> Claimed:
        del after  # every claim looks at all queues
        await self._begin()
        tables, now = self._tables, self._tables.now()
        due = [place.due_at for place in tables.places.values() if place.due_at is not None]
        next_due = (min(due) - now).total_seconds() if due else None
        if worker_id not in tables.workers:
            return Claimed(claims=(), next_due=next_due)
        types = set(task_types)
        queued: dict[str, list[Task]] = defaultdict(list)
        for task_id, place in tables.places.items():
            task = tables.tasks[task_id]
            if place.state is State.READY and task.asked.task_type in types:
                queued[task.queue].append(task)
        slots = dict.fromkeys(queued, limit)
        if queue_slots is not None:
            slots = dict.fromkeys(queued, 0) | {each.queue: each.slots for each in queue_slots}
        best = [
            task
            for queue, tasks in queued.items()
            for task in heapq.nsmallest(self._room(queue, slots[queue], at_once), tasks, key=order)
        ]
        picked = heapq.nsmallest(limit, best, key=order)
        claims = [
            self._claim(task, worker_id, now, started=at_once is None or number < at_once)
            for number, task in enumerate(picked)
        ]
        taken = Counter(claim.queue for claim in claims)
        held_back = any(
            tables.limited(queue)
            and tables.setting(queue).open
            and taken[queue] < min(slots[queue], len(tasks))
            for queue, tasks in queued.items()
        )
        return Claimed(claims=claims, next_due=next_due, held_back=held_back)

    async def settle(self, settlements: Sequence[Settlement]) -> dict[Fence, Refusal]:
        await self._begin()
        for settlement in settlements:
            check_settlement(settlement)
        refused: dict[Fence, Refusal] = {}
        makes_work = False
        # The same twice is the same once; the tasks that tell of it are stored in this order.
        for settlement in sorted(set(settlements), key=lambda each: each.fence.task_id):
            if (refusal := self._tables.refusal(settlement)) is not None:
                refused[settlement.fence] = refusal
            else:
                makes_work |= self._tables.apply(settlement)
        self._ring(Bell.FINISHED)
        if makes_work:
            self._ring(Bell.WORK)
        return refused

    async def outcomes(self, fences: Sequence[Fence]) -> Mapping[Fence, Outcome | None]:
        await self._begin()
        found: dict[Fence, Outcome | None] = {}
        for fence in fences:
            outcome = self._tables.closed.get(fence.task_id, {}).get(fence.epoch)
            if outcome is not None or fence.task_id not in self._tables.tasks:
                found[fence] = outcome
        return found

    async def give_back_all_but(self, worker_id: UUID, fences: set[Fence]) -> int:
        await self._begin()
        held = [self._as_held(task_id, place) for task_id, place in self._tables.held(worker_id)]
        strays = [one for one in held if one.fence not in fences]
        for stray in strays:
            self._tables.apply(give_back(stray))
        return self._moved(len(strays))

    async def closed_queues(self, queues: Sequence[str]) -> set[str]:
        await self._begin()
        return {queue for queue in queues if self._is_closed(queue)}

    async def promote(self) -> int:
        await self._begin()
        tables, now = self._tables, self._tables.now()
        due = [
            task_id
            for task_id, place in tables.places.items()
            if place.due_at is not None and place.due_at <= now
        ][:BATCH]
        for task_id in due:
            place = tables.places[task_id]
            state = transition(place.state, Event.PROMOTE)
            tables.places[task_id] = attrs.evolve(
                place, state=state, due_at=None, ready_at=place.due_at
            )
        return self._moved(len(due))

    async def note_started(self, worker_id: UUID, fences: Collection[Fence]) -> set[Fence]:
        await self._begin()
        places = self._tables.places
        held = {
            fence
            for fence in fences
            if self._tables.holds(fence) and places[fence.task_id].worker_id == worker_id
        }
        for fence in held:
            places[fence.task_id] = attrs.evolve(places[fence.task_id], started=True)
        return held

    async def sweep(
        self,
        *,
        max_lost: int,
        max_lost_of: Mapping[str, int] | None = None,
        seen: Sequence[Seen] | None = None,
        tell: TellLost = tell_nobody,
    ) -> int:
        await self._begin()
        allowed = functools.partial(allowed_losses, max_lost=max_lost, max_lost_of=max_lost_of)
        places, workers, dead = self._tables.places, self._tables.workers, self._dead(seen)
        abandoned = [
            self._as_held(task_id, place)
            for task_id, place in sorted(places.items())
            if place.state is State.RUNNING
            and (place.worker_id in dead or place.worker_id not in workers)
        ]
        settled = [(held, settle_lost(held, max_lost=allowed(held))) for held in abandoned]
        for held, settlement in settled:
            if not held.started:
                task_id = held.fence.task_id
                places[task_id] = attrs.evolve(places[task_id], suspect=True)
            self._tables.apply(settlement)
        for worker_id in dead:
            del workers[worker_id]
        for held, settlement in settled:
            if settlement.outcome is not None:
                tell(held, settlement)
        return self._moved(len(settled))

    async def prune(self) -> int:
        await self._begin()
        now = self._tables.now()
        old = [
            task_id
            for task_id, place in self._tables.places.items()
            if place.expires_at is not None and place.expires_at <= now
        ][:BATCH]
        for task_id in old:
            self._tables.forget(task_id)
        return len(old)

    async def park(self) -> int:
        await self._begin()
        return 0  # a claim does not step over anything here

    async def unpark(self, task_types: Sequence[str]) -> int:
        del task_types
        await self._begin()
        return 0

    # -- helpers -----------------------------------------------------------------

    def _dead(self, seen: Sequence[Seen] | None) -> set[UUID]:
        now, workers = self._tables.now(), self._tables.workers
        if seen is None:
            return {key for key, worker in workers.items() if not worker.alive(now)}
        return {one.id for one in seen if one.id in workers and workers[one.id].dead(now, one)}

    def _is_closed(self, queue: str) -> bool:
        """Whether a queue is paused, or has more tasks running than it may."""
        setting = self._tables.setting(queue)
        most = setting.max_running
        return setting.paused or (most is not None and self._running(queue) > most)

    def _room(self, queue: str, slots: int, at_once: int | None) -> int:
        """Return how many tasks of a queue may be taken into that many slots."""
        setting = self._tables.setting(queue)
        if setting.paused:
            return 0
        if setting.max_running is None:
            return slots
        room = max(0, setting.max_running - self._running(queue))
        return min(slots, room, slots if at_once is None else at_once)

    def _running(self, queue: str) -> int:
        return sum(
            place.state is State.RUNNING and self._tables.tasks[task_id].queue == queue
            for task_id, place in self._tables.places.items()
        )

    def _claim(self, task: Task, worker_id: UUID, now: dt.datetime, *, started: bool) -> Claim:
        old = self._tables.places[task.id]
        new = attrs.evolve(
            old,
            state=transition(old.state, Event.CLAIM),
            attempt=old.attempt + 1,
            epoch=old.epoch + 1,
            worker_id=worker_id,
            started_at=now,
            started=started,
        )
        self._tables.places[task.id] = new
        return Claim(
            fence=Fence(task.id, new.epoch),
            attempt=new.attempt,
            lost=new.lost,
            task_type=task.asked.task_type,
            queue=task.queue,
            params=task.asked.params,
            max_attempts=task.asked.max_attempts,
            backoff=task.asked.backoff,
            timeout=task.asked.timeout,
            keep_for=task.asked.keep_for,
            lag=0.0 if old.ready_at is None else (now - old.ready_at).total_seconds(),
            on_complete=task.asked.on_complete is not None,
            completes=task.completes,
            started=started,
            suspect=new.suspect,
        )

    def _as_held(self, task_id: int, place: Position) -> Held:
        now, asked = self._tables.now(), self._tables.tasks[task_id].asked
        assert place.worker_id is not None
        worker = self._tables.workers.get(place.worker_id)
        return Held(
            fence=Fence(task_id, place.epoch),
            attempt=place.attempt,
            lost=place.lost,
            worker_id=place.worker_id,
            cancel_requested=place.cancel_requested,
            keep_for=self._tables.keep_for(asked),
            on_complete=asked.on_complete is not None,
            task_type=asked.task_type,
            queue=self._tables.tasks[task_id].queue,
            age=0.0 if place.started_at is None else (now - place.started_at).total_seconds(),
            started=place.started,
            max_lost=worker.info.max_lost.get(asked.task_type) if worker else None,
        )
