"""Steps of the tests of limits, rates and fairness."""

from __future__ import annotations

import datetime as dt
import random

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import attrs

from nursery_queue._core._filters import TaskFilter
from nursery_queue._core._model import Claim, Claimed
from nursery_queue._core._rate import Rate
from nursery_queue._core._states import Event, State
from nursery_queue._store import Store
from nursery_queue.testing import VirtualTime
from tests.support.store_steps import TYPE, a_task, ends


TWO_TYPES = (TYPE, "other")


async def take(store: Store, worker: UUID, limit: int = 100, **how: Any) -> Claimed:
    """Claim, and return all of the answer."""
    return await store.claim(worker, TWO_TYPES, limit=limit, **how)


async def add_keyed(store: Store, keys: Sequence[str | None], **changes: Any) -> dict[int, str]:
    """Store a task with each of these keys, in this order; return the keys by id, '' for none."""
    refs = await store.enqueue([a_task(key=key, **changes) for key in keys], copy=True)
    return {ref.id: key or "" for ref, key in zip(refs, keys, strict=True)}


async def running(store: Store) -> Counter[tuple[str, str | None]]:
    """Count the tasks that run, by queue and key."""
    found = await store.list_tasks(TaskFilter(state=State.RUNNING, limit=100_000))
    return Counter((task.queue, task.key) for task in found)


def most_in_a_window(instants: Sequence[dt.datetime], seconds: float) -> int:
    """Return the most instants in any half-open window: it may as well begin at one of them."""
    ordered, most, first = sorted(instants), 0, 0
    for last, instant in enumerate(ordered):
        while instant - ordered[first] >= dt.timedelta(seconds=seconds):
            first += 1
        most = max(most, last - first + 1)
    return most


@attrs.define(eq=False)
class Crew:
    """Workers that claim and settle in any order, and what they have started."""

    store: Store
    clock: VirtualTime
    workers: Sequence[UUID]
    rng: random.Random
    keys: Mapping[int, str] = attrs.field(factory=dict[int, str])  # by task
    held: list[Claim] = attrs.field(factory=list[Claim], init=False)
    starts: list[tuple[dt.datetime, str]] = attrs.field(
        factory=list["tuple[dt.datetime, str]"], init=False
    )

    async def claim(self, limit: int = 100) -> Claimed:
        claimed = await take(self.store, self.rng.choice(self.workers), limit)
        self.held += claimed.claims
        now = self.clock.now()
        self.starts += [(now, self.keys.get(one.fence.task_id, "")) for one in claimed.claims]
        return claimed

    async def settle(self, *events: Event) -> None:
        """Settle all that is held, each in one of these ways."""
        await self.store.settle(
            [ends(one, self.rng.choice(events), delay=1.0) for one in self.held]
        )
        self.held.clear()

    def started(self, key: str | None = None) -> list[dt.datetime]:
        """Return when tasks of a key have started (None: of all)."""
        return [instant for instant, of in self.starts if key in (None, of)]

    def check(self, rate: Rate, key: str | None = None, *, since: int = 0) -> None:
        """See that no window had more starts than a rate allows, without the first *since*."""
        most = most_in_a_window(self.started(key)[since:], rate.per)
        assert most <= rate.count + rate.burst
