"""The application of the kill drill. Every execution leaves a trace that no rollback takes away.

Its workers append to the file that DRILL_TRACE names; a line is there as soon as it is written,
whatever then happens to the process and to the database.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time

from collections.abc import Generator

import trio

import nursery_queue as nq

from tests.processes.gates import until_there


class OnPurposeError(Exception):
    """This attempt was meant to fail."""


ON_PURPOSE = f"{__name__}.{OnPurposeError.__qualname__}"

app = nq.App()
# Attempts that fail because the database is away count; there is to be no end of them.
RETRY = nq.RetryPolicy(max_attempts=50, initial=0.1, maximum=1)


@functools.cache
def trace() -> int:
    return os.open(os.environ["DRILL_TRACE"], os.O_WRONLY | os.O_APPEND)


@contextlib.contextmanager
def traced(ctx: nq.TaskContext) -> Generator[None]:
    note("+", ctx)
    try:
        yield
    finally:
        note("-", ctx)


def note(what: str, ctx: nq.TaskContext) -> None:
    where = f"{ctx.task_id} {ctx.fence.epoch} {ctx.worker_id} {os.getpid()}"
    os.write(trace(), f"{what} {where} {time.monotonic()}\n".encode())


async def book(ctx: nq.TaskContext) -> None:
    row = [ctx.task_id, ctx.fence.epoch]
    await ctx.tx.execute("insert into booked (task_id, epoch) values (%s, %s)", row)
    note("written", ctx)


@app.task(name="quick", retry=RETRY)
async def quick(ctx: nq.TaskContext) -> None:
    with traced(ctx):
        pass


@app.task(name="slow", retry=RETRY)
async def slow(ctx: nq.TaskContext, seconds: float) -> None:
    with traced(ctx):
        await trio.sleep(seconds)


@app.task(name="in_thread", retry=RETRY)
def in_thread(ctx: nq.TaskContext, seconds: float) -> None:
    with traced(ctx):
        time.sleep(seconds)


@app.task(name="booked", transactional=True, retry=RETRY)
async def booked(ctx: nq.TaskContext, seconds: float) -> None:
    with traced(ctx):
        await book(ctx)
        await trio.sleep(seconds)


@app.task(name="third_time_lucky", retry=RETRY)
async def third_time_lucky(ctx: nq.TaskContext, seconds: float) -> None:
    with traced(ctx):
        await trio.sleep(seconds)
        if ctx.attempt < 3:
            raise OnPurposeError


@app.task(name="gate")
async def gate(ctx: nq.TaskContext, path: str) -> None:
    with traced(ctx):
        await until_there(path)


@app.task(name="booked_gate", transactional=True)
async def booked_gate(ctx: nq.TaskContext, path: str) -> None:
    with traced(ctx):
        await book(ctx)
        await until_there(path)
