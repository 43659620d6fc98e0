"""Which failed attempts are given back, and after what delay."""

from __future__ import annotations

import random

from collections import Counter

import attrs

from nursery_queue._core._excuses import Excuse
from nursery_queue._core._retry import Backoff


MOST = 10_000  # tasks to remember
BACKOFF = Backoff(initial=0.1, maximum=30.0)


@attrs.define(eq=False)
class Refunds:
    """Counts, for each task, the attempts in a row that this worker has given back.

    In memory, so that the tables and the hot path know nothing of it: the bound of an `Excuse`
    holds for each worker by itself.
    """

    rng: random.Random
    # The counts, by task id: of each excuse, for each has a bound of its own. What was counted
    # longest ago is first.
    _given: dict[int, Counter[Excuse]] = attrs.field(factory=dict[int, Counter[Excuse]], init=False)

    def grant(self, task_id: int, why: Excuse) -> float | None:
        """Give one more attempt back: the seconds until the next. None: this one counts."""
        given = self._given.pop(task_id, Counter[Excuse]())
        given[why] += 1
        if given[why] > why.bound:
            return None
        self._given[task_id] = given
        if len(self._given) > MOST:
            del self._given[next(iter(self._given))]
        return BACKOFF.delay(given.total(), self.rng)

    def ended(self, task_id: int) -> None:
        """Begin anew: an attempt has ended in another way."""
        if self._given:
            self._given.pop(task_id, None)
