"""Why a task is where it is: the state, and every reason that keeps the task there."""

from __future__ import annotations

import datetime as dt
import enum

from collections.abc import Mapping
from typing import Any, Final

import attrs

from ._states import FINAL, State


class ReasonCode(enum.StrEnum):
    """What keeps a task where it is. The strongest comes first."""

    DUE_LATER = "due_later"  # details: at
    NO_WORKERS = "no_workers"  # none is alive, or those that are shut down; details: draining
    UNKNOWN_TYPE = "unknown_type"  # to every worker; details: task_type, workers, nearest
    QUEUE_NOT_SERVED = "queue_not_served"  # details: queue, task_type, workers
    QUEUE_PAUSED = "queue_paused"  # details: queue
    QUEUE_LIMIT = "queue_limit"  # details: queue, running, max, held_by
    KEY_LIMIT = "key_limit"  # details: queue, key, running, max, held_by
    RATE_LIMITED = "rate_limited"  # details: queue, key (None: of all), until, count, per, burst
    QUEUE_BEING_CHANGED = "queue_being_changed"  # by an open transaction; details: queue
    BEHIND = "behind"  # others go first; details: ahead, better, pace
    RUNNING = "running"  # details: worker, worker_id, host, pid, since, lease_left, ...
    HELD_AHEAD = "held_ahead"  # claimed, not known to have started; details: as of `running`
    FINISHED = "finished"  # details: how, at, error
    UNKNOWN = "unknown"  # there is no such task (any more)


_WAITS: Final = frozenset({State.SCHEDULED, State.READY})
# The states in which a reason may hold.
STATES: Final[Mapping[ReasonCode, frozenset[State]]] = {
    **dict.fromkeys(ReasonCode, _WAITS),
    ReasonCode.DUE_LATER: frozenset({State.SCHEDULED}),
    ReasonCode.RUNNING: frozenset({State.RUNNING}),
    ReasonCode.HELD_AHEAD: frozenset({State.RUNNING}),
    ReasonCode.FINISHED: FINAL,
    ReasonCode.UNKNOWN: frozenset(),
}


@attrs.frozen
class Reason:
    """One thing that keeps a task where it is.

    Attributes:
        code: Which one it is: prints as the word.
        text: The same in words, for people.
        details: The same as data, by name: text, numbers, lists and None as in JSON, and instants
            as timezone-aware datetimes. `ReasonCode` lists the names.
    """

    code: ReasonCode
    text: str
    details: Mapping[str, Any] = attrs.field(factory=dict[str, Any])

    def __str__(self) -> str:
        return f"{self.code}: {self.text}"


@attrs.frozen
class Why:
    """Where a task is, and why it is still there.

    Attributes:
        state: Its state; None: there is no such task.
        reasons: Every reason that holds, the strongest first; there is always one. Of a task that
            is not due yet, also what else would hold it if it were.
    """

    state: State | None
    reasons: tuple[Reason, ...]

    @property
    def codes(self) -> tuple[ReasonCode, ...]:
        """The codes of its reasons, in their order."""
        return tuple(reason.code for reason in self.reasons)

    def __str__(self) -> str:
        return "; ".join(reason.text for reason in self.reasons)


@attrs.frozen(kw_only=True)
class Unattended:
    """What has ready tasks that no living worker takes, by name; a worker that leaves is none."""

    queues: tuple[str, ...] = ()  # that none serves
    task_types: tuple[str, ...] = ()  # that none knows


def unknown(task_id: int) -> Why:
    """Return the answer about a task that there is not."""
    text = f"there is no task {task_id}: it never existed, or has been pruned"
    return Why(None, (Reason(ReasonCode.UNKNOWN, text),))


def reason_code(value: object) -> ReasonCode:
    """Return *value* as a code, or raise `ValueError` that names all of them."""
    try:
        return ReasonCode(str(value))
    except ValueError:
        known = ", ".join(ReasonCode)
        raise ValueError(f"reason must be one of {known}, not {value!r:.100}") from None


def instant_text(at: dt.datetime) -> str:
    """Write an instant as texts have it."""
    return at.astimezone(dt.UTC).replace(tzinfo=None).isoformat(" ", "milliseconds") + " UTC"
