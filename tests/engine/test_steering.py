"""What a client does about queues, workers and many tasks: checks, and that it gets through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import trio

import nursery_queue as nq

from nursery_queue._core._model import QueueStatus
from nursery_queue.testing import VirtualTime
from tests.support.workers import working


@pytest.fixture
def ran() -> list[str]:
    return []


@pytest.fixture
def mail(app: nq.App, ran: list[str]) -> nq.TaskType[[str], None]:
    @app.task(name="mail", queue="mail")
    async def mail(to: str) -> None:
        ran.append(to)

    return mail


async def test_pause_and_resume(
    app: nq.App, either: nq.Client, mail: nq.TaskType[[str], None], ran: list[str]
) -> None:
    """Nothing of a paused queue starts; once resumed, it does, without any other event."""
    await either.pause("mail")
    await either.pause("mail")
    ref = await either.enqueue(mail, "a")
    await nq.Worker(app, either).run_until_idle()

    assert ran == []
    assert [(queue.name, queue.paused, queue.ready) for queue in await either.queues()] == [
        ("mail", True, 1)
    ]

    async with working(nq.Worker(app, either, poll_interval=0)):
        await either.resume("mail")
        await either.wait(ref)

    assert ran == ["a"]


async def test_a_quiet_queue(
    virtual_time: VirtualTime,
    app: nq.App,
    either: nq.Client,
    mail: nq.TaskType[[str], None],
    ran: list[str],
) -> None:
    """A task of a queue that wakes nobody is found by the next poll, and is run."""
    del virtual_time
    await either.configure_queue("mail", max_running=3)
    await either.configure_queue("mail", notify=False)
    (queue,) = await either.queues()
    assert (queue.notify, queue.max_running) == (False, 3)
    async with working(nq.Worker(app, either, poll_interval=5)):
        await trio.sleep(1)  # it has polled when it began
        await either.enqueue(mail, "a")
        await trio.sleep(2)
        assert ran == []
        await trio.sleep(4)
        assert ran == ["a"]

        await either.configure_queue("mail", notify=True)
        await either.enqueue(mail, "b")
        await trio.sleep(0.1)
        assert ran == ["a", "b"]


async def test_a_limit(either: nq.Client, mail: nq.TaskType[[str], None]) -> None:
    """A limit is kept when the queue is paused, resumed, and until it is taken away."""
    await either.enqueue(mail.options(run_after=60), "a")
    seen: list[QueueStatus] = []
    for step in (
        either.configure_queue("mail", max_running=3),
        either.pause("mail"),
        either.configure_queue("mail", max_running=0),
        either.resume("mail"),
        either.configure_queue("mail", max_running=None),
    ):
        await step
        seen += await either.queues()

    assert [(queue.paused, queue.max_running) for queue in seen] == [
        (False, 3),
        (True, 3),
        (True, 0),
        (False, 0),
        (False, None),
    ]
    assert {(queue.name, queue.scheduled, queue.running) for queue in seen} == {("mail", 1, 0)}


async def test_all_at_once(either: nq.Client) -> None:
    """What is given is set in one step, what is not given stays, and None takes a limit away."""
    await either.configure_queue(
        "calls",
        max_running=50,
        max_running_per_key=2,
        rate=nq.Rate(1000, per=60),
        rate_per_key=nq.Rate(100, per=60, burst=20),
    )
    await either.pause("calls")
    await either.configure_queue("calls", rate=None, max_running_per_key=3, notify=False)

    assert await either.queues() == [
        QueueStatus(
            name="calls",
            paused=True,
            max_running=50,
            max_running_per_key=3,
            rate=None,
            rate_per_key=nq.Rate(100, per=60, burst=20),
            notify=False,
            scheduled=0,
            ready=0,
            running=0,
        )
    ]
    await either.configure_queue("calls", paused=False)
    assert [queue.paused for queue in await either.queues()] == [False]


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 256])
async def test_names_that_are_none(either: nq.Client, name: str) -> None:
    """A queue without a name is refused, and nothing is set."""
    for verb in (either.pause, either.resume):
        with pytest.raises(ValueError, match="queue"):
            await verb(name)
    with pytest.raises(ValueError, match="queue"):
        await either.configure_queue(name, max_running=1)

    assert await either.queues() == []


async def test_limits_that_are_none(either: nq.Client) -> None:
    """A limit is a whole number, 0 or more, or None, a rate a Rate; and one must be given."""
    configure = cast("Callable[..., Any]", either.configure_queue)
    for limit in ("max_running", "max_running_per_key"):
        with pytest.raises(ValueError, match=rf"{limit} .*-1"):
            await configure("mail", paused=True, **{limit: -1})
        for wrong in (1.5, "3", True):
            with pytest.raises(TypeError, match=f"{limit} must be"):
                await configure("mail", paused=True, **{limit: wrong})
    for rate in ("rate", "rate_per_key"):
        for no_rate in (5, "5/60", (5, 60)):
            with pytest.raises(TypeError, match=rf"{rate} must be a Rate, such as .*Rate\(100"):
                await configure("mail", max_running=5, **{rate: no_rate})
    for switch in ("paused", "notify"):
        for neither in (None, 1, "off"):
            with pytest.raises(TypeError, match=f"{switch} must be"):
                await configure("mail", max_running=5, **{switch: neither})
    with pytest.raises(TypeError, match=r"'mail'.*max_running, .*rate, .*notify"):
        await configure("mail")

    assert await either.queues() == []


async def test_workers(app: nq.App, either: nq.Client, virtual_time: VirtualTime) -> None:
    """Workers are listed while they are registered."""
    assert await either.workers() == []

    async with working(nq.Worker(app, either, name="first", queues=["mail"])):
        (only,) = await either.workers()

        assert (only.name, only.queues, only.alive, only.running) == ("first", ["mail"], True, 0)

    assert await either.workers() == []


@pytest.mark.parametrize("wrong", ["7", 7.0, None, True])
async def test_what_names_a_task(either: nq.Client, wrong: object) -> None:
    """A task is named by its id or by what enqueue returned; anything else is refused."""
    for verb in (either.status, either.cancel, either.retry, either.attempts, either.wait):
        with pytest.raises(TypeError, match="named by its id"):
            await cast("Callable[..., Any]", verb)(wrong)


async def test_cancelling_everything(
    app: nq.App, either: nq.Client, mail: nq.TaskType[[str], None], ran: list[str]
) -> None:
    """Tasks that are cancelled together never start; those enqueued after it do."""
    requests = [mail.bind(str(i)) for i in range(20)]
    await either.enqueue_many(requests)

    assert await either.cancel_all(queue="mail", task_type=mail, dry_run=True) == 20
    assert await either.cancel_all(queue="mail", task_type=mail) == 20

    await either.enqueue(mail, "after")
    await nq.Worker(app, either).run_until_idle()

    assert ran == ["after"]
    assert len(await either.list_tasks(state="cancelled", task_type=mail)) == 20
