"""What workers say of ready tasks that none of them takes."""

from __future__ import annotations

import logging

import pytest
import trio

import nursery_queue as nq

from nursery_queue._core._reasons import Unattended
from nursery_queue.testing import VirtualTime
from tests.support.flaky_store import FlakyStore
from tests.support.workers import working


MAIL = "queue mail has ready tasks, and no worker that is alive serves it"
NEW = "task type new has ready tasks, and no worker that is alive knows it"


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings of the log, in order, and forget them."""
    found = [line.getMessage() for line in caplog.records if line.levelno == logging.WARNING]
    caplog.clear()
    return found


async def test_each_worker_warns_once(
    virtual_time: VirtualTime,
    app: nq.App,
    either: nq.Client,
    starts: list[float],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Within a quarter of a minute, once a name, in the log of each, and of nothing else."""
    await either.enqueue_many(
        [
            nq.TaskRequest.by_name("note", queue="mail"),
            nq.TaskRequest.by_name("new"),
            nq.TaskRequest.by_name("later", queue="later", run_after=7200),
        ]
    )
    async with working(nq.Worker(app, either, queues=["default"])):
        await trio.sleep(15)
        assert warnings(caplog) == [MAIL, NEW]
        await trio.sleep(600)
        assert warnings(caplog) == []
        async with working(nq.Worker(app, either, queues={"default": 3, "calls": 2})):
            await trio.sleep(15)
            assert warnings(caplog) == [MAIL, NEW]
            await either.enqueue_many([nq.TaskRequest.by_name("newer")])
            await trio.sleep(75)
            newer = NEW.replace("new ", "newer ")
            assert warnings(caplog) == [newer, newer]


async def test_what_others_take_is_not_told(
    virtual_time: VirtualTime,
    app: nq.App,
    either: nq.Client,
    starts: list[float],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Another worker that serves the queue and knows the type is enough, however busy it is."""
    other = nq.App()

    @other.task(name="new", queue="mail")
    async def new() -> None:
        await trio.sleep_forever()

    await either.enqueue_many([new.bind()] * 5)
    busy = nq.Worker(other, either, queues=["mail"], concurrency=1, grace=0)
    async with working(nq.Worker(app, either, queues=["default"])), working(busy):
        await trio.sleep(120)
        assert warnings(caplog) == []
        await either.cancel_all(everything=True)
        busy.stop()


@pytest.mark.parametrize("trouble", ["down", "stuck"])
async def test_without_an_answer(
    virtual_time: VirtualTime,
    app: nq.App,
    store: FlakyStore,
    client: nq.Client,
    starts: list[float],
    caplog: pytest.LogCaptureFixture,
    trouble: str,
) -> None:
    """A look that fails or gets no answer does no harm, and the next one is a minute later."""
    getattr(store, trouble).add("unattended")
    await client.enqueue_many([nq.TaskRequest.by_name("new")])
    async with working(nq.Worker(app, client)):
        await trio.sleep(25)
        await client.enqueue("note")
        await trio.sleep(1)
        assert len(starts) == 1
        assert warnings(caplog) == []
        getattr(store, trouble).clear()
        await trio.sleep(75)
        assert warnings(caplog) == [NEW]


async def test_very_many_names(
    virtual_time: VirtualTime,
    app: nq.App,
    store: FlakyStore,
    client: nq.Client,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A log does not fill with them: after a thousand no others are told; each is one line."""
    calls = 0

    def told(verb: str, *_args: object, **_options: object) -> None:
        nonlocal calls
        if verb == "unattended":
            calls += 1
            names = tuple(f"{calls}\n{i}" for i in range(20))
            store.instead["unattended"] = Unattended(task_types=names)

    store.tell = told
    async with working(nq.Worker(app, client)):
        await trio.sleep(3600 * 1.5)
    found = warnings(caplog)

    assert len(found) == 1000
    assert found[0] == "task type 1 0 has ready tasks, and no worker that is alive knows it"
