"""All that a store knows at one moment, in a form in which two stores can be compared."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import datetime as dt
import json

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, LiteralString
from uuid import UUID

import attrs

from nursery_queue._core._model import NewTask
from nursery_queue._core._states import State
from nursery_queue._memory._memory_rows import Position as MemoryPosition
from nursery_queue._memory._memory_store import MemoryStore
from nursery_queue._pg._postgres_store import PostgresStore
from tests.model.pools import Pool, of_row, of_setting
from tests.model.schedule_picture import (
    COLUMNS,
    Schedule,
    of_memory as of_schedule,
    of_row as of_schedule_row,
)
from tests.model.sides import Side


PARKED = "parked"  # a place of its own; the state of such a task is ready
FINAL = frozenset({"succeeded", "failed", "cancelled"})
LIVE = frozenset({"ready", "scheduled", "running", PARKED})


@attrs.frozen(kw_only=True)
class Asked:
    """What somebody asked for."""

    task_type: str
    queue: str
    priority: int
    params: Any
    key: str | None
    max_attempts: int | None
    keep_for: float | None
    dedup_key: str | None
    on_complete: Any
    context: Any
    completes: int | None


@attrs.frozen(kw_only=True)
class Position:
    """Where a task is: the one row that it has in one of the tables of positions."""

    place: str
    attempt: int
    epoch: int
    lost: int
    due_at: dt.datetime | None = None
    worker_id: UUID | None = None
    started_at: dt.datetime | None = None
    cancel_requested: bool = False
    cancel_interrupts: bool = True
    started: bool = True
    suspect: bool = False
    finished_at: dt.datetime | None = None
    expires_at: dt.datetime | None = None
    result: Any = None
    error_type: str | None = None
    error_message: str | None = None


@attrs.frozen
class Entry:
    """A closed attempt."""

    outcome: str
    worker_id: UUID
    started_at: dt.datetime
    finished_at: dt.datetime
    error_type: str | None
    error_message: str | None
    final: bool


@attrs.frozen(kw_only=True)
class Task:
    asked: Asked
    created_at: dt.datetime
    run_at: dt.datetime
    position: Position
    log: tuple[Entry, ...]

    @property
    def place(self) -> str:
        return self.position.place

    @property
    def live(self) -> bool:
        return self.position.place in LIVE


@attrs.frozen(kw_only=True)
class Worker:
    task_types: tuple[str, ...]
    lease: float
    heartbeat_at: dt.datetime
    draining: bool

    def alive(self, now: dt.datetime) -> bool:
        return self.heartbeat_at + dt.timedelta(seconds=self.lease) >= now


@attrs.frozen(kw_only=True)
class Picture:
    tasks: Mapping[int, Task]
    keys: Mapping[str, int]
    pools: Mapping[str, Pool]  # those that are set in some way
    workers: Mapping[UUID, Worker]
    schedules: Mapping[str, Schedule]

    def differences(self, other: Picture) -> list[str]:
        """Say what is not the same; for people."""
        return [
            f"{field.name} {key}:\n    {ours.get(key)}\n    {theirs.get(key)}"
            for field in attrs.fields(Picture)
            for ours, theirs in [(getattr(self, field.name), getattr(other, field.name))]
            for key in ours.keys() | theirs.keys()
            if ours.get(key) != theirs.get(key)
        ]


EMPTY = Picture(tasks={}, keys={}, pools={}, workers={}, schedules={})

# -- of PostgreSQL -----------------------------------------------------------------------

LOOK: LiteralString = f"""
select json_build_object(
    'task', (select json_agg(json_build_array(
                 id, task_type, queue, priority, params, key, max_attempts, keep_for, dedup_key,
                 on_complete, context, completes, created_at, run_at) order by id)
               from nursery_queue.task),
    'ready', (select json_agg(json_build_array(
                 task_id, attempt, epoch, lost, due_at, suspect, queue, priority, task_type, key))
                from nursery_queue.ready),
    'parked', (select json_agg(json_build_array(
                  task_id, attempt, epoch, lost, due_at, suspect, queue, priority, task_type, key))
                 from nursery_queue.parked),
    'scheduled', (select json_agg(json_build_array(task_id, attempt, epoch, lost, due_at))
                    from nursery_queue.scheduled),
    'running', (select json_agg(json_build_array(
                   task_id, attempt, epoch, lost, worker_id, started_at,
                   cancel_requested_at is not null, cancel_interrupts, started, suspect,
                   pool, key))
                  from nursery_queue.running),
    'finished', (select json_agg(json_build_array(
                    task_id, attempt, epoch, lost, state, finished_at, expires_at, result,
                    error_type, error_message))
                   from nursery_queue.finished),
    'attempt', (select json_agg(json_build_array(
                   task_id, epoch, outcome, worker_id, started_at, finished_at,
                   error_type, error_message, final) order by epoch)
                  from nursery_queue.attempt),
    'dedup', (select json_agg(json_build_array(dedup_key, task_id)) from nursery_queue.dedup),
    'queue', (select json_agg(json_build_array(
                 name, paused, max_running, max_running_per_key, rate_count, rate_per, rate_burst,
                 key_rate_count, key_rate_per, key_rate_burst))
                from nursery_queue.queue),
    'worker', (select json_agg(json_build_array(id, task_types, lease, heartbeat_at, draining))
                 from nursery_queue.worker),
    'schedule', (select json_agg(json_build_array({COLUMNS})) from nursery_queue.schedule))
"""


async def of_postgres(side: Side) -> Picture:
    """Look at every table, in one statement, and see that each position is in one of them."""
    store = side.store
    assert isinstance(store, PostgresStore)
    async with store._pool.connection() as connection:
        ((tables,),) = await connection.fetch(LOOK)
    rows: defaultdict[str, list[Any]] = defaultdict(list)
    rows.update((name, found) for name, found in tables.items() if found)
    for task_id, *_ in rows["task"]:
        side.number(task_id)  # in the order in which they were stored
    positions = _positions(rows)
    logs = _logs(rows["attempt"])
    tasks = {
        side.number(row[0]): _task(side, row, positions.pop(row[0]), logs.pop(row[0], ()))
        for row in rows["task"]
    }
    assert not positions, f"positions of no task: {positions}"
    assert not logs, f"attempts of no task: {logs}"
    picture = Picture(
        tasks=tasks,
        keys={key: side.number(task_id) for key, task_id in rows["dedup"]},
        pools={name: of_row(*row) for name, *row in rows["queue"]},
        workers={UUID(row[0]): _worker(*row[1:]) for row in rows["worker"]},
        schedules={name: of_schedule_row(side, row) for name, *row in rows["schedule"]},
    )
    _check_copies(side, picture, rows)
    return picture


def _positions(rows: Mapping[str, list[Any]]) -> dict[int, Position]:
    """Return the position of each task; it must have one."""
    found: dict[int, Position] = {}
    for place in ("ready", "parked", "scheduled", "running", "finished"):
        for row in rows[place]:
            assert row[0] not in found, f"{row} is {place} and also {found[row[0]]}"
            found[row[0]] = _position(place, *row[1:])
    missing = [row for row in rows["task"] if row[0] not in found]
    assert not missing, f"tasks without a position: {missing}"
    return found


def _position(place: str, attempt: int, epoch: int, lost: int, *rest: Any) -> Position:
    here = Position(place=place, attempt=attempt, epoch=epoch, lost=lost)
    if place == "running":
        worker_id, started_at, requested, interrupts, started, suspect, *_ = rest
        return attrs.evolve(
            here,
            worker_id=UUID(worker_id),
            started_at=_instant(started_at),
            cancel_requested=requested,
            cancel_interrupts=interrupts,
            started=started,
            suspect=suspect,
        )
    if place == "finished":
        state, finished_at, expires_at, result, error_type, error_message = rest
        return attrs.evolve(
            here,
            place=state,
            finished_at=_instant(finished_at),
            expires_at=_instant(expires_at),
            result=result,
            error_type=error_type,
            error_message=error_message,
        )
    suspect = place != "scheduled" and rest[1]
    return attrs.evolve(here, due_at=_instant(rest[0]), suspect=suspect)


def _logs(rows: Iterable[Any]) -> dict[int, tuple[Entry, ...]]:
    logs: defaultdict[int, list[Entry]] = defaultdict(list)
    for task_id, _epoch, outcome, worker_id, started_at, finished_at, *rest in rows:
        entry = Entry(outcome, UUID(worker_id), _instant(started_at), _instant(finished_at), *rest)
        logs[task_id].append(entry)
    return {task_id: tuple(log) for task_id, log in logs.items()}


def _task(side: Side, row: Any, position: Position, log: tuple[Entry, ...]) -> Task:
    _, task_type, queue, priority, params, key, max_attempts, keep_for, dedup_key, *rest = row
    on_complete, context, completes, created_at, run_at = rest
    return Task(
        asked=Asked(
            task_type=task_type,
            queue=queue,
            priority=priority,
            params=side.params(params, completes),
            key=key,
            max_attempts=max_attempts,
            keep_for=keep_for,
            dedup_key=dedup_key,
            on_complete=on_complete,
            context=context,
            completes=None if completes is None else side.number(completes),
        ),
        created_at=_instant(created_at),
        run_at=_instant(run_at),
        position=position,
        log=log,
    )


def _worker(task_types: list[str], lease: float, heartbeat_at: str, draining: bool) -> Worker:
    return Worker(
        task_types=tuple(task_types),
        lease=lease,
        heartbeat_at=_instant(heartbeat_at),
        draining=draining,
    )


def _check_copies(side: Side, picture: Picture, rows: Mapping[str, list[Any]]) -> None:
    """See that what positions repeat of their tasks is right: claims go by it alone."""
    for task_id, *_, queue, priority, task_type, key in rows["ready"] + rows["parked"]:
        asked = picture.tasks[side.number(task_id)].asked
        assert (queue, priority, task_type) == (asked.queue, asked.priority, asked.task_type)
        assert key == (asked.key or "")
    for task_id, *_, pool, key in rows["running"]:
        asked = picture.tasks[side.number(task_id)].asked
        counted = asked.queue in picture.pools and picture.pools[asked.queue].counts
        assert pool == asked.queue if counted else pool in (None, asked.queue)
        assert key == (asked.key or "")


_instant = dt.datetime.fromisoformat

# -- of memory ---------------------------------------------------------------------------


def of_memory(side: Side) -> Picture:
    """Look at the tables in memory."""
    store = side.store
    assert isinstance(store, MemoryStore)
    tables = store._tables
    for task_id in sorted(tables.tasks):
        side.number(task_id)
    assert tables.places.keys() == tables.tasks.keys() >= tables.log.keys()
    tasks = {
        side.number(task_id): Task(
            asked=_asked(side, task.asked, task.completes),
            created_at=task.created_at,
            run_at=task.run_at,
            position=_place(tables.places[task_id]),
            log=tuple(
                Entry(
                    attempt.outcome.value,
                    attempt.worker_id,
                    attempt.started_at,
                    attempt.finished_at or attempt.started_at,
                    attempt.error_type,
                    attempt.error_message,
                    attempt.final,
                )
                for attempt in tables.log.get(task_id, ())
            ),
        )
        for task_id, task in tables.tasks.items()
    }
    return Picture(
        tasks=tasks,
        keys={key: side.number(task_id) for key, task_id in tables.dedup.items()},
        pools={name: of_setting(setting) for name, setting in tables.settings.items()},
        workers={
            worker_id: Worker(
                task_types=tuple(worker.info.task_types),
                lease=worker.info.lease,
                heartbeat_at=worker.heartbeat_at,
                draining=worker.draining,
            )
            for worker_id, worker in tables.workers.items()
        },
        schedules={name: of_schedule(side, row) for name, row in tables.schedules.items()},
    )


def _asked(side: Side, asked: NewTask, completes: int | None) -> Asked:
    assert asked.queue is not None  # as it is stored, not as it was asked for
    assert asked.priority is not None
    return Asked(
        task_type=asked.task_type,
        queue=asked.queue,
        priority=asked.priority,
        params=side.params(json.loads(asked.params), completes),
        key=asked.key,
        max_attempts=asked.max_attempts,
        keep_for=asked.keep_for,
        dedup_key=asked.dedup_key,
        on_complete=_value(asked.on_complete),
        context=_value(asked.context),
        completes=None if completes is None else side.number(completes),
    )


def _place(place: MemoryPosition) -> Position:
    return Position(
        place=place.state.value,
        attempt=place.attempt,
        epoch=place.epoch,
        lost=place.lost,
        due_at=place.ready_at if place.state is State.READY else place.due_at,
        worker_id=place.worker_id,
        started_at=place.started_at,
        cancel_requested=place.cancel_requested,
        cancel_interrupts=place.cancel_interrupts,
        started=place.started,
        suspect=place.suspect,
        finished_at=place.finished_at,
        expires_at=place.expires_at,
        result=_value(place.result),
        error_type=place.error_type,
        error_message=place.error_message,
    )


def _value(text: str | None) -> Any:
    return None if text is None else json.loads(text)
