"""Keeps errors that cannot be printed from trio, which prints those of a nursery's children."""

from __future__ import annotations

import inspect

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import trio

from ._signals import interrupted


T = TypeVar("T")


class UnprintableError(Exception):
    """Stands for an error whose `__repr__` raises; that one is its cause."""


def guard(nursery: trio.Nursery) -> trio.Nursery:
    """Let what is started in *nursery* raise only what can be printed; return it.

    trio asks for the repr of a child's error, and all of `trio.run` ends if that raises
    (tests/engine/test_poison.py).
    """
    start_soon, start = nursery.start_soon, nursery.start

    def guarded_start_soon(async_fn: Any, *args: Any, name: object = None) -> None:
        start_soon(_guarded(async_fn), *args, name=async_fn if name is None else name)

    async def guarded_start(async_fn: Any, *args: Any, name: object = None) -> Any:
        return await start(_guarded(async_fn), *args, name=async_fn if name is None else name)

    vars(nursery).update(start_soon=guarded_start_soon, start=guarded_start)
    return nursery


async def printable(awaitable: Awaitable[T]) -> T:
    """Await it; raise `UnprintableError` for an error whose repr raises."""
    try:
        return await awaitable
    except BaseException as exc:
        if _has_repr(exc):
            raise
        msg = f"{type(exc).__qualname__}, whose __repr__ raises"
        raise UnprintableError(msg) from exc


def _guarded(async_fn: Any) -> Callable[..., Any]:
    if not callable(async_fn):
        return async_fn  # type: ignore[no-any-return]  # trio says what is wrong with it

    def call(*args: Any, **kwargs: Any) -> Any:
        called = async_fn(*args, **kwargs)
        return printable(called) if inspect.iscoroutine(called) else called

    return call


def _has_repr(exc: BaseException) -> bool:
    try:
        repr(exc)
    except BaseException as second:
        if interrupted(second):
            raise
        return False
    return True
