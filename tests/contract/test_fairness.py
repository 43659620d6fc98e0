"""Keys take turns: none of them waits for the backlog of another."""

from __future__ import annotations

from collections import Counter

from nursery_queue._core._model import QueueSlots
from nursery_queue._core._states import Event, State
from nursery_queue._store import Store
from tests.support.flow_steps import add_keyed, take
from tests.support.store_steps import claim, count, hire, settle


async def test_one_of_each_key_in_turn(store: Store) -> None:
    """However many tasks of a key are older, the keys come one after the other."""
    known = await add_keyed(store, "aaaaaaabbbc")
    worker = await hire(store)
    found = [known[one.fence.task_id] for _ in known for one in await claim(store, worker, 1)]

    assert "".join(found) == "abcababaaaa"


async def test_a_claim_of_many(store: Store) -> None:
    """One claim of several takes as many rounds as it needs, the oldest of each key first."""
    known = await add_keyed(store, "aaaaabbbc")
    ids = list(known)
    worker = await hire(store)

    found = [one.fence.task_id for one in await claim(store, worker, 5)]

    assert found == [ids[0], ids[1], ids[5], ids[6], ids[8]]


async def test_it_goes_on_after_the_key_that_was_served_last(store: Store) -> None:
    """Also in the next claim, of another worker, and when the key has no tasks left."""
    known = await add_keyed(store, "aaabbcc")
    workers = [await hire(store), await hire(store)]

    async def taken(number: int, limit: int) -> Counter[str]:
        held = await claim(store, workers[number], limit)
        return Counter(known[one.fence.task_id] for one in held)

    assert await taken(0, 2) == {"a": 1, "b": 1}
    assert await taken(1, 2) == {"c": 1, "a": 1}
    assert await taken(0, 1) == {"b": 1}
    assert await taken(1, 1) == {"c": 1}
    known |= await add_keyed(store, "bd")
    assert await taken(0, 1) == {"d": 1}
    assert await taken(1, 2) == {"a": 1, "b": 1}


async def test_a_new_key(store: Store) -> None:
    """Its first task starts within one round, however long the backlog of the others is."""
    for key in "bd":
        await add_keyed(store, [key] * 1000)
    worker = await hire(store)
    assert len(await claim(store, worker, 7)) == 7
    known = await add_keyed(store, "ace")

    found = {known.get(one.fence.task_id) for one in await claim(store, worker, 5)}

    assert found == {*"ace", None}


async def test_tasks_without_a_key(store: Store) -> None:
    """They are one lane, and take their turn as a key does."""
    known = await add_keyed(store, [*"aaaa", *[None] * 4, *"bb"])
    worker = await hire(store)

    for _ in range(2):
        held = await claim(store, worker, 3)
        assert Counter(known[one.fence.task_id] for one in held) == {"": 1, "a": 1, "b": 1}


async def test_without_keys_the_oldest_comes_first(store: Store) -> None:
    """A queue whose tasks have no keys, or all the same, is served as if there were none."""
    for key in (None, "a"):
        known = await add_keyed(store, [key] * 5, queue=f"of {key}")
        worker = await hire(store)
        slots = [QueueSlots(queue=f"of {key}", slots=9)]
        held = [
            one.fence.task_id
            for limit in (2, 3)
            for one in await claim(store, worker, limit, queue_slots=slots)
        ]

        assert held == list(known)


async def test_priority_comes_first(store: Store) -> None:
    """Keys take turns among tasks of one priority: better ones go first, whatever their keys."""
    known = await add_keyed(store, "abc")
    known |= await add_keyed(store, "cccaa", priority=1)
    worker = await hire(store)
    found = [known[one.fence.task_id] for _ in known for one in await claim(store, worker, 1)]

    assert "".join(found) == "acaccabc"


async def test_keys_are_in_the_order_of_their_bytes(store: Store) -> None:
    """On every server, whatever its language."""
    keys = ["10", "9", "B", "_", "a", "z", "Ä", "é", "\U00010000", "\uffff"]
    known = await add_keyed(
        store, ["é", "\uffff", "a", "_", "B", "Ä", "z", "9", "10", "\U00010000"]
    )
    worker = await hire(store)
    found = [known[one.fence.task_id] for _ in known for one in await claim(store, worker, 1)]

    assert found == sorted(keys, key=str.encode)


async def test_each_type_has_its_own_turns(store: Store) -> None:
    """Of a type the keys come one after the other; of a key the tasks of all types, by age."""
    known = await add_keyed(store, "aab")
    known |= await add_keyed(store, "aab", task_type="other")
    worker = await hire(store)

    async def taken(limit: int) -> list[tuple[str, str]]:
        claims = (await take(store, worker, limit)).claims
        return sorted((one.task_type, known[one.fence.task_id]) for one in claims)

    assert await taken(2) == [("work", "a"), ("work", "b")]
    assert await taken(2) == [("other", "b"), ("work", "a")]
    assert await taken(2) == [("other", "a"), ("other", "a")]


async def test_a_new_key_of_another_type(store: Store) -> None:
    """Its first task starts within one round, too: the backlog of no type is in its way."""
    await add_keyed(store, ["big"] * 500)
    worker = await hire(store)
    known = await add_keyed(store, ["small"], task_type="other")

    found = [one.fence.task_id for one in (await take(store, worker, 2)).claims]

    assert set(known) & set(found)


async def test_a_full_key_has_no_turn(store: Store) -> None:
    """It is stepped over, and has its turn when it has room again."""
    known = await add_keyed(store, "aaabbbccc")
    worker = await hire(store)
    await store.configure("default", max_running_per_key=2)

    held = await claim(store, worker, 4)
    assert Counter(known[one.fence.task_id] for one in held) == {"a": 2, "b": 1, "c": 1}
    held = await claim(store, worker, 4)
    assert Counter(known[one.fence.task_id] for one in held) == {"b": 1, "c": 1}
    await settle(store, held[0], Event.SUCCEED)
    assert len(await claim(store, worker, 4)) == 1


async def test_many_keys(store: Store) -> None:
    """With more keys than a claim looks at all are served in turn, and nothing is left behind."""
    keys = [f"k{number:03}" for number in range(300)]
    known = await add_keyed(store, keys * 2)
    worker = await hire(store)
    found: list[str] = []

    while await count(store, State.READY):
        held = await claim(store, worker, 30)
        found += [known[one.fence.task_id] for one in held]

    assert Counter(found) == dict.fromkeys(keys, 2)
    assert len({*found[:300]}) == 300
