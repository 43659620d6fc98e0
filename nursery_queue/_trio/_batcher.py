"""One call at a time for many tasks: items that come while it is under way go together next."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
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

LONGEST_PAUSE = 5.0  # seconds between tries while a question has no answer
GRACE = 2.0  # seconds that a batch of several callers goes on once its leader is cancelled


@attrs.define(eq=False)
class _Call(Generic[Q, A]):
    item: Q
    woken: trio.Event = attrs.field(factory=trio.Event)
    answers: list[A] = attrs.field(factory=list[A])  # one, once it is there
    error: Exception | None = None


@attrs.define(eq=False)
class Batcher(Generic[Q, A]):
    """Sends the items of many tasks together, in the order of their calls.

    No task runs in the background: one of the callers leads, which is to send a batch for all,
    and the next of those left leads when it leaves. A batch without an answer is sent anew by
    the next leader. With *unknown* it is sent once: it goes on for `GRACE` seconds when its
    leader is cancelled and others wait for it, and an error is raised to all of its callers.

    Args:
        send: Sends items and returns their answers, in order.
        together: How many of the items that wait, from the first on, may be one batch.
        unknown: Makes the error for a batch that was broken off. None: it can be sent anew.
    """

    _send: Callable[[Sequence[Q]], Awaitable[Sequence[A]]]
    _together: Callable[[Iterable[Q]], int]
    _unknown: Callable[[], Exception] | None = None
    # Calls without an answer. Like a set, but in the order of their coming.
    _waiting: dict[_Call[Q, A], None] = attrs.field(factory=dict[_Call[Q, A], None], init=False)
    _led: bool = attrs.field(default=False, init=False)
    _sending: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    _closed: str | None = attrs.field(default=None, init=False)

    async def call(self, item: Q) -> A:
        """Return the answer to an item that is not sent before this call.

        Cancelled before its turn, the item is not sent; later, it may have been. Raises what
        `send` raises, and `Closed` once `close` has been called.
        """
        call = _Call[Q, A](item)
        self._waiting[call] = None
        try:
            while not call.answers and call.error is None:
                if self._closed is not None:
                    raise Closed(self._closed)
                if self._led:
                    await call.woken.wait()
                    call.woken = trio.Event()
                else:
                    await self._lead(call)
        finally:
            self._waiting.pop(call, None)
            if not self._led:
                self._pass_on()
        if call.error is not None:
            raise call.error
        return call.answers[0]

    def close(self, why: str) -> None:
        """Answer no more: every caller gets `Closed` at once, which says *why*."""
        self._closed = why
        self._sending.cancel()  # the leader leaves, and then one after the other

    async def _lead(self, mine: _Call[Q, A]) -> None:
        """Send the first batch that waits, whether *mine* is in it or not."""
        self._led = True
        try:
            with trio.CancelScope() as self._sending:
                if self._unknown is None:
                    await trio.lowlevel.checkpoint()  # tasks woken along with this one join in
                batch = list(islice(self._waiting, self._together(c.item for c in self._waiting)))
                if self._unknown is None or batch == [mine]:
                    await self._answer(batch)
                else:
                    await self._answer_once(batch, self._unknown())
        finally:
            self._led = False

    def _pass_on(self) -> None:
        """Have the first of the calls that are left lead; every call that leaves does so.

        So it does not matter if that one is about to leave, too: it leaves after this one.
        """
        if (heir := next(iter(self._waiting), None)) is not None:
            heir.woken.set()

    async def _answer(self, batch: Sequence[_Call[Q, A]]) -> None:
        """Send these alone: a later call must not get an answer that was read before it."""
        for call, answer in zip(batch, await self._send([c.item for c in batch]), strict=True):
            call.answers.append(answer)
            call.woken.set()
            self._waiting.pop(call, None)

    async def _answer_once(self, batch: Sequence[_Call[Q, A]], broken_off: Exception) -> None:
        """Send these for other callers, too, who must hear of it: for `GRACE` when cancelled."""
        error: Exception | None = broken_off

        async def limit() -> None:
            try:
                await trio.sleep_forever()
            finally:
                scope.deadline = trio.current_time() + GRACE

        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope(shield=True)
            nursery.start_soon(limit)
            try:
                with scope:
                    await self._answer(batch)
                    error = None
            except Exception as exc:  # noqa: BLE001  # raised to each of them
                error = exc
            finally:
                for call in batch if error is not None else ():
                    call.error = error
                    call.woken.set()
                    self._waiting.pop(call, None)
            nursery.cancel_scope.cancel("it has been answered")


def question_batcher(
    ask: Callable[[Sequence[Q]], Awaitable[Sequence[A]]], *, what: str, most: int
) -> Batcher[Q, A]:
    """Return a batcher of questions, at most so many at a time, that rides out outages.

    Equal questions in a batch are asked once; they are hashable. A leader that is cancelled, or
    to which *ask* raises, leaves the batch to the next one, which asks anew. *what*: what they
    are asked for, for the log.
    """

    async def send(questions: Sequence[Q]) -> Sequence[A]:
        distinct = list(dict.fromkeys(questions))
        answers = await insist(
            lambda: ask(distinct),
            what=what,
            backoff=Backoff(maximum=LONGEST_PAUSE),
            rng=new_rng(),
        )
        found = dict(zip(distinct, answers, strict=True))
        return [found[each] for each in questions]

    return Batcher(send, lambda _: most)
