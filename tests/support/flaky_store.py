"""A store that does as it is told: fails, hangs, answers late or not at all."""

from __future__ import annotations

import contextlib
import inspect

from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import trio

import nursery_queue as nq

from nursery_queue._memory._memory_store import MemoryStore
from nursery_queue._store import Bell, Ring, Store, WorkerStore


if TYPE_CHECKING:
    # A type checker sees the verbs of some store, with their signatures; what is run is written
    # below, once for all of them.
    from nursery_queue._memory._memory_store import MemoryStore as _EveryVerb
else:
    _EveryVerb = object


def nothing(*_args: Any, **_options: Any) -> None:
    """Take notice of nothing."""


def verbs_of(role: type) -> set[str]:
    """Name the verbs that a store awaits in a role."""
    return {name for name, _ in inspect.getmembers(role, inspect.iscoroutinefunction)}


@attrs.define(eq=False)
class FlakyStore(_EveryVerb):
    """A store any of whose verbs, by name, fails when told to: before it has its effect, or after.

    All else is the inner store's, so that it can be asked what has become of everything.
    """

    inner: Store = attrs.field(factory=MemoryStore)
    down: set[str] = attrs.field(factory=set[str])  # raise, and nothing happened
    deaf: set[str] = attrs.field(factory=set[str])  # it happened, but the answer is lost
    stuck: set[str] = attrs.field(factory=set[str])  # no answer until cancelled
    late: dict[str, float] = attrs.field(factory=dict[str, float])  # seconds until it is answered
    raises: dict[str, Exception] = attrs.field(factory=dict[str, Exception])
    raises_after: dict[str, Exception] = attrs.field(factory=dict[str, Exception])  # it happened
    instead: dict[str, Any] = attrs.field(factory=dict[str, Any])  # the answer; nothing happens
    # Called with each verb and its arguments, before anything else; may raise.
    tell: Callable[..., object] = nothing
    calls: Counter[str] = attrs.field(factory=Counter[str])
    trace: list[str] = attrs.field(factory=list[str])  # the verbs that have had their effect
    _line: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)  # of the listener

    def break_down(self) -> None:
        """From now on every verb of a worker fails."""
        self.down = verbs_of(WorkerStore) | {"check", "status_many"}

    def hang_up(self) -> None:
        """End the present listener as `raises` says, or with a `TransientError`."""
        self._line.cancel("the line is dead")

    def mend(self) -> None:
        """From now on everything works."""
        self.down, self.deaf, self.stuck = set(), set(), set()
        self.late, self.raises, self.raises_after, self.instead = {}, {}, {}, {}

    if not TYPE_CHECKING:  # else any misspelt name would be one of the inner store's

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

    async def listen(
        self,
        ring: Ring,
        bells: Sequence[Bell],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        async with self.around("listen", ring, bells):
            with trio.CancelScope() as self._line:
                await self.inner.listen(ring, bells, task_status=task_status)
        raise self.raises.get("listen", nq.TransientError("listen: the line is dead"))

    @contextlib.asynccontextmanager
    async def around(self, name: str, *args: Any, **options: Any) -> AsyncGenerator[None]:
        """Do around a verb what has been asked for."""
        self.tell(name, *args, **options)
        self.calls[name] += 1
        if name in self.stuck:
            await trio.sleep_forever()
        if name in self.down:
            await trio.lowlevel.checkpoint()
            msg = f"{name}: the store is down"
            raise nq.TransientError(msg)
        if name in self.raises:
            raise self.raises[name]
        yield
        if name in self.raises_after:
            raise self.raises_after[name]
        self.trace.append(name)
        await trio.sleep(self.late.get(name, 0))
        if name in self.deaf:
            msg = f"{name}: the answer is lost"
            raise nq.TransientError(msg)


def _passing_on(name: str) -> Callable[..., Awaitable[Any]]:
    async def verb(self: FlakyStore, /, *args: Any, **options: Any) -> Any:
        async with self.around(name, *args, **options):
            if name in self.instead:
                return self.instead[name]
            return await getattr(self.inner, name)(*args, **options)

    return verb


for _name in verbs_of(Store) - {"listen", "aclose"}:
    setattr(FlakyStore, _name, _passing_on(_name))
