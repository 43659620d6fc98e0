"""Hearing what a store rings for."""

from __future__ import annotations

import contextlib

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

import attrs
import trio

from nursery_queue._store import Bell, Store


PATIENCE = 20.0  # seconds

Step = Callable[[], Awaitable[object]]


@attrs.define(eq=False)
class Ear:
    """Counts rings."""

    heard: dict[Bell, int] = attrs.field(factory=dict[Bell, int])
    hints: list[int | None] = attrs.field(factory=list["int | None"])  # of streams
    _news: trio.Event = attrs.field(factory=trio.Event)

    def ring(self, bell: Bell, task_id: int | None = None) -> None:
        if bell is Bell.STREAM:
            self.hints.append(task_id)
        self.heard[bell] = self.heard.get(bell, 0) + 1
        self._news.set()
        self._news = trio.Event()

    async def hears(self, bell: Bell, *, after: int) -> None:
        with trio.fail_after(PATIENCE):
            while self.heard.get(bell, 0) <= after:
                await self._news.wait()


@contextlib.asynccontextmanager
async def listening(store: Store, bells: Sequence[Bell] = tuple(Bell)) -> AsyncGenerator[Ear]:
    async with trio.open_nursery() as nursery:
        ear = Ear()
        with trio.fail_after(PATIENCE):
            await nursery.start(store.listen, ear.ring, bells)
        yield ear
        nursery.cancel_scope.cancel()
