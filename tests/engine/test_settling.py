"""Settlements whose answer is lost, that are locked out, or that are more than the store takes."""

from __future__ import annotations

import contextlib
import json

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from contextlib import AbstractAsyncContextManager

import attrs
import psycopg
import pytest
import trio

import nursery_queue as nq

from nursery_queue._core._model import Fence, Refusal, Settlement
from nursery_queue._core._states import Event
from nursery_queue._store import Isolation, StoreTransaction
from nursery_queue._worker import _attempt_runner as _stage
from nursery_queue.testing import VirtualTime
from tests.support.flaky_store import FlakyStore
from tests.support.proxy import Proxy
from tests.support.store_steps import claim, hire, settle
from tests.support.waits import eventually
from tests.support.workers import final, outcomes, state, working


class Ends(nq.Instrument):
    """Collects how attempts ended, and what the worker has counted."""

    def __init__(self) -> None:
        self.ends: list[str] = []
        self.succeeded = 0
        self.enqueued: list[str] = []

    def task_enqueued(self, event: nq.Enqueued) -> None:
        self.enqueued.append(event.task_type)

    def task_completed(self, event: nq.Completed) -> None:
        self.ends.append(str(event.status))

    def report(self, event: nq.Report) -> None:
        self.succeeded += event.counters.succeeded


# -- an answer that is lost ----------------------------------------------------------------------


@pytest.mark.parametrize("keep_for", [60, 0])
async def test_a_success_whose_answer_was_lost_is_a_success(
    virtual_time: VirtualTime,
    app: nq.App,
    anywhere: FlakyStore,
    keep_for: float,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Callbacks are called, it is told and counted once, and the exit report has it."""
    called, ends = list[int](), Ends()
    client = nq.Client(anywhere, instruments=[ends])

    @app.task(name="work", keep_for=keep_for)
    async def work(ctx: nq.TaskContext) -> str:
        ctx.after(called.append, ctx.task_id)
        await trio.sleep(5)
        return "done"

    ref = await client.enqueue(work)
    worker = nq.Worker(app, client)
    async with working(worker):
        await trio.sleep(4)
        anywhere.deaf = {"settle"}
        worker.stop()
        await trio.sleep(1.1)
        anywhere.deaf = set()
        await trio.sleep(2)

    assert anywhere.calls["settle"] >= 2
    assert called == [ref.id]
    assert (ends.ends, ends.succeeded) == (["succeeded"], 1)
    assert worker.exit_report is not None
    assert worker.exit_report.counts == {nq.ExitOutcome.SUCCEEDED: 1}
    assert "dropped" not in caplog.text


@pytest.mark.leaves_claims("the clean-up of this one is a sweep")
@pytest.mark.parametrize("ended", [False, True], ids=["lost", "lost and ended by another"])
async def test_what_others_have_written_is_not_our_success(
    virtual_time: VirtualTime,
    app: nq.App,
    anywhere: FlakyStore,
    caplog: pytest.LogCaptureFixture,
    ended: bool,
) -> None:
    """A claim that was lost while its settlement got no answer stays lost; nothing is called.

    Nor does its worker take the end for its own where another one has ended the task, and even
    the task is gone.
    """
    called, ends = list[int](), Ends()
    client = nq.Client(anywhere, instruments=[ends])

    @app.task(name="work", keep_for=0 if ended else 60)
    async def work(ctx: nq.TaskContext) -> None:
        ctx.after(called.append, 1)

    async with working(nq.Worker(app, client)):
        anywhere.down = {"settle"}
        ref = await client.enqueue(work)
        await eventually(lambda: _asked(anywhere, "settle"))
        (info,) = await client.workers()
        await anywhere.deregister(info.id)  # others take it for dead
        await anywhere.sweep(max_lost=2 if ended else 1)
        if ended:
            (again,) = await claim(anywhere.inner, await hire(anywhere.inner), task_types=["work"])
            await settle(anywhere.inner, again, Event.SUCCEED, keep_for=0.0)
            await trio.sleep(10)  # until it has heard that it is not known any more
        anywhere.down = set()
        await trio.sleep(12)

    assert await outcomes(client, ref) == ([] if ended else ["lost"])
    assert (await client.status(ref) is None) == ended
    assert called == []
    assert ends.succeeded == 0
    assert "its outcome is dropped" in caplog.text


async def _asked(store: FlakyStore, verb: str) -> bool:
    return store.calls[verb] > 0


async def test_the_look_up_can_fail_too(
    virtual_time: VirtualTime, app: nq.App, anywhere: FlakyStore
) -> None:
    """As long as nobody knows what became of a settlement, it is kept and asked for."""
    called: list[int] = []
    client = nq.Client(anywhere)

    @app.task(name="work")
    async def work(ctx: nq.TaskContext) -> None:
        ctx.after(called.append, 1)

    async with working(nq.Worker(app, client)):
        anywhere.deaf, anywhere.down = {"settle"}, {"outcomes"}
        await client.enqueue(work)
        await trio.sleep(5)
        anywhere.deaf = set()
        await trio.sleep(5)
        assert called == []
        anywhere.down = set()
        await trio.sleep(12)

    assert called == [1]


@attrs.define(eq=False)
class Doubtful(FlakyStore):
    """A store that says of settlements for a while that it does not know whether they are made."""

    doubts: int = 2

    async def settle(self, settlements: Sequence[Settlement]) -> dict[Fence, Refusal]:
        refused = await FlakyStore.settle(self, settlements)
        if settlements and self.doubts > 0:
            self.doubts -= 1
            msg = "the connection was lost before the answer came"
            raise nq.CommitOutcomeUnknown(msg)
        return refused


@pytest.mark.parametrize("doubts", [1, 2, 5])
async def test_a_settlement_of_which_nobody_knows_is_no_failure(
    virtual_time: VirtualTime, app: nq.App, doubts: int
) -> None:
    """`CommitOutcomeUnknown` for a settlement blames no outcome: it is looked up, as a silence."""
    client, called = nq.Client(Doubtful(doubts=doubts)), list[int]()

    @app.task(name="work")
    async def work(ctx: nq.TaskContext) -> None:
        ctx.after(called.append, ctx.task_id)

    async with working(nq.Worker(app, client)):
        refs = [await client.enqueue(work) for _ in range(3)]
        await trio.sleep(25)

    assert [await outcomes(client, ref) for ref in refs] == [["succeeded"]] * 3
    assert sorted(called) == [ref.id for ref in refs]


# -- a claim that is locked ----------------------------------------------------------------------


@pytest.fixture
def db(migrated: str) -> Generator[psycopg.Connection]:
    """A session of somebody else, with a table for what handlers write."""
    with psycopg.connect(migrated, autocommit=True) as session:
        session.execute("create table note (body text)")
        yield session


@pytest.fixture
async def other(migrated: str) -> AsyncGenerator[nq.Client]:
    """A client of somebody else."""
    async with nq.connect(migrated) as client:
        yield client


def notes(db: psycopg.Connection) -> list[str]:
    return [body for (body,) in db.execute("select body from note order by body").fetchall()]


Lock = Callable[[nq.Client, nq.Transaction, nq.TaskRef], Awaitable[object]]
ROW = "select from nursery_queue.running where task_id = %s for update"


async def cancel_and_lock(other: nq.Client, tx: nq.Transaction, ref: nq.TaskRef) -> None:
    """Have a cancel committed before the lock: it is no reason to refuse a success either."""
    await other.cancel(ref, running=False)
    await tx.execute(ROW, [ref.id])


LOCKS: dict[str, Lock] = {
    "cancel": lambda _, tx, ref: tx.cancel(ref, running=False),
    "configure_queue": lambda _, tx, __: tx.execute(
        "insert into nursery_queue.queue (name, max_running) values ('default', 5)"
    ),
    "a lock after a cancel": cancel_and_lock,
}


@pytest.mark.parametrize("lock", LOCKS)
async def test_a_handler_that_has_returned_waits_for_a_lock(
    app: nq.App, pg: nq.Client, other: nq.Client, db: psycopg.Connection, lock: str
) -> None:
    """Its success is stored when the transaction in the way has ended; nothing is rolled back."""
    running, go, returned = trio.Event(), trio.Event(), trio.Event()

    @app.task(name="write", transactional=True, retry=None)
    async def write(ctx: nq.TaskContext) -> None:
        await ctx.tx.execute("insert into note values ('a')")
        running.set()
        await go.wait()
        returned.set()

    ref = await pg.enqueue(write)
    async with working(nq.Worker(app, pg)):
        await running.wait()
        async with other.transaction() as tx:
            await LOCKS[lock](other, tx, ref)
            go.set()
            await returned.wait()
            await trio.sleep(0.1)  # time to be refused; too little of it makes the test weaker
            assert await state(other, ref) == "running"
        await final(pg, ref)

    assert await outcomes(pg, ref) == ["succeeded"]
    assert notes(db) == ["a"]


async def test_a_lock_that_outlasts_the_patience_uses_up_no_attempt(
    app: nq.App,
    pg: nq.Client,
    other: nq.Client,
    db: psycopg.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A returned handler whose claim stays locked is rolled back, and runs again afterwards."""
    monkeypatch.setattr(_stage, "SETTLE_WITHIN", 0.1)
    runs, running, go = list[int](), trio.Event(), trio.Event()

    @app.task(name="write", transactional=True, retry=None)
    async def write(ctx: nq.TaskContext) -> None:
        runs.append(ctx.attempt)
        await ctx.tx.execute("insert into note values ('a')")
        running.set()
        await go.wait()

    ref = await pg.enqueue(write)
    worker = nq.Worker(app, pg)
    async with working(worker):
        await running.wait()
        async with other.transaction() as tx:
            await tx.execute(ROW, [ref.id])
            go.set()
            await eventually(lambda: _idle(worker))
        await final(pg, ref)

    assert runs == [1, 1]
    assert await outcomes(pg, ref) == ["interrupted", "succeeded"]
    assert notes(db) == ["a"]


async def _idle(worker: nq.Worker) -> bool:
    return worker.health().running == 0


@attrs.define(eq=False)
class Held(FlakyStore):
    """A store of which an open transaction holds one claim for a while."""

    task_id: int = 0
    until: float = 0.0
    asked: int = 0

    async def settle(self, settlements: Sequence[Settlement]) -> dict[Fence, Refusal]:
        held = [
            each.fence
            for each in settlements
            if each.fence.task_id == self.task_id and trio.current_time() < self.until
        ]
        self.asked += len(held)
        assert self.asked < 1000
        free = [each for each in settlements if each.fence not in held]
        return await FlakyStore.settle(self, free) | dict.fromkeys(held, Refusal.LOCKED)


async def test_a_lock_costs_little_while_it_lasts(virtual_time: VirtualTime, app: nq.App) -> None:
    """It is asked for ten times a second at most, and the others are stored meanwhile."""
    store = Held()
    client = nq.Client(store)

    @app.task(name="returns")
    async def returns() -> str:
        return "done"

    async with working(nq.Worker(app, client)):
        store.until = trio.current_time() + 10
        held = await client.enqueue(returns)
        store.task_id = held.id
        await trio.sleep(1)
        for _ in range(5):
            await final(client, await client.enqueue(returns), within=0.1)
            await trio.sleep(1)
        assert await state(client, held) == "running"
        await final(client, held)

    assert 50 < store.asked <= 120
    assert await outcomes(client, held) == ["succeeded"]


# -- a COMMIT without an answer ------------------------------------------------------------------


@pytest.mark.parametrize("keep_for", [60, 0])
@pytest.mark.parametrize("committed", [True, False])
async def test_a_commit_without_an_answer_is_looked_up(
    app: nq.App, pg: nq.Client, db: psycopg.Connection, proxy: Proxy, committed: bool, keep_for: int
) -> None:
    """If it is committed it is a success, callbacks included; if not, no attempt is used up."""
    runs, called, ends = list[int](), list[str](), Ends()

    @app.task(name="write", transactional=True, retry=None, keep_for=keep_for)
    async def write(ctx: nq.TaskContext) -> None:
        runs.append(ctx.attempt)
        await ctx.tx.execute("insert into note values ('a')")
        await ctx.tx.enqueue("other")
        ctx.after(called.append, "ctx")
        ctx.tx.after(called.append, "tx")
        if len(runs) == 1:
            proxy.drop_at(b"COMMIT", answered=committed)

    async with nq.connect(proxy.dsn, instruments=[ends]) as client:
        ref = await pg.enqueue(write)
        async with working(worker := nq.Worker(app, client)):
            await eventually(lambda: _all_called(called))
            assert worker.health().running <= 1

    assert sorted(called) == ["ctx", "tx"]
    assert notes(db) == ["a"]
    assert runs == ([1] if committed else [1, 1])
    log = ["succeeded"] if committed else ["interrupted", "succeeded"]
    assert ends.ends == log
    assert ends.succeeded == 1
    assert ends.enqueued == ["other"]
    if keep_for:
        assert await outcomes(pg, ref) == log


async def _all_called(called: list[str]) -> bool:
    return len(called) >= 2


async def test_a_settlement_that_never_arrives_uses_up_no_attempt(
    app: nq.App, pg: nq.Client, db: psycopg.Connection, proxy: Proxy
) -> None:
    """A returned handler whose connection is lost before COMMIT is rolled back, and runs again."""
    runs: list[int] = []

    @app.task(name="write", transactional=True, retry=None)
    async def write(ctx: nq.TaskContext) -> None:
        runs.append(ctx.attempt)
        await ctx.tx.execute("insert into note values ('a')")
        if len(runs) == 1:
            proxy.drop_at(b"with settled as", answered=False)

    async with nq.connect(proxy.dsn) as client, working(nq.Worker(app, client)):
        await final(pg, ref := await pg.enqueue(write))

    assert runs == [1, 1]
    assert await outcomes(pg, ref) == ["interrupted", "succeeded"]
    assert notes(db) == ["a"]


# -- the end of the worker -----------------------------------------------------------------------


@attrs.define(eq=False)
class SlowToCommit(FlakyStore):
    """A store that answers a COMMIT late, or never: whether it was made is not known then."""

    after: float = 0.0  # seconds
    unknown: bool = False
    commits: bool = True

    def transaction(
        self, *, isolation: Isolation | None = None
    ) -> AbstractAsyncContextManager[StoreTransaction]:
        del isolation
        return self._transaction()

    @contextlib.asynccontextmanager
    async def _transaction(self) -> AsyncGenerator[StoreTransaction]:
        with contextlib.suppress(ZeroDivisionError):
            async with self.inner.transaction() as tx:
                yield tx
                if not self.commits:
                    raise ZeroDivisionError
        await trio.sleep(self.after)
        if self.unknown:
            msg = "the connection was lost"
            raise nq.CommitOutcomeUnknown(msg)


@pytest.mark.parametrize("away", [set[str](), {"settle"}, {"outcomes"}], ids=str)
async def test_a_committed_success_is_reported_as_one(
    virtual_time: VirtualTime, app: nq.App, away: set[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Although its worker wanted to give the claim back before it heard of the commit."""
    store, ends = SlowToCommit(after=10), Ends()
    client = nq.Client(store, instruments=[ends])

    @app.task(name="write", transactional=True)
    async def write(ctx: nq.TaskContext) -> None:
        await ctx.tx.enqueue("other")

    ref = await client.enqueue(write)
    worker = nq.Worker(app, client, grace=1, cleanup=1)
    async with working(worker):
        await trio.sleep(0.1)
        store.down = away

    assert await outcomes(client, ref) == ["succeeded"]
    assert worker.exit_report is not None
    assert worker.exit_report.counts == {nq.ExitOutcome.SUCCEEDED: 1}
    assert (ends.ends, ends.succeeded) == (["succeeded"], 1)
    assert "dropped" not in caplog.text


@pytest.mark.leaves_claims("the store takes no heartbeat, so the worker cannot deregister")
@pytest.mark.parametrize("unknown", [False, True])
async def test_a_committed_success_is_reported_as_one_although_the_lease_is_lost(
    virtual_time: VirtualTime, app: nq.App, unknown: bool
) -> None:
    """What is stored is true, whatever the worker has been told meanwhile; if need be it asks."""
    store = SlowToCommit(after=20, unknown=unknown)
    client = nq.Client(store)

    @app.task(name="write", transactional=True)
    async def write(ctx: nq.TaskContext) -> None:
        await ctx.tx.enqueue("other")

    ref = await client.enqueue(write)
    worker = nq.Worker(app, client, lease=9, heartbeat=3, grace=60)
    async with working(worker):
        await trio.sleep(0.1)
        store.down = {"heartbeat"}

    assert await outcomes(client, ref) == ["succeeded"]
    assert worker.exit_report is not None
    assert worker.exit_report.counts == {nq.ExitOutcome.SUCCEEDED: 1}


@pytest.mark.leaves_claims("the store cannot be asked")
@pytest.mark.parametrize("commits", [True, False])
async def test_a_commit_of_which_nobody_knows_is_reported_as_that(
    virtual_time: VirtualTime, app: nq.App, commits: bool
) -> None:
    """It is neither a success nor a failure: the database could not be asked until the end."""
    store = SlowToCommit(unknown=True, commits=commits, down={"settle"})
    client = nq.Client(store)

    @app.task(name="write", transactional=True)
    async def write(ctx: nq.TaskContext) -> None:
        await ctx.tx.enqueue("other")
        await trio.sleep(1)

    await client.enqueue(write)
    worker = nq.Worker(app, client)
    async with working(worker):
        await trio.sleep(0.1)

    assert worker.exit_report is not None
    assert worker.exit_report.counts == {nq.ExitOutcome.UNKNOWN: 1}
    assert not worker.exit_report.clean


# -- more than the store takes -------------------------------------------------------------------


@attrs.define(eq=False)
class Choosy(FlakyStore):
    """A store that never ends with a settlement that has a huge result."""

    async def settle(self, settlements: Sequence[Settlement]) -> dict[Fence, Refusal]:
        if any(each.result == '"huge"' for each in settlements):
            await trio.sleep_forever()
        return await FlakyStore.settle(self, settlements)


async def test_one_that_takes_too_long_keeps_no_other_waiting(
    virtual_time: VirtualTime, app: nq.App
) -> None:
    """Others are stored at once while it is tried alone; in the end a plain failure is stored."""
    client, called = nq.Client(Choosy()), list[str]()

    @app.task(name="returns")
    async def returns(ctx: nq.TaskContext, what: str) -> str:
        ctx.after(called.append, what)
        return what

    async with working(nq.Worker(app, client)):
        small = [await client.enqueue(returns, str(n)) for n in range(20)]
        huge = await client.enqueue(returns, "huge")
        small += [await client.enqueue(returns, str(n)) for n in range(20, 40)]
        await trio.sleep(30)  # until it has been found out
        assert [await state(client, ref) for ref in small] == ["succeeded"] * 40
        for n in range(40, 80):
            ref = await client.enqueue(returns, str(n))
            await final(client, ref, within=0.1)
            await trio.sleep(1)
        status = await final(client, huge, within=100)

    assert (status.state, status.error_type) == ("failed", "OutcomeNotStored")
    assert status.error_message is not None
    assert "no answer within 10 s" in status.error_message
    assert "huge" not in called
    assert len(called) == 80


async def test_a_settlement_that_postgresql_never_ends_with(
    app: nq.App, pg: nq.Client, db: psycopg.Connection
) -> None:
    """The same on PostgreSQL, where it is an insert that takes for ever."""
    db.execute(
        "create function nursery_queue.dawdle() returns trigger language plpgsql as $$ begin"
        " if new.result = '\"huge\"' then perform pg_sleep(1000); end if; return new; end $$"
    )
    db.execute(
        "create trigger dawdle before insert on nursery_queue.finished"
        " for each row execute function nursery_queue.dawdle()"
    )
    try:

        @app.task(name="returns", retry=None)
        async def returns(what: str) -> str:
            return what

        refs = [await pg.enqueue(returns, what) for what in ("a", "huge", "b")]
        async with working(nq.Worker(app, pg, lease=3, heartbeat=0.5)):
            ends = [await final(pg, ref, within=60) for ref in refs]
    finally:
        db.execute("drop function nursery_queue.dawdle() cascade")

    assert [str(end.state) for end in ends] == ["succeeded", "failed", "succeeded"]
    assert ends[1].error_type == "OutcomeNotStored"


async def test_a_store_that_is_locked_for_a_while_fails_nobody(
    virtual_time: VirtualTime, app: nq.App
) -> None:
    """As long as nothing at all can be settled no outcome is to blame, however long it lasts."""
    store = FlakyStore()
    client = nq.Client(store)

    @app.task(name="returns")
    async def returns() -> str:
        return "done"

    async with working(nq.Worker(app, client)):
        store.stuck = {"settle"}
        refs = [await client.enqueue(returns) for _ in range(5)]
        await trio.sleep(600)
        store.stuck = set()
        await trio.sleep(12)
        for ref in refs:
            assert await outcomes(client, ref) == ["succeeded"]


# -- limits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("transactional", [False, True])
async def test_a_result_over_the_limit_fails_at_once(
    app: nq.App, either: nq.Client, transactional: bool
) -> None:
    """The error names the task, the size and the limit; it is not tried again."""
    called: list[int] = []

    @app.task(name="large", transactional=transactional)
    async def large(ctx: nq.TaskContext, size: int) -> str:
        ctx.after(called.append, size)
        if transactional:
            await ctx.tx.enqueue("other")
        return "x" * (size - 2)

    fits = await either.enqueue(large, 1_000_000)
    over = await either.enqueue(large, 1_000_001)
    await nq.Worker(app, either).run_until_idle()

    assert await outcomes(either, fits) == ["succeeded"]
    assert await outcomes(either, over) == ["failed"]
    status = await either.status(over)
    assert status is not None
    assert status.state == "failed"
    assert (status.error_type or "").endswith("ResultTooLarge")
    assert "result of large is 1000001 bytes, the limit is 1000000" in (status.error_message or "")
    assert called == [1_000_000]


async def test_the_limit_of_results_can_be_set(app: nq.App) -> None:
    """`max_result_bytes` of the worker's client counts, in bytes of UTF-8."""
    client = nq.Client(FlakyStore(), max_result_bytes=10)

    @app.task(name="returns", retry=None)
    async def returns(what: str) -> str:
        return what

    fits = await client.enqueue(returns, "12345678")
    over = await client.enqueue(returns, "123456789")
    await nq.Worker(app, client).run_until_idle()

    assert await state(client, fits) == "succeeded"
    assert await state(client, over) == "failed"


async def test_large_details_of_errors_are_cut(app: nq.App, either: nq.Client) -> None:
    """Notes and details beyond the limit are cut, and the log says how much there was."""

    @app.task(name="fails", retry=None)
    async def fails() -> None:
        error = ValueError("no")
        error.add_note("n" * 30_000)
        error.details = {"all": "x" * 1_000_000}  # type: ignore[attr-defined]  # any may have one
        raise error

    ref = await either.enqueue(fails)
    await nq.Worker(app, either).run_until_idle()

    (attempt,) = await either.attempts(ref)
    assert len(json.dumps(attempt.error_details)) < 3000
    assert attempt.error_details["notes"][0].startswith("nnn")
    assert attempt.error_details["cut"].startswith("1030")
