"""What a heartbeat is answered, and what is made of that: which other workers may be dead."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import attrs

from ._model import CancelRequest


# Seconds besides the time from one heartbeat to the next: so long may a statement take.
MARGIN = 1.0


@attrs.frozen(kw_only=True)
class Late:
    """A worker that has not renewed its lease for a while, or from whose future it did.

    By the store's clock, so all of them may be alive: it may have jumped.
    """

    id: UUID
    heartbeat_at: str  # as the store writes it: to be compared, and handed back in `Seen`
    dead_after: float  # seconds for which it is to be seen like this, as things are


@attrs.frozen(kw_only=True)
class Beat:
    """The answer to a heartbeat."""

    registered: bool  # False: others took this worker for dead
    cancel_requests: Sequence[CancelRequest] = ()
    late: Sequence[Late] = ()  # other workers


@attrs.frozen
class Seen:
    """With which heartbeat a worker has been seen, and for how many seconds."""

    id: UUID
    heartbeat_at: str
    seconds: float
