"""Since when other workers have been late: what tells the dead from those of a clock that jumps."""

from __future__ import annotations

import math

from collections.abc import Sequence
from uuid import UUID

import attrs
import trio

from nursery_queue._core._heartbeat import Late, Seen


FORGET_AFTER = 3600.0  # seconds without a heartbeat that called it late


@attrs.define(eq=False)
class Sighting:
    """One heartbeat of a worker that is late. Both times are trio's."""

    heartbeat_at: str
    since: float
    last: float


@attrs.define(eq=False)
class Sightings:
    """Since when, by our own clock, each worker that is late has not sent a heartbeat.

    One that is not late any more is not forgotten at once: it may be the clock that went back.
    That does no harm: a worker that has sent a heartbeat since has another one than was seen.
    """

    _of: dict[UUID, Sighting] = attrs.field(factory=dict[UUID, Sighting], init=False)

    def note(self, late: Sequence[Late]) -> float:
        """Take in who is late; return when the first of them is dead unless it shows up.

        On trio's clock, and it may be past; inf: there is none.
        """
        now = trio.current_time()
        for each in late:
            known = self._of.get(each.id)
            if known is not None and known.heartbeat_at == each.heartbeat_at:
                known.last = now
            else:
                self._of[each.id] = Sighting(each.heartbeat_at, since=now, last=now)
        self._of = {id_: one for id_, one in self._of.items() if now - one.last < FORGET_AFTER}
        return min((self._of[each.id].since + each.dead_after for each in late), default=math.inf)

    def until_now(self) -> list[Seen]:
        """Return what a sweep has to know of them."""
        now = trio.current_time()
        # Without what floats make of a difference: a sweep comes when it is just enough.
        return [
            Seen(id_, one.heartbeat_at, round(now - one.since, 3)) for id_, one in self._of.items()
        ]
