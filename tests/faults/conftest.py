"""What the tests of faults share."""

from __future__ import annotations

import pytest

import nursery_queue as nq

from tests.faults.loops import Holding
from tests.support.flaky_store import FlakyStore


@pytest.fixture
def holding(app: nq.App) -> Holding:
    """Names the task type `hold`."""
    holding = Holding()
    holding.declare(app)
    return holding


@pytest.fixture
def store() -> FlakyStore:
    return FlakyStore()


@pytest.fixture
def client(store: FlakyStore) -> nq.Client:
    return nq.Client(store)
