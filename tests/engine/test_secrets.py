"""What may be logged, and what may not."""

from __future__ import annotations

import logging

from collections.abc import Iterator

import psycopg
import pytest

import nursery_queue as nq

from nursery_queue._core._model import Claim, Fence
from nursery_queue._pg._postgres_store import PostgresStore


PASSWORD, CARD = "hunter2", "4000-1234"


def objects(root: object) -> Iterator[object]:
    """Yield *root* and all of ours that it refers to."""
    seen, waiting = set[int](), [root]
    while waiting:
        current = waiting.pop()
        if id(current) in seen or not type(current).__module__.startswith("nursery_queue"):
            continue
        seen.add(id(current))
        yield current
        names = [name for cls in type(current).__mro__ for name in getattr(cls, "__slots__", ())]
        waiting += [getattr(current, name, None) for name in names]
        waiting += getattr(current, "__dict__", {}).values()


async def test_no_repr_shows_a_password(app: nq.App) -> None:
    """Neither a client nor a worker, nor anything in them, shows the password of the database."""
    store = PostgresStore(f"postgresql://ann:{PASSWORD}@127.0.0.1:1/none")
    client = nq.Client(store)
    worker = nq.Worker(app, client)

    every = [*objects(client), *objects(worker), client.transaction(), nq.producer]
    assert len(every) > 10
    for each in every:
        assert PASSWORD not in f"{each!r} {each}", type(each)
    with pytest.raises(nq.TransientError) as caught:
        await store.check()
    assert PASSWORD not in f"{caught.value!r} {caught.value}"


async def test_no_repr_shows_params(
    app: nq.App, either: nq.Client, caplog: pytest.LogCaptureFixture
) -> None:
    """What is asked, held, done and returned is shown without its params, context and result."""
    caplog.set_level(logging.DEBUG)
    shown: list[str] = []

    @app.task(name="done")
    async def done(task_id: int, context: str, result: nq.Result) -> None: ...

    @app.task(name="pay", on_complete=done)
    async def pay(ctx: nq.TaskContext, card: str) -> str:
        shown.append(f"{ctx!r} {ctx}")
        return card

    request = pay.options(context=CARD).bind(CARD)
    ref = await either.enqueue(request)
    worker = nq.Worker(app, either)
    await worker.run_until_idle()
    status = await either.status(ref, payloads=True)
    assert status is not None
    assert status.params == {"card": CARD}
    claim = Claim(
        fence=Fence(1, 1), attempt=1, lost=0, task_type="pay", queue="default", params=CARD
    )

    things = [request, request.to_new_task(), claim, pay, either, worker, worker.health(), ref]
    shown += [f"{each!r} {each}" for each in things]
    shown += [repr(each) for each in await either.attempts(ref)]
    assert CARD not in "".join(shown)
    assert CARD not in repr(status).replace(f"result={CARD!r}", "")
    assert CARD not in caplog.text


@pytest.mark.parametrize(
    "dsn",
    ["u:{}@h:port/x", "u:{}@h@h/x", "u:a@{}@h/x", "u:{}/x@h/x", "u:{}@[::1/x", "u:{}%zz@h/x"],
)
async def test_a_url_that_is_cut_in_the_wrong_place(dsn: str) -> None:
    """What `connect` says of a URL that makes no sense has no part of its password in it."""
    with pytest.raises(psycopg.ProgrammingError, match="the DSN is neither") as caught:
        async with nq.connect(f"postgresql://{dsn.format(PASSWORD)}"):
            pytest.fail("it makes no sense")

    assert PASSWORD not in str(caught.value)
    assert caught.value.__context__ is None
