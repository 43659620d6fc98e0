"""The verbs of `MemoryStore` for the worker."""

from __future__ import annotations

import contextlib
import datetime as dt
import functools

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
from nursery_queue._core._queue_changes import Declared, QueueChanges
from nursery_queue._core._reasons import Unattended
from nursery_queue._core._states import Event, State, transition
from nursery_queue._store import Bell, TellLost, tell_nobody

from ._fair_choice import choose
from ._memory_reasons import Reasons
from ._memory_rows import Position, Task, Worker, check_settlement
from ._memory_verbs import MemoryVerbs
from ._room import Flow, keys_of


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

    async def declare_queues(self, declared: Mapping[str, QueueChanges]) -> Declared:
        await self._begin()
        settings = self._tables.settings
        changed = [
            name
            for name, changes in sorted(declared.items())
            if name not in settings or settings[name].declared != changes
        ]
        for name in changed:
            self._set_queue(name, self._tables.setting(name).declare(declared[name]))
        if changed:
            self._ring(Bell.WORK, Bell.CANCEL)
        return Declared(changed=tuple(changed))

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
        soon: int | None = None,
        after: Spot | None = None,
    ) -> Claimed:
        del after  # every claim looks at all queues
        await self._begin()
        tables, now = self._tables, self._tables.now()
        due = [place.due_at for place in tables.places.values() if place.due_at is not None]
        if worker_id not in tables.workers:
            return Claimed(claims=(), next_due=_seconds_until(due, now))
        soon = at_once if soon is None else soon
        waiting, flow = self._waiting(task_types), self._flow(now)
        slots = dict.fromkeys(waiting, limit)
        if queue_slots is not None:
            slots = dict.fromkeys(waiting, 0) | {each.queue: each.slots for each in queue_slots}
        rooms = {
            queue: flow.room(
                queue, keys_of(tasks), slots[queue], limit=limit, soon=soon, at_once=at_once
            )
            for queue, tasks in waiting.items()
        }
        full_at = {queue: 0 if room.keys else room.left for queue, room in rooms.items()}
        picked = choose(waiting, rooms, tables.turns, limit)
        flow.start(picked)
        claims = [
            self._claim(task, worker_id, now, started=at_once is None or number < at_once)
            for number, task in enumerate(picked)
        ]
        taken, ids = Counter(task.queue for task in picked), {task.id for task in picked}
        behind = {
            queue: flow.behind(queue, keys_of(task for task in tasks if task.id not in ids))
            for queue, tasks in waiting.items()
            if slots[queue]
        }
        due += [each.opens_at for each in behind.values() if each.opens_at is not None]
        return Claimed(
            claims=claims,
            next_due=_seconds_until(due, now),
            held_back=any(
                each.for_room and full_at[queue] <= taken[queue] < slots[queue]
                for queue, each in behind.items()
            ),
        )

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
        flow = self._flow(self._tables.now())
        return {
            queue for queue in queues if self._tables.setting(queue).paused or flow.exceeded(queue)
        }

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
        self._tables.forget_keys()
        for lane in [lane for lane, next_at in self._tables.next_at.items() if next_at <= now]:
            del self._tables.next_at[lane]  # as if nothing of it had ever started
        return len(old)

    async def unattended(self, *, most: int) -> Unattended:
        await self._begin()
        return Reasons(self._tables, self._tables.now()).unattended(most)

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

    def _waiting(self, task_types: Sequence[str]) -> Mapping[str, Sequence[Task]]:
        """Return the ready tasks of these types, by queue."""
        types = set(task_types)
        waiting: dict[str, list[Task]] = defaultdict(list)
        for task_id, place in self._tables.places.items():
            task = self._tables.tasks[task_id]
            if place.state is State.READY and task.asked.task_type in types:
                waiting[task.queue].append(task)
        return waiting

    def _flow(self, now: dt.datetime) -> Flow:
        """Return what limits and rates let start now."""
        running = (
            self._tables.tasks[task_id]
            for task_id, place in self._tables.places.items()
            if place.state is State.RUNNING
        )
        return Flow.of(self._tables, now, running)

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
            limited=self._tables.setting(task.queue).limited,
            tick=task.tick,
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


def _seconds_until(instants: Sequence[dt.datetime], now: dt.datetime) -> float | None:
    """Return the seconds until the first of these."""
    return (min(instants) - now).total_seconds() if instants else None
