"""Stores, servers and handlers for the tests of faults."""

from __future__ import annotations

import contextlib
import logging

from collections.abc import Callable, Generator, Mapping

import attrs
import psycopg
import pytest
import trio

import nursery_queue as nq

from nursery_queue._trio._supervisor import LoopState
from nursery_queue._worker._health import LoopHealth
from tests.support.flaky_store import FlakyStore


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
    "scheduler": "fire_schedules",
    "maintenance": "sweep",
}


def break_loop(store: FlakyStore, name: str, error: Exception) -> None:
    """From now on one loop of the worker fails."""
    store.raises[VERBS[name]] = error
    if name == "listener":
        store.hang_up()


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
