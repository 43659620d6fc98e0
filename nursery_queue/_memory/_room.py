"""How many tasks of a queue may start, by its pause, its limits and its rates."""

from __future__ import annotations

import datetime as dt

from collections import Counter
from collections.abc import Iterable
from typing import Self

import attrs

from nursery_queue._core._gcra import after_starts, may_start, opens_at
from nursery_queue._core._rate import Rate

from ._memory_rows import Lane, Task
from ._tables import Tables


FAR = 4  # times as many as a claim may take have to be free for a limit to be far


@attrs.define(eq=False)
class Room:
    """How many more tasks of a queue may start: of all, and of each key that has a limit."""

    left: int = 0
    keys: dict[str, int] = attrs.field(factory=dict[str, int])

    def fits(self, task: Task) -> bool:
        """Whether a task of the queue may start."""
        key = task.asked.key
        return self.left > 0 and (key is None or self.keys.get(key, 1) > 0)

    def take(self, task: Task) -> None:
        """Note that a task of the queue starts."""
        self.left -= 1
        if task.asked.key in self.keys:
            self.keys[task.asked.key] -= 1

    def copy(self) -> Self:
        return attrs.evolve(self, keys=dict(self.keys))


@attrs.frozen
class Behind:
    """What is held back of a queue."""

    for_room: bool = False  # no rate is what keeps some of it: a limit is, or want of slots
    opens_at: dt.datetime | None = None  # when a rate lets something of it start


@attrs.define(eq=False)
class Flow:
    """The limits and rates of all queues at one moment, and what runs."""

    tables: Tables
    now: dt.datetime
    running: Counter[Lane]  # tasks; with the key None also those of the queue as a whole

    @classmethod
    def of(cls, tables: Tables, now: dt.datetime, running: Iterable[Task]) -> Self:
        flow = cls(tables, now, Counter())
        flow.add(running)
        return flow

    def add(self, tasks: Iterable[Task]) -> None:
        """Count tasks as running."""
        for task in tasks:
            self.running[task.queue, None] += 1
            if task.asked.key is not None:
                self.running[task.queue, task.asked.key] += 1

    def exceeded(self, queue: str) -> bool:
        """Whether more tasks of a queue run than may, of all or of a key."""
        setting = self.tables.setting(queue)
        most, most_of_key = setting.max_running, setting.max_running_per_key
        return (most is not None and self.running[queue, None] > most) or (
            most_of_key is not None
            and any(
                count > most_of_key
                for (each, key), count in self.running.items()
                if each == queue and key is not None
            )
        )

    def room(
        self,
        queue: str,
        keys: Iterable[str | None],
        slots: int,
        *,
        limit: int,
        soon: int | None,
        at_once: int | None,
    ) -> Room:
        """Return how many tasks of a queue, with these *keys*, may be taken into that many slots.

        Of a queue that is limited in some way no more than *soon* (None: any number), unless it is
        by the number that runs and the *limit* of the claim is far from that. With a rate no more
        than *at_once*: the claim is the start.
        """
        setting, left = self.tables.setting(queue), slots
        if setting.paused:
            return Room()
        far = True
        if setting.max_running is not None:
            free = max(0, setting.max_running - self.running[queue, None])
            far = free > FAR * limit
            left = min(left, free)
        if setting.rate is not None:
            next_at = self.tables.next_at.get((queue, None))
            left = min(left, may_start(setting.rate, next_at, self.now))
        if soon is not None and not (far and setting.rate is None and not setting.limits_keys):
            left = min(left, soon)
        if at_once is not None and (setting.rate or setting.rate_per_key) is not None:
            left = min(left, at_once)
        if not setting.limits_keys:
            return Room(left)
        return Room(left, {key: self._room_of(queue, key) for key in keys if key is not None})

    def _room_of(self, queue: str, key: str) -> int:
        setting, left = self.tables.setting(queue), list[int]()
        if setting.max_running_per_key is not None:
            left.append(max(0, setting.max_running_per_key - self.running[queue, key]))
        if setting.rate_per_key is not None:
            next_at = self.tables.next_at.get((queue, key))
            left.append(may_start(setting.rate_per_key, next_at, self.now))
        return min(left)

    def start(self, tasks: Iterable[Task]) -> None:
        """Count tasks as running, and their starts against the rates."""
        started = Flow(self.tables, self.now, Counter())
        started.add(tasks)
        self.running += started.running
        next_at = self.tables.next_at
        for (queue, key), count in started.running.items():
            setting, lane = self.tables.setting(queue), (queue, key)
            rate = setting.rate if key is None else setting.rate_per_key
            if rate is not None:
                next_at[lane] = after_starts(rate, next_at.get(lane), self.now, count)

    def behind(self, queue: str, keys: Iterable[str | None]) -> Behind:
        """Return what is held back of a queue, of which tasks with these *keys* wait."""
        setting = self.tables.setting(queue)
        if not setting.open or not setting.limited:
            return Behind()
        instants = [self._opens_at(queue, key) for key in keys]
        later = [instant for instant in instants if instant > self.now]
        return Behind(len(later) < len(instants), min(later, default=None))

    def _opens_at(self, queue: str, key: str | None) -> dt.datetime:
        """Return from when on both rates let a task start."""
        setting = self.tables.setting(queue)
        rates: dict[str | None, Rate | None] = {None: setting.rate}
        if key is not None:
            rates[key] = setting.rate_per_key
        return max(
            (
                opens_at(rate, self.tables.next_at[queue, of], self.now)
                for of, rate in rates.items()
                if rate is not None and (queue, of) in self.tables.next_at
            ),
            default=self.now,
        )


def keys_of(tasks: Iterable[Task]) -> set[str | None]:
    return {task.asked.key for task in tasks}
