"""The application whose workers are frozen. Handlers say on stdout what happens to them."""

from __future__ import annotations

import contextlib
import os
import time

from collections.abc import Generator
from pathlib import Path

import trio

import nursery_queue as nq

from tests.processes.gates import until_there


app = nq.App()


def say(ctx: nq.TaskContext, what: str) -> None:
    os.write(1, f"{ctx.task_type} {ctx.worker_id} {what}\n".encode())


@contextlib.contextmanager
def telling(ctx: nq.TaskContext) -> Generator[None]:
    say(ctx, "begins")
    try:
        yield
    finally:
        say(ctx, f"ends: {ctx.cancel_reason}")


@app.task(name="hold")
async def hold(ctx: nq.TaskContext, path: str) -> int:
    """Wait for a file."""
    with telling(ctx):
        await until_there(path)
    return os.getpid()


@app.task(name="nap")
async def nap(ctx: nq.TaskContext, seconds: float) -> int:
    """Sleep, and be through without another look at anything."""
    with telling(ctx):
        await trio.sleep(seconds)
    return os.getpid()


@app.task(name="stubborn")
async def stubborn(ctx: nq.TaskContext, path: str) -> int:
    """Wait for a file; cancelled, make the best of it and return all the same."""
    with telling(ctx), contextlib.suppress(trio.Cancelled):
        await until_there(path)
    return os.getpid()


@app.task(name="thread")
def thread(ctx: nq.TaskContext, path: str) -> int:
    """Wait for a file, in a thread."""
    say(ctx, "begins")
    while not Path(path).exists():
        time.sleep(0.02)
    return os.getpid()


@app.task(name="book", transactional=True)
async def book(ctx: nq.TaskContext, path: str) -> int:
    """Write a row, and wait for a file in the same transaction."""
    with telling(ctx):
        await ctx.tx.execute("insert into booked values (%s)", [ctx.worker_id])
        await until_there(path)
    return os.getpid()


@app.task(name="quick")
async def quick() -> int:
    """Say who runs it."""
    return os.getpid()
