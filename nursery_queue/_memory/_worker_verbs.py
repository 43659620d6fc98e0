"""The tables of `MemoryStore`, with the verbs of workers."""

from __future__ import annotations

import datetime as dt
import heapq
import json

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from uuid import UUID

import attrs

from nursery_queue._core._heartbeat import Beat, Seen
from nursery_queue._core._json_text import as_jsonb
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
    WorkerInfo,
)
from nursery_queue._core._outcome import give_back, settle_lost
from nursery_queue._core._states import Event, State, transition
from nursery_queue._core._streams import StreamWrite, WriteResult

from ._memory_rows import Position, Setting, Task, Worker, completion, execution, order
from ._memory_streams import Stream
from ._tables import Tables


BATCH = 1000
TRIM_EVERY = KEEP_ATTEMPTS = 100  # claims of a task; its closed attempts


@attrs.define(eq=False)
class WorkerVerbs(Tables):
    """What workers do. Each method is one atomic step."""

    def register(self, worker: WorkerInfo) -> None:
        """Make a worker known."""
        self.workers[worker.id] = Worker(worker, self.now(), self.now())
        self.declared.update({each.name: each for each in worker.declared})

    def heartbeat(self, worker_id: UUID, *, draining: bool) -> Beat:
        """Renew a lease."""
        now = self.now()
        if (worker := self.workers.get(worker_id)) is None:
            return Beat(registered=False)
        worker.heartbeat_at, worker.draining = now, draining
        requests = [
            CancelRequest(fence=Fence(task_id, place.epoch), interrupt=place.cancel_interrupts)
            for task_id, place in self._held(worker_id)
            if place.cancel_requested
        ]
        late = [other.late(now) for other in self.workers.values() if other.is_late(now)]
        return Beat(registered=True, cancel_requests=requests, late=late)

    def claim(
        self,
        worker_id: UUID,
        task_types: Sequence[str],
        *,
        limit: int,
        queue_slots: Sequence[QueueSlots] | None,
        at_once: int | None,
    ) -> Claimed:
        """Take ready tasks, best priority first, oldest first."""
        now = self.now()
        due = [place.due_at for place in self.places.values() if place.due_at is not None]
        next_due = (min(due) - now).total_seconds() if due else None
        if worker_id not in self.workers:
            return Claimed(claims=(), next_due=next_due)
        types = set(task_types)
        queued: dict[str, list[Task]] = defaultdict(list)
        for task_id, place in self.places.items():
            task = self.tasks[task_id]
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
            self._claim(task, worker_id, now, started=at_once is None or place < at_once)
            for place, task in enumerate(picked)
        ]
        taken = Counter(claim.queue for claim in claims)
        return Claimed(
            claims=claims,
            next_due=next_due,
            held_back=any(
                self.limited(queue)
                and self.settings[queue].open
                and taken[queue] < min(slots[queue], len(tasks))
                for queue, tasks in queued.items()
            ),
        )

    def not_to_start(self, queue: str) -> bool:
        """Whether a queue is paused, or has more tasks running than it may."""
        setting = self.settings.get(queue, Setting())
        most = setting.max_running
        return setting.paused or (most is not None and self._running(queue) > most)

    def holds(self, fence: Fence) -> bool:
        """Whether a claim is still what it was."""
        place = self.places.get(fence.task_id)
        return place is not None and place.state is State.RUNNING and place.epoch == fence.epoch

    def refusal(self, settlement: Settlement) -> Refusal | None:
        """Say why a settlement cannot be applied, if so."""
        if not self.holds(settlement.fence):
            return Refusal.STALE
        place = self.places[settlement.fence.task_id]
        if place.cancel_requested and not settlement.state.is_final:
            return Refusal.CANCEL_REQUESTED
        return None

    def apply(self, settlement: Settlement, teller: int | None = None) -> bool:
        """Move a running task on, and close its attempt; whether somebody has work by that.

        *teller*: as for `cancel`.
        """
        task_id, error = settlement.fence.task_id, settlement.error
        old, now = self.places[task_id], self.now()
        log = self.log.setdefault(task_id, [])
        if settlement.outcome is not None:
            self.closed.setdefault(task_id, {})[settlement.fence.epoch] = settlement.outcome
            number = log[-1].number + 1 if log else 1
            closed = execution(task_id, number, old, settlement.outcome)
            log.append(
                attrs.evolve(
                    closed,
                    finished_at=now,
                    error_type=error.type if error else None,
                    error_message=error.message if error else None,
                    error_traceback=error.traceback if error else None,
                    error_details=json.loads(as_jsonb(error.details))
                    if error and error.details
                    else None,
                    final=settlement.state.is_final,
                )
            )
        if old.epoch % TRIM_EVERY == 0:
            self._trim(task_id)
        state = settlement.state
        queue = self.tasks[task_id].queue
        place = Position(
            state=state, attempt=settlement.attempt, epoch=old.epoch, lost=settlement.lost
        )
        if state.is_final:
            ended = attrs.evolve(
                place,
                result=None if settlement.result is None else as_jsonb(settlement.result),
                error_type=error.type if error else None,
                error_message=error.message if error else None,
            )
            asked = completion(self.tasks[task_id], ended, "cancelled while running")
            tell = asked if settlement.on_complete else None
            self._end(task_id, ended, settlement.keep_for, tell, teller)
        elif state is State.SCHEDULED:
            due_at = now + dt.timedelta(seconds=settlement.delay)
            self.places[task_id] = attrs.evolve(place, due_at=due_at)
        else:
            self.places[task_id] = attrs.evolve(place, ready_at=now, suspect=old.suspect)
        return not state.is_final or settlement.on_complete or self.limited(queue)

    def outcomes(self, fences: Sequence[Fence]) -> dict[Fence, Outcome | None]:
        """Return with which outcome claims have been closed; None: the task is gone."""
        found: dict[Fence, Outcome | None] = {}
        for fence in fences:
            outcome = self.closed.get(fence.task_id, {}).get(fence.epoch)
            if outcome is not None or fence.task_id not in self.tasks:
                found[fence] = outcome
        return found

    def write_stream(self, write: StreamWrite) -> WriteResult:
        """Store chunks of an attempt at the end of one of its streams, all or none."""
        if not self.holds(write.fence):
            return WriteResult.STALE
        streams = self.streams.setdefault(write.fence.task_id, {})
        if write.name not in streams:
            streams[write.name] = Stream(write.fence.epoch, write.close_on_finish)
        return streams[write.name].write(write, self.now())

    def give_back_all_but(self, worker_id: UUID, fences: set[Fence]) -> int:
        """Release what this worker holds, except *fences*."""
        held = [self._as_held(task_id, place) for task_id, place in self._held(worker_id)]
        strays = [one for one in held if one.fence not in fences]
        for stray in strays:
            self.apply(give_back(stray))
        return len(strays)

    def promote(self) -> int:
        """Make scheduled tasks that are due ready."""
        now = self.now()
        due = [
            task_id
            for task_id, place in self.places.items()
            if place.due_at is not None and place.due_at <= now
        ][:BATCH]
        for task_id in due:
            place = self.places[task_id]
            state = transition(place.state, Event.PROMOTE)
            self.places[task_id] = attrs.evolve(
                place, state=state, due_at=None, ready_at=place.due_at
            )
        return len(due)

    def note_started(self, worker_id: UUID, fences: Collection[Fence]) -> set[Fence]:
        """Note that claims have started; return those that this worker holds."""
        held = {
            fence
            for fence in fences
            if self.holds(fence) and self.places[fence.task_id].worker_id == worker_id
        }
        for fence in held:
            place = self.places[fence.task_id]
            self.places[fence.task_id] = attrs.evolve(place, started=True)
        return held

    def sweep(
        self, allowed: Callable[[Held], int], seen: Sequence[Seen] | None
    ) -> list[tuple[Held, Settlement]]:
        """Forget dead workers and settle what they held; say how."""
        now = self.now()
        if seen is None:
            dead = {key for key, worker in self.workers.items() if not worker.alive(now)}
        else:
            dead = {one.id for one in seen if self._is_dead(one, now)}
        abandoned = [
            self._as_held(task_id, place)
            for task_id, place in sorted(self.places.items())
            if place.state is State.RUNNING
            and (place.worker_id in dead or place.worker_id not in self.workers)
        ]
        lost = [(held, settle_lost(held, max_lost=allowed(held))) for held in abandoned]
        for held, settlement in lost:
            if not held.started:
                place = self.places[held.fence.task_id]
                self.places[held.fence.task_id] = attrs.evolve(place, suspect=True)
            self.apply(settlement)
        for worker_id in dead:
            del self.workers[worker_id]
        return lost

    def prune(self) -> int:
        """Delete tasks that ended longer ago than they are kept."""
        now = self.now()
        old = [
            task_id
            for task_id, place in self.places.items()
            if place.expires_at is not None and place.expires_at <= now
        ][:BATCH]
        for task_id in old:
            self._forget(task_id)
        return len(old)

    # -- helpers -----------------------------------------------------------------

    def _is_dead(self, seen: Seen, now: dt.datetime) -> bool:
        worker = self.workers.get(seen.id)
        return worker is not None and worker.dead(now, seen)

    def _trim(self, task_id: int) -> None:
        """Keep the newest closed attempts of a task, and count the others."""
        log = self.log[task_id]
        counted = self.earlier.setdefault(task_id, Counter())
        counted.update((attempt.outcome, attempt.final) for attempt in log[:-KEEP_ATTEMPTS])
        del log[:-KEEP_ATTEMPTS]

    def _room(self, queue: str, slots: int, at_once: int | None) -> int:
        """How many of so many tasks of a queue may be taken."""
        setting = self.settings.get(queue, Setting())
        if setting.paused:
            return 0
        if setting.max_running is None:
            return slots
        room = max(0, setting.max_running - self._running(queue))
        return min(slots, room, slots if at_once is None else at_once)

    def _running(self, queue: str) -> int:
        return sum(
            place.state is State.RUNNING and self.tasks[task_id].queue == queue
            for task_id, place in self.places.items()
        )

    def _claim(self, task: Task, worker_id: UUID, now: dt.datetime, *, started: bool) -> Claim:
        old = self.places[task.id]
        new = attrs.evolve(
            old,
            state=transition(old.state, Event.CLAIM),
            attempt=old.attempt + 1,
            epoch=old.epoch + 1,
            worker_id=worker_id,
            started_at=now,
            started=started,
        )
        self.places[task.id] = new
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
        now, asked = self.now(), self.tasks[task_id].asked
        assert place.worker_id is not None
        worker = self.workers.get(place.worker_id)
        return Held(
            fence=Fence(task_id, place.epoch),
            attempt=place.attempt,
            lost=place.lost,
            worker_id=place.worker_id,
            cancel_requested=place.cancel_requested,
            keep_for=self.keep_for(asked),
            on_complete=asked.on_complete is not None,
            task_type=asked.task_type,
            queue=self.tasks[task_id].queue,
            age=0.0 if place.started_at is None else (now - place.started_at).total_seconds(),
            started=place.started,
            max_lost=worker.info.max_lost.get(asked.task_type) if worker else None,
        )
