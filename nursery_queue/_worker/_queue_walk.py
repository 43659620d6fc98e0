"""Where a worker's claims are on their way through the queues."""

from __future__ import annotations

import bisect
import math

from collections.abc import Callable, Sequence

import attrs
import trio

from nursery_queue._core._model import Claimed, QueueSlots, Spot


NAMES = 32  # queues that one claim is asked to look at, where the worker has a list of them


@attrs.define(eq=False)
class Walk:
    """One walk through all queues, which may take many claims: each looks at some of them.

    So each queue has its turn, however many there are and whatever is in the others.
    """

    names: Sequence[str] | None  # of the queues the worker serves, in order; None: all
    after: Spot | None = attrs.field(default=None, init=False)  # None: at the beginning
    again: bool = attrs.field(default=True, init=False)  # there may be more where it has been
    held_back: bool = attrs.field(default=False, init=False)  # as `Claimed` has it, of all so far
    due: float = attrs.field(default=math.inf, init=False)  # on trio's clock: the first it heard of
    _took: int = attrs.field(default=0, init=False)
    _claims: int = attrs.field(default=0, init=False)
    _began: float = attrs.field(default=0.0, init=False)
    _next: str | None = attrs.field(default=None, init=False)  # the first that was not asked for

    @property
    def at_start(self) -> bool:
        """Whether the next claim begins a new walk."""
        return self.after is None

    @property
    def in_vain(self) -> bool:
        """Whether it found tasks only of queues whose limit had been reached."""
        return self.held_back and not self._took

    @property
    def rest(self) -> float:
        """Seconds to wait before the next one: as many as one took that found nothing."""
        alone = self._claims == 1
        return 0.0 if alone or self._took else trio.current_time() - self._began

    def queue_slots(self, room: Callable[[str], int]) -> list[QueueSlots] | None:
        """Return the queues to look at next, and how many tasks to take of each; None: any."""
        if self.names is None:
            return None
        found = self._with_room(self.names, room)
        if not found and self.after is not None:
            self.after = None
            found = self._with_room(self.names, room)
        return found

    def _with_room(self, names: Sequence[str], room: Callable[[str], int]) -> list[QueueSlots]:
        found, self._next = list[QueueSlots](), None
        start = 0 if self.after is None else bisect.bisect_left(names, self.after.queue)
        for name in names[start:]:
            if slots := room(name):
                if len(found) == NAMES:
                    self._next = name
                    break
                found.append(QueueSlots(queue=name, slots=slots))
        return found

    def goes_on(self) -> None:
        """Note that there is a claim, whose answer is of the time from now on."""
        if self.after is None:
            self.again = self.held_back = False
            self.due = math.inf
            self._took = self._claims = 0
            self._began = trio.current_time()
        self._claims += 1

    def saw(self, claimed: Claimed) -> None:
        """Note the answer; afterwards it is at the beginning, or somewhere on its way."""
        self._took += len(claimed.claims)
        self.held_back |= claimed.held_back
        self.again |= claimed.more
        if claimed.resume is not None:
            self.after = claimed.resume
        else:
            self.after = None if self._next is None else Spot(self._next)
