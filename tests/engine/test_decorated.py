"""Decorators between `app.task` and a handler."""

from __future__ import annotations

import functools

from collections.abc import Callable
from typing import Any

import nursery_queue as nq


def decorated(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a handler as one does who thinks of plain functions alone."""

    @functools.wraps(handler)
    def call(*args: Any, **kwargs: Any) -> Any:
        return handler(*args, **kwargs)

    return call


async def test_a_plain_decorator_of_an_async_handler(app: nq.App, client: nq.Client) -> None:
    """The error says what is wrong with the decorator, and names nothing of ours."""

    @decorated
    async def greet(name: str) -> str:
        return name

    task = app.task(name="greet", retry=None)(greet)
    ref = await client.enqueue(task, "Ann")
    await nq.Worker(app, client).run_until_idle()
    status = await client.status(ref)
    assert status is not None
    assert status.state is nq.State.FAILED
    assert status.error_message is not None
    assert status.error_message.startswith("greet is a `def` that returned a coroutine")
    assert "decorator" in status.error_message


async def test_a_plain_decorator_of_a_plain_handler(app: nq.App, client: nq.Client) -> None:
    """It is run in a thread, as ever."""

    @decorated
    def greet(name: str) -> str:
        return f"Hello, {name}!"

    ref = await client.enqueue(app.task(name="greet")(greet), "Ann")
    await nq.Worker(app, client).run_until_idle()
    assert await client.result(ref) == "Hello, Ann!"
