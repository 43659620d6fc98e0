"""What the tests of the engine share."""

from __future__ import annotations

import signal

from collections.abc import AsyncGenerator, Callable, Generator
from types import FrameType

import pytest

import nursery_queue as nq

from tests.support.flaky_store import FlakyStore


@pytest.fixture
def interrupt() -> Generator[Callable[[], None]]:
    """Raises `KeyboardInterrupt` as a Ctrl-C does: from a signal handler, in whoever calls it."""

    def handler(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, handler)
    yield lambda: signal.raise_signal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def store() -> FlakyStore:
    return FlakyStore()


@pytest.fixture
def client(store: FlakyStore) -> nq.Client:
    return nq.Client(store)


@pytest.fixture
async def either(somewhere: str | None) -> AsyncGenerator[nq.Client]:
    """A client of each kind of store."""
    if somewhere is None:
        yield nq.Client(FlakyStore())
    else:
        async with nq.connect(somewhere) as client:
            yield client


@pytest.fixture
async def anywhere(somewhere: str | None) -> AsyncGenerator[FlakyStore]:
    """A store of each kind, whose verbs fail when told to."""
    if somewhere is None:
        yield FlakyStore()
    else:
        async with nq.connect(somewhere) as client:
            yield FlakyStore(client.store)
