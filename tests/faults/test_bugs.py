"""A mistake in one loop of the worker is that loop's alone, and costs no task."""

from __future__ import annotations

import json

from collections.abc import Callable

import pytest
import trio

import nursery_queue as nq

from nursery_queue._core._model import Settlement
from nursery_queue._worker._attempt import Attempt
from nursery_queue._worker._outcome_writer import OutcomeWriter
from nursery_queue._worker._slots import Slots
from nursery_queue.testing import VirtualTime
from tests.faults.loops import BUGS, VERBS, Holding, break_loop, logged, loop_health, unwell
from tests.support.flaky_store import FlakyStore
from tests.support.recorder import Recorder
from tests.support.workers import Longest, outcomes, state, working


def bugs_told(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """Return which loops were said to have a bug, and of which type, where there is a traceback."""
    return [
        (record.getMessage().split()[0], record.exc_info[0].__name__)
        for record in caplog.records
        if "bug" in record.getMessage() and record.exc_info and record.exc_info[0] is not None
    ]


def nop(app: nq.App) -> None:
    @app.task(name="nop")
    async def nop(n: int = 0) -> int:
        return n


@pytest.mark.parametrize("bug", BUGS)
@pytest.mark.parametrize("loop", VERBS)
async def test_a_bug_is_one_loops_alone(
    virtual_time: VirtualTime,
    app: nq.App,
    client: nq.Client,
    store: FlakyStore,
    holding: Holding,
    caplog: pytest.LogCaptureFixture,
    loop: str,
    bug: str,
) -> None:
    """Whatever a loop raises, it alone is restarted until it works, visibly; handlers go on."""
    nop(app)
    held = await client.enqueue("hold")
    worker = nq.Worker(app, client, rng=Longest())
    with logged(caplog):
        async with working(worker):
            error = BUGS[bug]()
            break_loop(store, loop, error)
            refs = [await client.enqueue("nop", n=n) for n in range(3)]
            await trio.sleep(20)  # less than the lease
            if loop in {"maintenance", "scheduler"}:
                await trio.sleep(70)  # until its next turn
            assert unwell(worker) == {loop}
            health = loop_health(worker, loop)
            assert (health.state, health.restarts > 3) == ("backing_off", True)
            assert type(error).__name__ in (health.last_error or "")
            assert holding.running == 1

            store.mend()
            await trio.sleep(40)
            assert unwell(worker) == set()
            assert [await state(client, ref) for ref in refs] == ["succeeded"] * 3
            holding.go_on.set()
            await trio.sleep(1)

    assert bugs_told(caplog) == [(loop, type(error).__name__)]
    assert f"{loop} is back" in caplog.messages
    assert holding.cancelled == []
    for ref in (held, *refs):
        assert await outcomes(client, ref) == ["succeeded"]


class Once:
    """Makes a method fail once, before or after it has done its work."""

    def __init__(self, owner: type, name: str, *, after: bool = False) -> None:
        self.real: Callable[..., object] = getattr(owner, name)
        self.owner, self.name, self.after = owner, name, after
        self.failed = False

    def arm(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def method(*args: object, **kwargs: object) -> object:
            if not self.failed and not self.after:
                self.failed = True
                raise LookupError(self.name)
            result = self.real(*args, **kwargs)
            if not self.failed:
                self.failed = True
                raise LookupError(self.name)
            return result

        monkeypatch.setattr(self.owner, self.name, method)


@pytest.mark.parametrize("after", [False, True])
async def test_a_bug_in_the_watch_over_the_lease(
    virtual_time: VirtualTime,
    app: nq.App,
    client: nq.Client,
    store: FlakyStore,
    holding: Holding,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    after: bool,
) -> None:
    """If cancelling the handlers fails when the lease is lost, it is done again, and all go on."""
    ref = await client.enqueue("hold")
    cancelling = Once(Slots, "cancel_all", after=after)
    worker = nq.Worker(app, client, rng=Longest())
    async with working(worker):
        cancelling.arm(monkeypatch)
        store.down = {"heartbeat", "register", "deregister"}
        await trio.sleep(31)
        store.down = set()
        assert cancelling.failed
        assert [reason for _, reason in holding.cancelled] == ["lease_lost"]
        assert unwell(worker) == {"heartbeat"}
        assert loop_health(worker, "lease").restarts == 1
        holding.go_on.set()
        await trio.sleep(60)
        assert unwell(worker) == set()

    assert bugs_told(caplog) == [("lease", "LookupError")]
    assert await outcomes(client, ref) == ["lost", "succeeded"]


@pytest.mark.parametrize("after", [False, True])
async def test_a_claimer_that_dies_with_tasks_in_hand(
    virtual_time: VirtualTime,
    app: nq.App,
    client: nq.Client,
    holding: Holding,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    after: bool,
) -> None:
    """Tasks that it was given are run, or given back and claimed again; none waits for a lease."""
    nop(app)
    taking = Once(Slots, "take", after=after)
    async with working(nq.Worker(app, client, poll_interval=0, rng=Longest())):
        await client.enqueue("hold")
        await trio.sleep(1)
        taking.arm(monkeypatch)
        refs = await client.enqueue_many([nq.TaskRequest.by_name("nop")] * 20)
        await trio.sleep(1)
        assert taking.failed
        assert [await state(client, ref) for ref in refs] == ["succeeded"] * 20
        assert holding.running == 1

    assert bugs_told(caplog) == [("claimer", "LookupError")]
    assert [await outcomes(client, ref) for ref in refs] == [["succeeded"]] * 20


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("what", [(OutcomeWriter, "decide"), (Slots, "settled")])
async def test_a_settler_that_dies_with_outcomes_in_hand(
    virtual_time: VirtualTime,
    app: nq.App,
    client: nq.Client,
    holding: Holding,
    monkeypatch: pytest.MonkeyPatch,
    what: tuple[type, str],
    after: bool,
) -> None:
    """Wherever it fails on the way, every outcome is stored, as it is, and no claim is kept."""
    nop(app)
    failing = Once(*what, after=after)
    failing.arm(monkeypatch)
    worker = nq.Worker(app, client, poll_interval=0, rng=Longest())
    async with working(worker):
        await client.enqueue("hold")
        await trio.sleep(1)
        refs = await client.enqueue_many([nq.TaskRequest.by_name("nop")] * 20)
        await trio.sleep(1)
        assert failing.failed
        assert (worker.health().running, worker.health().held) == (1, 1)
        assert holding.running == 1

    assert [await outcomes(client, ref) for ref in refs] == [["succeeded"]] * 20


async def test_an_outcome_that_cannot_be_decided(
    virtual_time: VirtualTime,
    app: nq.App,
    client: nq.Client,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It stays in hand, visibly, and does not keep the others from being stored."""
    nop(app)
    decide = OutcomeWriter.decide

    def stumble(self: OutcomeWriter, attempt: Attempt) -> Settlement:
        if json.loads(attempt.claim.params) == {"n": 7}:
            msg = "seven"
            raise ArithmeticError(msg)
        return decide(self, attempt)

    worker = nq.Worker(app, client, rng=Longest())
    async with working(worker):
        with monkeypatch.context() as patch:
            patch.setattr(OutcomeWriter, "decide", stumble)
            refs = [await client.enqueue("nop", n=n) for n in range(20)]
            await trio.sleep(100)
            late = [await client.enqueue("nop", n=n) for n in range(2)]
            await trio.sleep(11)  # a third of the lease at most, between two starts
            assert unwell(worker) == {"settler"}
            assert worker.health().held == 1
            done = [await state(client, ref) for ref in (*refs, *late)]
            assert (done.count("succeeded"), done[7]) == (21, "running")
        await trio.sleep(11)
        assert unwell(worker) == set()

    assert bugs_told(caplog) == [("settler", "ArithmeticError")]
    assert [await outcomes(client, ref) for ref in refs] == [["succeeded"]] * 20


@pytest.mark.parametrize("bug", BUGS)
async def test_a_settlement_of_unknown_fate(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, store: FlakyStore, bug: str
) -> None:
    """If settling fails after it was done, the outcome stands, and the claim is let go of."""
    nop(app)
    worker = nq.Worker(app, client, rng=Longest())
    async with working(worker):
        store.raises_after["settle"] = BUGS[bug]()
        refs = [await client.enqueue("nop", n=n) for n in range(20)]
        await trio.sleep(5)
        store.mend()
        await trio.sleep(11)
        assert worker.health().held == 0
        assert unwell(worker) == set()

    assert [await outcomes(client, ref) for ref in refs] == [["succeeded"]] * 20


async def test_a_bug_at_the_very_end(
    virtual_time: VirtualTime,
    app: nq.App,
    client: nq.Client,
    store: FlakyStore,
    holding: Holding,
) -> None:
    """A settler that fails while the worker ends is restarted at once, and again and again."""
    ref = await client.enqueue("hold")
    worker = nq.Worker(app, client, grace=50, rng=Longest())
    async with trio.open_nursery() as nursery:
        await nursery.start(worker.run)
        other = await client.enqueue("hold")
        await trio.sleep(1)
        store.raises["settle"] = ValueError("again and again")
        holding.go_on.set()
        await trio.sleep(40)  # by now it waits long
        worker.stop()
        await trio.sleep(3)
        store.mend()
    assert trio.current_time() < 41 + 5

    assert [await outcomes(client, each) for each in (ref, other)] == [["succeeded"]] * 2


@pytest.mark.leaves_claims("nothing can be stored until it has ended")
async def test_a_bug_that_stays_does_not_keep_the_worker(
    virtual_time: VirtualTime,
    app: nq.App,
    client: nq.Client,
    store: FlakyStore,
    holding: Holding,
) -> None:
    """`run()` ends within its budget also when outcomes cannot be stored at all."""
    await client.enqueue("hold")
    worker = nq.Worker(app, client, rng=Longest())
    async with working(worker):
        for loop in VERBS:
            break_loop(store, loop, ValueError("always"))
        holding.go_on.set()
        await trio.sleep(10)
    assert trio.current_time() <= 10 + 5 + 2


def test_the_loops_are_named() -> None:
    """Every loop that the worker supervises has its line in `health()`."""
    worker = nq.Worker(nq.App(), nq.Client(FlakyStore()))

    assert set(worker.health().loops) == {*VERBS, "lease", "reporter", "declarations"}


async def test_a_bug_in_a_report(
    virtual_time: VirtualTime, app: nq.App, store: FlakyStore, holding: Holding
) -> None:
    """A report that goes wrong costs no task, and the next one has what it would have had."""
    heard = Recorder()
    client = nq.Client(store, instruments=[heard])
    nop(app)
    await client.enqueue("hold")
    worker = nq.Worker(app, client, rng=Longest())
    async with working(worker):
        ref = await client.enqueue("nop", n=1)
        store.raises["backlog"] = ValueError("no such value")
        await trio.sleep(70)
        assert (loop_health(worker, "reporter").restarts, unwell(worker)) == (1, set())
        store.mend()
        await trio.sleep(60)
        holding.go_on.set()

    assert [(each.counters.succeeded, each.last) for each in heard.reports] == [
        (1, False),
        (1, True),
    ]
    assert await outcomes(client, ref) == ["succeeded"]
