"""Both stores go through anything that can happen, side by side, and all rules are kept."""

from __future__ import annotations

import pytest

from nursery_queue.testing import VirtualTime
from tests.model.search import search


PARTS = 4  # for as many processes


@pytest.mark.parametrize("part", range(PARTS))
async def test_whatever_is_done_in_whatever_order(
    virtual_time: VirtualTime, migrated: str, part: int, pytestconfig: pytest.Config
) -> None:
    """The stores agree, and the rules of `Ledger` hold, after every step.

    The examples are the same in every run, so that whoever sees it fail has caused it. Others:
    `--hypothesis-seed N`; more: `--model-examples N`.
    """
    examples = int(pytestconfig.getoption("--model-examples") or 0)
    seed: str | None = pytestconfig.getoption("--hypothesis-seed")
    start = int(seed or 0) * PARTS + part
    await search(virtual_time, migrated, examples=examples // PARTS, start=start)
