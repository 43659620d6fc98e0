"""Callbacks after a commit: begun in order, a number at once, each with a time limit."""

from __future__ import annotations

import contextvars
import enum
import functools
import inspect
import logging

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import cast

import attrs
import trio

from nursery_queue._core._errors import Closed
from nursery_queue._core._exception_groups import is_a, unwrapped
from nursery_queue._trio._signals import interrupted


log = logging.getLogger("nursery_queue")

MOST = 10  # at once
TIMEOUT = 30.0  # seconds for each


@attrs.frozen(eq=False)
class Callback:
    """A call for later, in the context of the place that asked for it."""

    fn: Callable[..., object]
    args: Sequence[object]
    context: contextvars.Context = attrs.field(factory=contextvars.copy_context, repr=False)

    def __str__(self) -> str:
        # `trio.to_thread.run_sync` is given the function to call as an argument.
        inner = ", ".join(_name(arg) for arg in self.args if callable(arg))
        return f"{_name(self.fn)}({inner})"


def _name(fn: object) -> str:
    while isinstance(fn, functools.partial):
        fn = fn.func
    named = fn if hasattr(fn, "__qualname__") else type(fn)
    return f"{getattr(named, '__module__', None)}.{getattr(named, '__qualname__', None)}"


@attrs.define(eq=False)
class PendingCallbacks:
    """The callbacks of one transaction, in order; until its commit they can be dropped."""

    callbacks: list[Callback] = attrs.field(factory=list[Callback])
    committed: bool = False
    refusal: str | None = None  # why nothing more is accepted

    def add(self, fn: object, args: Sequence[object]) -> Callback:
        """Add a callback. Raises `TypeError` if *fn* cannot be called, `Closed` after the end."""
        if not callable(fn):
            raise TypeError(f"after() takes something to call, and its arguments, not {fn!r:.100}")
        if self.refusal is not None:
            raise Closed(self.refusal)
        self.callbacks.append(callback := Callback(fn, args))
        return callback

    def drop(self, callbacks: Iterable[Callback]) -> None:
        """Drop callbacks: their savepoint was rolled back."""
        gone = set(callbacks)
        self.callbacks[:] = [each for each in self.callbacks if each not in gone]


class CallbackOutcome(enum.StrEnum):
    """How a callback ended."""

    FINISHED = "finished"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"


@attrs.frozen
class CallbackCounts:
    """How many callbacks have ended, by outcome.

    Callbacks of transactions that were not committed are not counted.
    """

    finished: int = 0
    failed: int = 0  # they raised
    timed_out: int = 0
    cancelled: int = 0  # while they ran, or before they had begun


@attrs.define(eq=False)
class CallbackTally:
    """Counts callbacks by outcome."""

    _ends: Counter[CallbackOutcome] = attrs.field(factory=Counter[CallbackOutcome], init=False)

    def note(self, end: CallbackOutcome, count: int = 1) -> None:
        """Count a callback, or *count* of them."""
        self._ends[end] += count

    @property
    def counts(self) -> CallbackCounts:
        """The counts so far."""
        return CallbackCounts(**{end.value: self._ends[end] for end in CallbackOutcome})


@attrs.define(eq=False)
class CallbackRunner:
    """Calls the callbacks that are added, in its *nursery*.

    An error of a callback is logged and counted, except `Cancelled`, `KeyboardInterrupt` and the
    like, which go on into the nursery. With *contain* only `Cancelled` does, and an error that a
    signal has raised: a callback that a handler asked for must not end the worker.
    """

    tally: CallbackTally
    most: int = MOST
    timeout: float = TIMEOUT
    nursery: trio.Nursery | None = None
    contain: bool = False
    # Where to wait for a callback to end.
    ends: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot, init=False)
    _waiting: deque[Callback] = attrs.field(factory=deque[Callback], init=False)
    _running: dict[Callback, trio.CancelScope] = attrs.field(
        factory=dict[Callback, trio.CancelScope], init=False
    )
    _starting: bool = attrs.field(default=False, init=False)
    _stopped: bool = attrs.field(default=False, init=False)

    @property
    def pending(self) -> int:
        """How many have not ended."""
        return len(self._waiting) + len(self._running)

    @property
    def running(self) -> Sequence[Callback]:
        """The callbacks that have begun and have not ended, in the order of their start."""
        return list(self._running)

    def add(self, callbacks: Sequence[Callback]) -> None:
        """Call these, after the callbacks that wait already."""
        self._waiting += callbacks
        if self._stopped:
            self._give_up("the AfterCommit of their transaction has been closed")
        self._start_next()

    def cancel(self) -> None:
        """Cancel the callbacks that run, and begin no others, now or later."""
        self._stopped = True
        self._drop_waiting()
        for scope in self._running.values():
            scope.cancel("their AfterCommit is being closed")

    def _start_next(self) -> None:
        # One after the other, each by the one before it: tasks that are started together begin
        # in any order.
        if self._starting or not self._waiting or len(self._running) >= self.most:
            return
        callback, scope = self._waiting[0], trio.CancelScope()
        try:
            callback.context.run(self._start, callback, scope)
        except RuntimeError as exc:  # what trio raises for a nursery that has ended
            self._give_up(f"their nursery does not take them: {exc}")
            return
        self._waiting.popleft()
        self._running[callback], self._starting = scope, True

    def _start(self, callback: Callback, scope: trio.CancelScope) -> None:
        assert self.nursery is not None
        self.nursery.start_soon(self._run, callback, scope, name=f"after commit: {callback}")

    async def _run(self, callback: Callback, scope: trio.CancelScope) -> None:
        self._starting = False
        self._start_next()
        end = CallbackOutcome.CANCELLED
        try:
            with scope, trio.move_on_after(self.timeout) as limit:
                await trio.lowlevel.checkpoint_if_cancelled()
                result = callback.fn(*callback.args)
                if inspect.isawaitable(result):
                    await result
                end = CallbackOutcome.FINISHED
            if limit.cancelled_caught:
                end = CallbackOutcome.TIMED_OUT
                log.error("%s, to be called after a commit, took over %g s", callback, self.timeout)
        except BaseException as exc:
            own, others = self._parted(exc)
            if own is not None:  # no error undoes the commit
                end = CallbackOutcome.FAILED
                log.error("%s, called after a commit, failed", callback, exc_info=own)  # noqa: TRY400  # only its own part
            if others is exc:
                raise
            if others is not None:
                raise others from None
        finally:
            del self._running[callback]
            self.tally.note(end)
            self._start_next()
            self.ends.unpark_all()

    def _parted(self, error: BaseException) -> tuple[BaseException | None, BaseException | None]:
        """Return the part of *error* that is the callback's own, and the part that goes on."""
        if is_a(error, BaseExceptionGroup):
            group = cast("BaseExceptionGroup[BaseException]", error)
            return group.split(lambda each: self._is_own(each))  # noqa: PLW0108  # Python 3.11 takes no method
        return (error, None) if self._is_own(error) else (None, error)

    def _is_own(self, error: BaseException) -> bool:
        if is_a(error, BaseExceptionGroup):
            return False  # it may be in part
        if not self.contain:
            return is_a(error, Exception)
        return not (is_a(error, trio.Cancelled) or interrupted(error))

    def _give_up(self, why: str) -> None:
        if self._waiting:
            log.warning("%d callbacks of a commit are not called: %s", len(self._waiting), why)
        self._drop_waiting()

    def _drop_waiting(self) -> None:
        self.tally.note(CallbackOutcome.CANCELLED, len(self._waiting))
        self._waiting.clear()


async def call_all(
    callbacks: Sequence[Callback], tally: CallbackTally, *, contain: bool = False
) -> None:
    """Call these and wait until all have ended; cancelled, cancel them.

    *contain*: see `CallbackRunner`.
    """
    try:
        async with trio.open_nursery() as nursery:
            CallbackRunner(tally, nursery=nursery, contain=contain).add(callbacks)
    except BaseExceptionGroup as group:  # the nursery is an implementation detail
        raise unwrapped(group)  # noqa: B904  # it is the same error, not another one
