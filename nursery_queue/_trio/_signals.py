"""Signals: as requests to stop, and as what a signal handler raised in whatever code it struck."""

from __future__ import annotations

import contextlib
import functools
import signal

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import nullcontext
from types import CodeType, FrameType
from typing import NoReturn

import attrs
import trio

from nursery_queue._core._callables import function_of
from nursery_queue._core._exception_groups import connected, is_a


Obey = Callable[[signal.Signals], object]
# Called by the signal handler itself, with the frame that was interrupted.
Look = Callable[[FrameType | None], object]


def interrupted(error: BaseException) -> bool:
    """Tell whether a signal has to do with *error*: a real Ctrl-C, not one that code has raised.

    So it is if a signal handler, trio's or the program's own, raised `KeyboardInterrupt` or
    `SystemExit` in the code that it struck, and *error* is that, holds it, or came of it.
    """
    struck = [e for e in connected(error) if is_a(e, KeyboardInterrupt, SystemExit)]
    return bool(struck) and any(map(functools.partial(_passed, _signal_handlers()), struck))


def _signal_handlers() -> set[CodeType]:
    handlers = map(signal.getsignal, signal.valid_signals())
    functions = [function_of(handler) for handler in handlers if callable(handler)]
    return {f.__code__ for f in functions if hasattr(f, "__code__")}


def _passed(codes: set[CodeType], error: BaseException) -> bool:
    """Tell whether *error* came through one of these functions."""
    traceback = error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code in codes:
            return True
        traceback = traceback.tb_next
    return False


def _ignore(_count: int) -> None:
    """Do nothing."""


@attrs.define(eq=False)
class Escalation:
    """What the first signal asks for, and the second, and so on.

    *steps* are called by the trio task that runs `obey`, in order and each once. The signal
    after them calls *last*, and so does every further one, in the signal handler itself: it
    works even while a handler blocks the loop, and must not wait. Nor must *heard*, which is
    called there for each of the others, with how many there have been.
    """

    steps: Sequence[Obey]
    last: Obey
    heard: Callable[[int], object] = _ignore
    _asked: int = attrs.field(default=0, init=False)
    _obeyed: int = attrs.field(default=0, init=False)

    def ask(self, signum: signal.Signals) -> None:
        """Count a signal; called by the signal handler."""
        self._asked += 1
        if self._asked > len(self.steps):
            self.last(signum)
        else:
            self.heard(self._asked)

    def obey(self, signum: signal.Signals) -> None:
        """Take the steps that were asked for and not yet taken."""
        if not self._asked:
            self.ask(signum)  # it came before there was a handler that counts
        # By the count and not by the wake-up: two signals in a row may wake us only once.
        while self._obeyed < min(self._asked, len(self.steps)):
            self._obeyed += 1
            self.steps[self._obeyed - 1](signum)


async def obey(
    escalation: Escalation,
    signals: Sequence[signal.Signals],
    *,
    others: Mapping[signal.Signals, Obey] | None = None,
    at_once: Mapping[signal.Signals, Look] | None = None,
    lasting: bool = False,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Let *signals* climb *escalation*, and *others* do what they are mapped to, until cancelled.

    *at_once*: what to do in the signal handler itself, however busy the loop is. Ready when
    the signals are caught. One that comes while this is being cancelled is too late to ask
    for anything, and ignored. With *lasting* it is so for as long as the process lives, except
    that the last step of *escalation* stays to be had: without it a signal that comes while the
    interpreter ends would kill the process, and change its exit code. Must run in the main thread.
    """
    others, at_once = others or {}, at_once or {}
    caught = [*signals, *others]
    early = _Early(escalation, signals, others)

    def count(signum: signal.Signals, _frame: FrameType | None) -> None:
        escalation.ask(signum)

    def look(signum: signal.Signals, frame: FrameType | None) -> None:
        at_once[signum](frame)

    # trio gives a signal that it could not deliver to the handler from before, which is none.
    def count_only(signum: signal.Signals, frame: FrameType | None) -> None:
        if not early.over:
            early.keep(signum, frame)
        elif signum in signals:
            escalation.ask(signum)

    with (
        _wrapped([*caught, *at_once], count_only, lasting=True) if lasting else nullcontext(),
        _wrapped([*at_once], look),
        _wrapped(caught, early.keep),
        trio.open_signal_receiver(*caught) as received,
    ):
        try:
            with _wrapped(signals, count, then_inner=True):
                early.end()
                task_status.started()
                async for number in received:
                    _heed(signal.Signals(number), escalation, others)
        finally:
            with _wrapped(caught, _swallow):
                await _under_way()
    raise AssertionError  # the receiver never ends


def _heed(
    signum: signal.Signals, escalation: Escalation, others: Mapping[signal.Signals, Obey]
) -> None:
    if signum in others:
        others[signum](signum)
    else:
        escalation.obey(signum)


@attrs.define(eq=False)
class _Early:
    """What comes while the handlers are being put in place.

    A worker that was told to stop in that moment would never end
    (tests/unit/test_escalation.py, too early).
    """

    _escalation: Escalation
    _signals: Sequence[signal.Signals]
    _others: Mapping[signal.Signals, Obey]
    over: bool = attrs.field(default=False, init=False)
    _kept: list[signal.Signals] = attrs.field(factory=list[signal.Signals], init=False)

    def keep(self, signum: signal.Signals, _frame: FrameType | None) -> None:
        """Keep a signal; called by the signal handler."""
        self._kept.append(signum)

    def end(self) -> None:
        """Heed what was kept: the handlers are in place."""
        self.over = True
        for signum in self._kept:
            if signum in self._signals:
                self._escalation.ask(signum)
            if signum in self._signals or signum in self._others:
                _heed(signum, self._escalation, self._others)


async def _under_way() -> None:
    """Wait until trio has been told of the signals that have come so far; shielded, brief."""
    told = trio.Event()
    trio.lowlevel.current_trio_token().run_sync_soon(told.set, idempotent=True)
    with trio.CancelScope(shield=True):
        await told.wait()


@contextlib.contextmanager
def _wrapped(
    signals: Sequence[signal.Signals],
    act: Callable[[signal.Signals, FrameType | None], object],
    *,
    then_inner: bool = False,
    lasting: bool = False,
) -> Generator[None]:
    """Call *act* for each of *signals*, and perhaps the handler that is there already.

    With *lasting* also after the block.
    """
    inner = {signum: signal.getsignal(signum) for signum in signals}

    def handler(number: int, frame: FrameType | None) -> None:
        signum = signal.Signals(number)
        act(signum, frame)
        handle = inner[signum]
        if then_inner and callable(handle):
            handle(number, frame)

    try:
        for signum in inner:
            signal.signal(signum, handler)
        yield
    finally:
        for signum, handle in inner.items():
            signal.signal(signum, handler if lasting else handle)


def _swallow(_signum: signal.Signals, _frame: FrameType | None) -> None:
    """Do nothing."""
