"""What a handler on asyncio gets as its context: the same verbs, awaited on asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Self, TypeVar, cast

import attrs
import trio

from nursery_queue._client._client import Client
from nursery_queue._client._context import TaskContext
from nursery_queue._client._stream_reader import StreamReader
from nursery_queue._client._stream_writer import StreamWriter
from nursery_queue._client._transaction import Transaction
from nursery_queue._trio._asyncio_loop import TrioHostedLoop


T = TypeVar("T")

_CROSSING = (TaskContext, Client, Transaction, StreamWriter, StreamReader)


def crossing(value: T, loop: TrioHostedLoop) -> T:
    """Return *value* as it can be used on asyncio; the type is the truth for all but `isinstance`.

    Attributes are those of *value*. Async functions run in a trio task of their own and are
    awaited on asyncio, blocks are entered and left in one trio task, and what is returned and
    needs it crosses in the same way.
    """
    if isinstance(value, _CROSSING):
        return cast("T", _Crossing(value, loop))
    if inspect.iscoroutinefunction(value):
        return cast("T", functools.partial(_call, loop, value))
    if inspect.ismethod(value):
        return cast("T", functools.partial(_call_sync, loop, value))
    if isinstance(value, AbstractAsyncContextManager):
        return cast("T", _block(loop, cast("AbstractAsyncContextManager[Any]", value)))
    return value


@attrs.frozen(eq=False)
class _Crossing:
    """Something of ours, seen from asyncio."""

    inner: Any
    _loop: TrioHostedLoop

    def __getattr__(self, name: str) -> Any:
        return crossing(getattr(self.inner, name), self._loop)

    def __repr__(self) -> str:
        return f"{self.inner!r} on asyncio"

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        return await self._loop.call_trio(self.inner.__anext__)

    async def __aenter__(self) -> Self:
        await self._loop.call_trio(self.inner.__aenter__)
        return self

    async def __aexit__(self, *error: object) -> Any:
        return await self._loop.call_trio(self.inner.__aexit__, *error)


async def _call(loop: TrioHostedLoop, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    args, kwargs = _inside(args), dict(zip(kwargs, _inside(kwargs.values()), strict=True))
    return crossing(await loop.call_trio(fn, *args, **kwargs), loop)


def _call_sync(loop: TrioHostedLoop, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    return crossing(fn(*args, **kwargs), loop)


def _inside(values: Any) -> tuple[Any, ...]:
    """Return what stands behind those that have crossed: ours take nothing else."""
    return tuple(each.inner if isinstance(each, _Crossing) else each for each in values)


@contextlib.asynccontextmanager
async def _block(
    loop: TrioHostedLoop, block: AbstractAsyncContextManager[Any]
) -> AsyncGenerator[Any]:
    """Enter and leave *block* in one trio task, as its scopes want it, around code on asyncio."""
    entered: asyncio.Future[Any] = loop.create_future()
    left = trio.Event()
    error: BaseException | None = None

    async def hold() -> bool:
        """Hold the block; return whether it has swallowed the error of the code in it."""
        try:
            async with block as value:
                entered.set_result(value)
                await left.wait()
                if error is not None:
                    raise error  # noqa: TRY301  # into the block
        except BaseException as exc:
            if exc is not error:
                raise
            return False
        return True

    holding = loop.create_task(loop.call_trio(hold))
    try:
        await asyncio.wait([entered, holding], return_when=asyncio.FIRST_COMPLETED)
        if entered.done():
            yield crossing(entered.result(), loop)
    except BaseException as exc:  # noqa: BLE001  # the block is told, and then the caller
        error = exc
        if not entered.done():
            holding.cancel()
    left.set()
    swallowed = await _end_of(holding, loop)
    if error is not None and not swallowed:
        raise error


async def _end_of(task: asyncio.Task[T], loop: TrioHostedLoop) -> T:
    """Wait for *task*, and cancel it when we are; what it has done all the same is not lost."""
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as exc:
            cancelled = exc
            task.cancel(*exc.args)
    result = await task
    if cancelled is not None:  # as in `call_trio`
        loop.cancel_later(cancelled)
    return result
