"""What type checkers must see of callbacks. Never executed; a wanted error is marked as one."""

from __future__ import annotations

import trio

import nursery_queue as nq


async def post(text: str, times: int = 1) -> None: ...


def note(text: str) -> int:
    return len(text)


async def right(client: nq.Client, ctx: nq.TaskContext, event: trio.Event) -> None:
    async with (
        nq.AfterCommit() as after,
        client.transaction(after=after) as tx,
        ctx.transaction(after=after),
    ):
        tx.after(post, "a")
        tx.after(post, "a", 2)
        tx.after(note, "a")
        tx.after(event.set)
        tx.after(trio.to_thread.run_sync, note, "a")
        ctx.after(post, "a")
        ctx.tx.after(note, "a")


def wrong(tx: nq.Transaction, ctx: nq.TaskContext) -> None:
    tx.after(post)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # no text
    tx.after(note, 5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # no str
    ctx.after(note("a"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # called
    nq.AfterCommit(10)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # keyword
