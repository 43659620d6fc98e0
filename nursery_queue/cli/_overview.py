"""What `status` shows: the counts of all tasks, and which queues are held back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, Self

import attrs

from nursery_queue._client._client import Client
from nursery_queue._core._model import QueueStatus, Stats
from nursery_queue._core._states import State


Limits = dict[str, str]  # fields of `QueueStatus`, by the column of a table
LIMITS: Final[Limits] = {
    "#limit": "max_running",
    "#per key": "max_running_per_key",
    "#rate": "rate",
    "#rate per key": "rate_per_key",
}
USUAL: Final[Limits] = {"#limit": "max_running"}


@attrs.frozen
class Overview:
    """Statistics, and the settings of every queue that is listed, by its name."""

    stats: Stats
    queues: Mapping[str, QueueStatus]

    @classmethod
    def of(cls, stats: Stats, known: Iterable[QueueStatus]) -> Self:
        """Put both together: queues that have tasks, and those that are paused or limited."""
        held_back = {each.name: each for each in known if each.paused or is_limited(each)}
        unset = {name: unset_queue(name) for name in stats.queues}
        return cls(stats, dict(sorted((unset | held_back).items())))

    def count(self, queue: str, state: State) -> int:
        """Return how many tasks of *queue* are in *state*."""
        return self.stats.queues.get(queue, {}).get(state, 0)

    @property
    def not_served(self) -> dict[str, int]:
        """Of each queue that no worker serves, though some take tasks, how many are ready."""
        takers = [each for each in self.stats.workers if each.alive and not each.draining]
        return {
            name: ready
            for name in self.queues
            if (ready := self.count(name, State.READY))
            and takers
            and not any(each.queues is None or name in each.queues for each in takers)
        }


async def overview(client: Client) -> Overview:
    """Ask for all of it: two questions, one after the other."""
    return Overview.of(await client.stats(), await client.queues())


def unset_queue(name: str) -> QueueStatus:
    """Return a queue without tasks, as it is before anything is set for it."""
    return QueueStatus(name=name, paused=False, max_running=None, scheduled=0, ready=0, running=0)


def open_or_paused(queue: QueueStatus) -> str:
    """Say in a word whether *queue* is paused; one with a limit of 0 is not, and shows that."""
    return "paused" if queue.paused else "open"


def is_limited(queue: QueueStatus) -> bool:
    """Whether *queue* has a limit or a rate."""
    return any(getattr(queue, name) is not None for name in LIMITS.values())


def limits_of(queues: Iterable[QueueStatus]) -> Limits:
    """Return the columns of limits that a table has: the usual one, and what some queue has set."""
    shown = list(queues)
    return USUAL | {
        column: name
        for column, name in LIMITS.items()
        if any(getattr(queue, name) is not None for queue in shown)
    }


def limit_cells(queue: QueueStatus, limits: Limits) -> list[object]:
    """Return what a table has in these columns."""
    set_to = (getattr(queue, name) for name in limits.values())
    return ["·" if value is None else value for value in set_to]


def held_back_by(queue: QueueStatus) -> str | None:
    """Say in words what keeps tasks of *queue* from starting; None: nothing that is set."""
    if queue.paused:
        return "which is paused"
    if queue.max_running is not None and queue.running >= queue.max_running:
        return f"where at most {queue.max_running} may run"
    return None
