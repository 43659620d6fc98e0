"""One question at a time, for all who ask meanwhile."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from itertools import islice
from typing import Generic, TypeVar

import attrs
import trio

from nursery_queue._core._errors import Closed
from nursery_queue._core._retry import Backoff

from ._rng import new_rng
from ._supervisor import insist


Q = TypeVar("Q")
A = TypeVar("A")

LONGEST_PAUSE = 5.0  # seconds between tries while there is no answer


@attrs.define(eq=False)
class _Asker(Generic[Q, A]):
    question: Q
    woken: trio.Event = attrs.field(factory=trio.Event)
    answers: list[A] = attrs.field(factory=list[A])  # one, once it is there


@attrs.define(eq=False)
class Batcher(Generic[Q, A]):
    """Puts the questions of many tasks together: those asked while one is under way go next.

    Nobody runs in the background: one of those who ask does it for all, and who is cancelled
    in doing so leaves it to another one. Equal questions are asked once; they are hashable.

    Args:
        ask: Answers questions, in their order.
        what: What that is, for the log.
        most: So many questions at a time.
    """

    _ask: Callable[[Sequence[Q]], Awaitable[Sequence[A]]]
    _what: str
    _most: int
    # Those without an answer. Like a set, but in the order of their coming.
    _askers: dict[_Asker[Q, A], None] = attrs.field(factory=dict[_Asker[Q, A], None], init=False)
    _led: bool = attrs.field(default=False, init=False)
    _asking: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    _closed: str | None = attrs.field(default=None, init=False)

    async def ask(self, question: Q) -> A:
        """Return the answer to a question that is not sent before this call.

        Outages are ridden out, however long. Raises `Closed` once `close` has been called,
        and whatever else is raised for these questions, for each who asks anew.
        """
        asker = _Asker[Q, A](question)
        self._askers[asker] = None
        try:
            while not asker.answers:
                if self._closed is not None:
                    raise Closed(self._closed)
                if self._led:
                    await asker.woken.wait()
                    asker.woken = trio.Event()
                else:
                    await self._lead()
        finally:
            self._askers.pop(asker, None)
            if not self._led:
                self._pass_on()
        return asker.answers[0]

    def close(self, why: str) -> None:
        """Answer nobody any more: they get `Closed` at once, which says *why*."""
        self._closed = why
        self._asking.cancel()  # who asks for all leaves, and then one after the other

    async def _lead(self) -> None:
        self._led = True
        try:
            with trio.CancelScope() as self._asking:
                await trio.lowlevel.checkpoint()  # whoever was woken along with us joins in
                await self._answer(list(islice(self._askers, self._most)))
        finally:
            self._led = False

    def _pass_on(self) -> None:
        """Have one of those who are left lead. Whoever leaves sees to it, whatever the reason.

        So it does not matter if the heir is on its way out, too: it leaves after us.
        """
        if (heir := next(iter(self._askers), None)) is not None:
            heir.woken.set()

    async def _answer(self, askers: Sequence[_Asker[Q, A]]) -> None:
        """Ask for these alone: who has come later must not get what was read before."""
        questions = list(dict.fromkeys(asker.question for asker in askers))
        answers = await insist(
            lambda: self._ask(questions),
            what=self._what,
            backoff=Backoff(maximum=LONGEST_PAUSE),
            rng=new_rng(),
        )
        found = dict(zip(questions, answers, strict=True))
        for asker in askers:
            asker.answers.append(found[asker.question])
            asker.woken.set()
            self._askers.pop(asker, None)
