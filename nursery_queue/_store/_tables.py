"""The tables of `MemoryStore`: plain, synchronous, one method a verb."""

from __future__ import annotations

import datetime as dt
import heapq
import itertools
import json

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from uuid import UUID

import attrs
import trio

from nursery_queue._core._model import (
    Attempt,
    Beat,
    CancelRequest,
    Claim,
    Claimed,
    Fence,
    Held,
    Lane,
    NewTask,
    Outcome,
    Refusal,
    Settlement,
    Stats,
    TaskFilter,
    TaskRef,
    TaskStatus,
    WorkerInfo,
    WorkerStatus,
)
from nursery_queue._core._outcome import KEEP_FOR, give_back, settle_lost
from nursery_queue._core._states import Event, State, sources, transition
from nursery_queue._runtime._timekeeper import timekeeper

from ._rows import Place, Task, Worker, execution, order, within


BATCH = 1000


@attrs.define(eq=False)
class Tables:
    """Everything a `MemoryStore` knows. Each method is one atomic step."""

    tasks: dict[int, Task] = attrs.field(factory=dict[int, Task])
    places: dict[int, Place] = attrs.field(factory=dict[int, Place])
    log: dict[int, list[Attempt]] = attrs.field(factory=dict[int, "list[Attempt]"])
    dedup: dict[str, int] = attrs.field(factory=dict[str, int])
    workers: dict[UUID, Worker] = attrs.field(factory=dict[UUID, Worker])
    ids: Iterator[int] = attrs.field(factory=lambda: itertools.count(1))
    started: tuple[dt.datetime, float] | None = None

    def now(self) -> dt.datetime:
        """The store's clock: trio's, counted from the wall clock at first use."""
        if (keeper := timekeeper.get()) is not None:
            return keeper.now()
        if self.started is None:
            self.started = (dt.datetime.now(dt.UTC), trio.current_time())
        wall, base = self.started
        return wall + dt.timedelta(seconds=trio.current_time() - base)

    # -- what applications do ----------------------------------------------------

    def live_key(self, task: NewTask) -> int | None:
        """Return the id of the live task that has this one's dedup key."""
        return None if task.dedup_key is None else self.dedup.get(task.dedup_key)

    def insert(
        self, asked: NewTask, task_id: int | None = None, now: dt.datetime | None = None
    ) -> TaskRef:
        """Store a task, unless a live one has its dedup key."""
        if (existing := self.live_key(asked)) is not None:
            return TaskRef(existing, created=False)
        now = now or self.now()
        task = Task(
            id=next(self.ids) if task_id is None else task_id,
            asked=asked,
            created_at=now,
            run_at=asked.run_at or now + dt.timedelta(seconds=asked.run_after),
        )
        self.tasks[task.id] = task
        if asked.dedup_key is not None:
            self.dedup[asked.dedup_key] = task.id
        later = task.run_at > now
        self.places[task.id] = Place(
            state=State.SCHEDULED if later else State.READY, due_at=task.run_at if later else None
        )
        return TaskRef(task.id)

    def cancel(self, task_id: int, *, running: bool) -> bool:
        """Cancel a waiting task, or note that a running one is to be."""
        place = self.places.get(task_id)
        if place is None or place.state.is_final:
            return False
        if place.state is State.RUNNING:
            interrupts = running or (place.cancel_requested and place.cancel_interrupts)
            self.places[task_id] = attrs.evolve(
                place, cancel_requested=True, cancel_interrupts=interrupts
            )
            return True
        keep_for = self.tasks[task_id].asked.keep_for
        ended = Place(
            state=transition(place.state, Event.CANCEL),
            attempt=place.attempt,
            epoch=place.epoch,
            lost=place.lost,
        )
        self._end(task_id, ended, KEEP_FOR if keep_for is None else keep_for)
        return True

    def retry(self, task_id: int) -> bool:
        """Make a failed or cancelled task ready again, unless its dedup key is taken."""
        place = self.places.get(task_id)
        if place is None or place.state not in sources(Event.REVIVE):
            return False
        key = self.tasks[task_id].asked.dedup_key
        if key is not None and self.dedup.setdefault(key, task_id) != task_id:
            return False
        state = transition(place.state, Event.REVIVE)
        self.places[task_id] = Place(state=state, epoch=place.epoch)
        return True

    def attempts(self, task_id: int) -> list[Attempt]:
        """Return the log of a task, a running attempt included."""
        log = list(self.log.get(task_id, ()))
        place = self.places.get(task_id)
        if place is not None and place.state is State.RUNNING:
            log.append(execution(task_id, len(log) + 1, place, Outcome.RUNNING))
        return log

    def status(self, task_id: int) -> TaskStatus | None:
        """Say where a task is."""
        if (task := self.tasks.get(task_id)) is None:
            return None
        place = self.places[task_id]
        log = self.log.get(task_id)
        last = log[-1] if log and place.state.is_final else None
        return TaskStatus(
            id=task_id,
            task_type=task.asked.task_type,
            queue=task.asked.queue,
            state=place.state,
            attempt=place.attempt,
            created_at=task.created_at,
            run_at=place.due_at or task.run_at,
            started_at=last.started_at if last else place.started_at,
            finished_at=place.finished_at,
            worker_id=last.worker_id if last else place.worker_id,
            result=None if place.result is None else json.loads(place.result),
            error_type=place.error_type,
            error_message=place.error_message,
            priority=task.asked.priority,
            lost=place.lost,
            cancel_requested=place.cancel_requested,
        )

    def list_tasks(self, which: TaskFilter) -> list[TaskStatus]:
        """Return a page of tasks, newest first."""
        every = (self.status(task_id) for task_id in sorted(self.tasks, reverse=True))
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

    def stats(self) -> Stats:
        """Count tasks and list workers."""
        now = self.now()
        queues: dict[str, Counter[State]] = defaultdict(Counter)
        unknown: Counter[str] = Counter()
        alive = [worker for worker in self.workers.values() if worker.alive(now)]
        known = {name for worker in alive for name in worker.info.task_types}
        for task_id, place in self.places.items():
            asked = self.tasks[task_id].asked
            queues[asked.queue][place.state] += 1
            if place.state is State.READY and asked.task_type not in known:
                unknown[asked.task_type] += 1
        workers = [
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
                running=len(self._held(worker_id)),
            )
            for worker_id, worker in self.workers.items()
        ]
        return Stats(queues=queues, workers=workers, unknown_task_types=unknown)

    # -- what a worker does ------------------------------------------------------

    def register(self, worker: WorkerInfo) -> None:
        """Make a worker known."""
        self.workers[worker.id] = Worker(worker, self.now(), self.now())

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
        died = any(not other.alive(now) for other in self.workers.values())
        return Beat(registered=True, cancel_requests=requests, somebody_died=died)

    def claim(
        self,
        worker_id: UUID,
        task_types: Sequence[str],
        *,
        limit: int,
        lanes: Sequence[Lane] | None,
    ) -> Claimed:
        """Take ready tasks, best priority first, oldest first."""
        now = self.now()
        due = [place.due_at for place in self.places.values() if place.due_at is not None]
        next_due = (min(due) - now).total_seconds() if due else None
        if worker_id not in self.workers:
            return Claimed(claims=(), next_due=next_due)
        types = set(task_types)
        candidates = [
            self.tasks[task_id]
            for task_id, place in self.places.items()
            if place.state is State.READY and self.tasks[task_id].asked.task_type in types
        ]
        picked = heapq.nsmallest(limit, within(candidates, lanes), key=order)
        claims = [self._claim(task, worker_id, now) for task in picked]
        return Claimed(claims=claims, next_due=next_due)

    def refusal(self, settlement: Settlement) -> Refusal | None:
        """Say why a settlement cannot be applied, if so."""
        fence = settlement.fence
        place = self.places.get(fence.task_id)
        if place is None or place.state is not State.RUNNING or place.epoch != fence.epoch:
            return Refusal.STALE
        if place.cancel_requested and not settlement.state.is_final:
            return Refusal.CANCEL_REQUESTED
        return None

    def apply(self, settlement: Settlement) -> None:
        """Move a running task on, and close its attempt."""
        task_id, error = settlement.fence.task_id, settlement.error
        old, now = self.places[task_id], self.now()
        log = self.log.setdefault(task_id, [])
        if settlement.outcome is not None:
            closed = execution(task_id, len(log) + 1, old, settlement.outcome)
            log.append(
                attrs.evolve(
                    closed,
                    finished_at=now,
                    error_type=error.type if error else None,
                    error_message=error.message if error else None,
                    error_traceback=error.traceback if error else None,
                    error_details=json.loads(error.details) if error and error.details else None,
                )
            )
        state = settlement.state
        place = Place(
            state=state, attempt=settlement.attempt, epoch=old.epoch, lost=settlement.lost
        )
        if state.is_final:
            ended = attrs.evolve(
                place,
                result=settlement.result,
                error_type=error.type if error else None,
                error_message=error.message if error else None,
            )
            self._end(task_id, ended, settlement.keep_for)
        elif state is State.SCHEDULED:
            due_at = now + dt.timedelta(seconds=settlement.delay)
            self.places[task_id] = attrs.evolve(place, due_at=due_at)
        else:
            self.places[task_id] = place

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
            self.places[task_id] = attrs.evolve(place, state=state, due_at=None)
        return len(due)

    def sweep(self, *, max_lost: int) -> int:
        """Forget dead workers and settle what they held."""
        now = self.now()
        for worker_id in [key for key, worker in self.workers.items() if not worker.alive(now)]:
            del self.workers[worker_id]
        abandoned = [
            self._as_held(task_id, place)
            for task_id, place in self.places.items()
            if place.state is State.RUNNING and place.worker_id not in self.workers
        ]
        for held in abandoned:
            self.apply(settle_lost(held, max_lost=max_lost))
        return len(abandoned)

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

    def _claim(self, task: Task, worker_id: UUID, now: dt.datetime) -> Claim:
        old = self.places[task.id]
        new = attrs.evolve(
            old,
            state=transition(old.state, Event.CLAIM),
            attempt=old.attempt + 1,
            epoch=old.epoch + 1,
            worker_id=worker_id,
            started_at=now,
        )
        self.places[task.id] = new
        return Claim(
            fence=Fence(task.id, new.epoch),
            attempt=new.attempt,
            lost=new.lost,
            task_type=task.asked.task_type,
            queue=task.asked.queue,
            params=task.asked.params,
            max_attempts=task.asked.max_attempts,
            backoff=task.asked.backoff,
            timeout=task.asked.timeout,
            keep_for=task.asked.keep_for,
        )

    def _held(self, worker_id: UUID) -> list[tuple[int, Place]]:
        return [
            (task_id, place)
            for task_id, place in self.places.items()
            if place.state is State.RUNNING and place.worker_id == worker_id
        ]

    def _as_held(self, task_id: int, place: Place) -> Held:
        assert place.worker_id is not None
        return Held(
            fence=Fence(task_id, place.epoch),
            attempt=place.attempt,
            lost=place.lost,
            worker_id=place.worker_id,
            cancel_requested=place.cancel_requested,
            keep_for=self.tasks[task_id].asked.keep_for,
        )

    def _end(self, task_id: int, place: Place, keep_for: float) -> None:
        key = self.tasks[task_id].asked.dedup_key
        if key is not None and self.dedup.get(key) == task_id:
            del self.dedup[key]
        now = self.now()
        expires_at = now + dt.timedelta(seconds=keep_for)
        self.places[task_id] = attrs.evolve(place, finished_at=now, expires_at=expires_at)
        if keep_for == 0:
            self._forget(task_id)

    def _forget(self, task_id: int) -> None:
        del self.tasks[task_id], self.places[task_id]
        self.log.pop(task_id, None)
