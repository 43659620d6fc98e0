"""Who waits for news of tasks, and the one listener for all of them."""

from __future__ import annotations

import itertools
import logging
import weakref

from collections.abc import Iterator
from typing import NoReturn

import attrs
import trio

from nursery_queue._core._errors import Closed
from nursery_queue._core._retry import Backoff
from nursery_queue._store import Bell, ClientStore
from nursery_queue._trio._clock import upkeep_sleep
from nursery_queue._trio._rng import new_rng
from nursery_queue._trio._supervisor import Loop, LoopState, supervise
from nursery_queue._trio._wakeup import Wakeup


log = logging.getLogger("nursery_queue")

AFTER_A_BUG = 30.0  # seconds


@attrs.frozen
class WakePolicy:
    """What wakes one who waits: bells, and a clock for what nobody has rung for.

    That rings every *deaf* seconds while we hear nothing, and ever less often while we do, at
    last every *hearing* seconds: a notification may be lost all the same. *deaf* 0: never.

    *calm* seconds pass between two rings that do not say which task they are about: all look
    then, and on a busy system they would do nothing else.
    """

    bells: frozenset[Bell]
    deaf: float
    hearing: float
    calm: float = 0.0


@attrs.define(eq=False)
class Subscription:
    """The place of one who waits for news of a task; `Notifier.seat` gives it.

    Whatever rings is kept until the next `news`. So who looks after it has sat down, and again
    after each `news`, misses nothing.
    """

    task_id: int
    policy: WakePolicy
    _notifier: Notifier
    _number: int
    _bell: Wakeup = attrs.field(factory=Wakeup, init=False)

    async def changed(self) -> None:
        """Wait until there may be something new since the last call, or since we sat down.

        The first who has to wait starts what listens. Raises `Closed`.
        """
        self._notifier.listen()
        await self._bell.wait()

    def ring(self) -> None:
        """Have whoever sits here look."""
        self._bell.ring()

    def leave(self) -> None:
        """Wait no more; may be called again. Who is forgotten by everybody leaves as well."""
        self._notifier.leave(self.task_id, self._number)


@attrs.define(eq=False)
class _Listening:
    """One run of the listener and the clocks."""

    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    ended: trio.Event = attrs.field(factory=trio.Event)
    listener: Loop = attrs.field(factory=lambda: Loop("listening for news"))


@attrs.define(eq=False)
class Notifier:
    """Wakes those who wait for something of one client; what it is they ask themselves.

    Listens on one connection for all of them, in a task that no call of theirs has to outlive:
    it starts with the first who has to wait, and ends when the last has left.
    """

    _store: ClientStore
    # With the bell for news that may be about any task.
    _policies: dict[WakePolicy, Wakeup] = attrs.field(factory=dict[WakePolicy, Wakeup], init=False)
    # By task and number. Weak: a reader may be dropped in the middle, without a word.
    _subscriptions: dict[int, dict[int, weakref.ref[Subscription]]] = attrs.field(
        factory=dict[int, dict[int, weakref.ref[Subscription]]], init=False
    )
    _numbers: Iterator[int] = attrs.field(factory=itertools.count, init=False)
    _listening: _Listening | None = attrs.field(default=None, init=False)
    # With those that are about to end.
    _all: set[_Listening] = attrs.field(factory=set[_Listening], init=False)
    _closed: str | None = attrs.field(default=None, init=False)

    def ring_for(self, policy: WakePolicy) -> None:
        """Ring for this, too, the next time that we begin to listen."""
        self._policies[policy] = Wakeup()

    def subscribe(self, task_id: int, policy: WakePolicy) -> Subscription:
        """Take a place; it is the caller's to leave, or to let go of. Starts nothing."""
        subscription = Subscription(task_id, policy, self, number := next(self._numbers))
        token = trio.lowlevel.current_trio_token()

        def lost(_: weakref.ref[Subscription]) -> None:
            # Who collects garbage may be any thread, in the middle of anything.
            try:
                token.run_sync_soon(self.leave, task_id, number)
            except trio.RunFinishedError:
                self.leave(task_id, number)

        self._subscriptions.setdefault(task_id, {})[number] = weakref.ref(subscription, lost)
        return subscription

    def leave(self, task_id: int, number: int) -> None:
        """Give up a place, if it is still taken; the last one turns off the light."""
        row = self._subscriptions.get(task_id, {})
        row.pop(number, None)
        if not row:
            self._subscriptions.pop(task_id, None)
        if not self._subscriptions and self._listening is not None:
            self._listening.scope.cancel()
            self._listening = None  # who comes now starts another one

    def listen(self) -> None:
        """Listen, unless we do so already."""
        if self._closed is not None:
            raise Closed(self._closed)
        if self._listening is None:
            # Nobody need look again for that: all are rung as soon as it hears.
            self._listening = _Listening()
            self._all.add(self._listening)
            trio.lowlevel.spawn_system_task(self._run, self._listening, name="nursery_queue news")

    def close(self, why: str) -> None:
        """Stop listening; whoever waits looks once more. Neither blocks nor can be cancelled."""
        self._closed = why
        self._ring(self._taken())
        if self._listening is not None:
            self._listening.scope.cancel()

    async def ended(self) -> None:
        """Wait until nothing runs; to be called after `close`."""
        for listening in list(self._all):
            await listening.ended.wait()

    # -- what runs while somebody waits -----------------------------------------------

    async def _run(self, me: _Listening) -> None:
        try:
            with me.scope:
                while True:
                    try:
                        await self._ring_for_all(me.listener)
                    except Exception:  # it would end the whole program
                        log.exception("what listens for news failed, which is a bug; restarting it")
                    await trio.sleep(AFTER_A_BUG)
        finally:
            if self._listening is me:
                self._listening = None
            self._all.discard(me)
            me.ended.set()

    async def _ring_for_all(self, listener: Loop) -> NoReturn:
        async with trio.open_nursery() as nursery:
            for policy, bell in self._policies.items():
                nursery.start_soon(self._ring_in_turn, policy, bell)
                if policy.deaf:
                    nursery.start_soon(self._ring_by_the_clock, policy, listener)
            await supervise(self._listen, listener, backoff=Backoff(), rng=new_rng())

    async def _listen(self, *, task_status: trio.TaskStatus[None]) -> None:
        bells = set[Bell]().union(*(policy.bells for policy in self._policies))
        try:
            await self._store.listen(
                self._hear, sorted(bells, key=lambda bell: bell.value), task_status=task_status
            )
        except Closed:
            await trio.sleep_forever()  # who looks next is told so

    async def _ring_by_the_clock(self, policy: WakePolicy, listener: Loop) -> None:
        pause = policy.deaf
        while True:
            await upkeep_sleep(pause)
            self._ring_all(policy)
            hears = listener.state is LoopState.HEALTHY
            pause = min(2 * pause, policy.hearing) if hears else policy.deaf

    async def _ring_in_turn(self, policy: WakePolicy, bell: Wakeup) -> None:
        while True:
            await bell.wait()
            self._ring_all(policy)
            await trio.sleep(policy.calm)

    def _hear(self, bell: Bell, task_id: int | None = None, /) -> None:
        if task_id is None:
            for policy, anything in self._policies.items():
                if bell in policy.bells:
                    anything.ring()
        else:
            self._ring(each for each in self._taken(task_id) if bell in each.policy.bells)

    def _ring_all(self, policy: WakePolicy) -> None:
        self._ring(each for each in self._taken() if each.policy is policy)

    def _taken(self, task_id: int | None = None) -> Iterator[Subscription]:
        """Yield the seats of those who wait for this task; None: for any."""
        rows = (
            self._subscriptions.values()
            if task_id is None
            else [self._subscriptions.get(task_id, {})]
        )
        for ref in itertools.chain.from_iterable(row.values() for row in rows):
            if (subscription := ref()) is not None:
                yield subscription

    @staticmethod
    def _ring(subscriptions: Iterator[Subscription]) -> None:
        for subscription in list(subscriptions):
            subscription.ring()
