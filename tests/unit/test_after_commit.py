"""How callbacks run once their transaction is committed: in time, in order, within bounds."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import logging
import math
import threading

from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import pytest
import trio

from trio.testing import MockClock

import nursery_queue as nq

from nursery_queue.testing import MemoryStore


@pytest.fixture
def client() -> nq.Client:
    return nq.Client(MemoryStore())


@attrs.define
class Crowd:
    """Callbacks that note when they begin and end, and how many of them run at once."""

    begun: list[int] = attrs.field(factory=list[int])
    ended: list[float] = attrs.field(factory=list[float])
    now: int = 0
    most: int = 0

    async def call(self, number: int, seconds: float = 1) -> None:
        self.begun.append(number)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await trio.sleep(seconds)
        finally:
            self.now -= 1
            self.ended.append(trio.current_time())


@pytest.fixture
def crowd() -> Crowd:
    return Crowd()


async def fail() -> None:
    await trio.sleep(1)
    msg = "no chat today"
    raise ValueError(msg)


async def interrupt() -> None:
    await trio.sleep(1)
    raise KeyboardInterrupt


async def shield(seconds: float) -> None:
    try:
        await trio.sleep_forever()
    finally:
        with trio.CancelScope(shield=True):
            await trio.sleep(seconds)


async def commit(
    client: nq.Client, after: nq.AfterCommit | None, *calls: Callable[[], object]
) -> None:
    """Commit a transaction that asks for these calls."""
    async with client.transaction(after=after) as tx:
        for call in calls:
            tx.after(call)


def for_seconds(crowd: Crowd, *seconds: float) -> list[Callable[[], Awaitable[None]]]:
    return [functools.partial(crowd.call, *each) for each in enumerate(seconds)]


# -- to the instant ------------------------------------------------------------------------------


async def test_wait_mode(autojump_clock: MockClock, client: nq.Client, crowd: Crowd) -> None:
    """By default the block returns when the longest of its callbacks has ended."""
    await commit(client, None, *for_seconds(crowd, 1, 2, 3))

    assert crowd.ended == [1, 2, 3]
    assert trio.current_time() == 3
    assert client.callbacks == nq.CallbackCounts(finished=3)


async def test_background(autojump_clock: MockClock, client: nq.Client, crowd: Crowd) -> None:
    """In the background they start at the commit, and the end of the block waits for them."""
    async with nq.AfterCommit(background=True) as after:
        await commit(client, after, *for_seconds(crowd, 1, 2, 3))
        assert trio.current_time() == 0
        await trio.sleep(2.5)
        assert crowd.ended == [1, 2]

    assert trio.current_time() == 3
    assert after.counts == nq.CallbackCounts(finished=3)
    assert client.callbacks == nq.CallbackCounts()


async def test_collecting(autojump_clock: MockClock, client: nq.Client, crowd: Crowd) -> None:
    """Collected ones begin when the block ends, and never between, in order of the commits."""
    first, second, both, lost = for_seconds(crowd, 3, 1, 2, 9)
    async with nq.AfterCommit() as after:
        async with client.transaction(after=after) as tx:
            tx.after(first)
            await commit(client, after, second)
            tx.after(both)
        with contextlib.suppress(KeyError):
            async with client.transaction(after=after) as tx:
                tx.after(lost)
                raise KeyError
        await trio.sleep(10)
        assert crowd.begun == []

    assert crowd.begun == [1, 0, 2]
    assert crowd.ended == [11, 12, 13]
    assert trio.current_time() == 13


async def test_aclose(
    autojump_clock: MockClock, client: nq.Client, nursery: trio.Nursery, crowd: Crowd
) -> None:
    """`aclose` returns when the last one has ended, and counts those that were left."""
    after = nq.AfterCommit(nursery)
    await commit(client, after, *for_seconds(crowd, 1, 2, 3))
    await trio.sleep(1.5)

    assert await after.aclose() == nq.Drained(finished=2, cancelled=0)
    assert trio.current_time() == 3


async def test_aclose_of_what_never_ends(
    autojump_clock: MockClock, client: nq.Client, nursery: trio.Nursery, crowd: Crowd
) -> None:
    """At the end of the grace, and no later, it cancels what is left and returns."""
    after = nq.AfterCommit(nursery)
    await commit(client, after, *for_seconds(crowd, math.inf, 1))

    assert await after.aclose(grace=2) == nq.Drained(finished=1, cancelled=1)
    assert trio.current_time() == 2
    assert crowd.ended == [1, 2]
    assert after.counts == nq.CallbackCounts(finished=1, cancelled=1)


@pytest.mark.parametrize("grace", [0, 0.5])
async def test_aclose_cancels_what_has_not_begun(
    autojump_clock: MockClock, client: nq.Client, nursery: trio.Nursery, crowd: Crowd, grace: float
) -> None:
    """Callbacks that still wait for others at the end of the grace never begin."""
    after = nq.AfterCommit(nursery, max_concurrency=1)
    await commit(client, after, *for_seconds(crowd, 1, 1, 1))
    await trio.sleep(1.2)

    assert await after.aclose(grace) == nq.Drained(finished=0, cancelled=2)
    assert trio.current_time() == 1.2 + grace
    assert crowd.begun == [0, 1]


# -- how many at once, and in which order --------------------------------------------------------


async def via_wait(client: nq.Client, *calls: Callable[[], object]) -> None:
    await commit(client, None, *calls)


async def via_background(client: nq.Client, *calls: Callable[[], object]) -> None:
    async with nq.AfterCommit(background=True) as after:
        await commit(client, after, *calls)


async def via_collecting(client: nq.Client, *calls: Callable[[], object]) -> None:
    async with nq.AfterCommit() as after:
        await commit(client, after, *calls)


async def via_nursery(client: nq.Client, *calls: Callable[[], object]) -> None:
    async with trio.open_nursery() as nursery:
        await commit(client, nq.AfterCommit(nursery), *calls)


Way = Callable[..., Awaitable[None]]
ways = pytest.mark.parametrize("way", [via_wait, via_background, via_collecting, via_nursery])


@ways
async def test_a_thousand(
    autojump_clock: MockClock, client: nq.Client, crowd: Crowd, way: Way
) -> None:
    """A thousand callbacks begin in the order of their registration, ten at once."""
    await way(client, *for_seconds(crowd, *([1] * 1000)))

    assert crowd.most == 10
    assert crowd.begun == list(range(1000))
    assert trio.current_time() == 100


@ways
async def test_the_next_begins_when_one_ends(
    autojump_clock: MockClock, client: nq.Client, crowd: Crowd, way: Way
) -> None:
    """A free place is taken at once, however long the others take."""
    await way(client, *for_seconds(crowd, 5, 1, *([5] * 8), 1, 1))

    assert sorted(crowd.ended)[:3] == [1, 2, 3]
    assert trio.current_time() == 5


async def test_the_limit_holds_over_all_transactions(
    autojump_clock: MockClock, client: nq.Client, crowd: Crowd
) -> None:
    """`max_concurrency` is for the AfterCommit, not for each transaction."""
    async with nq.AfterCommit(background=True, max_concurrency=2) as after:
        for _ in range(5):
            await commit(client, after, *for_seconds(crowd, 1, 1))

    assert crowd.most == 2
    assert trio.current_time() == 5


async def test_those_that_do_not_wait_keep_the_order(
    autojump_clock: MockClock, client: nq.Client
) -> None:
    """Callbacks without a checkpoint are called in order, too."""
    called: list[int] = []
    async with client.transaction() as tx:
        for number in range(50):
            tx.after(called.append, number)

    assert called == list(range(50))


# -- what can be called --------------------------------------------------------------------------


async def test_functions(autojump_clock: MockClock, client: nq.Client) -> None:
    """A function runs in trio's thread; what it returns is awaited if that is possible."""
    event, threads, done = trio.Event(), list[threading.Thread](), list[str]()

    async def later(text: str) -> None:
        await trio.sleep(1)
        done.append(text)

    async with client.transaction() as tx:
        tx.after(event.set)
        tx.after(lambda: threads.append(threading.current_thread()))
        tx.after(trio.to_thread.run_sync, lambda: threads.append(threading.current_thread()))
        tx.after(lambda: later("returned"))
        tx.after(later, "called")

    assert event.is_set()
    assert len(set(threads)) == 2
    assert sorted(done) == ["called", "returned"]
    assert client.callbacks == nq.CallbackCounts(finished=5)


async def test_what_cannot_be_called(autojump_clock: MockClock, client: nq.Client) -> None:
    """What is no function is refused at once; the coroutine of a function is none."""
    async with client.transaction() as tx:
        with pytest.raises(TypeError, match="something to call"):
            tx.after(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # on purpose
        coroutine = fail()
        with pytest.raises(TypeError, match="and its arguments, not <coroutine"):
            tx.after(coroutine)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # as above
        coroutine.close()

    assert client.callbacks == nq.CallbackCounts()


async def test_an_ended_transaction(autojump_clock: MockClock, client: nq.Client) -> None:
    """Nothing can be registered when the block has ended, not even by a callback."""
    seen: list[type[BaseException]] = []

    async def register() -> None:
        with pytest.raises(nq.TransactionEnded) as caught:
            tx.after(seen.clear)
        seen.append(caught.type)

    async with client.transaction() as tx:
        tx.after(register)
    with pytest.raises(nq.TransactionEnded, match="another one"):
        tx.after(register)

    assert seen == [nq.TransactionEnded]


user: contextvars.ContextVar[str] = contextvars.ContextVar("user", default="nobody")


@ways
async def test_context(autojump_clock: MockClock, client: nq.Client, way: Way) -> None:
    """Each callback has the context variables of where it was registered, and no other's."""
    seen: list[str] = []

    async def look() -> None:
        seen.append(user.get())
        user.set("spoiled")

    async def request(name: str) -> None:
        user.set(name)
        await way(client, look, look)
        assert user.get() == name

    async with trio.open_nursery() as nursery:
        nursery.start_soon(request, "ann")
        nursery.start_soon(request, "bob")

    assert sorted(seen) == ["ann", "ann", "bob", "bob"]


async def test_context_at_the_call(autojump_clock: MockClock, client: nq.Client) -> None:
    """Context variables are as they were when `after` was called, not as at the commit."""
    seen: list[str] = []
    async with client.transaction() as tx:
        user.set("first")
        tx.after(lambda: seen.append(user.get()))
        user.set("second")
        tx.after(lambda: seen.append(user.get()))
        user.set("third")

    assert seen == ["first", "second"]


# -- what goes wrong -----------------------------------------------------------------------------


@ways
async def test_errors(
    autojump_clock: MockClock,
    client: nq.Client,
    crowd: Crowd,
    way: Way,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An error is logged with its traceback and its callback's name; all others run."""

    def at_once() -> None:
        raise OSError(5, "no disk")

    def group() -> None:
        raise ExceptionGroup("two", [ValueError("x"), KeyError("y")])

    await way(client, *for_seconds(crowd, 2), fail, at_once, group, *for_seconds(crowd, 2))

    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    texts = [logging.Formatter().format(record) for record in errors]
    assert crowd.ended == [2, 2]
    assert len(errors) == 3
    assert "test_errors.<locals>.at_once()" in texts[0]
    assert "OSError: [Errno 5] no disk" in texts[0]
    assert "KeyError: 'y'" in texts[1]
    assert 'raise ExceptionGroup("two"' in texts[1]
    assert "test_after_commit.fail()" in texts[2]
    assert "Traceback" in texts[2]
    assert "ExceptionGroup" not in texts[2]


async def test_errors_are_counted(
    autojump_clock: MockClock, client: nq.Client, crowd: Crowd
) -> None:
    """Whoever asks is told how many ended well, and how many in which other way."""
    async with nq.AfterCommit(timeout=5) as after:
        await commit(client, after, fail, fail, *for_seconds(crowd, 9), *for_seconds(crowd, 1))
    await commit(client, None, fail)

    assert after.counts == nq.CallbackCounts(finished=1, failed=2, timed_out=1, cancelled=0)
    assert client.callbacks == nq.CallbackCounts(failed=1)


async def test_the_name_of_what_runs_in_a_thread(
    autojump_clock: MockClock, client: nq.Client, caplog: pytest.LogCaptureFixture
) -> None:
    """The log names the function that was to be called in a thread, but no other argument."""

    def post(text: str) -> None:
        raise OSError(text)

    async with client.transaction() as tx:
        tx.after(trio.to_thread.run_sync, post, "secret")

    (message,) = caplog.messages
    assert ".post)" in message
    assert "secret" not in message


async def test_time_limits(
    autojump_clock: MockClock, client: nq.Client, crowd: Crowd, caplog: pytest.LogCaptureFixture
) -> None:
    """Each has 30 s, or *timeout*, from its own start; the log names those that take longer."""
    await commit(client, None, *for_seconds(crowd, 29, 31))

    assert crowd.ended == [29, 30]
    assert client.callbacks == nq.CallbackCounts(finished=1, timed_out=1)
    assert "Crowd.call()" in caplog.text
    assert "30 s" in caplog.text

    async with nq.AfterCommit(timeout=5, max_concurrency=1) as after:
        await commit(client, after, *for_seconds(crowd, 4, 4, 6))

    assert crowd.ended[2:] == [34, 38, 43]
    assert after.counts == nq.CallbackCounts(finished=2, timed_out=1)


async def test_a_late_answer_counts(autojump_clock: MockClock, client: nq.Client) -> None:
    """One that returns although its time was up has finished."""

    async def swallow() -> None:
        with contextlib.suppress(trio.Cancelled):
            await trio.sleep(40)

    await commit(client, None, swallow)

    assert client.callbacks == nq.CallbackCounts(finished=1)


# -- interrupted and cancelled -------------------------------------------------------------------


@ways
async def test_an_interrupt(
    autojump_clock: MockClock, client: nq.Client, crowd: Crowd, way: Way
) -> None:
    """KeyboardInterrupt is no error of the callback: it goes through, and cancels the others."""
    with pytest.RaisesGroup(KeyboardInterrupt, allow_unwrapped=True) as caught:
        await way(client, interrupt, *for_seconds(crowd, 9))

    assert crowd.ended == [1]
    if way is not via_nursery:  # whose group it is
        assert isinstance(caught.value, KeyboardInterrupt)


async def test_an_interrupt_in_the_background(autojump_clock: MockClock, client: nq.Client) -> None:
    """It interrupts the block, too."""
    with pytest.raises(KeyboardInterrupt):
        async with nq.AfterCommit(background=True) as after:
            await commit(client, after, interrupt)
            await trio.sleep(10)

    assert trio.current_time() == 1


async def test_cancelling_the_caller(
    autojump_clock: MockClock, client: nq.Client, crowd: Crowd
) -> None:
    """In wait mode, cancelling the block cancels its callbacks, also those not yet begun."""
    with trio.move_on_after(1.5) as scope:
        await commit(client, None, *for_seconds(crowd, *([1] * 11), 5, 5))

    assert scope.cancelled_caught
    assert crowd.ended == [1] * 10 + [1.5] * 3
    assert client.callbacks == nq.CallbackCounts(finished=10, cancelled=3)


async def test_cancelled_at_the_commit(autojump_clock: MockClock, crowd: Crowd) -> None:
    """Cancelled before they have begun, none of them begins, though the commit was made."""
    scope = trio.CancelScope()

    class Hasty(nq.Instrument):
        def task_enqueued(self, event: nq.Enqueued) -> None:
            del event
            scope.cancel()  # this is told between the commit and the callbacks

    client = nq.Client(MemoryStore(), instruments=[Hasty()])
    with scope:
        async with client.transaction() as tx:
            await tx.enqueue("work")
            tx.after(crowd.call, 0)

    assert len(await client.list_tasks()) == 1
    assert crowd.begun == []
    assert client.callbacks == nq.CallbackCounts(cancelled=1)


async def test_an_error_while_cancelled(
    autojump_clock: MockClock, client: nq.Client, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a group of Cancelled and errors only Cancelled goes on, and the errors are logged."""

    async def messy() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep, 100)
            try:
                await trio.sleep(100)
            finally:
                raise ValueError("in the clean-up")  # the worst it can do

    with trio.move_on_after(1) as scope:
        await commit(client, None, messy)

    assert scope.cancelled_caught
    assert "in the clean-up" in caplog.text


@pytest.mark.parametrize("background", [False, True])
async def test_a_block_that_raises(
    autojump_clock: MockClock, client: nq.Client, crowd: Crowd, background: bool
) -> None:
    """Callbacks of what was committed run all the same; the same error goes on, alone."""
    error = ValueError("of the block")
    with pytest.raises(ValueError, match="of the block") as caught:
        async with nq.AfterCommit(background=background) as after:
            await commit(client, after, *for_seconds(crowd, 1, 2, 3))
            raise error

    assert caught.value is error
    assert crowd.ended == [1, 2, 3]


@pytest.mark.parametrize("background", [False, True])
async def test_a_block_that_is_cancelled(
    autojump_clock: MockClock, client: nq.Client, crowd: Crowd, background: bool
) -> None:
    """Cancelled, inside or at its end, the block cancels the callbacks."""
    for seconds in (5, 0):
        after = nq.AfterCommit(background=background)
        with trio.move_on_after(1) as scope:
            async with after:
                await commit(client, after, *for_seconds(crowd, 9))
                await trio.sleep(seconds)

        assert scope.cancelled_caught
        assert after.counts == nq.CallbackCounts(cancelled=1)
    assert trio.current_time() == 2


async def test_background_outlives_the_request(
    autojump_clock: MockClock, client: nq.Client, crowd: Crowd
) -> None:
    """In the background, cancelling whoever made the commit does not touch the callbacks."""
    async with nq.AfterCommit(background=True) as after:
        with trio.CancelScope() as scope:
            await commit(client, after, *for_seconds(crowd, 3))
            scope.cancel()

    assert crowd.ended == [3]
    assert after.counts == nq.CallbackCounts(finished=1)


# -- the end -------------------------------------------------------------------------------------


async def test_closing_refuses_at_once(
    autojump_clock: MockClock, client: nq.Client, nursery: trio.Nursery, crowd: Crowd
) -> None:
    """While it drains, new work is refused; what was registered before still counts and runs."""
    after = nq.AfterCommit(nursery)
    drained: list[nq.Drained] = []

    async def close() -> None:
        drained.append(await after.aclose())

    async with client.transaction(after=after) as tx:
        tx.after(crowd.call, 0, 3)
        nursery.start_soon(close)
        await trio.sleep(5)
        with pytest.raises(nq.Closed, match="AfterCommit"):
            tx.after(crowd.call, 1, 3)
        with pytest.raises(nq.Closed, match="AfterCommit"):
            await commit(client, after)
        assert drained == []
    await trio.sleep(3.5)

    assert crowd.ended == [8]
    assert drained == [nq.Drained(finished=1, cancelled=0)]


async def test_a_rollback_while_it_drains(
    autojump_clock: MockClock, client: nq.Client, nursery: trio.Nursery
) -> None:
    """`aclose` waits for open transactions; what is rolled back is not pending any more."""
    after = nq.AfterCommit(nursery)

    async def roll_back() -> None:
        with contextlib.suppress(KeyError):
            async with client.transaction(after=after) as tx:
                tx.after(trio.sleep, 100)
                await trio.sleep(4)
                raise KeyError

    nursery.start_soon(roll_back)
    await trio.sleep(1)

    assert await after.aclose() == nq.Drained(finished=0, cancelled=0)
    assert trio.current_time() == 4
    assert after.counts == nq.CallbackCounts()


async def test_an_open_transaction_without_callbacks(
    autojump_clock: MockClock, client: nq.Client
) -> None:
    """One that has registered nothing keeps nobody waiting, and can still be committed."""
    async with trio.open_nursery() as nursery:
        after = nq.AfterCommit(nursery)
        async with client.transaction(after=after) as tx:
            assert await after.aclose() == nq.Drained(finished=0, cancelled=0)
            ref = await tx.enqueue("work")

    assert await client.status(ref) is not None
    assert trio.current_time() == 0


async def test_a_commit_that_comes_too_late(
    autojump_clock: MockClock,
    client: nq.Client,
    nursery: trio.Nursery,
    crowd: Crowd,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Callbacks of a transaction that outlives the grace are not called; the log counts them."""
    after = nq.AfterCommit(nursery)
    async with client.transaction(after=after) as tx:
        tx.after(crowd.call, 0)
        tx.after(crowd.call, 1)
        assert await after.aclose(grace=2) == nq.Drained(finished=0, cancelled=2)
        assert trio.current_time() == 2

    assert crowd.begun == []
    assert after.counts == nq.CallbackCounts(cancelled=2)
    assert "2 callbacks of a commit are not called" in caplog.text


@pytest.mark.parametrize("background", [False, True])
async def test_the_block_waits_for_open_transactions(
    autojump_clock: MockClock, client: nq.Client, crowd: Crowd, background: bool
) -> None:
    """The end of the block refuses new work and waits for what was registered before."""
    refused: list[type[BaseException]] = []

    async def work(after: nq.AfterCommit) -> None:
        async with client.transaction(after=after) as tx:
            tx.after(crowd.call, 0, 1)
            await trio.sleep(5)
            with pytest.raises(nq.Closed) as caught:
                tx.after(crowd.call, 1)
            refused.append(caught.type)

    async with trio.open_nursery() as nursery, nq.AfterCommit(background=background) as after:
        nursery.start_soon(work, after)
        await trio.sleep(1)

    assert refused == [nq.Closed]
    assert crowd.ended == [6]


async def test_closing_what_collects(
    autojump_clock: MockClock, client: nq.Client, crowd: Crowd
) -> None:
    """`aclose` in the block of one that collects runs what was collected."""
    async with nq.AfterCommit() as after:
        await commit(client, after, *for_seconds(crowd, 1, 9))
        assert await after.aclose(grace=3) == nq.Drained(finished=1, cancelled=1)

    assert trio.current_time() == 3
    assert after.counts == nq.CallbackCounts(finished=1, cancelled=1)


async def test_what_ends_badly_while_it_drains(
    autojump_clock: MockClock, client: nq.Client, nursery: trio.Nursery, crowd: Crowd
) -> None:
    """Callbacks that fail or take too long within the grace have come to their end."""
    after = nq.AfterCommit(nursery, timeout=2)
    await commit(client, after, fail, *for_seconds(crowd, 9, 1))

    assert await after.aclose() == nq.Drained(finished=3, cancelled=0)
    assert after.counts == nq.CallbackCounts(finished=1, failed=1, timed_out=1)


@pytest.mark.parametrize(("cleanup", "at", "named"), [(3, 4, False), (60, 6, True)])
async def test_a_shielded_clean_up(
    autojump_clock: MockClock,
    client: nq.Client,
    caplog: pytest.LogCaptureFixture,
    cleanup: float,
    at: float,
    named: bool,
) -> None:
    """`aclose` waits 5 s for a clean-up that is shielded, then names it and returns."""
    async with trio.open_nursery() as nursery:
        after = nq.AfterCommit(nursery)
        async with client.transaction(after=after) as tx:
            tx.after(shield, cleanup)

        assert await after.aclose(grace=1) == nq.Drained(finished=0, cancelled=1)
        assert trio.current_time() == at
        assert ("still running after a commit" in caplog.text) is named
        assert ("test_after_commit.shield()" in caplog.text) is named

    assert trio.current_time() == 1 + cleanup  # it is the nursery's child all the same
    assert after.counts == nq.CallbackCounts(cancelled=1)


async def test_closing_twice(
    autojump_clock: MockClock, client: nq.Client, nursery: trio.Nursery, crowd: Crowd
) -> None:
    """Each `aclose` waits by its own grace and counts what was pending; later ones find nothing."""
    after = nq.AfterCommit(nursery)
    seen: list[tuple[float, nq.Drained]] = []

    async def close(at: float, grace: float) -> None:
        await trio.sleep(at)
        drained = await after.aclose(grace)
        seen.append((trio.current_time(), drained))

    await commit(client, after, *for_seconds(crowd, 1, 3, 9))
    async with trio.open_nursery() as closing:
        closing.start_soon(close, 0, 20)
        closing.start_soon(close, 2, 2)

    assert sorted(seen, key=lambda each: each[1].finished) == [
        (4, nq.Drained(finished=1, cancelled=1)),
        (4, nq.Drained(finished=2, cancelled=1)),
    ]
    assert await after.aclose() == nq.Drained(finished=0, cancelled=0)
    assert trio.current_time() == 4


async def test_cancelling_aclose(
    autojump_clock: MockClock, client: nq.Client, nursery: trio.Nursery, crowd: Crowd
) -> None:
    """Cancelled, `aclose` cancels what is left, begun or not, and does not wait for it."""
    after = nq.AfterCommit(nursery, max_concurrency=1)
    await commit(client, after, *for_seconds(crowd, 9, 9))
    with trio.move_on_after(2) as scope:
        await after.aclose()
    await trio.testing.wait_all_tasks_blocked()

    assert scope.cancelled_caught
    assert crowd.ended == [2]
    assert after.counts == nq.CallbackCounts(cancelled=2)


async def test_a_nursery_that_has_ended(
    autojump_clock: MockClock, client: nq.Client, crowd: Crowd, caplog: pytest.LogCaptureFixture
) -> None:
    """A commit for which there is no nursery any more is made; the log counts its callbacks."""
    async with trio.open_nursery() as nursery:
        after = nq.AfterCommit(nursery)
    await commit(client, after, *for_seconds(crowd, 1, 1))

    assert "2 callbacks of a commit are not called" in caplog.text
    assert after.counts == nq.CallbackCounts(cancelled=2)
    assert await after.aclose() == nq.Drained(finished=0, cancelled=0)


# -- wrong uses ----------------------------------------------------------------------------------


async def test_used_without_its_block(autojump_clock: MockClock, client: nq.Client) -> None:
    """One without a nursery must be entered, once, and not after it was closed."""
    after = nq.AfterCommit(background=True)
    with pytest.raises(RuntimeError, match="async with"):
        await commit(client, after)
    async with after:
        with pytest.raises(RuntimeError, match="make another one"):
            await after.__aenter__()
    with pytest.raises(nq.Closed):
        await commit(client, after)
    with pytest.raises(nq.Closed):
        await after.__aenter__()


async def test_a_block_for_a_given_nursery(
    autojump_clock: MockClock, client: nq.Client, nursery: trio.Nursery, crowd: Crowd
) -> None:
    """With a nursery it may be entered as well, to wait for its callbacks at the end."""
    async with nq.AfterCommit(nursery) as after:
        await commit(client, after, *for_seconds(crowd, 2))

    assert trio.current_time() == 2
    with pytest.raises(nq.Closed):
        await commit(client, after)


async def test_cancelling_a_block_for_a_given_nursery(
    autojump_clock: MockClock, client: nq.Client, nursery: trio.Nursery, crowd: Crowd
) -> None:
    """It cancels the callbacks, although their nursery goes on, and takes no later ones."""
    after = nq.AfterCommit(nursery)

    async def work() -> None:
        async with client.transaction(after=after) as tx:
            tx.after(crowd.call, 1)
            await trio.sleep(5)

    nursery.start_soon(work)
    with trio.move_on_after(2) as scope:
        async with after:
            await trio.sleep(1)
            await commit(client, after, *for_seconds(crowd, 9))
    await trio.sleep(5)

    assert scope.cancelled_caught
    assert (crowd.begun, crowd.ended) == ([0], [2])
    assert after.counts == nq.CallbackCounts(cancelled=2)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"max_concurrency": 0}, ValueError, "max_concurrency .* 0"),
        ({"max_concurrency": 1.5}, TypeError, "max_concurrency .* 1.5"),
        ({"timeout": 0}, ValueError, "timeout .* 0"),
        ({"timeout": -math.inf}, ValueError, "timeout .* -inf"),
        ({"timeout": None}, TypeError, "timeout .* None"),
        ({"nursery": True}, TypeError, "nursery .* True"),
    ],
)
def test_arguments(options: dict[str, Any], error: type[Exception], match: str) -> None:
    """Arguments are checked, and the message has the value."""
    with pytest.raises(error, match=match):
        nq.AfterCommit(**options)


@pytest.mark.parametrize("grace", [-1, math.nan, -math.inf])
async def test_the_grace_is_checked(nursery: trio.Nursery, grace: float) -> None:
    """A grace that is none is refused, and nothing is closed by that."""
    after = nq.AfterCommit(nursery)
    with pytest.raises(ValueError, match="grace"):
        await after.aclose(grace)
    await commit(nq.Client(MemoryStore()), after)
