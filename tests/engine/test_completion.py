"""Handlers that are told how other tasks ended, with a worker that runs them."""

from __future__ import annotations

import datetime as dt

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import trio

import nursery_queue as nq

from nursery_queue._psycopg._connection import Connection
from nursery_queue.testing import MemoryStore, VirtualTime, perform
from tests.support.flaky_store import FlakyStore
from tests.support.waits import eventually
from tests.support.workers import Longest, final, outcomes, working


Told = list[tuple[int, Any, Any]]

RETRY = nq.RetryPolicy(max_attempts=3, initial=10, jitter=0)


@attrs.frozen
class Order:
    number: int
    at: dt.datetime
    lines: list[tuple[str, float]]


ORDER = Order(5, dt.datetime(2030, 1, 1, tzinfo=dt.UTC), [("é", 0.5)])


@attrs.define(eq=False)
class Teller:
    """Names the task type `note`, which keeps what it is told."""

    app: nq.App
    told: Told = attrs.field(factory=Told)
    note: nq.TaskType[..., Any] = attrs.field(init=False)
    _news: trio.Event = attrs.field(factory=trio.Event)

    def __attrs_post_init__(self) -> None:
        @self.app.task(name="note")
        async def note(task_id: int, context: Any, result: nq.Result) -> None:
            self.told.append((task_id, context, result))
            self._news.set()

        self.note = note

    async def hears(self) -> tuple[int, Any, Any]:
        """Wait for the next end, which must be the only one."""
        with trio.fail_after(20):
            await self._news.wait()
        self._news = trio.Event()
        (only,) = self.told
        self.told.clear()
        return only


@pytest.fixture
def teller(app: nq.App) -> Teller:
    return Teller(app)


async def completions(client: nq.Client, name: str = "note") -> list[nq.TaskStatus]:
    return await client.list_tasks(task_type=name)


# -- every way to end ----------------------------------------------------------------------


async def fine() -> list[int]:
    return [1, 2]


async def fails() -> None:
    raise ValueError("no such page")


async def gives_up() -> None:
    raise nq.DoNotRetry("never")


async def is_slow() -> None:
    await trio.sleep_forever()


async def returns_rubbish() -> Any:
    return object()


@pytest.mark.parametrize(
    ("handler", "attempts", "result"),
    [
        (fine, 1, nq.Success([1, 2])),
        (fails, 3, nq.Failure("ValueError: no such page", "ValueError")),
        (
            gives_up,
            1,
            nq.Failure(
                "nursery_queue.DoNotRetry: never",
                "nursery_queue.DoNotRetry",
            ),
        ),
        (is_slow, 3, nq.Failure("TimedOut: cancelled at its time limit of 5 s", "TimedOut")),
    ],
    ids=["success", "attempts used up", "DoNotRetry", "time limit"],
)
async def test_how_a_handler_ended(
    virtual_time: VirtualTime,
    app: nq.App,
    either: nq.Client,
    teller: Teller,
    handler: Callable[..., Any],
    attempts: int,
    result: nq.Result,
) -> None:
    """When there will be no other attempt the outcome is told once, with the context."""
    task_type = app.task(on_complete=teller.note, retry=RETRY, timeout=5)(handler)
    ref = await either.enqueue(task_type.options(context={"k": [None]}))
    async with working(nq.Worker(app, either, rng=Longest())):
        status = await final(either, ref, within=1000)
        assert await teller.hears() == (ref.id, {"k": [None]}, result)

    assert status.attempt == attempts
    assert [one.state for one in await completions(either)] == ["succeeded"]


async def test_a_result_that_is_not_json(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client, teller: Teller
) -> None:
    """A handler whose result cannot be stored has failed, and that is what is told."""
    ref = await either.enqueue(app.task(on_complete=teller.note)(returns_rubbish))
    await nq.Worker(app, either).run_until_idle()
    ((task_id, context, result),) = teller.told

    assert (task_id, context) == (ref.id, None)
    assert isinstance(result, nq.Failure)
    assert result.error_type.endswith("ResultError")


async def test_a_running_task_that_is_cancelled(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client, teller: Teller
) -> None:
    """A handler that is cancelled where it runs is told of as cancelled, at once."""
    task_type = app.task(on_complete=teller.note)(is_slow)
    ref = await either.enqueue(task_type)
    async with working(nq.Worker(app, either)):
        await trio.sleep(1)
        began = trio.current_time()
        await either.cancel(ref)
        assert await teller.hears() == (ref.id, None, nq.Cancellation("cancelled while running"))
        assert trio.current_time() - began < 1


async def test_a_waiting_task_that_is_cancelled(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client, teller: Teller
) -> None:
    """A worker without polls hears at once of a task that was cancelled before it started."""
    ref = await either.enqueue(
        app.task(on_complete=teller.note)(fine).options(run_after=1000, context=1)
    )
    async with working(nq.Worker(app, either, poll_interval=0)):
        await trio.sleep(1)
        await either.cancel(ref)
        assert await teller.hears() == (ref.id, 1, nq.Cancellation("cancelled while waiting"))
        assert trio.current_time() < 2


async def test_a_shutdown_is_no_end(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client, teller: Teller
) -> None:
    """An attempt that a shutdown interrupts tells nothing; the one that ends the task does."""
    runs: list[int] = []

    @app.task(on_complete=teller.note)
    async def twice(ctx: nq.TaskContext) -> int:
        runs.append(ctx.attempt)
        await trio.sleep(1000 if len(runs) == 1 else 0)
        return len(runs)

    ref = await either.enqueue(twice)
    async with working(nq.Worker(app, either, grace=0)):
        await trio.sleep(1)
    assert await completions(either) == []
    await nq.Worker(app, either).run_until_idle()

    assert teller.told == [(ref.id, None, nq.Success(2))]


# -- a task like any other -----------------------------------------------------------------


async def test_it_is_retried_and_logged(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client
) -> None:
    """One that is told and fails is told again, as its retry policy says, and it is all logged."""
    told: Told = []

    @app.task(retry=RETRY, queue="books")
    async def stubborn(
        ctx: nq.TaskContext, result: nq.Success, context: Order, task_id: int
    ) -> str:
        told.append((task_id, context, result))
        if ctx.attempt < 3:
            raise ConnectionError("not now")
        return ctx.queue

    ref = await either.enqueue(
        app.task(name="work", on_complete=stubborn)(fine).options(context=ORDER)
    )
    async with working(nq.Worker(app, either, rng=Longest())):
        await final(either, ref)
        (other,) = await completions(either, stubborn.name)
        status = await final(either, nq.TaskRef(other.id), within=1000)

    assert told == [(ref.id, ORDER, nq.Success([1, 2]))] * 3
    assert (status.state, status.result, status.queue) == ("succeeded", "books", "books")
    assert await outcomes(either, nq.TaskRef(other.id)) == ["failed", "failed", "succeeded"]


async def test_options_of_the_one_that_is_told(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client
) -> None:
    """It starts as late as was asked for, with the number of attempts that was asked for."""
    starts: list[float] = []

    @app.task(retry=RETRY)
    async def late(task_id: int, context: Any, result: nq.Result) -> None:
        starts.append(trio.current_time())
        raise ValueError

    told = late.options(run_after=100, max_attempts=2)
    ref = await either.enqueue(app.task(name="work", on_complete=told)(fine))
    async with working(nq.Worker(app, either, rng=Longest())):
        await final(either, ref)
        (other,) = await completions(either, late.name)
        assert (await final(either, nq.TaskRef(other.id), within=1000)).state == "failed"

    assert starts == [pytest.approx(100, abs=0.5), pytest.approx(110, abs=0.5)]


async def test_a_chain_of_three(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client, teller: Teller
) -> None:
    """One that is told is told of itself, with its own context and its own result."""

    @app.task(on_complete=teller.note)
    async def second(task_id: int, context: int, result: nq.Result) -> dict[str, Any]:
        assert isinstance(result, nq.Success)
        return {"of": task_id, "context": context, "value": result.value}

    first = app.task(name="first", on_complete=second.options(context="two"))(fine)
    ref = await either.enqueue(first.options(context=1))
    await nq.Worker(app, either).run_until_idle()
    (middle,) = await completions(either, second.name)

    value = {"of": ref.id, "context": 1, "value": [1, 2]}
    assert teller.told == [(middle.id, "two", nq.Success(value))]
    assert len(await either.list_tasks()) == 3


async def test_a_handler_that_cannot_be_told_after_all(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client
) -> None:
    """What does not fit the handler that is told fails its task alone, and says why."""

    @app.task(name="picky")
    async def picky(task_id: int, context: None, result: nq.Failure) -> None: ...

    ref = await either.enqueue(app.task(on_complete="picky", retry=None)(fine))
    await nq.Worker(app, either).run_until_idle()
    (other,) = await completions(either, "picky")

    assert await either.result(ref) == [1, 2]
    assert (other.state, other.attempt) == ("failed", 1)
    assert "picky: parameter result.status: expected 'failed', got 'succeeded'" in str(other.error)


async def test_handlers_without_annotations(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client
) -> None:
    """A handler gets one of the classes, annotated or not, from the worker as from a test."""
    told: list[Any] = []

    @app.task(name="anything")
    async def anything(context: Any, result: Any, task_id: Any = 0, more: int = 3) -> None:
        told.append((task_id, context, result, more))

    ref = await either.enqueue(
        app.task(name="work", on_complete=anything, retry=None)(fails).options(context={"a": 1})
    )
    await nq.Worker(app, either).run_until_idle()
    by_worker = told.pop()
    failed = nq.Failure("ValueError: no such page", "ValueError")
    await either.enqueue(anything, {"a": 1}, failed, ref.id)
    await either.enqueue("anything", context={"a": 1}, result=failed, task_id=ref.id)
    await nq.Worker(app, either).run_until_idle()
    await perform(anything, {"a": 1}, failed, ref.id)

    assert by_worker == (ref.id, {"a": 1}, failed, 3)
    assert told == [by_worker] * 3


async def test_whoever_knows_the_type_is_told_later(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client
) -> None:
    """If no worker knows the type that is told, the task waits for one that does."""
    ref = await either.enqueue(app.task(on_complete="note")(fine))
    await nq.Worker(app, either).run_until_idle()
    assert [one.state for one in await completions(either)] == ["ready"]

    other = nq.App()
    teller = Teller(other)
    await nq.Worker(other, either).run_until_idle()

    assert teller.told == [(ref.id, None, nq.Success([1, 2]))]


# -- once, whatever happens ----------------------------------------------------------------


async def test_an_answer_that_is_lost(
    virtual_time: VirtualTime, app: nq.App, anywhere: FlakyStore, teller: Teller
) -> None:
    """Outcomes that are stored, and sent again because no answer came, are told once each."""
    client = nq.Client(anywhere)
    asked = app.task(name="asked", on_complete=teller.note)(fine)
    not_asked = app.task(name="not_asked")(fine)
    async with working(nq.Worker(app, client, rng=Longest())):
        await trio.sleep(1)
        anywhere.deaf.add("settle")
        asking = [asked.bind() for _ in range(5)]
        refs = await client.enqueue_many([*asking, *[not_asked.bind() for _ in range(5)]])
        await trio.sleep(1)
        assert anywhere.calls["settle"] > 1
        anywhere.deaf.clear()
        await trio.sleep(30)

    assert sorted(teller.told, key=lambda each: each[0]) == [
        (ref.id, None, nq.Success([1, 2])) for ref in refs[:5]
    ]
    assert [one.state for one in await completions(client)] == ["succeeded"] * 5


async def test_a_worker_that_lost_its_lease(
    virtual_time: VirtualTime, app: nq.App, anywhere: FlakyStore, teller: Teller
) -> None:
    """Of a task that one worker lost and another ended only the end is told."""
    client, runs = nq.Client(anywhere), list[int]()

    @app.task(name="shielded", on_complete=teller.note)
    async def shielded(ctx: nq.TaskContext) -> int:
        runs.append(ctx.task_id)
        if len(runs) == 1:
            with trio.CancelScope(shield=True):
                await trio.sleep(100)
        return len(runs)

    ref = await client.enqueue(shielded)
    async with working(nq.Worker(app, client, lease=30)):
        await trio.sleep(1)
        anywhere.down.add("heartbeat")
        await trio.sleep(40)
        anywhere.down.clear()
        assert await teller.hears() == (ref.id, None, nq.Success(2))
        await trio.sleep(100)

    assert teller.told == []
    assert len(await completions(client)) == 1


# -- together with what a handler writes ---------------------------------------------------


async def write(ctx: nq.TaskContext, *, body: str) -> str:
    await ctx.tx.execute("insert into note (body) values (%s)", [body])
    return body


async def test_a_transactional_handler(
    app: nq.App, pg: nq.Client, db: Connection, teller: Teller
) -> None:
    """What a handler wrote, its success and the task that tells of it are one transaction."""
    task_type = app.task(name="write", transactional=True, on_complete=teller.note)(write)
    ref = await pg.enqueue(task_type.options(context="c"), body="a")
    async with working(nq.Worker(app, pg)):
        assert await teller.hears() == (ref.id, "c", nq.Success("a"))
    rows = await db.fetch(
        "select note.xmin = finished.xmin, note.xmin = told.xmin"
        " from note, nursery_queue.finished, nursery_queue.task as told"
        " where finished.task_id = %s and told.completes = %s",
        [ref.id, ref.id],
    )

    assert rows == [(True, True)]


async def test_a_commit_that_fails(
    app: nq.App, pg: nq.Client, db: Connection, teller: Teller
) -> None:
    """A success that could not be committed is not told; the failure it turns into is."""
    await db.execute("insert into note (body) values ('taken')")
    task_type = app.task(name="write", transactional=True, on_complete=teller.note, retry=None)
    ref = await pg.enqueue(task_type(write), body="taken")
    async with working(nq.Worker(app, pg)):
        _, _, result = await teller.hears()

    assert isinstance(result, nq.Failure)
    assert result.error_type == "psycopg.errors.UniqueViolation"
    assert len(await completions(pg)) == 1
    assert await outcomes(pg, ref) == ["failed"]


async def test_a_task_that_is_not_kept(app: nq.App, either: nq.Client, teller: Teller) -> None:
    """A task that is deleted at its end is told of all the same."""
    ref = await either.enqueue(app.task(on_complete=teller.note, keep_for=0)(fine))
    async with working(nq.Worker(app, either)):
        assert await teller.hears() == (ref.id, None, nq.Success([1, 2]))
        await eventually(lambda: _ended(either))

    assert await either.status(ref) is None


async def _ended(client: nq.Client) -> bool:
    return all(one.state == "succeeded" for one in await client.list_tasks())


async def test_perform_tells_nobody(app: nq.App, teller: Teller) -> None:
    """A handler that is run for a test tells nobody how it ended."""
    task_type = app.task(on_complete=teller.note)(fine)
    client = nq.Client(MemoryStore())

    assert await perform(task_type.options(context=5).bind()) == [1, 2]
    assert await client.list_tasks() == []
    assert teller.told == []
