"""One round: empty tables at first, and what the database says of them in the end."""

from __future__ import annotations

import time

from collections.abc import Callable, Sequence
from typing import Any, Final

import attrs
import trio

from nursery_queue._connect._scratch import Scratch

from ._children import BenchFailed, Child
from ._server_cpu import ServerCpu


Progress = Callable[[str, int, int], object]  # what, how many are done, and of how many

STALL = 30.0  # seconds without any progress after which there are no figures
LOOK_EVERY = 0.005  # seconds
LEFT: Final = """
    select exists (select from nursery_queue.ready) or exists (select from nursery_queue.running)
        or exists (select from nursery_queue.scheduled)
"""
LOGGED: Final = """
    select count(*), count(distinct task_id), count(*) filter (where outcome = 'succeeded'),
           (select count(*) from nursery_queue.task)
      from nursery_queue.attempt
"""


@attrs.frozen(kw_only=True)
class Plan:
    """What the user has asked for."""

    tasks: int  # or chunks of a stream
    concurrency: int = 32
    processes: int = 1  # workers
    gap: float = 0.0  # seconds from one task to the next, of those that come one by one


@attrs.frozen(eq=False)
class Round:
    """A place with empty tables, and the way to look at it."""

    place: Scratch
    plan: Plan
    progress: Progress
    server: ServerCpu | None  # None: not on this machine
    left: str = LEFT  # asks whether there is anything left to do

    def server_cpu(self) -> float | None:
        """Return the seconds that the server has used; None: it is not on this machine."""
        return None if self.server is None else self.server.seconds()

    async def count(self, table: str) -> int:
        """Return how many rows there are."""
        ((found,),) = await self.place.ask(f"select count(*) from {table}")  # noqa: S608  # ours
        return int(found)

    async def vacuum(self) -> None:
        """Tidy up after the rows that were stored, so that this is not measured."""
        for table in ("task", "ready"):
            await self.place.ask(f"vacuum (analyze) nursery_queue.{table}")

    async def all_started(
        self, what: str, workers: Sequence[Child], tasks: int, before: int = 0
    ) -> None:
        """Wait until so many tasks have started. Raises `BenchFailed` if that goes on no more.

        *before*: how many others, which do not count, have to start before them.
        """
        started = [0] * len(workers)

        def counted() -> int:
            return min(tasks, max(0, sum(started) - before))

        async def follow(number: int, worker: Child) -> None:
            while counted() < tasks:
                started[number] = await worker.hear("done")
                scope.deadline = trio.current_time() + STALL
                self.progress(what, counted(), tasks)
            scope.cancel("all have started")

        with trio.move_on_after(STALL) as scope:
            async with trio.open_nursery() as nursery:
                for number, worker in enumerate(workers):
                    nursery.start_soon(follow, number, worker)
        if counted() < tasks:
            said = [worker.last_words for worker in workers if worker.last_words]
            raise BenchFailed(
                f"{counted()} of {tasks} tasks have started, and none for {STALL:g} s"
                + (f"; the last that a worker has to say: {said[-1]}" if said else "")
            )

    async def nothing_left(self) -> int:
        """Wait until the database says that all is done; return when, in nanoseconds."""
        with trio.move_on_after(STALL):
            while await self.place.ask(self.left) != [(False,)]:  # noqa: ASYNC110  # no event tells
                await trio.sleep(LOOK_EVERY)
            return time.monotonic_ns()
        raise BenchFailed(f"not all tasks were completed within {STALL:g} s from their start")

    async def verify(self, tasks: int) -> None:
        """Ask the database whether each task has run, once. Raises `BenchFailed`."""
        ((logged, of, succeeded, stored),) = await self.place.ask(LOGGED)
        found: tuple[Any, ...] = (logged, of, succeeded, stored)
        left = await self.place.ask(self.left)
        if found != (tasks,) * 4 or left != [(False,)]:
            raise BenchFailed(
                f"of {tasks} tasks, the database has {stored}; the log has {logged} attempts of"
                f" {of} tasks, of which {succeeded} succeeded;"
                f" {'some are' if left == [(True,)] else 'none is'} ready, scheduled or running."
                " There are no figures"
            )
