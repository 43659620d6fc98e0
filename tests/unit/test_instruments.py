from __future__ import annotations

import logging
import types
import uuid

from typing import Any

import pytest

import nursery_queue as nq

from nursery_queue._client._instruments import EventTopics
from nursery_queue.testing import MemoryStore


WORKER = uuid.UUID(int=1)
ENQUEUED = nq.Enqueued(task_id=1, task_type="send", queue="mail", created=True)
STARTED = nq.Started(
    task_id=1, task_type="send", queue="mail", attempt=2, worker_id=WORKER, lag=1.23456
)
COMPLETED = nq.Completed(
    task_id=1,
    task_type="send",
    queue="mail",
    status=nq.Outcome.FAILED,
    state=nq.State.SCHEDULED,
    attempt=2,
    worker_id=WORKER,
    took=0.5,
    error="ValueError: no luck",
)
REPORT = nq.Report(
    worker_id=WORKER,
    worker="w1",
    seconds=60.0,
    counters=nq.Counters(succeeded=2, failed=1, cancelled=1, retries=4, lost=3, running=5),
    last=False,
)


class Notes(nq.Instrument):
    """Hears of starts."""

    def __init__(self) -> None:
        self.heard: list[nq.Started] = []

    def task_started(self, event: nq.Started) -> None:
        self.heard.append(event)


class Broken(nq.Instrument):
    def __init__(self) -> None:
        self.called = 0

    def task_started(self, event: nq.Started) -> None:
        self.called += 1
        msg = f"no {event.task_id}"
        raise LookupError(msg)

    def report(self, event: nq.Report) -> None:
        raise AssertionError(event)


def test_only_what_somebody_wants_to_hear_of_is_wanted() -> None:
    """An event is wanted if an instrument has the method for it, and not by the base class."""
    topics = EventTopics([nq.Instrument(), Notes()])

    assert topics.started.wanted
    assert not topics.enqueued.wanted
    assert not topics.completed.wanted
    assert not topics.reports.wanted


def test_nobody_listens_to_a_silent_log(caplog: pytest.LogCaptureFixture) -> None:
    """What is logged is wanted while its level is enabled: tasks at DEBUG, reports at INFO."""
    topics = EventTopics([nq.LogEvents()])
    found: list[tuple[bool, bool]] = []
    for level in (logging.WARNING, logging.INFO, logging.DEBUG, logging.ERROR):
        caplog.set_level(level, "nursery_queue")
        found.append((topics.started.wanted, topics.reports.wanted))

    assert found == [(False, False), (False, True), (True, True), (False, False)]


def test_a_log_that_is_silent_is_not_written_for_others(caplog: pytest.LogCaptureFixture) -> None:
    """That another instrument wants an event does not put it into the log."""
    caplog.set_level(logging.INFO, "nursery_queue")
    notes = Notes()
    EventTopics([nq.LogEvents(), notes]).started.tell(STARTED)

    assert notes.heard == [STARTED]
    assert caplog.records == []


def test_any_object_will_do() -> None:
    """What has one of the methods is an instrument, whatever its class."""
    heard: list[Any] = []
    thing: Any = types.SimpleNamespace(task_enqueued=heard.append)
    topics = EventTopics([thing])
    topics.enqueued.tell(ENQUEUED)

    assert heard == [ENQUEUED]
    assert not topics.started.wanted


@pytest.mark.parametrize("wrong", [object(), None, "log", Notes])
def test_what_is_no_instrument(wrong: Any) -> None:
    """What cannot hear anything is refused where it is given; so is a class."""
    with pytest.raises(TypeError, match="instrument"):
        nq.Client(MemoryStore(), instruments=[wrong])


def test_one_that_raises_is_heard_of_once(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged with its traceback and never called again, for nothing; the others go on."""
    broken, notes = Broken(), Notes()
    topics = EventTopics([broken, notes])
    topics.started.tell(STARTED)
    topics.started.tell(STARTED)

    assert broken.called == 1
    assert len(notes.heard) == 2
    assert not topics.reports.wanted  # it would have heard these, too
    (record,) = caplog.records
    assert (record.levelname, record.name) == ("ERROR", "nursery_queue")
    assert record.exc_info is not None
    assert record.exc_info[0] is LookupError
    assert record.getMessage() == (
        "the instrument Broken raised in task_started() and is not called again"
    )


def test_the_same_class_may_listen_twice() -> None:
    """When one instrument raises, others of its class, or equal to it, are not taken for it."""

    class Same(Notes):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]  # as attrs classes have it

    well, broken = Same(), Broken()
    topics = EventTopics([well, broken])
    topics.started.tell(STARTED)
    topics.started.tell(STARTED)

    assert (len(well.heard), broken.called) == (2, 1)


def test_what_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A line for people, and a dict with all fields that JSON can hold for programs."""
    caplog.set_level(logging.DEBUG, "nursery_queue.events")
    topics = EventTopics([nq.LogEvents()])
    topics.enqueued.tell(ENQUEUED)
    topics.started.tell(STARTED)
    topics.completed.tell(COMPLETED)
    topics.reports.tell(REPORT)

    end = "failed after 0.5 s, the task is scheduled: ValueError: no luck"
    counts = "8 completed (2 succeeded, 1 failed, 1 cancelled, 4 to be retried), 3 lost"
    rates = "failure rate 0.625, permanent 0.25"
    assert [(each.levelname, each.getMessage()) for each in caplog.records] == [
        ("DEBUG", "enqueued task 1 (send) on queue mail"),
        ("DEBUG", "task 1 (send, attempt 2) started, 1.23 s after it was due"),
        ("DEBUG", f"task 1 (send, attempt 2) {end}"),
        ("INFO", f"worker w1, 60 s: {counts}, 5 running, 0 due; {rates}"),
    ]
    task = {"task_id": 1, "task_type": "send", "queue": "mail"}
    attempt = {**task, "attempt": 2, "worker_id": str(WORKER)}
    assert [vars(each)["event"] for each in caplog.records] == [
        {"kind": "task_enqueued", **task, "created": True},
        {"kind": "task_started", **attempt, "lag": 1.23456},
        {
            "kind": "task_completed",
            **attempt,
            "status": "failed",
            "state": "scheduled",
            "took": 0.5,
            "error": "ValueError: no luck",
        },
        {
            "kind": "report",
            "worker_id": str(WORKER),
            "worker": "w1",
            "seconds": 60.0,
            "completed": 8,
            "succeeded": 2,
            "failed": 1,
            "cancelled": 1,
            "retries": 4,
            "lost": 3,
            "running": 5,
            "backlog": 0,
            "failure_rate": 0.625,
            "permanent_failure_rate": 0.25,
            "last": False,
        },
    ]
