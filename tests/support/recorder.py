"""Instruments that keep what they hear."""

from __future__ import annotations

import nursery_queue as nq


ONCE = [("started", 1), ("completed", 1)]  # what there is to hear of one attempt


class Recorder(nq.Instrument):
    """Keeps every event, in its order and by its kind."""

    def __init__(self) -> None:
        self.events: list[nq.Enqueued | nq.Started | nq.Completed] = []
        self.enqueued: list[nq.Enqueued] = []
        self.started: list[nq.Started] = []
        self.completed: list[nq.Completed] = []
        self.reports: list[nq.Report] = []

    def task_enqueued(self, event: nq.Enqueued) -> None:
        self.events.append(event)
        self.enqueued.append(event)

    def task_started(self, event: nq.Started) -> None:
        self.events.append(event)
        self.started.append(event)

    def task_completed(self, event: nq.Completed) -> None:
        self.events.append(event)
        self.completed.append(event)

    def report(self, event: nq.Report) -> None:
        self.reports.append(event)

    def told_of(self, task: nq.TaskRef) -> list[tuple[str, int]]:
        """What was heard of the attempts of a task: which event, and the attempt's number."""
        return [
            (type(each).__name__.lower(), each.attempt)
            for each in self.events
            if isinstance(each, nq.Started | nq.Completed) and each.task_id == task.id
        ]

    @property
    def lags(self) -> dict[int, list[float]]:
        """How long after they were due the attempts of each task started."""
        found: dict[int, list[float]] = {}
        for each in self.started:
            found.setdefault(each.task_id, []).append(round(each.lag, 6))
        return found

    @property
    def total(self) -> nq.Counters:
        """What all reports come to, but for what is true of an instant only."""
        counted = sum((each.counters for each in self.reports), nq.Counters())
        return without_instants(counted)


def without_instants(counters: nq.Counters) -> nq.Counters:
    return nq.Counters(
        succeeded=counters.succeeded,
        failed=counters.failed,
        cancelled=counters.cancelled,
        retries=counters.retries,
        lost=counters.lost,
    )
