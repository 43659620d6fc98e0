"""The tracebacks that are stored begin at the user's own code."""

from __future__ import annotations

import asyncio

import pytest
import trio

import nursery_queue as nq


async def stored(client: nq.Client, app: nq.App, **params: object) -> str:
    ref = await client.enqueue("fail", **params)
    await nq.Worker(app, client).run_until_idle()
    (attempt,) = await client.attempts(ref)
    assert attempt.error_traceback is not None
    return attempt.error_traceback


@pytest.mark.parametrize("kind", ["trio", "thread", "asyncio", "nursery", "transactional"])
async def test_it_begins_at_the_handler(app: nq.App, client: nq.Client, kind: str) -> None:
    """No frame of ours, of trio or of asyncio stands above the handler's."""

    def fail() -> None:
        raise ValueError("here")

    async def fail_later() -> None:
        await (asyncio if kind == "asyncio" else trio).sleep(0)
        fail()

    app.task(
        name="fail",
        retry=None,
        asyncio=kind == "asyncio",
        nursery=kind == "nursery",
        transactional=kind == "transactional",
    )(fail if kind == "thread" else fail_later)
    lines = (await stored(client, app)).splitlines()

    assert lines[0] == "Traceback (most recent call last):"
    assert lines[1].startswith(f'  File "{__file__}"')
    assert lines[-1] == "ValueError: here"


async def test_params_that_do_not_fit(app: nq.App, client: nq.Client) -> None:
    """About params there is nothing to see but the message."""

    @app.task(name="fail")
    async def fail(number: int) -> None: ...

    text = await stored(client, app, number="one")

    assert "nursery_queue/_" not in text
    assert "parameter number" in text.splitlines()[-1]


async def test_a_group_of_one(app: nq.App, client: nq.Client) -> None:
    """An error that was never raised itself has the traceback of the group that holds it."""

    @app.task(name="fail", retry=None)
    async def fail() -> None:
        raise ExceptionGroup("one", [ValueError("inner")])

    text = await stored(client, app)

    assert f'File "{__file__}"' in text
    assert "ValueError: inner" in text


async def test_our_own_errors_have_their_public_names(app: nq.App, client: nq.Client) -> None:
    """What is stored of an error of ours calls it what users import."""

    @app.task(name="params", retry=None)
    async def params(number: int) -> None:
        del number

    @app.task(name="result", retry=None)
    async def result() -> object:
        return object()

    refs = [await client.enqueue("params", number="x"), await client.enqueue(result)]
    await nq.Worker(app, client).run_until_idle()

    for ref, name in zip(refs, ("ParamsError", "ResultError"), strict=True):
        (attempt,) = await client.attempts(ref)
        assert attempt.error_type == f"nursery_queue.{name}"
        assert attempt.error_traceback is not None
        assert f"nursery_queue.{name}: " in attempt.error_traceback
        assert "_core._errors" not in attempt.error_traceback
