"""What is called after a commit, and what is not, whatever the store."""

from __future__ import annotations

import contextlib

import psycopg
import pytest
import trio

import nursery_queue as nq

from nursery_queue._store import Store


@pytest.fixture
def client(store: Store) -> nq.Client:
    return nq.Client(store)


class Oops(Exception):
    pass


async def test_the_commit_comes_first(client: nq.Client) -> None:
    """When a callback runs, everybody can see what was committed."""
    seen: list[nq.TaskStatus | None] = []

    async def look() -> None:
        seen.append(await client.status(ref))

    async with client.transaction() as tx:
        tx.after(look)
        ref = await tx.enqueue("work")
        await trio.testing.wait_all_tasks_blocked()
        assert seen == []

    assert [each and each.state for each in seen] == [nq.State.READY]


@pytest.mark.parametrize("background", [None, False, True])
async def test_a_rollback(client: nq.Client, background: bool | None) -> None:
    """Nothing is called for a transaction that is rolled back, in whatever way."""
    called: list[str] = []

    async def fail(after: nq.AfterCommit | None) -> None:
        async with client.transaction(after=after) as tx:
            tx.after(called.append, "failed")
            await tx.enqueue("work")
            raise Oops

    async def withdraw(after: nq.AfterCommit | None) -> None:
        async with client.transaction(after=after) as tx:
            tx.after(called.append, "withdrawn")
            raise psycopg.Rollback

    async def be_cancelled(after: nq.AfterCommit | None) -> None:
        with trio.CancelScope() as scope:
            async with client.transaction(after=after) as tx:
                tx.after(called.append, "cancelled")
                scope.cancel()
                await trio.lowlevel.checkpoint()

    async def all_of_them(after: nq.AfterCommit | None) -> None:
        for way in (fail, withdraw, be_cancelled):
            with contextlib.suppress(Oops, psycopg.Rollback):
                await way(after)

    if background is None:
        await all_of_them(None)
    else:
        async with nq.AfterCommit(background=background) as after:
            await all_of_them(after)
        assert after.counts == nq.CallbackCounts()

    assert called == []
    assert client.callbacks == nq.CallbackCounts()


async def test_savepoints(client: nq.Client) -> None:
    """A savepoint that is rolled back drops its own callbacks; one that is released keeps them."""
    called: list[str] = []
    async with client.transaction() as tx:
        tx.after(called.append, "before")
        async with tx.savepoint():
            tx.after(called.append, "released")
        with contextlib.suppress(Oops):
            async with tx.savepoint():
                tx.after(called.append, "rolled back")
                raise Oops
        tx.after(called.append, "after")

    assert called == ["before", "released", "after"]


async def test_nested_savepoints(client: nq.Client) -> None:
    """The rollback of a savepoint drops what inner ones kept, and nothing from before it."""
    called: list[str] = []
    async with client.transaction() as tx:
        with contextlib.suppress(Oops):
            async with tx.savepoint():
                tx.after(called.append, "outer")
                async with tx.savepoint():
                    tx.after(called.append, "inner, released")
                raise Oops
        async with tx.savepoint():
            tx.after(called.append, "kept")
            with contextlib.suppress(Oops):
                async with tx.savepoint():
                    tx.after(called.append, "inner, rolled back")
                    raise Oops
            tx.after(called.append, "kept, too")

    assert called == ["kept", "kept, too"]


async def test_a_savepoint_left_by_rollback(client: nq.Client) -> None:
    """`psycopg.Rollback` is a rollback, although no error comes out of the savepoint."""
    called: list[str] = []
    async with client.transaction() as tx:
        tx.after(called.append, "kept")
        with contextlib.suppress(psycopg.Rollback):
            async with tx.savepoint():
                tx.after(called.append, "dropped")
                raise psycopg.Rollback

    assert called == ["kept"]


async def test_an_ended_transaction(client: nq.Client) -> None:
    """`after` raises when the block has ended, whether it was committed or rolled back."""
    ended: list[nq.Transaction] = []
    async with client.transaction() as tx:
        ended.append(tx)
    with contextlib.suppress(Oops):
        async with client.transaction() as tx:
            ended.append(tx)
            raise Oops
    for tx in ended:
        with pytest.raises(nq.TransactionEnded):
            tx.after(print)

    assert len(ended) == 2


async def test_something_else_than_an_after_commit(client: nq.Client) -> None:
    """A function given to `transaction` itself is refused at once, with where it belongs."""
    with pytest.raises(TypeError, match=r"takes an AfterCommit or .*, not <built-in.*tx\.after"):
        async with client.transaction(after=print):  # type: ignore[arg-type]  # on purpose  # pyright: ignore[reportArgumentType]
            pytest.fail("it was opened")
