"""Keeps errors that cannot be printed from trio, which prints those of a nursery's children."""

from __future__ import annotations

import contextlib

from collections.abc import Awaitable, Generator
from typing import TypeVar

import trio

from ._connection_use import connection_use
from ._signals import interrupted


T = TypeVar("T")


class UnprintableError(Exception):
    """Stands for an error whose `__repr__` raises; that one is its cause."""

    __module__ = "nursery_queue"  # what users read in tracebacks


@contextlib.contextmanager
def attempts_guarded() -> Generator[None]:
    """Let tasks that attempts start raise only what can be printed, as long as the block lasts.

    trio asks for the repr of a child's error, and all of `trio.run` ends if that raises: three
    workers were lost to one task (tests/engine/test_poison.py).
    """
    guard = _Guard()
    trio.lowlevel.add_instrument(guard)
    try:
        yield
    finally:
        trio.lowlevel.remove_instrument(guard)


class _Guard(trio.abc.Instrument):
    """Puts `printable` around what an attempt starts, in whatever nursery, before it runs."""

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        use = task.context.get(connection_use)
        if use is not None and use.in_attempt:
            task.coro = printable(task.coro)  # type: ignore[assignment]  # it is one


async def printable(awaitable: Awaitable[T]) -> T:
    """Await it; raise `UnprintableError` for an error whose repr raises."""
    try:
        return await awaitable
    except BaseException as exc:
        if _is_printable(exc):
            raise
        raise UnprintableError(f"{type(exc).__qualname__}, whose __repr__ raises") from exc


def _is_printable(exc: BaseException) -> bool:
    try:
        repr(exc)
        exc.with_traceback(exc.__traceback__)  # trio does that, too
    except BaseException as second:
        if interrupted(second):
            raise
        return False
    return True
