"""The verbs of a store that tell why tasks are where they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from nursery_queue._core._reasons import Unattended, Why


class ClientReasonStore(Protocol):
    """The part of `ClientStore`."""

    async def why(self, task_ids: Sequence[int]) -> list[Why]:
        """Say why tasks are where they are, in the order asked.

        By the predicates of the claim, and bounded for each task. There is always a reason; of a
        task that there is not, `unknown`.
        """
        ...


class WorkerReasonStore(Protocol):
    """The part of `WorkerStore`."""

    async def unattended(self, *, most: int) -> Unattended:
        """Name queues and task types with ready tasks that no living worker takes.

        Up to *most* of each, in the order of their names; a store may look at only some of very
        many. Nothing, if no worker takes tasks at all.
        """
        ...
