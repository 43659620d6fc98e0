"""The stores that the contract is held to."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest

from nursery_queue._memory._memory_store import MemoryStore
from nursery_queue._pg._postgres_store import PostgresStore
from nursery_queue._store import Store


@pytest.fixture(params=["memory", "postgres"])
def new_store(request: pytest.FixtureRequest) -> Store:
    if request.param == "memory":
        return MemoryStore()
    return PostgresStore(str(request.getfixturevalue("migrated")))


@pytest.fixture
async def store(new_store: Store) -> AsyncGenerator[Store]:
    yield new_store
    await new_store.aclose()
