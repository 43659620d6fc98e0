"""A transaction of a client, which a producer hands everything to."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio

import nursery_queue as nq

from nursery_queue.testing import MemoryStore


Greet = nq.TaskType[[str], str]


class Ears(nq.Instrument):
    def __init__(self) -> None:
        self.heard: list[nq.Enqueued] = []

    def task_enqueued(self, event: nq.Enqueued) -> None:
        self.heard.append(event)


@pytest.fixture
def new_client(somewhere: str | None) -> Callable[[nq.Instrument], object]:
    def new_client(ears: nq.Instrument) -> object:
        if somewhere is None:
            return nq.Client(MemoryStore(), instruments=[ears])
        return nq.connect(somewhere, instruments=[ears])

    return new_client


async def test_everything(new_client: Callable[[nq.Instrument], nq.Client], greet: Greet) -> None:
    """Tasks and callbacks are the transaction's own: told of and called once it is committed."""
    ears = Ears()
    called = trio.Event()
    async with new_client(ears) as client:
        async with client.transaction() as tx:
            tasks = nq.producer(tx)
            refs = [await tasks.enqueue(greet, "Ann"), await tasks.enqueue(greet, "Bob")]
            tasks.after(called.set)
            assert await tasks.cancel(refs[0])
            seen = await tasks.status_many(refs, payloads=True)
            assert ears.heard == []

        assert called.is_set()
        assert [event.task_id for event in ears.heard] == [ref.id for ref in refs]
        assert [(each.state, each.params) for each in seen if each] == [
            (nq.State.CANCELLED, {"name": "Ann"}),
            (nq.State.READY, {"name": "Bob"}),
        ]
        assert [each.state for each in await client.status_many(refs) if each] == [
            nq.State.CANCELLED,
            nq.State.READY,
        ]
        assert client.callbacks.finished == 1


async def test_a_status_is_not_a_change(
    new_client: Callable[[nq.Instrument], nq.Client], greet: Greet
) -> None:
    """Asking a transaction where its tasks are changes nothing outside of it."""
    async with new_client(Ears()) as client:
        before = await client.enqueue(greet.options(dedup_key="x"), "Ann")
        async with client.transaction() as tx:
            await tx.cancel(before)
            ref = await tx.enqueue(greet.options(dedup_key="x"), "Bob")
            assert (await tx.status(before)) != await client.status(before)
            assert (await tx.status(ref)) is not None
            assert await client.status(ref) is None
        assert await client.status(ref) is not None


async def test_its_client_has_the_limits(pg: nq.Client, greet: Greet) -> None:
    """Another schema or limit than the client's is refused, and an ended transaction."""
    async with pg.transaction() as tx:
        with pytest.raises(TypeError, match="give them to connect"):
            nq.producer(tx, schema="other")
        with pytest.raises(TypeError, match="give them to connect"):
            nq.producer(tx, max_params_bytes=5)
    with pytest.raises(nq.TransactionEnded):
        await nq.producer(tx).enqueue(greet, "Ann")
