"""What every task of a trio run is waiting for, as text; for signal handlers and for logs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import FrameType

import trio

from ._wakeup import Wakeup


# Where a task waits in the end is always in here, and says nothing.
_PLUMBING = frozenset({"trio", "trio_asyncio", "asyncio", "contextlib", "outcome", "doorbell"})
# Where a handler waits in our own code says little as long as it has a line of its own.
_OURS = frozenset({"nursery_queue", "psycopg", "greenlet"})

Stack = Sequence[tuple[FrameType, int]]  # from the outside in, with line numbers


def task_tree(task: trio.lowlevel.Task, *, running: FrameType | None = None) -> str:
    """Return *task* and all below it, a line each, with the line of source where it waits.

    Indented are the nurseries a task has opened, by the name of the variable if it has one,
    and in each the tasks it contains. *running*: the frame that the thread of the run is
    in, for the task that is not waiting but running. Neither waits nor takes locks.
    """
    return "\n".join(_task(task, running, 0))


def place(task: trio.lowlevel.Task, *, running: FrameType | None = None) -> str:
    """Return the line of source where *task* waits: of the application, if it is in there."""
    stack, waits = _stack(task, running)
    if not stack:
        return "about to start or at its end"
    for inner in (_PLUMBING | _OURS, _PLUMBING, frozenset[str]()):
        telling = [(frame, line) for frame, line in stack if _package(frame) not in inner]
        if telling:
            break
    frame, line = telling[-1]
    code = frame.f_code
    at = f"{code.co_filename}:{line} in {code.co_name}"
    return at if waits else f"running at {at}"


def _task(task: trio.lowlevel.Task, running: FrameType | None, depth: int) -> Iterator[str]:
    yield f"{'  ' * depth}{task.name}: {place(task, running=running)}"
    stack, _ = _stack(task, running)
    # Each of a task's nurseries was opened inside the one before.
    for number, nursery in enumerate(task.child_nurseries, depth + 1):
        yield f"{'  ' * number}nursery {_name(nursery, stack)}".rstrip()
        for child in sorted(nursery.child_tasks, key=_in_order):
            yield from _task(child, running, number + 1)


def _stack(task: trio.lowlevel.Task, running: FrameType | None) -> tuple[Stack, bool]:
    """Return where a task is, and whether it waits there."""
    bottom = getattr(task.coro, "cr_frame", None)
    if bottom is not None and (stack := _called(bottom, running)):
        return stack, False
    return list(task.iter_await_frames()), True


def _called(bottom: FrameType, frame: FrameType | None) -> Stack:
    """Return the calls that led from *bottom* to *frame*; nothing if it was not from there."""
    calls: list[tuple[FrameType, int]] = []
    while frame is not None:
        calls.append((frame, frame.f_lineno))
        if frame is bottom:
            return calls[::-1]
        frame = frame.f_back
    return ()


def _package(frame: FrameType) -> str:
    name = str(frame.f_globals.get("__name__", ""))
    return "doorbell" if name == Wakeup.__module__ else name.partition(".")[0]


def _name(nursery: trio.Nursery, stack: Stack) -> str:
    """Return the name of the variable that holds a nursery."""
    for frame, _ in stack:
        for name, value in frame.f_locals.items():
            if value is nursery:
                return name
    return ""


def _in_order(task: trio.lowlevel.Task) -> list[str | int]:
    """Sort by name, and numbers in it by size."""
    return [int(word) if word.isdecimal() else word for word in task.name.split()]
