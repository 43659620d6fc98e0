"""Says which handler blocks the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import sys
import threading
import traceback

from collections.abc import Generator, Iterator, Sequence
from types import FrameType
from typing import Any

import attrs
import trio

from nursery_queue._trio._clock import timekeeper
from nursery_queue._trio._lag import LagWatch, Silence

from ._asyncio_bridge import served
from ._attempt import Attempt
from ._executor import Executor


log = logging.getLogger("nursery_queue")

MACHINERY = {"nursery_queue", "trio", "trio_asyncio", "asyncio", "contextlib"}
PLACES = 5  # of the stack to name, where the handler was entered included


@attrs.define(eq=False)
class Watchdog:
    """Warns when the loop has not run for *limit* seconds: who blocks it, and where.

    One line when it is noticed, one when it is over. A blocked loop renews no lease, so
    *limit* is to be a small part of one.
    """

    limit: float
    _watch: LagWatch = attrs.field(init=False)
    _thread: int = attrs.field(default=0, init=False)  # where the loop runs
    _root: trio.lowlevel.Task | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self._watch = LagWatch(limit=self.limit, stuck=self._stuck, back=self._back)

    @property
    def lag(self) -> float:
        """Seconds that the loop is late: now if it is blocked, else when it was last asked."""
        return self._watch.lag

    @contextlib.contextmanager
    def watching_loop(self) -> Generator[None]:
        """Watch the loop of the calling task while the block lasts; only on the real clock."""
        if not _in_real_time():
            yield  # real ticks would disturb the order of things, and real delays mean nothing
            return
        self._thread, self._root = threading.get_ident(), trio.lowlevel.current_root_task()
        with self._watch.watching():
            yield

    # -- in the watchdog's thread ------------------------------------------------------

    def _stuck(self, silence: Silence) -> None:
        try:
            report = _report(silence, self._look())
        except Exception as exc:  # noqa: BLE001  # the loop may run on while we look at it
            report = (
                f"the event loop has been blocked for {silence.seconds:.1f} s; by whom: {exc!r}"
            )
        log.warning("%s", report)

    def _back(self, seconds: float) -> None:
        log.warning("the event loop runs again, after %.1f s", seconds)

    def _look(self) -> _Sight:
        # Quickly, and before anything is read from a file: the loop may be about to run on.
        frames = sys._current_frames()  # pyright: ignore[reportPrivateUsage]  # it is documented
        stack = list(_outwards(frames.get(self._thread)))
        lines = [frame.f_lineno for frame in stack]
        task = _running(self._root)
        attempt = _attempt(stack, task)
        return _Sight(_of_interest(list(zip(stack, lines, strict=True)), task), attempt)


def _in_real_time() -> bool:
    if timekeeper.get() is not None:
        return False
    clock = trio.lowlevel.current_clock()  # trio's MockClock sleeps for ever, and jumps
    return clock.deadline_to_sleep_time(clock.current_time() + 1) <= 1


_Place = tuple[FrameType, int]  # with the line that it is at


@attrs.frozen
class _Sight:
    """What the loop was doing."""

    places: Sequence[_Place]
    attempt: Attempt | None

    def __str__(self) -> str:
        places = self.places
        if len(places) > PLACES:
            places = [*places[: PLACES - 1], places[-1]]
        found = traceback.StackSummary.extract(iter(places))
        texts = [f"{place.filename}:{place.lineno} in {place.name}" for place in found]
        if found[0].line:
            texts[0] += f" ({found[0].line})"
        return ", called from ".join(texts)


def _report(silence: Silence, sight: _Sight) -> str:
    seconds, who = f"{silence.seconds:.1f} s", "no handler"
    if sight.attempt is not None:
        who = str(sight.attempt.claim)
    if not silence.alone:
        return (
            f"this process has not run for {seconds}: stopped, out of CPU, or something waited"
            f" without releasing the GIL; the event loop is in {who}, at {sight}"
        )
    report = f"the event loop has been blocked for {seconds} by {who}, at {sight}"
    if sight.attempt is not None:
        report += (
            "; call what blocks in a thread, by trio.to_thread.run_sync or from a handler"
            " without async"
        )
    return report


def _attempt(stack: Sequence[FrameType], task: trio.lowlevel.Task | None) -> Attempt | None:
    """Return what the running code belongs to; it may be a child task of the handler's."""
    for frame in stack:
        if frame.f_code is asyncio.Handle._run.__code__:
            task = served(frame.f_locals["self"]) or task
    while task is not None:
        entered = _entered(task)
        if entered is not None and entered.f_code is Executor.execute.__code__:
            attempt = entered.f_locals["attempt"]
            assert isinstance(attempt, Attempt)
            return attempt
        task = None if task.parent_nursery is None else task.parent_nursery.parent_task
    return None


def _running(root: trio.lowlevel.Task | None) -> trio.lowlevel.Task | None:
    """Return the task whose code the loop is in."""
    tasks = [] if root is None else [root]
    while tasks:
        task = tasks.pop()
        if getattr(task.coro, "cr_running", False):
            return task
        tasks.extend(child for nursery in task.child_nurseries for child in nursery.child_tasks)
    return None


def _of_interest(places: Sequence[_Place], task: trio.lowlevel.Task | None) -> Sequence[_Place]:
    """Return the part of the stack, innermost first, that is not the way there."""
    entered = None if task is None else _entered(task)
    inside: list[_Place] = []
    for place in places:
        inside.append(place)
        if place[0] is entered:
            break
    # From where the handler, or whatever else is not of ours, was entered.
    wanted = list(itertools.dropwhile(_is_machinery, reversed(inside)))
    return wanted[::-1] or inside


def _entered(task: trio.lowlevel.Task) -> FrameType | None:
    """Return the outermost frame of a task."""
    frame: Any = getattr(task.coro, "cr_frame", None)
    return frame if isinstance(frame, FrameType) else None


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _is_machinery(place: _Place) -> bool:
    name = str(place[0].f_globals.get("__name__"))
    return name.partition(".")[0] in MACHINERY
