"""Callbacks of several transactions that are kept back until all of these have ended."""

from __future__ import annotations

import contextlib

import pytest
import trio
import trio.testing

from trio.testing import MockClock

import nursery_queue as nq

from nursery_queue.testing import MemoryStore


class Oops(Exception):
    pass


@pytest.fixture
def client() -> nq.Client:
    return nq.Client(MemoryStore())


@pytest.fixture
def called() -> list[str]:
    return []


async def test_at_the_end_of_the_block(
    autojump_clock: MockClock, nursery: trio.Nursery, client: nq.Client, called: list[str]
) -> None:
    """The committed ones are called in order when the batch ends, and it does not wait for them."""
    after = nq.AfterCommit(nursery)
    with after.batch() as batch:
        for name in ("first", "undone", "second"):
            with contextlib.suppress(Oops):
                async with client.transaction(after=batch) as tx:
                    tx.after(called.append, name)
                    tx.after(trio.sleep, 3)
                    if name == "undone":
                        raise Oops
        await trio.sleep(1)
        assert called == []
    assert trio.current_time() == 1

    assert await after.aclose() == nq.Drained(finished=4, cancelled=0)
    assert called == ["first", "second"]
    assert trio.current_time() == 4


async def test_a_batch_that_raises(
    nursery: trio.Nursery, client: nq.Client, called: list[str]
) -> None:
    """What was committed before is called all the same, and the error goes on."""
    after = nq.AfterCommit(nursery)
    with pytest.raises(Oops), after.batch() as batch:
        async with client.transaction(after=batch) as tx:
            tx.after(called.append, "committed")
        async with client.transaction(after=batch) as tx:
            tx.after(called.append, "undone")
            raise Oops
    await after.aclose()

    assert called == ["committed"]


async def test_of_one_that_collects(client: nq.Client, called: list[str]) -> None:
    """An `AfterCommit` that collects keeps them until its own block ends."""
    async with nq.AfterCommit() as after:
        with after.batch() as batch:
            async with client.transaction(after=batch) as tx:
                tx.after(called.append, "batched")
        await trio.testing.wait_all_tasks_blocked()
        assert called == []

    assert called == ["batched"]


async def test_closing_waits_for_the_batch(
    autojump_clock: MockClock, nursery: trio.Nursery, client: nq.Client, called: list[str]
) -> None:
    """Closing lets a batch end and calls what it has; only further transactions are refused."""
    after = nq.AfterCommit(nursery)

    async def close() -> None:
        assert await after.aclose(grace=10) == nq.Drained(finished=1, cancelled=0)
        assert trio.current_time() == 5
        called.append("closed")

    with after.batch() as batch:
        async with client.transaction(after=batch) as tx:
            tx.after(called.append, "committed")
        nursery.start_soon(close)
        await trio.sleep(5)
        with pytest.raises(nq.Closed, match="has been closed"):
            async with client.transaction(after=batch):
                pytest.fail("it was opened")
        assert called == []
    await trio.testing.wait_all_tasks_blocked()

    assert called == ["committed", "closed"]


async def test_a_batch_that_takes_too_long(
    autojump_clock: MockClock,
    nursery: trio.Nursery,
    client: nq.Client,
    called: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What a batch has when the grace is over is cancelled, and not called when it ends later."""
    after = nq.AfterCommit(nursery)
    with after.batch() as batch:
        async with client.transaction(after=batch) as tx:
            tx.after(called.append, "committed")
        assert await after.aclose(grace=2) == nq.Drained(finished=0, cancelled=1)
        assert trio.current_time() == 2

    assert called == []
    assert "1 callbacks of a commit are not called" in caplog.text


async def test_a_transaction_that_outlives_its_batch(
    nursery: trio.Nursery, client: nq.Client, called: list[str]
) -> None:
    """Its callbacks are called at its commit: there is nothing more to wait for."""
    after = nq.AfterCommit(nursery)
    async with contextlib.AsyncExitStack() as stack:
        with after.batch() as batch:
            tx = await stack.enter_async_context(client.transaction(after=batch))
            tx.after(called.append, "late")
    await after.aclose()

    assert called == ["late"]


async def test_a_batch_that_is_over(nursery: trio.Nursery, client: nq.Client) -> None:
    """It takes no more transactions."""
    after = nq.AfterCommit(nursery)
    with after.batch() as batch:
        pass
    with pytest.raises(nq.Closed, match="this batch is over"):
        async with client.transaction(after=batch):
            pytest.fail("it was opened")
    async with client.transaction(after=after):
        pass


async def test_a_batch_of_what_is_closed(nursery: trio.Nursery) -> None:
    """It cannot be opened."""
    after = nq.AfterCommit(nursery)
    await after.aclose()
    with pytest.raises(nq.Closed), after.batch():
        pytest.fail("it was opened")
