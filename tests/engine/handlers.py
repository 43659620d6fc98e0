"""Handlers that react to being cancelled in every way there is."""

from __future__ import annotations

import asyncio
import threading

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import attrs
import trio

import nursery_queue as nq


@attrs.frozen(kw_only=True)
class Kind:
    """How a kind of handler ends once it is cancelled: it returns, or raises (None: Cancelled)."""

    returns: bool = False
    error: str | None = None
    cleans_up: bool = True  # it lives long enough to see the reason


KINDS = {
    "awaits": Kind(),
    "shields": Kind(),
    "ignores": Kind(returns=True),
    "ignores_and_raises": Kind(error="in the end"),
    "swallows": Kind(returns=True),
    "raises": Kind(error="in the clean-up"),
    "raises_a_group": Kind(error="in the clean-up"),
    "nursery": Kind(),
    "transactional": Kind(),
    "transactional_returns": Kind(returns=True),
    "thread": Kind(cleans_up=False),
    "asyncio": Kind(),
    "asyncio_returns": Kind(returns=True),
    "asyncio_raises_a_group": Kind(error="in the clean-up"),
}


@attrs.define(eq=False)
class Handlers:
    """One task type of each kind. A task that runs for the second time just returns."""

    started: list[int] = attrs.field(factory=list[int])
    seen: dict[int, list[str]] = attrs.field(factory=dict[int, "list[str]"])
    go: threading.Event = attrs.field(factory=threading.Event)  # ends the threads
    _all: trio.Event = attrs.field(factory=trio.Event)
    _wanted: int = 0

    async def all_started(self, number: int) -> None:
        """Wait until so many have been called."""
        self._wanted = number
        if len(self.started) < number:
            await self._all.wait()

    def declare(self, app: nq.App) -> None:
        """Declare them all."""
        options: dict[str, Any] = {"retry": nq.RetryPolicy(initial=1000, maximum=1000)}
        for kind in KINDS:
            handler: Callable[..., Any] = getattr(self, f"_{kind}")
            app.task(
                name=kind,
                nursery=kind == "nursery",
                transactional=kind.startswith("transactional"),
                asyncio=kind.startswith("asyncio"),
                **options,
            )(handler)

    def _begin(self, ctx: nq.TaskContext) -> bool:
        if ctx.fence.epoch > 1:
            return False
        self.started.append(ctx.task_id)
        if len(self.started) == self._wanted:
            self._all.set()
        return True

    @contextmanager
    def _clean_up(self, ctx: nq.TaskContext) -> Generator[None]:
        try:
            yield
        finally:
            self.see(ctx)

    def see(self, ctx: nq.TaskContext) -> None:
        self.seen.setdefault(ctx.task_id, []).append(str(ctx.cancel_reason))

    # -- what they do ------------------------------------------------------------------

    async def _awaits(self, ctx: nq.TaskContext) -> None:
        if self._begin(ctx):
            with self._clean_up(ctx):
                await trio.sleep_forever()

    async def _shields(self, ctx: nq.TaskContext) -> None:
        try:
            await self._awaits(ctx)
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(3)
            if ctx.fence.epoch == 1:
                self.see(ctx)

    async def _ignores(self, ctx: nq.TaskContext) -> str:
        if self._begin(ctx):
            for _ in range(3):
                with trio.CancelScope(shield=True):
                    await trio.sleep(1)
            self.see(ctx)
        return "done"

    async def _ignores_and_raises(self, ctx: nq.TaskContext) -> None:
        if ctx.fence.epoch == 1:
            await self._ignores(ctx)
            raise ValueError("in the end")

    async def _swallows(self, ctx: nq.TaskContext) -> str:
        try:
            await self._awaits(ctx)
        except trio.Cancelled:
            return "done"
        return "again"

    async def _raises(self, ctx: nq.TaskContext) -> None:
        try:
            await self._awaits(ctx)
        except trio.Cancelled:
            raise ValueError("in the clean-up") from None

    async def _raises_a_group(self, ctx: nq.TaskContext) -> None:
        async with trio.open_nursery() as nursery:
            if ctx.fence.epoch == 1:
                nursery.start_soon(trio.sleep_forever)
            await self._raises(ctx)

    async def _nursery(self, ctx: nq.TaskContext) -> str:
        ctx.nursery.start_soon(self._shields, ctx)
        return "its children go on"

    async def _transactional(self, ctx: nq.TaskContext) -> None:
        await ctx.tx.enqueue("child", parent=ctx.task_id)
        await self._awaits(ctx)

    async def _transactional_returns(self, ctx: nq.TaskContext) -> str:
        await ctx.tx.enqueue("child", parent=ctx.task_id)
        return await self._swallows(ctx)

    def _thread(self, ctx: nq.TaskContext) -> str:
        if trio.from_thread.run_sync(self._begin, ctx):
            self.go.wait(30)
        return "nobody hears it, the first time"

    async def _asyncio(self, ctx: nq.TaskContext) -> None:
        if self._begin(ctx):
            with self._clean_up(ctx):
                await asyncio.sleep(1000)

    async def _asyncio_returns(self, ctx: nq.TaskContext) -> str:
        try:
            await self._asyncio(ctx)
        except asyncio.CancelledError:
            return "done"
        return "again"

    async def _asyncio_raises_a_group(self, ctx: nq.TaskContext) -> None:
        try:
            await self._asyncio(ctx)
        except asyncio.CancelledError as exc:
            errors = [exc, ValueError("in the clean-up")]
            raise BaseExceptionGroup("both", errors) from None
