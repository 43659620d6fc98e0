"""The tasks that are run, and what is noted of them in the worker's process."""

from __future__ import annotations

import time

from typing import Final

from nursery_queue._client._context import TaskContext
from nursery_queue._declare._app import App


app: Final = App()
# When each task started, by its number, in nanoseconds of the clock that all processes share.
started: Final[dict[int, int]] = {}
PADDING: Final = "x" * 40  # a token, a line, a step: chunks are small


@app.task(name="nothing")
async def nothing(i: int) -> None:
    """Do nothing."""
    started[i] = time.monotonic_ns()


@app.task(name="insert", transactional=True)
async def insert(ctx: TaskContext, i: int, table: str) -> None:
    """Store a row in the transaction of this task's own success."""
    started[i] = time.monotonic_ns()
    await ctx.tx.execute(f"insert into {table} values (%s)".encode(), [i])  # noqa: S608  # our own


@app.task(name="write")
async def write(ctx: TaskContext, chunks: int) -> dict[str, int]:
    """Write one chunk after the other; return when that began and ended."""
    stream = ctx.stream()
    begun = time.monotonic_ns()
    for i in range(chunks):
        await stream.write(f"{i} {PADDING}")
    return {"begun": begun, "ended": time.monotonic_ns()}
