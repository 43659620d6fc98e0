"""Why a task is where it is, by the tables of a `MemoryStore`."""

from __future__ import annotations

import datetime as dt

from collections.abc import Iterator
from typing import Any

import attrs

from nursery_queue._core._gcra import may_start, opens_at
from nursery_queue._core._nearest import nearest
from nursery_queue._core._rate import Rate
from nursery_queue._core._reasons import Reason, ReasonCode, Unattended, Why, instant_text, unknown
from nursery_queue._core._states import State

from ._memory_rows import Lane, Position, Task
from ._tables import Tables


MOST_BEFORE = 10_000  # tasks counted that go before one
LOOK = 200  # ended tasks that tell the pace
HOLDERS = 5  # tasks named of those that hold a slot


@attrs.define(eq=False)
class Reasons:
    """What holds back the tasks of a store at one moment, in the words that SQL has for it."""

    tables: Tables
    now: dt.datetime
    _running: dict[Lane, list[int]] = attrs.field(factory=dict[Lane, "list[int]"], init=False)

    def __attrs_post_init__(self) -> None:
        for task_id, place in sorted(self.tables.places.items()):
            if place.state is State.RUNNING:
                task = self.tables.tasks[task_id]
                for key in {None, task.asked.key}:
                    self._running.setdefault((task.queue, key), []).append(task_id)

    def why(self, task_id: int) -> Why:
        """Return the state of a task, and all that keeps it there."""
        if (task := self.tables.tasks.get(task_id)) is None:
            return unknown(task_id)
        place = self.tables.places[task_id]
        if place.state.is_final:
            return Why(place.state, (_finished(place),))
        if place.state is State.RUNNING:
            return Why(place.state, (self._claimed(place),))
        reasons = list(self._waits(task, place))
        if place.due_at is None or place.due_at <= self.now:
            turn = self._turn(task)
            if not reasons or turn.details["ahead"] or turn.details["better"]:
                reasons.append(turn)
        return Why(place.state, tuple(reasons))

    def unattended(self, most: int) -> Unattended:
        """Name what has ready tasks that no worker takes, up to *most* of each kind."""
        alive = [each for each in self.tables.workers.values() if each.alive(self.now)]
        takers = [each.info for each in alive if not each.draining]
        if not takers:
            return Unattended()
        tables = self.tables
        ready = [tables.tasks[i] for i, p in tables.places.items() if p.state is State.READY]
        types = {task.asked.task_type for task in ready}
        types -= {name for each in takers for name in each.task_types}
        queues = {task.queue for task in ready}
        for each in takers:
            queues -= queues if each.queues is None else set(each.queues)
        return Unattended(
            queues=tuple(sorted(queues)[:most]), task_types=tuple(sorted(types)[:most])
        )

    def _waits(self, task: Task, place: Position) -> Iterator[Reason]:
        if place.due_at is not None and place.due_at > self.now:
            text = f"it is due at {instant_text(place.due_at)}"
            yield Reason(ReasonCode.DUE_LATER, text, {"at": place.due_at})
        yield from self._workers(task)
        yield from self._limits(task)
        setting, key = self.tables.setting(task.queue), task.asked.key
        if setting.rate is not None:
            yield from self._rate(task.queue, None, setting.rate)
        if setting.rate_per_key is not None and key is not None:
            yield from self._rate(task.queue, key, setting.rate_per_key)

    def _workers(self, task: Task) -> Iterator[Reason]:
        queue, name = task.queue, task.asked.task_type
        alive = [each for each in self.tables.workers.values() if each.alive(self.now)]
        takers = [each.info for each in alive if not each.draining]
        if not takers:
            text = "no worker takes tasks: those alive are shutting down"
            text = text if alive else "no worker is alive"
            yield Reason(ReasonCode.NO_WORKERS, text, {"draining": len(alive)})
            return
        serve = [each for each in takers if each.queues is None or queue in each.queues]
        knows = any(name in each.task_types for each in takers)
        count = f"none of the workers alive ({len(takers)})"
        if not knows:
            like = nearest(name, {known for each in takers for known in each.task_types})
            text = f"{count} knows task type {name}"
            text += "" if like is None else f"; the nearest name that one knows is {like}"
            details: dict[str, Any] = {"task_type": name, "workers": len(takers), "nearest": like}
            yield Reason(ReasonCode.UNKNOWN_TYPE, text, details)
        if not serve or (knows and not any(name in each.task_types for each in serve)):
            of_those = f"that know task type {name} " if serve else ""
            text = f"{count} {of_those}serves queue {queue}"
            details = {"queue": queue, "task_type": name, "workers": len(takers)}
            yield Reason(ReasonCode.QUEUE_NOT_SERVED, text, details)

    def _limits(self, task: Task) -> Iterator[Reason]:
        queue, key, setting = task.queue, task.asked.key, self.tables.setting(task.queue)
        if setting.paused:
            text = f"queue {queue} is paused"
            yield Reason(ReasonCode.QUEUE_PAUSED, text, {"queue": queue})
        most, running = setting.max_running, self._running.get((queue, None), [])
        if most is not None and len(running) >= most:
            text = f"{len(running)} tasks of queue {queue} run, and at most {most} may"
            details = {"queue": queue, **self._held(running, most)}
            yield Reason(ReasonCode.QUEUE_LIMIT, text, details)
        most, running = setting.max_running_per_key, self._running.get((queue, key), [])
        if key is not None and most is not None and len(running) >= most:
            text = f"{len(running)} tasks with key {key} in queue {queue} run"
            text += f", and at most {most} of a key may"
            details = {"queue": queue, "key": key, **self._held(running, most)}
            yield Reason(ReasonCode.KEY_LIMIT, text, details)

    def _held(self, running: list[int], most: int) -> dict[str, Any]:
        places = self.tables.places
        holders = [
            {"task_id": each, "worker": self.tables.name_of(places[each])}
            for each in running[:HOLDERS]
        ]
        return {"running": len(running), "max": most, "held_by": holders}

    def _rate(self, queue: str, key: str | None, rate: Rate) -> Iterator[Reason]:
        next_at = self.tables.next_at.get((queue, key))
        if next_at is None or may_start(rate, next_at, self.now):
            return
        until, of = opens_at(rate, next_at, self.now), "" if key is None else f"key {key} in "
        per = repr(rate.per).removesuffix(".0")
        text = f"the rate of {of}queue {queue}, {rate.count} in {per} s, lets none start before"
        details = {"queue": queue, "key": key, "until": until, **attrs.asdict(rate)}
        yield Reason(ReasonCode.RATE_LIMITED, f"{text} {instant_text(until)}", details)

    def _turn(self, task: Task) -> Reason:
        tables, ahead, better, head = self.tables, 0, 0, task.id
        for other_id, place in tables.places.items():
            other = tables.tasks[other_id]
            if place.state is not State.READY or other.queue != task.queue:
                continue
            if other.asked.task_type != task.asked.task_type:
                continue
            better += other.priority > task.priority
            if (other.priority, other.asked.key) == (task.priority, task.asked.key):
                ahead += other.id < task.id
                head = min(head, other.id)
        ahead, better = min(ahead, MOST_BEFORE), min(better, MOST_BEFORE)
        if not ahead and not better:
            text = "it is next: it starts as soon as a worker has a slot free"
            return Reason(ReasonCode.BEHIND, text, {"ahead": 0, "better": 0, "pace": None})
        counts = [f"{n} or more" if n == MOST_BEFORE else str(n) for n in (ahead, better)]
        pace = max(self._pace(task.queue, head), self._pace(task.queue, None))
        text = f"before it go {counts[0]} tasks of its queue, type, priority and key, and"
        text += f" {counts[1]} of a better priority"
        text += f"; its queue has ended {_number(pace)} tasks a second lately"
        return Reason(ReasonCode.BEHIND, text, {"ahead": ahead, "better": better, "pace": pace})

    def _pace(self, queue: str, head: int | None) -> float:
        """Return how many tasks of a queue have ended a second, in the last minute.

        As told by the `LOOK` with the highest ids below *head* that have ended (None: of all).
        """
        tables = self.tables
        ended = {
            task_id: (self.now - place.finished_at).total_seconds()
            for task_id, place in tables.places.items()
            if place.finished_at is not None and (head is None or task_id < head)
        }
        looked = sorted(ended, reverse=True)[:LOOK]
        ages = [ended[task_id] for task_id in looked if tables.tasks[task_id].queue == queue]
        span = 60.0 if len(looked) < LOOK else min(60.0, max(ages, default=60.0))
        return round(sum(age < 60 for age in ages) / max(1.0, span), 2)

    def _claimed(self, place: Position) -> Reason:
        worker = self.tables.workers.get(place.worker_id) if place.worker_id else None
        code = ReasonCode.RUNNING if place.started else ReasonCode.HELD_AHEAD
        assert place.started_at is not None
        who, left = "a worker that is not registered any more", None
        if worker is not None:
            who = f"worker {worker.info.name} (host {worker.info.host}, pid {worker.info.pid})"
            age = (self.now - worker.heartbeat_at).total_seconds()
            left = round(worker.info.lease - age, 3)
        text = "it runs on" if place.started else "it is claimed, not known to have started, by"
        text += f" {who} since {instant_text(place.started_at)}"
        if left is not None and left < 0:
            text += "; the lease of that worker has run out"
        if place.cancel_requested:
            text += "; it is to be cancelled"
        details = {
            "worker": worker and worker.info.name,
            "worker_id": str(place.worker_id),
            "host": worker and worker.info.host,
            "pid": worker and worker.info.pid,
            "since": place.started_at,
            "lease_left": left,
            "cancel_requested": place.cancel_requested,
        }
        return Reason(code, text, details)


def _finished(place: Position) -> Reason:
    assert place.finished_at is not None
    was = "was " if place.state is State.CANCELLED else ""
    text = f"it {was}{place.state} at {instant_text(place.finished_at)}"
    error = None if place.error_type is None else f"{place.error_type}: {place.error_message}"
    details = {"how": str(place.state), "at": place.finished_at, "error": error}
    return Reason(ReasonCode.FINISHED, text, details)


def _number(value: float) -> str:
    """Write a number as SQL does: 3, not 3.0."""
    return repr(value).removesuffix(".0")
