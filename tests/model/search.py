"""Looks for a sequence of steps after which a rule does not hold."""

from __future__ import annotations

import functools

import trio

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from nursery_queue.testing import VirtualTime
from tests.model.machine import Machine
from tests.model.world import World


STEPS = 40


async def search(
    clock: VirtualTime,
    dsn: str,
    *,
    examples: int,
    start: int,
    shrink: bool = True,
    compares: bool = True,
) -> None:
    """Go through so many examples of at most 40 steps; raise for one that breaks a rule.

    *start* says which: the same are the same again. With *shrink* the shortest that is like
    it is shown. *compares*: beside a store in memory, else PostgreSQL alone.
    """
    world = World.on(clock, dsn, compares=compares)

    @seed(start)
    class Run(Machine):
        def __init__(self) -> None:
            super().__init__(world)

    found = settings(
        max_examples=examples,
        stateful_step_count=STEPS,
        phases=[Phase.generate, Phase.shrink] if shrink else [Phase.generate],
        report_multiple_bugs=False,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    run = functools.partial(run_state_machine_as_test, Run, settings=found)
    try:
        with clock.hold(1e9):  # only steps move it
            await trio.to_thread.run_sync(run)
    finally:
        await world.postgres.aclose()
