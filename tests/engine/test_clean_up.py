"""What a handler that is being cancelled may still say and do."""

from __future__ import annotations

import asyncio
import datetime as dt

from collections.abc import Awaitable, Callable

import pytest
import trio

from trio.testing import MockClock

import nursery_queue as nq

from nursery_queue import CancelReason
from nursery_queue._core._model import Settlement
from nursery_queue._worker import _attempt_runner
from nursery_queue.testing import VirtualTime
from tests.support.flaky_store import FlakyStore
from tests.support.workers import outcomes, working


# -- what it says on purpose ---------------------------------------------------------------

SAY: dict[str, Callable[[], Exception]] = {
    "no more": lambda: nq.DoNotRetry("no more"),
    "later": lambda: nq.RetryAfter(500),
    "snooze": lambda: nq.Snooze(500),
}


@pytest.mark.parametrize("words", SAY)
@pytest.mark.parametrize(
    "reason", [CancelReason.TIMED_OUT, CancelReason.SHUTDOWN, CancelReason.CANCELLED], ids=str
)
async def test_what_it_says_on_purpose(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client, reason: CancelReason, words: str
) -> None:
    """`DoNotRetry` and its like count as ever in the clean-up, unless the task was cancelled."""

    @app.task(name="resigns", timeout=5)
    async def resigns() -> None:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            error = SAY[words]()
            raise error from None

    ref = await either.enqueue(resigns)
    async with working(nq.Worker(app, either, grace=1)):
        await trio.sleep(1)
        if reason is CancelReason.CANCELLED:
            await either.cancel(ref)
        await trio.sleep(1 if reason is not CancelReason.TIMED_OUT else 5)
    status = await either.status(ref)
    (attempt,) = await either.attempts(ref)

    assert status is not None
    if reason is CancelReason.CANCELLED:
        assert (status.state, attempt.outcome) == ("cancelled", "cancelled")
        assert str(attempt.error_type).endswith(type(SAY[words]()).__name__)
        return
    expected = {
        "no more": ("failed", "failed", 1),
        "later": ("scheduled", "failed", 1),
        "snooze": ("scheduled", "snoozed", 0),
    }
    assert (status.state, attempt.outcome, status.attempt) == expected[words]


# -- not ending ----------------------------------------------------------------------------


async def nothing(client: nq.Client, ref: nq.TaskRef) -> None:
    pass


async def ask_for_a_cancel(client: nq.Client, ref: nq.TaskRef) -> None:
    await client.cancel(ref)


@pytest.mark.parametrize(
    ("limit", "happens", "recorded", "state", "attempt"),
    [
        (None, nothing, "interrupted", "ready", 0),
        (1, nothing, "timed_out", "scheduled", 1),
        (None, ask_for_a_cancel, "cancelled", "cancelled", 1),
        (1, ask_for_a_cancel, "cancelled", "cancelled", 1),
    ],
)
async def test_one_that_never_ends(
    autojump_clock: MockClock,
    app: nq.App,
    client: nq.Client,
    limit: float | None,
    happens: Callable[[nq.Client, nq.TaskRef], Awaitable[None]],
    recorded: str,
    state: str,
    attempt: int,
) -> None:
    """At the end of a shutdown's budget it is let go of with the greatest reason, not the last."""

    @app.task(name="stubborn")
    async def stubborn() -> str:
        with trio.CancelScope(shield=True):
            await trio.sleep(100)
        return "too late"

    ref = await client.enqueue(stubborn.options(timeout=limit))
    worker = nq.Worker(app, client, grace=3, cleanup=5)
    async with trio.open_nursery() as nursery:
        await nursery.start(worker.run)
        await trio.sleep(2)
        await happens(client, ref)
        await trio.sleep(1)
        worker.stop()
        await trio.sleep(9)
        status = await client.status(ref)
        assert status is not None
        assert (status.state, status.attempt) == (state, attempt)
        assert await outcomes(client, ref) == [recorded]
    assert trio.current_time() == 100
    assert await outcomes(client, ref) == [recorded]


# -- its transaction -----------------------------------------------------------------------


@pytest.mark.parametrize("reason", [CancelReason.TIMED_OUT, CancelReason.CANCELLED], ids=str)
async def test_a_commit_is_not_cancelled(
    virtual_time: VirtualTime,
    app: nq.App,
    anywhere: FlakyStore,
    monkeypatch: pytest.MonkeyPatch,
    reason: CancelReason,
) -> None:
    """Once a transactional handler has returned, neither its time limit nor a cancel undoes it."""
    client = nq.Client(anywhere)
    settling = trio.Event()
    settle = nq.Transaction.settle

    async def slowly(tx: nq.Transaction, *args: object) -> None:
        settling.set()
        await trio.sleep(2)
        await settle(tx, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(nq.Transaction, "settle", slowly)

    @app.task(name="write", transactional=True, timeout=1)
    async def write(ctx: nq.TaskContext) -> str:
        await ctx.tx.enqueue("child")
        return "written"

    limit = 1 if reason is CancelReason.TIMED_OUT else None
    ref = await client.enqueue(write.options(timeout=limit))
    async with working(nq.Worker(app, client)):
        await settling.wait()
        if reason is CancelReason.CANCELLED:
            await client.cancel(ref)
        assert await client.result(ref) == "written"
    assert len(await client.list_tasks(task_type="child")) == 1


async def test_a_settlement_that_takes_for_ever(
    autojump_clock: MockClock, app: nq.App, client: nq.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A settlement that gets no answer is given up after a while: rolled back, run again."""
    settle, calls = nq.Transaction.settle, list[int]()

    async def never_at_first(tx: nq.Transaction, settlement: Settlement) -> None:
        calls.append(1)
        if len(calls) == 1:
            await trio.sleep_forever()
        await settle(tx, settlement)

    monkeypatch.setattr(nq.Transaction, "settle", never_at_first)

    @app.task(name="write", transactional=True, retry=None)
    async def write(ctx: nq.TaskContext) -> None:
        await ctx.tx.enqueue("child")

    ref = await client.enqueue(write)
    async with working(nq.Worker(app, client)):
        await client.wait(ref)

    first, _ = await client.attempts(ref)
    assert await outcomes(client, ref) == ["interrupted", "succeeded"]
    assert "could not be settled within 5 s" in str(first.error_message)
    assert (first.finished_at, calls) == (
        first.started_at + dt.timedelta(seconds=_attempt_runner.SETTLE_WITHIN),
        [1, 1],
    )
    assert len(await client.list_tasks(task_type="child")) == 1


# -- scopes of its own, and mistakes with them ---------------------------------------------


@pytest.mark.parametrize("own_limit", [True, False])
async def test_a_scope_of_its_own_at_the_same_instant(
    autojump_clock: MockClock, app: nq.App, client: nq.Client, own_limit: bool
) -> None:
    """A scope of the handler's that ends at the attempt's time limit hides nothing."""

    @app.task(name="careful", timeout=5, retry=None)
    async def careful() -> str:
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                if own_limit:
                    scope.deadline = trio.current_time() + 5
                else:
                    nursery.start_soon(cancel_later, scope)
                await trio.sleep_forever()
        await trio.lowlevel.checkpoint()
        return "gave up in time"

    async def cancel_later(scope: trio.CancelScope) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(5)
        scope.cancel()

    ref = await client.enqueue(careful)
    await nq.Worker(app, client).run_until_idle()

    assert await outcomes(client, ref) == ["timed_out"]


async def test_a_stale_cancelled_in_the_clean_up(
    autojump_clock: MockClock, app: nq.App, client: nq.Client
) -> None:
    """A `Cancelled` of another scope, raised while being cancelled, is nothing but the reason."""

    @app.task(name="confused", timeout=5, retry=None)
    async def confused() -> None:
        kept: list[trio.Cancelled] = []
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                await trio.lowlevel.checkpoint()
            except trio.Cancelled as exc:
                kept.append(exc)
        try:
            await trio.sleep_forever()
        finally:
            raise kept[0]

    ref = await client.enqueue(confused)
    await nq.Worker(app, client).run_until_idle()
    (attempt,) = await client.attempts(ref)

    assert (attempt.outcome, attempt.error_type) == ("timed_out", "TimedOut")


# -- what ends the worker ------------------------------------------------------------------


@pytest.mark.parametrize("where", ["trio", "asyncio", "asyncio task"])
async def test_a_keyboard_interrupt(
    autojump_clock: MockClock,
    app: nq.App,
    client: nq.Client,
    interrupt: Callable[[], None],
    where: str,
) -> None:
    """It ends the worker; the other handlers learn that it is a shutdown, and all tasks go back."""
    seen: list[object] = []

    @app.task(name="interrupted", asyncio=where != "trio")
    async def interrupted() -> None:
        if where == "asyncio task":
            task = asyncio.create_task(strike())
            await asyncio.sleep(1000)
            await task
        await strike()

    async def strike() -> None:
        await (trio if where == "trio" else asyncio).sleep(1)
        interrupt()

    @app.task(name="other")
    async def other(ctx: nq.TaskContext) -> None:
        try:
            await trio.sleep_forever()
        finally:
            seen.append(ctx.cancel_reason)
            if ctx.task_id % 2:
                raise ValueError("clean-up")

    refs = await client.enqueue_many([app[n].bind() for n in ("interrupted", "other", "other")])
    with pytest.raises(BaseExceptionGroup) as caught:
        await nq.Worker(app, client).run()

    assert caught.group_contains(KeyboardInterrupt)
    assert trio.current_time() == 1
    assert seen == [CancelReason.SHUTDOWN] * 2
    assert [await outcomes(client, ref) for ref in refs] == [["interrupted"]] * 3
    for ref in refs:
        status = await client.status(ref)
        assert status is not None
        assert (status.state, status.attempt) == ("ready", 0)
