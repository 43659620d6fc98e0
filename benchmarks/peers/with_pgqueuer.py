"""pgqueuer, on asyncpg and uvloop: so many of its managers in the process, each with a batch."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging

from collections.abc import AsyncGenerator
from typing import Any

import asyncpg  # type: ignore[import-untyped]  # it has no types
import uvloop  # type: ignore[import-not-found]  # the next three are in the peers' environment

from pgqueuer import PgQueuer  # type: ignore[import-not-found]
from pgqueuer.db import AsyncpgDriver  # type: ignore[import-not-found]
from pgqueuer.queries import Queries  # type: ignore[import-not-found]

from benchmarks.peers import adapter


@dataclasses.dataclass(frozen=True)
class Pgqueuer:
    """pgqueuer on one database."""

    dsn: str
    queries: Any
    managers: int = 1
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    async def install(self) -> None:
        """Make its tables."""
        await self.queries.install()

    async def work(self, handle: adapter.Handle) -> None:
        """Run tasks for ever."""
        await asyncio.gather(*[self._manage(handle) for _ in range(self.managers)])

    async def _manage(self, handle: adapter.Handle) -> None:
        manager = PgQueuer(AsyncpgDriver(await asyncpg.connect(self.dsn)))

        @manager.entrypoint("note")  # type: ignore[untyped-decorator]  # it has no types
        async def note(job: Any) -> None:
            await handle(int(job.payload))

        await manager.run(**self.options)

    async def enqueue(self, i: int) -> None:
        """Enqueue one task."""
        await self.queries.enqueue("note", str(i).encode(), 0)

    async def enqueue_many(self, count: int) -> None:
        """Enqueue many in one statement."""
        payloads: list[bytes | None] = [str(i).encode() for i in range(count)]
        await self.queries.enqueue(["note"] * count, payloads, [0] * count)


@contextlib.asynccontextmanager
async def connect(job: dict[str, Any]) -> AsyncGenerator[Pgqueuer]:
    """Open a connection of our own; each manager has another one."""
    queries = Queries(AsyncpgDriver(await asyncpg.connect(job["dsn"])))
    yield Pgqueuer(job["dsn"], queries, job.get("managers", 1), job.get("options", {}))


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    uvloop.run(adapter.serve(connect))
