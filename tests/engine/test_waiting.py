"""Waiting for tasks to end."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from trio.testing import MockClock

import nursery_queue as nq

from nursery_queue.testing import VirtualTime
from tests.support.flaky_store import FlakyStore
from tests.support.workers import working


@pytest.fixture
def gate(app: nq.App) -> trio.Event:
    """Names the task types `echo`, `fail` and `wait`; the last waits for this event."""
    event = trio.Event()

    @app.task(name="echo")
    async def echo(value: object) -> object:
        return value

    @app.task(name="fail", retry=None)
    async def fail() -> None:
        raise ValueError("on purpose")

    @app.task(name="wait")
    async def wait(value: object) -> object:
        await event.wait()
        return value

    return event


async def test_already_finished(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client, gate: trio.Event
) -> None:
    """The result of a task that has ended is there at once, by reference or by id."""
    ref = await either.enqueue("echo", value=[1, "a"])
    await nq.Worker(app, either).run_until_idle()

    assert await either.result(ref) == [1, "a"]
    assert await either.result(ref.id, timeout=5) == [1, "a"]
    assert (await either.wait(ref)).state == "succeeded"


async def test_finishing_later(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client, gate: trio.Event
) -> None:
    """Whoever waits is woken when the task ends, well before the next question is due."""
    ref = await either.enqueue("wait", value=7)
    results: list[object] = []

    async def wait() -> None:
        results.append(await either.result(ref))

    async with working(nq.Worker(app, either)), trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        with pytest.raises(trio.TooSlowError):
            await either.result(ref, timeout=1.3)
        assert results == []
        gate.set()

    assert results == [7]


async def test_a_hundred_waiters(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client, gate: trio.Event
) -> None:
    """Many may wait at once, for tasks of their own or the same; each gets its own answer."""
    refs = [await either.enqueue("wait", value=n) for n in range(50)] * 2
    results: list[object] = []

    async def wait(ref: nq.TaskRef) -> None:
        results.append(await either.result(ref, timeout=30))

    async with working(nq.Worker(app, either)), trio.open_nursery() as nursery:
        for ref in refs:
            nursery.start_soon(wait, ref)
        await trio.sleep(0.001)
        gate.set()

    assert sorted(results, key=str) == sorted([*range(50), *range(50)], key=str)


async def test_one_listener_and_one_question(
    autojump_clock: MockClock,
    app: nq.App,
    client: nq.Client,
    store: FlakyStore,
    gate: trio.Event,
) -> None:
    """However many wait, one listens, and one question a second is asked for all of them."""
    ref = await client.enqueue("wait", value=7)
    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(client.wait, ref)
        await trio.sleep(10.5)
        assert store.calls["listen"] == 1
        assert store.calls["status_many"] <= 100 + 11
        nursery.cancel_scope.cancel()


async def test_questions_become_rare(
    autojump_clock: MockClock,
    app: nq.App,
    client: nq.Client,
    store: FlakyStore,
    gate: trio.Event,
) -> None:
    """While notifications would come, a long wait asks once a minute; without them, each second."""
    ref = await client.enqueue("wait", value=7)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.wait, ref)
        await trio.sleep(3600)
        assert 60 <= store.calls["status_many"] <= 70
        nursery.cancel_scope.cancel()
    store.calls.clear()
    store.down = {"listen"}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.wait, ref)
        await trio.sleep(60)
        assert 55 <= store.calls["status_many"] <= 62
        nursery.cancel_scope.cancel()


async def test_the_one_who_asks_is_cancelled(
    autojump_clock: MockClock,
    app: nq.App,
    client: nq.Client,
    store: FlakyStore,
    gate: trio.Event,
) -> None:
    """When the waiter who asks for all is cancelled, another takes over at once."""
    ref = await client.enqueue("wait", value=7)
    results: list[object] = []
    scopes = [trio.CancelScope() for _ in range(3)]

    async def wait(scope: trio.CancelScope) -> None:
        with scope:
            results.append(await client.result(ref))

    async with trio.open_nursery() as nursery:
        for scope in scopes:
            nursery.start_soon(wait, scope)
            await trio.testing.wait_all_tasks_blocked()
        for scope in scopes[:2]:
            scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
        gate.set()
        await nq.Worker(app, client).run_until_idle()
        before = trio.current_time()

    assert (results, trio.current_time()) == ([7], before)


async def test_a_lost_notification(
    autojump_clock: MockClock,
    app: nq.App,
    client: nq.Client,
    store: FlakyStore,
    gate: trio.Event,
) -> None:
    """Without notifications the end is seen all the same, and an outage is ridden out."""
    store.down = {"listen"}
    ref = await client.enqueue("wait", value=7)
    async with trio.open_nursery() as nursery:
        worker = nq.Worker(app, client, listen=False)
        nursery.start_soon(worker.run)
        with pytest.raises(trio.TooSlowError):
            await client.result(ref, timeout=5)
        nursery.start_soon(client.result, ref)
        await trio.sleep(1)
        store.down = {"listen", "status_many"}
        await trio.sleep(20)
        store.down = {"listen"}
        gate.set()
        before = trio.current_time()
        await client.result(ref)
        assert trio.current_time() - before <= 6
        worker.stop()


async def test_failed(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client, gate: trio.Event
) -> None:
    """The result of a failed task raises `TaskFailed` with its error; `wait` returns its status."""
    ref = await either.enqueue("fail")
    await nq.Worker(app, either).run_until_idle()

    with pytest.raises(nq.TaskFailed, match=rf"{ref.id} \(fail\) failed: ValueError: on purpose"):
        await either.result(ref)
    assert (await either.wait(ref)).state == "failed"


async def test_cancelled(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client, gate: trio.Event
) -> None:
    """The result of a task that is cancelled while we wait raises `TaskCancelled`."""
    ref = await either.enqueue("wait", value=7)

    async def cancel() -> None:
        await trio.sleep(0.001)
        await either.cancel(ref)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cancel)
        with pytest.raises(nq.TaskCancelled, match=str(ref.id)):
            await either.result(ref, timeout=10)


async def test_unknown(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client, gate: trio.Event
) -> None:
    """Waiting for what never was, or is not kept, raises `UnknownTask`."""
    with pytest.raises(nq.UnknownTask, match="there is no task 4711"):
        await either.result(4711)
    ref = await either.enqueue(app["echo"].options(keep_for=0), 7)
    await nq.Worker(app, either).run_until_idle()
    with pytest.raises(nq.UnknownTask):
        await either.wait(ref)


async def test_the_client_is_closed_meanwhile(
    virtual_time: VirtualTime,
    app: nq.App,
    either: nq.Client,
    gate: trio.Event,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Closing the client ends waiting at once with `Closed`, itself and not in a group; no bug."""
    caplog.set_level("WARNING")
    ref = await either.enqueue("wait", value=7)

    async def close() -> None:
        await trio.sleep(0.001)
        await either.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(close)
        for _ in range(3):
            nursery.start_soon(_expect_closed, either, ref)

    assert trio.current_time() < 0.01
    assert caplog.messages == []


async def _expect_closed(client: nq.Client, ref: nq.TaskRef) -> None:
    with pytest.raises(nq.Closed):
        await client.result(ref, timeout=10)


async def test_no_time_to_wait(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client, gate: trio.Event
) -> None:
    """With a timeout of 0 the result of a task that has ended is there, and of no other."""
    done, waiting = await either.enqueue("echo", value=7), await either.enqueue("wait", value=8)
    async with working(nq.Worker(app, either)):
        assert await either.result(done) == 7
        assert await either.result(done, timeout=0) == 7
        with pytest.raises(trio.TooSlowError):
            await either.result(waiting, timeout=0)
        with pytest.raises(nq.UnknownTask):
            await either.result(4711, timeout=0)
        gate.set()


async def test_no_time_to_wait_and_no_answer(
    autojump_clock: MockClock, client: nq.Client, store: FlakyStore
) -> None:
    """A first question has up to five seconds; it raises what it met if there is no more time."""
    ref = await client.enqueue("wait", value=7)
    store.stuck = {"status_many"}
    for timeout, took in [(0, 5), (2, 5), (8, 8)]:
        before = trio.current_time()
        with pytest.raises(trio.TooSlowError):
            await client.result(ref, timeout=timeout)
        assert trio.current_time() - before == took
    store.stuck, store.down = set(), {"status_many"}
    with pytest.raises(nq.TransientError, match="status_many"):
        await client.result(ref, timeout=0)
    with pytest.raises(trio.TooSlowError):
        await client.result(ref, timeout=3)


async def test_an_outage_from_the_first_question_on(
    autojump_clock: MockClock,
    app: nq.App,
    client: nq.Client,
    store: FlakyStore,
    gate: trio.Event,
) -> None:
    """Whoever begins to wait while the database is away is served when it is back."""
    ref = await client.enqueue("echo", value=7)
    await nq.Worker(app, client).run_until_idle()
    store.down = {"listen", "status_many"}
    results: list[object] = []

    async def wait() -> None:
        results.append(await client.result(ref))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        nursery.start_soon(client.wait, ref)
        await trio.sleep(20)
        store.down = set()
        await trio.sleep(6)
        assert results == [7]
