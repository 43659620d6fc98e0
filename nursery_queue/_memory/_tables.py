"""The tables of `MemoryStore`: plain, synchronous, one method a verb of applications."""

from __future__ import annotations

import datetime as dt
import itertools
import json

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Self
from uuid import UUID

import attrs
import trio

from nursery_queue._core._declaration import AS_DECLARED, Declaration
from nursery_queue._core._filters import CancelFilter, TaskFilter
from nursery_queue._core._model import Attempt, NewTask, Outcome, QueueStatus, TaskRef, TaskStatus
from nursery_queue._core._states import Event, State, sources, transition
from nursery_queue._core._streams import StreamPage, StreamRequest
from nursery_queue._core._tally import Way
from nursery_queue._trio._clock import timekeeper

from ._memory_rows import (
    Position,
    Setting,
    Task,
    Worker,
    as_stored,
    completion,
    execution,
    fits,
    tells,
)
from ._memory_streams import Stream, page


PAGE = 5000


@attrs.define(eq=False)
class Tables:
    """Everything a `MemoryStore` knows, and what applications do. Each method is one step."""

    tasks: dict[int, Task] = attrs.field(factory=dict[int, Task])
    places: dict[int, Position] = attrs.field(factory=dict[int, Position])
    log: dict[int, list[Attempt]] = attrs.field(factory=dict[int, "list[Attempt]"])
    # With which outcome claims were closed: by task, then by epoch.
    closed: dict[int, dict[int, Outcome]] = attrs.field(factory=dict[int, "dict[int, Outcome]"])
    # Closed attempts that are only counted any more.
    earlier: dict[int, Counter[Way]] = attrs.field(factory=dict[int, "Counter[Way]"])
    dedup: dict[str, int] = attrs.field(factory=dict[str, int])
    workers: dict[UUID, Worker] = attrs.field(factory=dict[UUID, Worker])
    streams: dict[int, dict[str, Stream]] = attrs.field(factory=dict[int, "dict[str, Stream]"])
    settings: dict[str, Setting] = attrs.field(factory=dict[str, Setting])
    declared: dict[str, Declaration] = attrs.field(factory=dict[str, Declaration])
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
        """Return tables for trying out what applications do; rows never change."""
        return attrs.evolve(
            self,
            tasks=dict(self.tasks),
            places=dict(self.places),
            log={task_id: list(attempts) for task_id, attempts in self.log.items()},
            closed={task_id: dict(closed) for task_id, closed in self.closed.items()},
            earlier={task_id: Counter(ways) for task_id, ways in self.earlier.items()},
            dedup=dict(self.dedup),
            streams={
                task_id: {name: stream.copy() for name, stream in streams.items()}
                for task_id, streams in self.streams.items()
            },
        )

    # -- what applications do ----------------------------------------------------

    def live_key(self, task: NewTask) -> int | None:
        """Return the id of the live task that has this one's dedup key."""
        return None if task.dedup_key is None else self.dedup.get(task.dedup_key)

    def as_declared(self, asked: NewTask) -> NewTask:
        """Return *asked* with what it leaves out as its type is declared."""
        declared = self.declared.get(asked.task_type) or Declaration(name=asked.task_type)
        said = asked.on_complete != AS_DECLARED
        return attrs.evolve(
            asked,
            queue=declared.queue if asked.queue is None else asked.queue,
            priority=declared.priority if asked.priority is None else asked.priority,
            on_complete=asked.on_complete if said else declared.on_complete,
        )

    def keep_for(self, asked: NewTask) -> float:
        """Return for how long a task is kept that ends without a worker which knows its type."""
        declared = self.declared.get(asked.task_type) or Declaration(name=asked.task_type)
        return declared.keep_for if asked.keep_for is None else asked.keep_for

    def insert(
        self,
        asked: NewTask,
        task_id: int | None = None,
        now: dt.datetime | None = None,
        completes: int | None = None,
    ) -> TaskRef:
        """Store a task, unless a live one has its dedup key."""
        if (existing := self.live_key(asked)) is not None:
            return TaskRef(existing, created=False)
        now = now or self.now()
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
        )
        self.tasks[task.id] = task
        if asked.dedup_key is not None:
            self.dedup[asked.dedup_key] = task.id
        if task.run_at > now:
            self.places[task.id] = Position(state=State.SCHEDULED, due_at=task.run_at)
        else:
            self.places[task.id] = Position(state=State.READY, ready_at=task.run_at)
        return TaskRef(task.id)

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

    def cancel_some(
        self, which: CancelFilter, *, after: int, upto: int, dry_run: bool
    ) -> tuple[int | None, int]:
        """Cancel, or count, the tasks that fit on one page of a walk through all of them."""
        page = sorted(task_id for task_id in self.tasks if after < task_id <= upto)[:PAGE]
        fitting = [
            task_id
            for task_id in page
            if not self.places[task_id].state.is_final and fits(self.tasks[task_id], which)
        ]
        if not dry_run:
            for task_id in fitting:
                self.cancel(task_id, running=True)
        return (page[-1] if page else None), len(fitting)

    def retry(self, task_id: int) -> bool:
        """Make a failed or cancelled task ready again, unless its dedup key is taken."""
        place = self.places.get(task_id)
        if place is None or place.state not in sources(Event.REVIVE):
            return False
        key = self.tasks[task_id].asked.dedup_key
        if key is not None and self.dedup.setdefault(key, task_id) != task_id:
            return False
        state = transition(place.state, Event.REVIVE)
        self.places[task_id] = Position(state=state, epoch=place.epoch, ready_at=self.now())
        return True

    def pause(self, queue: str, *, paused: bool) -> None:
        """Let nothing of a queue start, or let it start again."""
        self.settings[queue] = attrs.evolve(self.settings.get(queue, Setting()), paused=paused)

    def limit(self, queue: str, max_running: int | None) -> None:
        """Set how many tasks of a queue may run."""
        old = self.settings.get(queue, Setting())
        self.settings[queue] = attrs.evolve(old, max_running=max_running)

    def notify(self, queue: str, *, notify: bool) -> None:
        """Have enqueues to a queue ring, or not."""
        old = self.settings.get(queue, Setting())
        self.settings[queue] = attrs.evolve(old, notify=notify)

    def rings(self, asked: NewTask) -> bool:
        """Whether to enqueue this rings."""
        queue = self.as_declared(asked).queue
        return queue is None or self.settings.get(queue, Setting()).notify

    def limited(self, queue: str) -> bool:
        """Whether a queue has a limit."""
        return self.settings.get(queue, Setting()).max_running is not None

    def queues(self) -> list[QueueStatus]:
        """Return every queue that is set in some way or has live tasks."""
        live: dict[str, Counter[State]] = defaultdict(Counter)
        for task_id, place in self.places.items():
            if not place.state.is_final:
                live[self.tasks[task_id].queue][place.state] += 1
        return [
            QueueStatus(
                name=name,
                paused=self.settings.get(name, Setting()).paused,
                max_running=self.settings.get(name, Setting()).max_running,
                scheduled=live[name][State.SCHEDULED],
                ready=live[name][State.READY],
                running=live[name][State.RUNNING],
                notify=self.settings.get(name, Setting()).notify,
            )
            for name in sorted({*self.settings, *live})
        ]

    def attempts(self, task_id: int) -> list[Attempt]:
        """Return the log of a task, a running attempt included."""
        log = list(self.log.get(task_id, ()))
        place = self.places.get(task_id)
        if place is not None and place.state is State.RUNNING:
            number = log[-1].number + 1 if log else 1
            log.append(execution(task_id, number, place, Outcome.RUNNING))
        return log

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
        )

    def list_tasks(self, which: TaskFilter) -> list[TaskStatus]:
        """Return a page of tasks, newest first."""
        every = (
            self.status(task_id, payloads=which.payloads, result=which.payloads)
            for task_id in sorted(self.tasks, reverse=True)
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

    def read_stream(self, asked: StreamRequest) -> StreamPage | None:
        """Return what a stream has for a reader; None: there is no such task."""
        if (place := self.places.get(asked.task_id)) is None:
            return None
        stream = self.streams.get(asked.task_id, {}).get(asked.name)
        return page(stream, asked, finished=place.state.is_final)

    # -- helpers -----------------------------------------------------------------

    def _held(self, worker_id: UUID) -> list[tuple[int, Position]]:
        return [
            (task_id, place)
            for task_id, place in self.places.items()
            if place.state is State.RUNNING and place.worker_id == worker_id
        ]

    def _end(
        self,
        task_id: int,
        place: Position,
        keep_for: float,
        tell: NewTask | None = None,
        teller: int | None = None,
    ) -> None:
        key = self.tasks[task_id].asked.dedup_key
        if key is not None and self.dedup.get(key) == task_id:
            del self.dedup[key]
        now = self.now()
        expires_at = now + dt.timedelta(seconds=keep_for)
        self.places[task_id] = attrs.evolve(place, finished_at=now, expires_at=expires_at)
        if tell is not None:
            self.insert(tell, teller, completes=task_id)
        if keep_for == 0:
            self._forget(task_id)

    def _forget(self, task_id: int) -> None:
        del self.tasks[task_id], self.places[task_id]
        self.log.pop(task_id, None)
        self.closed.pop(task_id, None)
        self.earlier.pop(task_id, None)
        self.streams.pop(task_id, None)
