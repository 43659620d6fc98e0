"""nursery_queue: the process of `nursery-queue bench`, with what is measured only beside others."""

from __future__ import annotations

import time

from collections.abc import Mapping
from typing import Any

import trio

import nursery_queue as nq

from nursery_queue.cli._measuring import _child
from nursery_queue.cli._measuring._bench_tasks import app, insert, nothing, started


@app.task(name="pause")
async def pause(i: int, seconds: float) -> None:
    """Wait, as if for an answer from elsewhere."""
    started[i] = time.monotonic_ns()
    await trio.sleep(seconds)


def task(job: Mapping[str, Any], i: int) -> nq.TaskRequest:
    """Return what a task of this measurement does."""
    if job["sleep"]:
        return pause.bind(i, job["sleep"])
    return insert.bind(i, "effect") if job.get("transactional") else nothing.bind(i)


async def enqueue(parent: _child.Parent, client: nq.Client) -> None:
    """Enqueue in one way, as fast as it goes: one by one for so long, or so many together."""
    job, tasks = parent.job, 0
    for i in range(-job["warm_up"], 0):
        await client.enqueue(nothing, i)
    cpu = await parent.ready()
    begun = time.monotonic_ns()
    if job["way"] == "one":
        while time.monotonic_ns() - begun < job["seconds"] * 1e9:
            await client.enqueue(nothing, tasks)
            tasks += 1
    else:
        tasks = job["tasks"]
        await client.enqueue_many([task(job, i) for i in range(tasks)], copy=job["way"] == "copy")
    await parent.finish(cpu, begun=begun, ended=time.monotonic_ns(), tasks=tasks)


if __name__ == "__main__":
    trio.run(_child.main, {**_child.ROLES, "enqueue": enqueue})
