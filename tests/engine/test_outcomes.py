"""What becomes of a task, by what its handler does."""

from __future__ import annotations

import asyncio
import itertools

from collections.abc import Callable

import pytest
import trio

from trio.testing import MockClock

import nursery_queue as nq

from nursery_queue.testing import VirtualTime
from tests.support.flaky_store import FlakyStore
from tests.support.workers import Longest, final, outcomes, state, working


class Hopeless(nq.DoNotRetry):
    pass


async def run(app: nq.App, client: nq.Client, ref: nq.TaskRef) -> nq.TaskStatus:
    """Work until the task has ended."""
    async with working(nq.Worker(app, client, rng=Longest())):
        return await final(client, ref, within=10_000)


async def test_a_result_is_stored(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client
) -> None:
    """What the handler returns is stored as JSON, and so is None."""

    @app.task(name="echo")
    async def echo(value: object) -> object:
        return value

    values: list[object] = [None, 0, "", [1, {"a": [True]}], "snow ☃"]
    refs = [await either.enqueue("echo", value=value) for value in values]
    await nq.Worker(app, either).run_until_idle()

    assert [await either.result(ref) for ref in refs] == values


async def test_retries_wait_as_the_policy_says(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client
) -> None:
    """Delays after failures are those of the policy, to the instant, and end with max_attempts."""
    starts: list[tuple[float, int]] = []

    @app.task(
        name="fail",
        retry=nq.RetryPolicy(max_attempts=6, initial=2, factor=3, maximum=40, jitter=0.5),
    )
    async def fail(ctx: nq.TaskContext) -> None:
        starts.append((trio.current_time(), ctx.attempt))
        await trio.sleep(0.5)
        raise ValueError("again")

    status = await run(app, either, await either.enqueue(fail))

    times = [time for time, _ in starts]
    waits = [after - before - 0.5 for before, after in itertools.pairwise(times)]
    assert waits == [pytest.approx(wait, abs=1e-4) for wait in (2, 6, 18, 40, 40)]
    assert [attempt for _, attempt in starts] == [1, 2, 3, 4, 5, 6]
    assert (status.state, status.error) == ("failed", "ValueError: again")


@pytest.mark.parametrize("retry", [None, False, nq.RetryPolicy(max_attempts=1)])
async def test_one_attempt(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client, retry: nq.RetryPolicy | None
) -> None:
    """Without retries, the first failure is the last."""

    @app.task(name="fail", retry=retry)
    async def fail() -> None:
        raise ValueError

    ref = await either.enqueue(fail)

    assert (await run(app, either, ref)).state == "failed"
    assert await outcomes(either, ref) == ["failed"]


async def test_the_attempt_log(virtual_time: VirtualTime, app: nq.App, either: nq.Client) -> None:
    """Each attempt has its own outcome, message and instants, and they never change."""
    logs: list[list[nq.Attempt]] = []

    @app.task(name="third")
    async def third(ctx: nq.TaskContext) -> None:
        logs.append((await either.attempts(ctx.task_id))[:-1])
        await trio.sleep(1)
        if ctx.attempt < 3:
            raise ValueError(f"fail {'_AB'[ctx.attempt]}")

    ref = await either.enqueue(third)
    await run(app, either, ref)
    log = await either.attempts(ref)

    assert [(a.number, str(a.outcome), a.error_message) for a in log] == [
        (1, "failed", "fail A"),
        (2, "failed", "fail B"),
        (3, "succeeded", None),
    ]
    assert logs == [[], log[:1], log[:2]]
    for attempt in log:
        assert attempt.finished_at is not None
        assert (attempt.finished_at - attempt.started_at).total_seconds() == pytest.approx(1)
    assert "raise ValueError" in (log[0].error_traceback or "")


async def test_retry_after(virtual_time: VirtualTime, app: nq.App, either: nq.Client) -> None:
    """`RetryAfter` says when to try again; it is an attempt, and the last one fails the task."""
    starts: list[float] = []

    @app.task(name="later", retry=nq.RetryPolicy(max_attempts=3))
    async def later() -> None:
        starts.append(trio.current_time())
        raise nq.RetryAfter(77)

    ref = await either.enqueue(later)
    status = await run(app, either, ref)

    assert starts == [pytest.approx(at, abs=1e-4) for at in (0, 77, 154)]
    assert (status.state, status.attempt) == ("failed", 3)
    assert await outcomes(either, ref) == ["failed"] * 3


async def test_snooze(virtual_time: VirtualTime, app: nq.App, either: nq.Client) -> None:
    """`Snooze` is no attempt, however often it is raised, even with a single attempt allowed."""
    attempts: list[int] = []

    @app.task(name="sleepy", retry=None)
    async def sleepy(ctx: nq.TaskContext) -> str:
        attempts.append(ctx.attempt)
        if len(attempts) <= 20:
            raise nq.Snooze(10)
        return "awake"

    ref = await either.enqueue(sleepy)
    status = await run(app, either, ref)

    assert trio.current_time() == pytest.approx(200, abs=1e-2)
    assert (status.result, status.attempt) == ("awake", 1)
    assert attempts == [1] * 21
    assert await outcomes(either, ref) == ["snoozed"] * 20 + ["succeeded"]


def group(*errors: BaseException) -> BaseException:
    return BaseExceptionGroup("together", errors)


@pytest.mark.parametrize(
    ("make", "log", "wait"),
    [
        (lambda: nq.DoNotRetry("no"), ["failed"], None),
        (lambda: Hopeless("no"), ["failed"], None),
        (lambda: group(ValueError(), Hopeless("no")), ["failed"], None),
        (lambda: group(group(group(nq.DoNotRetry()), nq.RetryAfter(5))), ["failed"], None),
        (lambda: group(nq.Snooze(5), nq.Snooze(7)), ["snoozed", "succeeded"], 7),
        (lambda: group(nq.Snooze(9), nq.RetryAfter(7)), ["failed", "succeeded"], 9),
        (lambda: group(nq.RetryAfter(9), ValueError()), ["failed", "succeeded"], 1),
        (lambda: group(nq.Snooze(9), ValueError()), ["failed", "succeeded"], 1),
        (lambda: SystemExit(1), ["failed", "succeeded"], 1),
        (lambda: group(SystemExit(1), ValueError()), ["failed", "succeeded"], 1),
        (asyncio.CancelledError, ["failed", "succeeded"], 1),
        (lambda: BaseException("odd"), ["failed", "succeeded"], 1),
        (StopIteration, ["failed", "succeeded"], 1),
    ],
)
async def test_what_is_raised_decides(
    autojump_clock: MockClock,
    app: nq.App,
    client: nq.Client,
    make: Callable[[], BaseException],
    log: list[str],
    wait: float | None,
) -> None:
    """The kind of error, alone or in a group, decides on the retry; none ends the worker."""
    starts: list[float] = []

    @app.task(name="raise")
    async def raises() -> None:
        starts.append(trio.current_time())
        if len(starts) == 1:
            raise make()

    ref = await client.enqueue(raises)
    await run(app, client, ref)

    assert await outcomes(client, ref) == log
    waits = [starts[1] - starts[0]] if len(starts) > 1 else [None]
    assert waits == [wait if wait is None else pytest.approx(wait, abs=1e-4)]


async def test_a_cancelled_of_old(
    autojump_clock: MockClock, app: nq.App, client: nq.Client
) -> None:
    """A `Cancelled` that was kept and raised again later is the handler's error, alone or not."""

    @app.task(name="stale", retry=None)
    async def stale(grouped: bool) -> None:
        kept: list[BaseException] = []
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                await trio.sleep(1)
            except trio.Cancelled as exc:
                kept.append(exc)
        raise group(ValueError(), *kept) if grouped else kept[0]

    refs = [await client.enqueue(stale, grouped) for grouped in (False, True)]
    await nq.Worker(app, client).run_until_idle()

    assert [await state(client, ref) for ref in refs] == ["failed", "failed"]


async def test_a_time_limit(virtual_time: VirtualTime, app: nq.App, either: nq.Client) -> None:
    """An attempt is cancelled at its time limit and tried again; the last one fails the task."""
    seen: list[tuple[float, float, str]] = []

    @app.task(name="hang", timeout=30, retry=nq.RetryPolicy(max_attempts=2, jitter=0))
    async def hang(ctx: nq.TaskContext) -> None:
        start = trio.current_time()
        try:
            await trio.sleep_forever()
        finally:
            seen.append((trio.current_time() - start, ctx.deadline - start, str(ctx.cancel_reason)))

    ref = await either.enqueue(hang)
    status = await run(app, either, ref)

    assert seen == [(30, 30, "timed_out")] * 2
    assert await outcomes(either, ref) == ["timed_out", "timed_out"]
    assert (status.state, status.error) == (
        "failed",
        "TimedOut: cancelled at its time limit of 30 s",
    )


@pytest.mark.parametrize("cause", ["timed_out", "cancelled", "interrupted"])
@pytest.mark.parametrize("with_cancelled", [False, True])
async def test_an_error_in_the_clean_up(
    virtual_time: VirtualTime,
    app: nq.App,
    either: nq.Client,
    cause: str,
    with_cancelled: bool,
) -> None:
    """The reason is recorded, with the error that a cancelled handler raises instead."""

    @app.task(name="messy", timeout=30)
    async def messy() -> None:
        async with trio.open_nursery() as nursery:
            if with_cancelled:
                nursery.start_soon(trio.sleep_forever)
            try:
                await trio.sleep_forever()
            finally:
                raise ValueError("in the clean-up")

    ref = await either.enqueue(messy)
    async with working(nq.Worker(app, either, grace=0)):
        await trio.sleep(1)
        if cause == "cancelled":
            await either.cancel(ref)
        await trio.sleep(29.1 if cause == "timed_out" else 0.001)
    (attempt,) = await either.attempts(ref)
    status = await either.status(ref)

    assert (str(attempt.outcome), attempt.error_message) == (cause, "in the clean-up")
    assert status is not None
    assert (status.state, status.attempt) == {
        "timed_out": ("scheduled", 1),
        "cancelled": ("cancelled", 1),
        "interrupted": ("ready", 0),
    }[cause]


async def test_what_a_cancelled_handler_says_on_purpose(
    autojump_clock: MockClock, app: nq.App, client: nq.Client
) -> None:
    """`DoNotRetry` and its like hold also when raised because of a time limit."""

    @app.task(name="resigned", timeout=5)
    async def resigned() -> None:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            raise nq.DoNotRetry("too large") from None

    ref = await client.enqueue(resigned)
    status = await run(app, client, ref)

    assert (status.state, status.error_message) == ("failed", "too large")
    assert await outcomes(client, ref) == ["failed"]


async def test_finishing_although_cancelled(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client
) -> None:
    """A handler that is cancelled and returns all the same has succeeded."""

    @app.task(name="stubborn", timeout=5)
    async def stubborn() -> str:
        with trio.CancelScope(shield=True):
            await trio.sleep(6)
        return "done"

    ref = await either.enqueue(stubborn)

    assert (await run(app, either, ref)).result == "done"


async def test_the_row_overrides_the_code(
    autojump_clock: MockClock, app: nq.App, client: nq.Client, store: FlakyStore
) -> None:
    """Policies on the row win; what the row leaves out is as the code says today."""

    async def fail() -> None:
        await trio.sleep(3)
        raise ValueError

    old = app.task(name="fail", timeout=2, retry=nq.RetryPolicy(max_attempts=2))(fail)
    plain = await client.enqueue(old)
    patient = await client.enqueue(old.options(timeout=9))
    often = await client.enqueue(old.options(max_attempts=4))
    own = await client.enqueue(
        old.options(retry=nq.RetryPolicy(max_attempts=3, initial=500, maximum=500, jitter=0))
    )
    gone = await client.enqueue(old.options(keep_for=0))
    new = nq.App()
    new.task(name="fail", timeout=None, retry=None)(fail)
    async with working(nq.Worker(new, client)):
        await trio.sleep(900)
        assert await outcomes(client, plain) == ["failed"]  # no limit, one attempt: the new code
        assert await outcomes(client, patient) == ["failed"]
        assert await outcomes(client, often) == ["failed"] * 4
        assert await outcomes(client, own) == ["failed"] * 2
        assert await client.status(gone) is None
