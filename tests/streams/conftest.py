"""What the tests of reading streams share."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest

import nursery_queue as nq

from tests.streams.authors import Author, Clerk, author, clerk
from tests.support.flaky_store import FlakyStore


@pytest.fixture
async def client(somewhere: str | None) -> AsyncGenerator[nq.Client]:
    """A client of each kind of store, whose verbs are counted and fail when told to."""
    if somewhere is None:
        async with nq.Client(FlakyStore()) as client:
            yield client
    else:
        async with nq.connect(somewhere) as inner, nq.Client(FlakyStore(inner.store)) as client:
            yield client


@pytest.fixture
def store(client: nq.Client) -> FlakyStore:
    assert isinstance(client.store, FlakyStore)
    return client.store


@pytest.fixture
async def writer(store: FlakyStore) -> Author:
    """A running attempt, somewhere."""
    return await author(store)


@pytest.fixture
async def deaf(migrated: str) -> AsyncGenerator[nq.Client]:
    """A client that hears of streams by notification, or not at all."""
    async with nq.connect(migrated, stream_poll_interval=0) as client:
        yield client


@pytest.fixture
async def at_desk(migrated: str, pg: nq.Client) -> AsyncGenerator[Clerk]:
    """A running attempt in PostgreSQL, which can write silently."""
    async with clerk(migrated, (await author(pg.store)).fence) as clerk_:
        yield clerk_
