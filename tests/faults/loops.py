"""Stores, servers and handlers for the tests of faults."""

from __future__ import annotations

import contextlib
import logging

from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence

import attrs
import psycopg
import pytest
import trio

import nursery_queue as nq

from nursery_queue._core._model import Fence, Refusal, Settlement
from nursery_queue._store import Bell, Ring
from nursery_queue._trio._supervisor import LoopState
from nursery_queue._worker._health import LoopHealth
from tests.support.workers import FlakyStore


class Odd(Exception):  # an error that nobody has heard of
    def __str__(self) -> str:
        msg = "not even its text can be had"
        raise RuntimeError(msg)


# What may come out of any loop, by a mistake of ours or by an odd driver, server or network.
BUGS: Mapping[str, Callable[[], Exception]] = {
    "ValueError": lambda: ValueError("no such value"),
    "ExceptionGroup": lambda: ExceptionGroup("both", [ValueError("one"), OSError("two")]),
    "psycopg.ProgrammingError": lambda: psycopg.ProgrammingError("the cursor is closed"),
    "OSError": lambda: OSError(5, "input/output error"),
    "Odd": Odd,
}

# What each loop asks of the store.
VERBS = {
    "heartbeat": "heartbeat",
    "settler": "settle",
    "listener": "listen",
    "claimer": "claim",
    "maintenance": "sweep",
}


@attrs.define(eq=False)
class FaultyStore(FlakyStore):
    """A store whose verbs also raise what is no outage: before the effect, or after it."""

    raises: dict[str, Exception] = attrs.field(factory=dict[str, Exception])
    raises_after: dict[str, Exception] = attrs.field(factory=dict[str, Exception])
    at_most: int = 10_000  # settlements in one call
    tell: Callable[[str], object] = attrs.field(default=lambda name: name)  # called with each verb
    cut: trio.Event = attrs.field(factory=trio.Event)  # ends whoever listens

    @contextlib.asynccontextmanager
    async def _verb(self, name: str) -> AsyncGenerator[None]:
        self.tell(name)
        async with FlakyStore._verb(self, name):
            if name in self.raises:
                raise self.raises[name]
            yield
            if name in self.raises_after:
                raise self.raises_after[name]

    async def settle(self, settlements: Sequence[Settlement]) -> dict[Fence, Refusal]:
        if len(settlements) > self.at_most:
            await trio.lowlevel.checkpoint()
            msg = f"settle: {len(settlements)} are too many"
            raise nq.TransientError(msg)
        return await FlakyStore.settle(self, settlements)

    def break_loop(self, name: str, error: Exception) -> None:
        """From now on one loop of the worker fails."""
        self.raises[VERBS[name]] = error
        if name == "listener":
            self.cut.set()

    def mend(self) -> None:
        """From now on everything works."""
        self.raises, self.raises_after, self.cut = {}, {}, trio.Event()
        self.down, self.deaf, self.stuck, self.late = set(), set(), set(), {}

    async def listen(
        self,
        ring: Ring,
        bells: Sequence[Bell],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        async def fail() -> None:
            await self.cut.wait()
            raise self.raises.get("listen", nq.TransientError("listen: the store is down"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            await FlakyStore.listen(self, ring, bells, task_status=task_status)


@attrs.define(eq=False)
class Holding:
    """A task type whose handlers run until told to end, and note why they were cancelled."""

    go_on: trio.Event = attrs.field(factory=trio.Event)
    running: int = 0
    ended: int = 0
    cancelled: list[tuple[float, str]] = attrs.field(factory=list[tuple[float, str]])

    def declare(self, app: nq.App) -> None:
        @app.task(name="hold")
        async def hold(ctx: nq.TaskContext) -> str:
            self.running += 1
            try:
                await self.go_on.wait()
            except trio.Cancelled:
                self.cancelled.append((trio.current_time(), str(ctx.cancel_reason)))
                raise
            finally:
                self.running -= 1
            self.ended += 1
            return "held on"


def loop_health(worker: nq.Worker, name: str) -> LoopHealth:
    return worker.health().loops[name]


def unwell(worker: nq.Worker) -> set[str]:
    """Name the loops that are not well, or off."""
    return {
        name for name, each in worker.health().loops.items() if each.state is not LoopState.HEALTHY
    }


async def until_well(worker: nq.Worker, name: str) -> None:
    """Wait until a loop is well, in virtual time, to a hundredth of a second."""
    while loop_health(worker, name).state is not LoopState.HEALTHY:  # noqa: ASYNC110  # tells nobody
        await trio.sleep(0.01)


def lines(caplog: pytest.LogCaptureFixture, word: str) -> list[str]:
    """Return level and text of what has been logged about something."""
    return [
        f"{record.levelname} {record.getMessage()}"
        for record in caplog.records
        if word in record.getMessage()
    ]


@contextlib.contextmanager
def logged(caplog: pytest.LogCaptureFixture) -> Generator[None]:
    with caplog.at_level(logging.INFO, "nursery_queue"):
        yield
