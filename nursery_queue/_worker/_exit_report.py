"""What became of the tasks that a worker had in hand when it was stopped."""

from __future__ import annotations

import enum
import logging
import math

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import attrs

from nursery_queue._client._context import CancelReason
from nursery_queue._core._model import Settlement
from nursery_queue._core._states import Event

from ._attempt import Attempt


log = logging.getLogger("nursery_queue")


class ExitOutcome(enum.StrEnum):
    """What became of a task that a worker had in hand when it was stopped.

    The first five are stored, and say how the attempt ended; but a task that was to be cancelled
    is "cancelled" however its attempt did, or if that had not begun.
    """

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    SNOOZED = "snoozed"
    RELEASED = "released"  # ready again for any worker, the attempt not counted
    UNKNOWN = "unknown"  # the COMMIT of ctx.tx got no answer, and the database was away since
    UNSETTLED = "unsettled"  # the database was away: others get it when the lease has run out
    LEASE_LOST = "lease_lost"  # others may have it already; there was nothing to say about it


@attrs.frozen(kw_only=True)
class TaskExit:
    """One of the tasks in hand, and its outcome."""

    task_id: int
    task_type: str
    attempt: int
    outcome: ExitOutcome
    started: bool  # False: it was claimed ahead, and its handler was never called
    ended: bool  # False: its handler ignores cancellation and was still running

    def __str__(self) -> str:
        outcome = self.outcome.replace("_", " ")
        end = "" if self.ended else ", its handler still running"
        return f"task {self.task_id} ({self.task_type}, attempt {self.attempt}): {outcome}{end}"


@attrs.frozen(kw_only=True)
class ExitReport:
    """How a worker ended: every task it had in hand when it was stopped, with its outcome."""

    tasks: Sequence[TaskExit] = ()  # by id
    seconds: float = 0.0  # from the stop to the end

    @property
    def counts(self) -> Mapping[ExitOutcome, int]:
        """How many tasks met each outcome; those that none met are not in there."""
        return Counter(task.outcome for task in self.tasks)

    @property
    def clean(self) -> bool:
        """Whether every task has its outcome stored, or was released."""
        return not self.counts.keys() & {
            ExitOutcome.UNKNOWN,
            ExitOutcome.UNSETTLED,
            ExitOutcome.LEASE_LOST,
        }

    def __str__(self) -> str:
        counts = self.counts
        told = ", ".join(
            f"{counts[outcome]} {outcome.replace('_', ' ')}"
            for outcome in ExitOutcome
            if outcome in counts
        )
        return f"tasks in hand: {len(self.tasks)}{told and f' ({told})'}; {self.seconds:.3g} s"


def exit_report(attempts: Iterable[Attempt], *, seconds: float) -> ExitReport:
    """Say what has become of these attempts, as far as it is known now."""
    tasks = [
        TaskExit(
            task_id=attempt.fence.task_id,
            task_type=attempt.claim.task_type,
            attempt=attempt.claim.attempt,
            outcome=_outcome(attempt),
            started=_has_started(attempt),
            ended=not attempt.runs,
        )
        for attempt in attempts
    ]
    return ExitReport(
        tasks=tuple(sorted(tasks, key=lambda task: (task.task_id, task.attempt))), seconds=seconds
    )


def tell(report: ExitReport) -> None:
    """Log a summary, and a line for each task whose handler did not end by itself."""
    if report.tasks:
        log.info("%s", report)
    for task in report.tasks:
        if task.outcome not in _BY_ITSELF and (
            task.started or task.outcome is not ExitOutcome.RELEASED
        ):
            log.warning("%s", task)
    if unsettled := report.counts.get(ExitOutcome.UNSETTLED):
        log.warning(
            "the database took no outcome of %d task%s in time: others get %s when the lease has"
            " run out",
            unsettled,
            *("", "it") if unsettled == 1 else ("s", "them"),
        )


_BY_ITSELF = frozenset(
    {
        ExitOutcome.SUCCEEDED,
        ExitOutcome.FAILED,
        ExitOutcome.TIMED_OUT,
        ExitOutcome.CANCELLED,
        ExitOutcome.SNOOZED,
    }
)


def _outcome(attempt: Attempt) -> ExitOutcome:
    """Fold what is known of a task: what is stored is true, whatever else has happened."""
    if attempt.settlement is not None:
        return _stored_as(attempt.settlement)
    if attempt.dropped:
        return ExitOutcome.LEASE_LOST
    if attempt.in_doubt is not None:
        return ExitOutcome.UNKNOWN
    lost = attempt.reason is CancelReason.LEASE_LOST
    return ExitOutcome.LEASE_LOST if lost else ExitOutcome.UNSETTLED


def _has_started(attempt: Attempt) -> bool:
    settlement = attempt.settlement
    if settlement is not None and settlement.event is Event.INTERRUPT:
        return settlement.outcome is not None
    return attempt.started_at < math.inf


def _stored_as(settlement: Settlement) -> ExitOutcome:
    match settlement.event:
        case Event.INTERRUPT | Event.DEFER:
            return ExitOutcome.RELEASED
        case Event.CANCEL:
            return ExitOutcome.CANCELLED
        case _:
            assert settlement.outcome is not None
            return ExitOutcome(settlement.outcome.value)
