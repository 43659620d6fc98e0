"""What `status` shows: the counts of all tasks, and which queues are held back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Self

import attrs

from nursery_queue._client._client import Client
from nursery_queue._core._model import QueueStatus, Stats
from nursery_queue._core._states import State


@attrs.frozen
class Overview:
    """Statistics, and the settings of every queue that is listed, by its name."""

    stats: Stats
    queues: Mapping[str, QueueStatus]

    @classmethod
    def of(cls, stats: Stats, known: Iterable[QueueStatus]) -> Self:
        """Put both together: queues that have tasks, and those that are paused or limited."""
        held_back = {
            each.name: each for each in known if each.paused or each.max_running is not None
        }
        unset = {name: unset_queue(name) for name in stats.queues}
        return cls(stats, dict(sorted((unset | held_back).items())))

    def count(self, queue: str, state: State) -> int:
        """Return how many tasks of *queue* are in *state*."""
        return self.stats.queues.get(queue, {}).get(state, 0)


async def overview(client: Client) -> Overview:
    """Ask for all of it: two questions, one after the other."""
    return Overview.of(await client.stats(), await client.queues())


def unset_queue(name: str) -> QueueStatus:
    """Return a queue without tasks, as it is before anything is set for it."""
    return QueueStatus(name=name, paused=False, max_running=None, scheduled=0, ready=0, running=0)


def open_or_paused(queue: QueueStatus) -> str:
    """Say in a word whether *queue* is paused; one with a limit of 0 is not, and shows that."""
    return "paused" if queue.paused else "open"


def limit_of(queue: QueueStatus) -> object:
    """Return what a table has as the limit of *queue*."""
    return "·" if queue.max_running is None else queue.max_running


def held_back_by(queue: QueueStatus) -> str | None:
    """Say in words what keeps tasks of *queue* from starting; None: nothing that is set."""
    if queue.paused:
        return "which is paused"
    if queue.max_running is not None and queue.running >= queue.max_running:
        return f"where at most {queue.max_running} may run"
    return None
