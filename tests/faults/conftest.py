"""What the tests of faults share."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest

import nursery_queue as nq

from tests.faults.support import FaultyStore, Holding


@pytest.fixture
def app() -> nq.App:
    return nq.App()


@pytest.fixture
def holding(app: nq.App) -> Holding:
    """Names the task type `hold`."""
    holding = Holding()
    holding.declare(app)
    return holding


@pytest.fixture
def store() -> FaultyStore:
    return FaultyStore()


@pytest.fixture
def client(store: FaultyStore) -> nq.Client:
    return nq.Client(store)


@pytest.fixture
async def pg(migrated: str) -> AsyncGenerator[nq.Client]:
    """A client of a real database."""
    async with nq.connect(migrated) as client:
        yield client


@pytest.fixture(params=["memory", "postgres"])
def somewhere(request: pytest.FixtureRequest) -> str | None:
    """DSN of a migrated database, or None for a store in memory, which needs none."""
    return None if request.param == "memory" else str(request.getfixturevalue("migrated"))
