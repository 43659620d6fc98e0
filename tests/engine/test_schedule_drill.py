"""Workers that fire schedules are killed at random."""

from __future__ import annotations

import random

import pytest

from nursery_queue.testing import VirtualTime
from tests.support.schedule_drill import Drill


@pytest.mark.leaves_claims("the workers are killed, so they leave everything as it is")
@pytest.mark.parametrize("seed", [1])
async def test_each_tick_once(migrated: str, virtual_time: VirtualTime, seed: int) -> None:
    """Forty schedules, three workers that are killed again and again: each tick has one task.

    And it is stored within a second where a worker lived. With 10,000 schedules and ten days, see
    tests/support/schedule_drill.py.
    """
    drill = Drill(migrated, virtual_time, 40, 86_400 / 4, 3, random.Random(seed))

    await drill.run()

    assert "each with one task" in drill.verdict()
    assert drill.kills > 10
