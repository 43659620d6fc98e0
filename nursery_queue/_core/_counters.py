"""How many attempts ended in which way, and how many tasks run and are due."""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class Counters:
    """Attempts that have ended, by how; tasks that run, and that are due.

    Snoozed and interrupted attempts are not counted, nor are tasks cancelled before they ran.
    Counters can be added.

    Attributes:
        succeeded: The handler returned.
        failed: For good: they failed, timed out or were lost, and no other was to follow.
        cancelled: They were cancelled while they ran.
        retries: They failed or timed out, and another was to follow.
        lost: Their worker died or lost its lease. An attempt after which the task failed counts in
            `failed`, too.
        running: Tasks that run now.
        backlog: Tasks that are due now and wait for a worker; scheduled tasks are not counted.
    """

    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    retries: int = 0
    lost: int = 0
    running: int = 0
    backlog: int = 0

    @property
    def completed(self) -> int:
        """All that have ended and count: succeeded, failed, cancelled and retries."""
        return self.succeeded + self.failed + self.cancelled + self.retries

    @property
    def failure_rate(self) -> float:
        """The part of `completed` that failed, whether for good or not; 0 if there are none."""
        return _rate(self.failed + self.retries, self.completed)

    @property
    def permanent_failure_rate(self) -> float:
        """The part of the attempts with no other to follow that failed; 0 if there are none."""
        return _rate(self.failed, self.completed - self.retries)

    def __add__(self, other: Counters) -> Counters:
        others = attrs.asdict(other)
        return Counters(**{name: n + others[name] for name, n in attrs.asdict(self).items()})


def _rate(part: int, whole: int) -> float:
    return round(part / whole, 4) if whole else 0.0
