"""Setting queues: at run time, and as code declares them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import pytest

from nursery_queue._core._queue_changes import Declared, QueueChanges
from nursery_queue._core._rate import Rate
from nursery_queue._store import Bell, Store
from tests.support.listening import listening
from tests.support.store_steps import a_task


EVERYTHING: QueueChanges = {
    "paused": True,
    "max_running": 50,
    "max_running_per_key": 2,
    "rate": Rate(1000, per=60, burst=7),
    "rate_per_key": Rate(1, per=1 / 3),
    "notify": False,
}
NOTHING: QueueChanges = {
    "paused": False,
    "max_running": None,
    "max_running_per_key": None,
    "rate": None,
    "rate_per_key": None,
    "notify": True,
}


async def settings(store: Store, queue: str = "calls") -> Mapping[str, Any]:
    """Return how a queue is set."""
    (found,) = [each for each in await store.queues() if each.name == queue]
    return {name: getattr(found, name) for name in NOTHING}


@pytest.mark.parametrize("name", NOTHING)
async def test_what_is_left_out_stays(store: Store, name: str) -> None:
    """A change of one thing leaves all others as they are, on a new queue and on one that is."""
    await store.configure("new", **_only(EVERYTHING, name))
    assert await settings(store, "new") == NOTHING | _only(EVERYTHING, name)

    await store.configure("calls", **EVERYTHING)
    assert await settings(store) == EVERYTHING
    await store.configure("calls", **_only(NOTHING, name))
    assert await settings(store) == EVERYTHING | _only(NOTHING, name)


async def test_an_empty_change_makes_a_queue_known(store: Store) -> None:
    """A queue of which nothing is set is listed as it would be without that."""
    await store.configure("calls")
    await store.enqueue([a_task(queue="other")])

    assert await settings(store) == await settings(store, "other") == NOTHING


@pytest.mark.parametrize("name", NOTHING)
async def test_a_change_is_news(store: Store, name: str) -> None:
    """Each change rings for who waits for work, and for who holds some: also of limits per key."""
    async with listening(store, [Bell.WORK, Bell.CANCEL]) as ear:
        for changes in (EVERYTHING, NOTHING):
            before = dict(ear.heard)
            await store.configure("calls", **_only(changes, name))
            for bell, rung in before.items():
                await ear.hears(bell, after=rung)


# -- as code declares them -----------------------------------------------------------------------


async def declare(store: Store, queue: str = "calls", /, **declared: Any) -> bool:
    """Declare one queue as a worker does that starts; return whether that has changed it."""
    answer = await store.declare_queues({queue: cast("QueueChanges", declared)})
    assert answer in (Declared(), Declared(changed=(queue,)))
    return bool(answer.changed)


async def test_a_declaration_is_stored(store: Store) -> None:
    """Queues become what is declared of them; what was set and is not declared stays."""
    await store.configure("calls", paused=True, max_running=9, max_running_per_key=9)
    declared: dict[str, QueueChanges] = {
        "new": {"notify": False},
        "calls": {"max_running": 5, "rate": Rate(10, per=60, burst=2)},
    }
    assert await store.declare_queues(declared) == Declared(changed=("calls", "new"))

    assert await settings(store) == NOTHING | {
        "paused": True,
        "max_running": 5,
        "max_running_per_key": 9,
        "rate": Rate(10, per=60, burst=2),
    }
    assert await settings(store, "new") == NOTHING | {"notify": False}


async def test_what_was_set_at_run_time(store: Store) -> None:
    """It is kept as long as the same is declared, and gives way to another declaration."""
    first: dict[str, Any] = {"max_running": 5, "rate": Rate(10, per=60)}
    assert await declare(store, **first)
    await store.configure("calls", max_running=3, rate=None)

    assert not await declare(store, **first)
    assert await settings(store) == NOTHING | {"max_running": 3}
    assert await declare(store, max_running=6, rate=Rate(10, per=60))
    assert await settings(store) == NOTHING | {"max_running": 6, "rate": Rate(10, per=60)}


async def test_two_versions_of_the_code(store: Store) -> None:
    """Each start of a worker counts, so the last one to start has its way."""
    for most in 5, 6, 5:
        assert await declare(store, max_running=most)
        assert await settings(store) == NOTHING | {"max_running": most}


@pytest.mark.parametrize("name", [name for name in NOTHING if name != "paused"])
async def test_what_is_declared_no_more(store: Store, name: str) -> None:
    """It is as if never set, whatever it was at run time; the rest of the row is left alone."""
    await declare(store, **_only(EVERYTHING, name))
    await store.configure("calls", **EVERYTHING)

    assert await declare(store)
    assert await settings(store) == EVERYTHING | _only(NOTHING, name)
    await store.configure("calls", **EVERYTHING)
    assert not await declare(store)
    assert await settings(store) == EVERYTHING


async def test_none_is_a_declaration(store: Store) -> None:
    """Who declares that there is no limit takes one away that was set before."""
    await store.configure("calls", max_running=5, rate=Rate(1, per=1), rate_per_key=Rate(1, per=1))

    assert await declare(store, max_running=None, rate=None)
    assert await settings(store) == NOTHING | {"rate_per_key": Rate(1, per=1)}
    await store.configure("calls", max_running=5)
    assert not await declare(store, max_running=None, rate=None)
    assert (await settings(store))["max_running"] == 5


async def test_only_a_change_rings(store: Store) -> None:
    """A worker that starts with what is declared already wakes nobody for that."""
    async with listening(store, [Bell.WORK, Bell.CANCEL]) as ear:
        before = dict(ear.heard)
        await declare(store, max_running=5)
        for bell, rung in before.items():
            await ear.hears(bell, after=rung)
        before = dict(ear.heard)
        assert not await declare(store, max_running=5)
        await store.configure("other", notify=False)  # rings itself, later
        await ear.hears(Bell.CANCEL, after=before[Bell.CANCEL])

        assert ear.heard[Bell.CANCEL] == before[Bell.CANCEL] + 1


async def test_no_declaration(store: Store) -> None:
    """Who declares nothing changes nothing."""
    assert await store.declare_queues({}) == Declared()
    assert await store.queues() == []


def _only(changes: QueueChanges, name: str) -> QueueChanges:
    return cast("QueueChanges", {name: dict(changes)[name]})
