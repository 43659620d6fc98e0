"""Wakes the tasks that wait for a result or a chunk; one listener serves all of a client."""

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
    """What wakes a subscription: notifications, and a poll for those that are lost.

    Attributes:
        bells: Kinds of notification that wake it.
        deaf: Seconds between polls while the listener is not connected; 0: no polls.
        hearing: Seconds between polls while it is: the pause doubles from *deaf* up to this.
        calm: Seconds at least between two notifications that name no task. Each of them wakes
            every subscription, which on a busy system would leave time for nothing else.
    """

    bells: frozenset[Bell]
    deaf: float
    hearing: float
    calm: float = 0.0


@attrs.define(eq=False)
class Subscription:
    """Wakes its owner when one task may have changed; `Notifier.subscribe` makes it.

    A wakeup that comes while its owner does not wait is kept until the next `changed`. So an
    owner that looks at the task after subscribing, and again after each `changed`, misses nothing.
    """

    task_id: int
    policy: WakePolicy
    _notifier: Notifier
    _number: int
    _bell: Wakeup = attrs.field(factory=Wakeup, init=False)

    async def changed(self) -> None:
        """Wait until the task may have changed since the last call, or since it subscribed.

        Starts the listener if it does not run. Cancelled, it loses no wakeup. Raises `Closed`.
        """
        self._notifier.listen()
        await self._bell.wait()

    def wake(self) -> None:
        """Wake the owner."""
        self._bell.ring()

    def leave(self) -> None:
        """End the subscription; may be called again. Garbage collection ends it, too."""
        self._notifier.leave(self.task_id, self._number)


@attrs.define(eq=False)
class _Listening:
    """One run of the listener and the clocks."""

    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    ended: trio.Event = attrs.field(factory=trio.Event)
    listener: Loop = attrs.field(factory=lambda: Loop("listening for news"))


@attrs.define(eq=False)
class Notifier:
    """Wakes the subscriptions of one client; what has changed, their owners ask the store.

    Listens on one connection for all of them, in a trio system task, as no call of a client
    spans all the others. It starts with the first `changed`, and ends with the last subscription.
    """

    _store: ClientStore
    # With the wakeup of each for notifications that name no task.
    _policies: dict[WakePolicy, Wakeup] = attrs.field(factory=dict[WakePolicy, Wakeup], init=False)
    # By task and number. Weak: a reader may be dropped without being closed.
    _subscriptions: dict[int, dict[int, weakref.ref[Subscription]]] = attrs.field(
        factory=dict[int, dict[int, weakref.ref[Subscription]]], init=False
    )
    _numbers: Iterator[int] = attrs.field(factory=itertools.count, init=False)
    _listening: _Listening | None = attrs.field(default=None, init=False)
    # Also runs that are about to end.
    _all: set[_Listening] = attrs.field(factory=set[_Listening], init=False)
    _closed: str | None = attrs.field(default=None, init=False)

    def ring_for(self, policy: WakePolicy) -> None:
        """Wake subscriptions of this policy, too, from the next start of the listener on."""
        self._policies[policy] = Wakeup()

    def subscribe(self, task_id: int, policy: WakePolicy) -> Subscription:
        """Return a subscription to a task, for the caller to leave. Starts nothing."""
        subscription = Subscription(task_id, policy, self, number := next(self._numbers))
        token = trio.lowlevel.current_trio_token()

        def lost(_: weakref.ref[Subscription]) -> None:
            # Garbage is collected in any thread, in the middle of anything.
            try:
                token.run_sync_soon(self.leave, task_id, number)
            except trio.RunFinishedError:
                self.leave(task_id, number)

        self._subscriptions.setdefault(task_id, {})[number] = weakref.ref(subscription, lost)
        return subscription

    def leave(self, task_id: int, number: int) -> None:
        """Drop a subscription, if it is there; after the last one, stop listening."""
        row = self._subscriptions.get(task_id, {})
        row.pop(number, None)
        if not row:
            self._subscriptions.pop(task_id, None)
        if not self._subscriptions and self._listening is not None:
            self._listening.scope.cancel()
            self._listening = None  # the next `changed` starts another one

    def listen(self) -> None:
        """Start the listener, unless it runs. Raises `Closed`."""
        if self._closed is not None:
            raise Closed(self._closed)
        if self._listening is None:
            # Its start misses nothing: it wakes all once it is connected.
            self._listening = _Listening()
            self._all.add(self._listening)
            trio.lowlevel.spawn_system_task(self._run, self._listening, name="nursery_queue news")

    def close(self, why: str) -> None:
        """Stop listening, and wake all once more. Neither blocks nor can be cancelled."""
        self._closed = why
        self._ring(self._subscribed())
        if self._listening is not None:
            self._listening.scope.cancel()

    async def ended(self) -> None:
        """Wait until the listener has ended; to be called after `close`."""
        for listening in list(self._all):
            await listening.ended.wait()

    # -- the system task ---------------------------------------------------------------

    async def _run(self, me: _Listening) -> None:
        try:
            with me.scope:
                while True:
                    try:
                        await self._ring_for_all(me.listener)
                    except Exception:  # in a system task it would end the program
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
            await trio.sleep_forever()  # the next call of `changed` raises it

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
            self._ring(each for each in self._subscribed(task_id) if bell in each.policy.bells)

    def _ring_all(self, policy: WakePolicy) -> None:
        self._ring(each for each in self._subscribed() if each.policy is policy)

    def _subscribed(self, task_id: int | None = None) -> Iterator[Subscription]:
        """Yield the subscriptions to this task; None: all."""
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
            subscription.wake()
