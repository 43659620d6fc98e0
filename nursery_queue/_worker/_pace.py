"""How many tasks to claim ahead."""

from __future__ import annotations

import attrs


@attrs.define(eq=False)
class Pace:
    """How long handlers take, and so how many tasks to claim ahead.

    As many as will be started within the horizon: thousands of no-ops, none of those that
    take seconds, since a task that waits here is one that no other worker can run. Where the
    store takes long to answer, the horizon is as far as some of its answers, so that handlers
    need not wait for the next claim; but never so far that tasks would have to be handed back.
    """

    nearest: float = 0.05  # seconds
    farthest: float = 0.75  # seconds, less than a claim may wait for a slot
    answers: float = 3.0  # one comes while half of what is in hand is worked off
    most: int = 2000
    _seconds: float = 2.0  # slow, until a number of them have been quick
    _known: int = 0  # of how many we know
    _claim: float = 0.0  # seconds that one takes
    _settle: float = 0.0  # seconds from the end of a handler until that is stored

    @property
    def horizon(self) -> float:
        """How many seconds to look ahead."""
        return min(self.farthest, max(self.nearest, self.answers * (self._claim + self._settle)))

    def claimed(self, seconds: float) -> None:
        """Note how long a claim took."""
        self._claim += 0.2 * (min(seconds, self.farthest) - self._claim)

    def stored(self, seconds: float) -> None:
        """Note how long it took from the end of a handler until its outcome was stored."""
        self._settle += 0.2 * (min(seconds, self.farthest) - self._settle)

    def took(self, seconds: float) -> None:
        """Note how long a handler took."""
        # Slows down at once and speeds up slowly: holding too many is what does harm.
        self._known += 1
        weight = 0.05 if seconds < self._seconds and self._known > 16 else 0.5
        self._seconds += weight * (seconds - self._seconds)

    def stalled(self, seconds: float) -> None:
        """Note that handlers have been running for so long and have not ended."""
        self._seconds = max(self._seconds, seconds)

    def ahead(self, turning: int) -> int:
        """How many tasks to hold beyond those that run, if so many at once are soon over."""
        return int(min(self.most, turning * self.horizon / max(self._seconds, 1e-6)))
