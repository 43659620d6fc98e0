"""Attempts that are given back: each excuse has a bound of its own."""

from __future__ import annotations

import random

from nursery_queue._core._excuses import Excuse
from nursery_queue._worker._refunds import Refunds


def test_conflicts_after_a_lack_of_connections() -> None:
    """Ten conflicts in a row are excused, however often there was no connection before."""
    refunds = Refunds(random.Random(7))
    for _ in range(20):
        assert refunds.grant(1, Excuse.NO_CONNECTION) is not None

    delays = [refunds.grant(1, Excuse.CONFLICT) for _ in range(11)]

    assert None not in delays[:10]
    assert delays[10] is None
