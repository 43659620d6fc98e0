"""Workers, stores and clocks for the tests of the engine."""

from __future__ import annotations

import contextlib
import random

from collections.abc import AsyncGenerator

import trio

import nursery_queue as nq


class Longest(random.Random):
    """Draws the upper bound, so that jittered waits are known."""

    def uniform(self, a: float, b: float) -> float:
        return max(a, b)


@contextlib.asynccontextmanager
async def working(worker: nq.Worker) -> AsyncGenerator[None]:
    """Run a worker while the block lasts, then stop it and wait for its end."""
    async with trio.open_nursery() as nursery:
        await nursery.start(worker.run)
        yield
        worker.stop()


async def outcomes(client: nq.Client, task: nq.TaskRef) -> list[str]:
    """Return what became of each attempt, oldest first."""
    return [attempt.outcome.value for attempt in await client.attempts(task)]


async def state(client: nq.Client, task: nq.TaskRef) -> str:
    status = await client.status(task)
    assert status is not None
    return status.state.value


async def final(client: nq.Client, task: nq.TaskRef, *, within: float = 20.0) -> nq.TaskStatus:
    """Wait for the end of a task."""
    with trio.fail_after(within):
        return await client.wait(task)
