"""What a list costs: bytes on the wire."""

from __future__ import annotations

import json

import nursery_queue as nq

from nursery_queue._core._states import Event
from tests.support.proxy import proxied
from tests.support.store_steps import a_task, claim, ends, hire


LARGE = 100_000
MANY = 100


async def test_a_list_does_not_read_payloads(migrated: str) -> None:
    """A page of tasks with large payloads is small, unless these are asked for."""
    large = json.dumps("x" * LARGE)
    async with proxied(migrated) as proxy, nq.connect(proxy.dsn) as client:
        store = client.store
        asked = a_task(params=f'{{"p": {large}}}', context=large)
        await store.enqueue([asked] * MANY)
        worker = await hire(store)
        claims = await claim(store, worker, MANY)
        await store.settle([ends(one, Event.SUCCEED, result=large) for one in claims])

        async def told(*, payloads: bool) -> int:
            before = sum(link.told for link in proxy.links)
            found = await client.list_tasks(limit=MANY, payloads=payloads)
            assert len(found) == MANY
            assert (found[0].params, found[0].result) == (
                ({"p": "x" * LARGE}, "x" * LARGE) if payloads else (None, None)
            )
            return sum(link.told for link in proxy.links) - before

        await told(payloads=False)  # what is read once, at the first use

        assert await told(payloads=False) < 400 * MANY
        assert await told(payloads=True) > 3 * LARGE * MANY
