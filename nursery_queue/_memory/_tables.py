"""The tables of `MemoryStore`, and the steps that a verb and an open transaction share."""

from __future__ import annotations

import contextlib
import datetime as dt
import itertools
import json

from collections import Counter
from collections.abc import Iterator
from typing import Self
from uuid import UUID

import attrs
import trio

from nursery_queue._core._declaration import AS_DECLARED, KEY_AS_DECLARED, Declaration
from nursery_queue._core._json_text import as_jsonb
from nursery_queue._core._model import (
    Attempt,
    Fence,
    NewTask,
    Outcome,
    Refusal,
    Settlement,
    TaskRef,
    TaskStatus,
)
from nursery_queue._core._states import Event, State, transition
from nursery_queue._core._streams import StreamWrite, WriteResult
from nursery_queue._core._tally import Way
from nursery_queue._trio._clock import timekeeper

from ._memory_rows import (
    Lane,
    Position,
    Setting,
    Task,
    Worker,
    as_stored,
    completion,
    execution,
    replaced,
    tells,
)
from ._memory_schedules import Schedule
from ._memory_streams import Stream


TRIM_EVERY = KEEP_ATTEMPTS = 100  # claims of a task; its closed attempts


@attrs.define(eq=False)
class Tables:
    """Everything a `MemoryStore` knows. Each method is one atomic step."""

    tasks: dict[int, Task] = attrs.field(factory=dict[int, Task])
    places: dict[int, Position] = attrs.field(factory=dict[int, Position])
    log: dict[int, list[Attempt]] = attrs.field(factory=dict[int, "list[Attempt]"])
    # With which outcome claims were closed: by task, then by epoch.
    closed: dict[int, dict[int, Outcome]] = attrs.field(factory=dict[int, "dict[int, Outcome]"])
    # Closed attempts of which no more than the count is left.
    earlier: dict[int, Counter[Way]] = attrs.field(factory=dict[int, "Counter[Way]"])
    dedup: dict[str, int] = attrs.field(factory=dict[str, int])
    # Until when these keys are taken, also when their task has ended.
    taken_until: dict[str, dt.datetime] = attrs.field(factory=dict[str, dt.datetime])
    workers: dict[UUID, Worker] = attrs.field(factory=dict[UUID, Worker])
    streams: dict[int, dict[str, Stream]] = attrs.field(factory=dict[int, "dict[str, Stream]"])
    settings: dict[str, Setting] = attrs.field(factory=dict[str, Setting])
    # What the rates remember of a queue (key None) and of its keys: see `_core/_gcra.py`.
    next_at: dict[Lane, dt.datetime] = attrs.field(factory=dict[Lane, dt.datetime])
    # The key that was served last, in its bytes: by queue, task type and priority.
    turns: dict[tuple[str, str, int], bytes] = attrs.field(
        factory=dict[tuple[str, str, int], bytes]
    )
    declared: dict[str, Declaration] = attrs.field(factory=dict[str, Declaration])
    schedules: dict[str, Schedule] = attrs.field(factory=dict[str, Schedule])
    # Ticks that have had their task, and until when that is remembered.
    ticks: dict[tuple[str, dt.datetime], dt.datetime] = attrs.field(
        factory=dict[tuple[str, dt.datetime], dt.datetime]
    )
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

    def copy(self) -> Self:
        """Return tables on which the steps of a transaction can be tried; rows never change."""
        return attrs.evolve(
            self,
            tasks=dict(self.tasks),
            places=dict(self.places),
            log={task_id: list(attempts) for task_id, attempts in self.log.items()},
            closed={task_id: dict(closed) for task_id, closed in self.closed.items()},
            earlier={task_id: Counter(ways) for task_id, ways in self.earlier.items()},
            dedup=dict(self.dedup),
            taken_until=dict(self.taken_until),
            streams={
                task_id: {name: stream.copy() for name, stream in streams.items()}
                for task_id, streams in self.streams.items()
            },
        )

    # -- questions ---------------------------------------------------------------

    def setting(self, queue: str) -> Setting:
        """Return how a queue is set."""
        return self.settings.get(queue, Setting())

    def holder(self, key: str | None) -> int | None:
        """Return the id of the task that has a dedup key, if it is taken."""
        task_id = None if key is None else self.dedup.get(key)
        if task_id is None or key is None:
            return None
        place = self.places.get(task_id)
        live = place is not None and not place.state.is_final
        return task_id if live or self.is_kept(key) else None

    def is_kept(self, key: str) -> bool:
        """Whether a dedup key is taken also if its task has ended."""
        until = self.taken_until.get(key)
        return until is not None and until > self.now()

    def has_started(self, task_id: int) -> bool:
        """Whether a task has started, or may have, or is not there any more."""
        place = self.places.get(task_id)
        waits = place is not None and place.state in {State.SCHEDULED, State.READY}
        return place is None or not waits or place.suspect or bool(self.log.get(task_id))

    def rings(self, asked: NewTask) -> bool:
        """Whether an enqueue of this task rings."""
        queue = self.as_declared(asked).queue
        return queue is None or self.setting(queue).notify

    def as_declared(self, asked: NewTask) -> NewTask:
        """Return *asked*, with the fields left out as its type is declared."""
        declared = self.declared.get(asked.task_type) or Declaration(name=asked.task_type)
        said = asked.on_complete != AS_DECLARED
        return attrs.evolve(
            asked,
            queue=declared.queue if asked.queue is None else asked.queue,
            priority=declared.priority if asked.priority is None else asked.priority,
            key=declared.key_of(asked.params) if asked.key == KEY_AS_DECLARED else asked.key,
            on_complete=asked.on_complete if said else declared.on_complete,
        )

    def keep_for(self, asked: NewTask) -> float:
        """Return for how long a task is kept that ends without a worker which knows its type."""
        declared = self.declared.get(asked.task_type) or Declaration(name=asked.task_type)
        return declared.keep_for if asked.keep_for is None else asked.keep_for

    def held(self, worker_id: UUID) -> list[tuple[int, Position]]:
        """Return the running positions of a worker, with their tasks."""
        return [
            (task_id, place)
            for task_id, place in self.places.items()
            if place.state is State.RUNNING and place.worker_id == worker_id
        ]

    def name_of(self, place: Position) -> str | None:
        """Return the name of the worker that holds a task, if it is registered."""
        worker = self.workers.get(place.worker_id) if place.worker_id is not None else None
        return None if worker is None else worker.info.name

    def holds(self, fence: Fence) -> bool:
        """Whether a claim is still held."""
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

    def status(
        self, task_id: int, *, payloads: bool = False, result: bool = True
    ) -> TaskStatus | None:
        """Say where a task is; *payloads*: with params and context."""
        if (task := self.tasks.get(task_id)) is None:
            return None
        place = self.places[task_id]
        log = self.log.get(task_id)
        last = log[-1] if log and place.state.is_final else None
        return TaskStatus(
            id=task_id,
            task_type=task.asked.task_type,
            queue=task.queue,
            state=place.state,
            attempt=place.attempt,
            created_at=task.created_at,
            run_at=place.due_at or task.run_at,
            started_at=last.started_at if last else place.started_at,
            finished_at=place.finished_at,
            worker_id=last.worker_id if last else place.worker_id,
            result=json.loads(place.result) if result and place.result is not None else None,
            error_type=place.error_type,
            error_message=place.error_message,
            priority=task.priority,
            lost=place.lost,
            cancel_requested=place.cancel_requested,
            on_complete=tells(task),
            completes=task.completes,
            params=json.loads(task.asked.params) if payloads else None,
            context=json.loads(task.asked.context) if payloads and task.asked.context else None,
            key=task.asked.key,
            dedup_key=task.asked.dedup_key,
            max_attempts=task.asked.max_attempts,
            worker_name=last.worker_name if last else self.name_of(place),
        )

    # -- steps -------------------------------------------------------------------

    def insert(
        self,
        asked: NewTask,
        task_id: int | None = None,
        now: dt.datetime | None = None,
        completes: int | None = None,
        tick: dt.datetime | None = None,
    ) -> TaskRef:
        """Store a task, unless its dedup key is taken; debounced, replace one that waits."""
        existing, now = self.holder(asked.dedup_key), now or self.now()
        if asked.debounce is not None:
            if existing is not None and not self.has_started(existing):
                return self._replace(existing, asked, now)
            asked = attrs.evolve(asked, run_after=asked.debounce.wait)
        elif existing is not None:
            return TaskRef(existing, created=False)
        asked = self.as_declared(asked)
        assert asked.queue is not None
        assert asked.priority is not None
        task = Task(
            id=next(self.ids) if task_id is None else task_id,
            asked=as_stored(asked),
            created_at=now,
            run_at=asked.run_at or now + dt.timedelta(seconds=asked.run_after),
            queue=asked.queue,
            priority=asked.priority,
            completes=completes,
            tick=tick,
        )
        self.tasks[task.id] = task
        if asked.dedup_key is not None:
            self.dedup[asked.dedup_key] = task.id
            self.taken_until.pop(asked.dedup_key, None)
            if asked.dedup_for is not None:
                until = now + dt.timedelta(seconds=asked.dedup_for)
                self.taken_until[asked.dedup_key] = until
        if task.run_at > now:
            self.places[task.id] = Position(state=State.SCHEDULED, due_at=task.run_at)
        else:
            self.places[task.id] = Position(state=State.READY, ready_at=task.run_at)
        return TaskRef(task.id)

    def _replace(self, task_id: int, asked: NewTask, now: dt.datetime) -> TaskRef:
        """Replace what is asked of a task that has not started, and start its wait anew."""
        task = replaced(self.tasks[task_id], self.as_declared(asked), now)
        self.tasks[task_id] = task
        self.places[task_id] = attrs.evolve(
            self.places[task_id], state=State.SCHEDULED, due_at=task.run_at, ready_at=None
        )
        return TaskRef(task_id, created=False)

    def forget_keys(self) -> None:
        """Forget the dedup keys that are not taken any more."""
        for key in [key for key in self.taken_until if self.holder(key) is None]:
            del self.dedup[key], self.taken_until[key]

    def cancel(self, task_id: int, *, running: bool, teller: int | None = None) -> bool:
        """Cancel a waiting task, or note that a running one is to be.

        *teller*: the id for the task that tells of it, if there is one.
        """
        place = self.places.get(task_id)
        if place is None or place.state.is_final:
            return False
        if place.state is State.RUNNING:
            interrupts = running or (place.cancel_requested and place.cancel_interrupts)
            self.places[task_id] = attrs.evolve(
                place, cancel_requested=True, cancel_interrupts=interrupts
            )
            return True
        ended = Position(
            state=transition(place.state, Event.CANCEL),
            attempt=place.attempt,
            epoch=place.epoch,
            lost=place.lost,
        )
        self._end(
            task_id,
            ended,
            self.keep_for(self.tasks[task_id].asked),
            completion(self.tasks[task_id], ended, "cancelled while waiting"),
            teller,
        )
        return True

    def apply(self, settlement: Settlement, teller: int | None = None) -> bool:
        """Move a running task on, and close its attempt; return whether that makes work.

        *teller*: as for `cancel`.
        """
        task_id, error = settlement.fence.task_id, settlement.error
        old, now = self.places[task_id], self.now()
        log = self.log.setdefault(task_id, [])
        if settlement.outcome is not None:
            self.closed.setdefault(task_id, {})[settlement.fence.epoch] = settlement.outcome
            number = log[-1].number + 1 if log else 1
            closed = execution(task_id, number, old, settlement.outcome, self.name_of(old))
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
        return not state.is_final or settlement.on_complete or self.setting(queue).limits_running

    def write_stream(self, write: StreamWrite) -> WriteResult:
        """Store chunks of an attempt at the end of one of its streams, all or none."""
        if not self.holds(write.fence):
            return WriteResult.STALE
        streams = self.streams.setdefault(write.fence.task_id, {})
        if write.name not in streams:
            streams[write.name] = Stream(write.fence.epoch, write.close_on_finish)
        return streams[write.name].write(write, self.now())

    def forget(self, task_id: int) -> None:
        """Delete a task and all that belongs to it."""
        del self.tasks[task_id], self.places[task_id]
        for table in (self.log, self.closed, self.earlier, self.streams):
            table.pop(task_id, None)

    def _end(
        self,
        task_id: int,
        place: Position,
        keep_for: float,
        tell: NewTask | None = None,
        teller: int | None = None,
    ) -> None:
        key = self.tasks[task_id].asked.dedup_key
        if key is not None and self.dedup.get(key) == task_id and not self.is_kept(key):
            del self.dedup[key]
            self.taken_until.pop(key, None)
        now = self.now()
        expires_at = now + dt.timedelta(seconds=keep_for)
        self.places[task_id] = attrs.evolve(place, finished_at=now, expires_at=expires_at)
        if tell is not None:
            with contextlib.suppress(ValueError, TypeError):  # a key that is none: as in a database
                self.insert(tell, teller, completes=task_id)
        if keep_for == 0:
            self.forget(task_id)

    def _trim(self, task_id: int) -> None:
        """Keep the newest closed attempts of a task, and count the others."""
        log = self.log[task_id]
        counted = self.earlier.setdefault(task_id, Counter())
        counted.update((attempt.outcome, attempt.final) for attempt in log[:-KEEP_ATTEMPTS])
        del log[:-KEEP_ATTEMPTS]
