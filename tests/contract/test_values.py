"""What JSON values become on their way through a store: the same in memory as in PostgreSQL."""

from __future__ import annotations

import json
import math

from collections.abc import AsyncGenerator
from typing import Any

import pytest

import nursery_queue as nq

from nursery_queue._core._json_text import is_of
from nursery_queue._core._states import Event
from nursery_queue._json._codec import dump_result
from nursery_queue._store import Store
from nursery_queue.testing import MemoryStore
from tests.support.store_steps import add, claim_one, hire, settle


FLOATS = [
    0.0,
    -0.0,
    1.0,
    -1.5,
    0.1 + 0.2,
    1e15,
    1e16,
    -1e16,
    1.5e16,
    1e22,
    1e100,
    1.7976931348623157e308,
    1e-7,
    5e-324,
    2.0**53 + 2,
]
OTHERS = [
    0,
    -1,
    10**16,
    -(10**40),
    True,
    None,
    "1e+16",
    '"-0.0" and \\"1e+20\\"',
    [1e16, ["-0.0", -0.0, 1e300]],
    {'a"b\\': {"-0.0": [2e20]}, "1e+16": 1e16},
]
NAMES = {"bb": 1, "a": 2, "": 3, "é": 4, "aé": 5, "ab": 6, "B": 7, "ccc": {"z": 1, "y": 2}}


@pytest.fixture
async def client(somewhere: str | None) -> AsyncGenerator[nq.Client]:
    """A client of either store."""
    opened = nq.Client(MemoryStore()) if somewhere is None else nq.connect(somewhere)
    async with opened as client:
        yield client


def parts(value: Any) -> list[Any]:
    """Return all that *value* consists of, in order; `==` tells apart 1 and 1.0, 0.0 and -0.0."""
    if is_of(value, dict):
        return [part for name, each in value.items() for part in (name, *parts(each))]
    if is_of(value, list):
        return [part for each in value for part in ("[", *parts(each))]
    return [(type(value), repr(value))]


@pytest.mark.parametrize("value", [*FLOATS, *OTHERS], ids=repr)
async def test_numbers_come_back_as_they_were(app: nq.App, client: nq.Client, value: Any) -> None:
    """A float stays a float and an integer an integer, however large: params, result, context."""
    came: list[Any] = []

    @app.task
    async def told(task_id: int, context: Any, result: nq.Result) -> None:
        del task_id
        came.extend([context, result.value if isinstance(result, nq.Success) else result])

    @app.task(on_complete=told)
    async def echo(values: list[Any]) -> Any:
        came.extend(values)
        return values[0]

    ref = await client.enqueue(echo.options(context=value), [value])
    await nq.Worker(app, client).run_until_idle()
    came.append(await client.result(ref))

    assert list(map(parts, came)) == 4 * [parts(unsigned(value))]


def unsigned(value: Any) -> Any:
    """Return *value* without zeros that have a sign: jsonb has none."""
    if is_of(value, float):
        return value + 0.0
    if is_of(value, list):
        return [unsigned(each) for each in value]
    if is_of(value, dict):
        return {name: unsigned(each) for name, each in value.items()}
    return value


async def test_names_come_back_by_length(store: Store) -> None:
    """The names of an object come back by length and then by their bytes, as from any jsonb."""
    text = json.dumps(NAMES)
    task_id, worker = await add(store, params=text, context=text), await hire(store)
    claim = await claim_one(store, worker)
    await settle(store, claim, Event.SUCCEED, result=text)
    (status,) = await store.status_many([task_id], payloads=True)
    order = ["", "B", "a", "ab", "bb", "é", "aé", "ccc"]

    assert status is not None
    for value in (status.params, status.context, status.result, json.loads(claim.params)):
        assert list(value) == order
        assert list(value["ccc"]) == ["y", "z"]


def test_text_of_floats() -> None:
    """What is sent to a store has no exponent, except in strings."""
    assert dump_result([1e16, "1e+16", -0.0], None, "x") == '[10000000000000000.0,"1e+16",0.0]'


async def test_a_number_that_python_does_not_read(pg: nq.Client) -> None:
    """An integer of too many digits in one row keeps no other row of its page from being shown."""
    async with pg.transaction() as tx:
        await tx.execute(
            "insert into nursery_queue.task (task_type, context) values ('a', '1e5000'), ('a', '1')"
        )
    page = await pg.list_tasks(payloads=True)

    assert [status.context for status in page] == [1, math.inf]
    assert [s and s.context for s in await pg.status_many([s.id for s in page], payloads=True)] == [
        1,
        math.inf,
    ]
