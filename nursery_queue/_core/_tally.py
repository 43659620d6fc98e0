"""Counts attempts by how they ended: in a worker as they are stored, in a store anew."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import attrs

from ._counters import Counters
from ._model import Outcome, Settlement
from ._states import Event, State, transition


# An outcome, and whether the task ended with it.
Way = tuple[Outcome, bool]

_UNLUCKY = (Outcome.FAILED, Outcome.TIMED_OUT)


def counters_of(ways: Mapping[Way, int], *, running: int = 0, backlog: int = 0) -> Counters:
    """Return the counters for attempts that ended in these ways."""

    def count(*outcomes: Outcome, ends: tuple[bool, ...] = (True, False)) -> int:
        return sum(ways.get((outcome, end), 0) for outcome in outcomes for end in ends)

    return Counters(
        succeeded=count(Outcome.SUCCEEDED),
        failed=count(*_UNLUCKY, Outcome.LOST, ends=(True,)),
        cancelled=count(Outcome.CANCELLED),
        retries=count(*_UNLUCKY, ends=(False,)),
        lost=count(Outcome.LOST),
        running=running,
        backlog=backlog,
    )


@attrs.define(eq=False)
class Tally:
    """The attempts stored since the last `take`."""

    # As they are in settlements: `take` works out as what each counts.
    _counted: dict[tuple[Outcome | None, Event], int] = attrs.field(
        factory=dict[tuple[Outcome | None, Event], int], init=False
    )

    def add(self, settlements: Iterable[Settlement]) -> None:
        """Count settlements that are in the store."""
        counted = self._counted
        for settlement in settlements:  # a Counter takes longer for the few that there mostly are
            key = settlement.outcome, settlement.event
            counted[key] = counted.get(key, 0) + 1

    def take(self, *, running: int, backlog: int) -> Counters:
        """Return the count, and begin anew."""
        ways: Counter[Way] = Counter()
        for (outcome, event), count in self._counted.items():
            if outcome is not None:
                ways[outcome, transition(State.RUNNING, event).is_final] += count
        self._counted.clear()
        return counters_of(ways, running=running, backlog=backlog)
