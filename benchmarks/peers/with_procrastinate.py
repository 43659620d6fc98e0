"""procrastinate, on psycopg."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging

from collections.abc import AsyncGenerator
from typing import Any

import procrastinate  # type: ignore[import-not-found]  # it is in the peers' environment

from benchmarks.peers import adapter


MANY = 5_000  # tasks of one insert


@dataclasses.dataclass(frozen=True)
class Procrastinate:
    """procrastinate on one database."""

    app: Any
    options: dict[str, Any]

    async def install(self) -> None:
        """Make its tables."""
        await self.app.schema_manager.apply_schema_async()

    async def work(self, handle: adapter.Handle) -> None:
        """Run tasks for ever."""

        @self.app.task(name="note")  # type: ignore[untyped-decorator]  # it has no types
        async def note(i: int) -> None:
            await handle(i)

        await self.app.run_worker_async(install_signal_handlers=False, **self.options)

    async def enqueue(self, i: int) -> None:
        """Enqueue one task."""
        await self.app.configure_task("note").defer_async(i=i)

    async def enqueue_many(self, count: int) -> None:
        """Enqueue many, so many in one statement."""
        for begin in range(0, count, MANY):
            args = [{"i": i} for i in range(begin, min(begin + MANY, count))]
            await self.app.configure_task("note").batch_defer_async(*args)


@contextlib.asynccontextmanager
async def connect(job: dict[str, Any]) -> AsyncGenerator[Procrastinate]:
    """Open its pool."""
    connector = procrastinate.PsycopgConnector(conninfo=job["dsn"], min_size=2, max_size=20)
    app = procrastinate.App(connector=connector)
    async with app.open_async():
        yield Procrastinate(app, job.get("options", {}))


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    asyncio.run(adapter.serve(connect))
