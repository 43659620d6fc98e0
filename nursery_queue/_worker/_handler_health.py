"""Which handlers a worker has, and how they do, for those who look after it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import attrs
import trio

from nursery_queue._client._context import CancelReason

from ._attempt import Attempt
from ._slots import Slots
from ._threads import Threads


HandlerState = Literal["waiting", "running", "cancelled", "abandoned", "after"]


@attrs.frozen(kw_only=True)
class HandlerHealth:
    """How one handler of a worker is doing.

    `state` is one of these:

    - waiting: its attempt has its place, and there is no thread for it yet;
    - running;
    - cancelled: it was told to end, and has not; it keeps its place;
    - abandoned: its attempt was cancelled and has ended, and it runs on in its thread, which no
      other handler can have meanwhile;
    - after: it has ended, and what it gave to `ctx.after` is being called.
    """

    task_id: int
    task_type: str
    attempt: int
    state: HandlerState
    seconds: float  # since its attempt has begun
    cancel_reason: CancelReason | None
    cancelled_for: float | None  # seconds since it was cancelled

    def __str__(self) -> str:
        cancelled = (
            ""
            if self.cancel_reason is None or self.cancelled_for is None
            else f", cancelled ({self.cancel_reason}) {self.cancelled_for:.3g} s ago"
        )
        name = f"task {self.task_id} ({self.task_type}, attempt {self.attempt})"
        return f"{name}: {self.state}, began {self.seconds:.3g} s ago{cancelled}"


def handlers(slots: Slots, threads: Threads) -> Iterator[HandlerHealth]:
    """Yield all that have a place or a thread: first those whose attempts have ended."""
    for attempt in threads.abandoned:
        yield _health(attempt, "abandoned")
    for attempt in slots.running:
        yield _health(attempt, _state(attempt, threads))


def _state(attempt: Attempt, threads: Threads) -> HandlerState:
    if attempt.over:
        return "after"
    if attempt.by_the_clock() is not None:
        return "cancelled"
    return "waiting" if threads.waits(attempt) else "running"


def _health(attempt: Attempt, state: HandlerState) -> HandlerHealth:
    now, claim = trio.current_time(), attempt.claim
    # The deadline stays in the past when its time is up; any other cancel takes it away.
    since = min(attempt.cancelled_at, attempt.scope.deadline)
    cancelled = attempt.reason is not None and state != "after"
    return HandlerHealth(
        task_id=claim.fence.task_id,
        task_type=claim.task_type,
        attempt=claim.attempt,
        state=state,
        seconds=max(0.0, now - attempt.started_at),
        cancel_reason=attempt.reason if cancelled else None,
        cancelled_for=now - since if cancelled and since <= now else None,
    )
