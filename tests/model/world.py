"""What all examples share."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import math

import attrs

from nursery_queue._memory._memory_store import MemoryStore
from nursery_queue._pg._postgres_store import PostgresStore
from nursery_queue.testing import VirtualTime
from tests.model.sides import Side, Sides
from tests.model.verbs import Verbs


CLEAR = """
with a as (delete from nursery_queue.task), b as (delete from nursery_queue.scheduled),
     c as (delete from nursery_queue.ready), d as (delete from nursery_queue.parked),
     e as (delete from nursery_queue.running), f as (delete from nursery_queue.finished),
     g as (delete from nursery_queue.attempt), h as (delete from nursery_queue.dedup),
     i as (delete from nursery_queue.queue), j as (delete from nursery_queue.worker),
     k as (delete from nursery_queue.rate), l as (delete from nursery_queue.turn),
     m as (delete from nursery_queue.schedule), n as (delete from nursery_queue.tick)
select
"""

ROUND = 16  # seconds: of all their intervals


@attrs.define(eq=False)
class World:
    """What examples share: a clock that goes on and on, and a database that is used again."""

    clock: VirtualTime
    postgres: PostgresStore
    compares: bool  # with a store in memory
    begun: int = 0

    @classmethod
    def on(cls, clock: VirtualTime, dsn: str, *, compares: bool) -> World:
        store = PostgresStore(dsn, pool_size=1)
        # One connection does for all, and its age in virtual time means nothing.
        store._pool = store._heartbeat = store._control
        store._pool.max_lifetime = store._pool.max_idle = store._pool.ping_after = math.inf
        return cls(clock, store, compares)

    async def begin(self) -> Verbs:
        """Start from nothing, at an instant that schedules see as they see every other such."""
        self.begun += 1
        self.clock.advance(ROUND - self.clock.now().timestamp() % ROUND)
        async with self.postgres._pool.connection() as connection:
            await connection.fetch(CLEAR)
        memory = Side(MemoryStore()) if self.compares else None
        sides = Sides(memory, Side(self.postgres))
        return Verbs(sides, self.clock)
