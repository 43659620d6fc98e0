"""Signals as requests, in this process."""

from __future__ import annotations

import functools
import inspect
import signal

from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from types import FrameType

import pytest
import trio

from nursery_queue._trio._signals import Escalation, obey


TERM, INT, USR1, USR2 = signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2


class Steps:
    """Notes what it was called for, and lets a test wait for it."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, signal.Signals]] = []
        self.first, self.second, self.aside = trio.Event(), trio.Event(), trio.Event()
        self.heard: list[int] = []
        self.seen: list[FrameType | None] = []
        steps = [self.step_one, self.step_two]
        self.escalation = Escalation(steps, self.at_once, self.heard.append)

    def step_one(self, signum: signal.Signals) -> None:
        self.taken.append(("one", signum))
        self.first.set()

    def step_two(self, signum: signal.Signals) -> None:
        self.taken.append(("two", signum))
        self.second.set()

    def at_once(self, signum: signal.Signals) -> None:
        self.taken.append(("last", signum))

    def beside(self, signum: signal.Signals) -> None:
        self.taken.append(("beside", signum))
        self.aside.set()


@asynccontextmanager
async def obeying(steps: Steps, *, lasting: bool = False) -> AsyncGenerator[None]:
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            await nursery.start(
                functools.partial(
                    obey,
                    steps.escalation,
                    [TERM, INT],
                    others={USR1: steps.beside},
                    at_once={USR2: steps.seen.append},
                    lasting=lasting,
                )
            )
            yield
            nursery.cancel_scope.cancel()


async def test_each_signal_takes_the_next_step() -> None:
    """First one step, then the other, whichever of the signals it is."""
    steps = Steps()
    async with obeying(steps):
        signal.raise_signal(TERM)
        await steps.first.wait()
        signal.raise_signal(INT)
        await steps.second.wait()

    assert steps.taken == [("one", TERM), ("two", INT)]


async def test_two_signals_at_once_are_two() -> None:
    """Signals that come before trio has a chance to look at them are not merged into one."""
    steps = Steps()
    async with obeying(steps):
        signal.raise_signal(TERM)
        signal.raise_signal(TERM)
        await steps.second.wait()

    assert steps.taken == [("one", TERM), ("two", TERM)]


async def test_the_last_step_waits_for_nobody() -> None:
    """The signal after the steps acts in the handler itself, though the loop never gets to run."""
    steps = Steps()
    async with obeying(steps):
        for _ in range(3):
            signal.raise_signal(TERM)
        assert steps.taken == [("last", TERM)]
        assert steps.heard == [1, 2]


async def test_a_signal_that_comes_too_late_is_ignored() -> None:
    """What comes while the ladder is being taken away does not kill the process."""
    steps = Steps()
    async with obeying(steps):
        signal.raise_signal(TERM)

    assert steps.taken == []


async def test_other_signals_do_not_count() -> None:
    """A signal beside the ladder does what it is for, and the ladder begins at its first step."""
    steps = Steps()
    async with obeying(steps):
        signal.raise_signal(USR1)
        await steps.aside.wait()
        signal.raise_signal(TERM)
        await steps.first.wait()

    assert steps.taken == [("beside", USR1), ("one", TERM)]


@pytest.fixture
def handlers_restored() -> Iterator[None]:
    """Put back the signal handlers that were there before."""
    before = {signum: signal.getsignal(signum) for signum in (TERM, INT, USR1, USR2)}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.mark.parametrize("lasting", [False, True])
@pytest.mark.parametrize("opened", [False, True])
async def test_signals_that_come_too_early(
    monkeypatch: pytest.MonkeyPatch, handlers_restored: None, opened: bool, lasting: bool
) -> None:
    """Whatever comes while the handlers are being put in place is heeded when they are."""
    steps, open_receiver = Steps(), trio.open_signal_receiver

    def pressed(*signals: signal.Signals) -> AbstractContextManager[AsyncIterator[int]]:
        return _pressing(open_receiver(*signals), (USR1, TERM), opened=opened)

    monkeypatch.setattr(trio, "open_signal_receiver", pressed)
    async with obeying(steps, lasting=lasting):
        await steps.first.wait()
        await steps.aside.wait()

    assert sorted(steps.taken) == [("beside", USR1), ("one", TERM)]


@contextmanager
def _pressing(
    receiver: AbstractContextManager[AsyncIterator[int]],
    signals: Sequence[signal.Signals],
    *,
    opened: bool,
) -> Generator[AsyncIterator[int]]:
    """Raise signals just before, or just after, trio catches them."""
    if not opened:
        for signum in signals:
            signal.raise_signal(signum)
    with receiver as received:
        if opened:
            for signum in signals:
                signal.raise_signal(signum)
        yield received


async def test_what_is_to_be_done_at_once() -> None:
    """Such a signal needs no loop, sees the code that it interrupts, and does not count."""
    steps = Steps()
    async with obeying(steps):
        signal.raise_signal(USR2)
        signal.raise_signal(USR2)
        assert steps.seen == [inspect.currentframe()] * 2
        signal.raise_signal(TERM)
        await steps.first.wait()

    assert steps.taken == [("one", TERM)]


async def test_what_was_there_before_is_there_again() -> None:
    """Afterwards the handlers are those of before."""
    before = [signal.getsignal(signum) for signum in (TERM, INT, USR1, USR2)]
    async with obeying(Steps()):
        assert not {signal.getsignal(signum) for signum in (TERM, USR2)} & {*before}

    assert [signal.getsignal(signum) for signum in (TERM, INT, USR1, USR2)] == before
