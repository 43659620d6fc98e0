"""The answer to a heartbeat, and which other workers it says may be dead."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import attrs

from ._model import CancelRequest


# Seconds that a statement may take, on top of the time from one heartbeat to the next.
MARGIN = 1.0


@attrs.frozen(kw_only=True)
class Late:
    """A worker whose last heartbeat is two heartbeats old by the store's clock, or in its future.

    It may be alive all the same: the clock may have jumped (tests/engine/test_clock_jumps.py).
    """

    id: UUID
    heartbeat_at: str  # as the store writes it: to be compared, and handed back in `Seen`
    dead_after: float  # seconds without a newer heartbeat after which it is dead


@attrs.frozen(kw_only=True)
class Beat:
    """The answer to a heartbeat."""

    registered: bool  # False: others took this worker for dead
    cancel_requests: Sequence[CancelRequest] = ()
    late: Sequence[Late] = ()  # other workers


@attrs.frozen
class Seen:
    """The last heartbeat that was seen of a worker, and for how many seconds it stayed the last."""

    id: UUID
    heartbeat_at: str
    seconds: float
