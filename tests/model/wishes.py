"""What hypothesis draws: few values each, so that they meet often."""

from __future__ import annotations

import json

from typing import Any

import attrs

from hypothesis import strategies as st

from nursery_queue._core._debounce import Debounce
from nursery_queue._core._filters import CancelFilter, TaskFilter
from nursery_queue._core._model import ErrorRecord, NewTask, QueueSlots
from nursery_queue._core._outcome import (
    AttemptOutcome,
    Cancelled,
    Failed,
    Interrupted,
    NotStarted,
    Snoozed,
    Succeeded,
    TimedOut,
)
from nursery_queue._core._queue_changes import QueueChanges
from nursery_queue._core._rate import Rate
from nursery_queue._core._states import State


QUEUES = ("default", "mail")
# The last is known to none of the workers, the one before to one of them.
TYPES = ("work", "tell", "rare", "strange")
# What each of the workers knows.
CREW = (("work", "tell"), ("work", "rare"), ("tell",))
ERROR = ErrorRecord(type="ValueError", message="no good", traceback="line 1", details='{"a": 1}')

OUTCOMES: dict[str, AttemptOutcome] = {
    "succeeded": Succeeded("[1]"),
    "failed": Failed(error=ERROR),
    "failed for good": Failed(error=ERROR, retry=False),
    "failed, retry after": Failed(error=ERROR, after=4.0),
    "timed out": TimedOut(30.0),
    "cancelled": Cancelled(),
    "interrupted": Interrupted(),
    "not started": NotStarted(),
    "snoozed": Snoozed(8.0),
}
COMPLETIONS: tuple[dict[str, Any] | None, ...] = (
    None,
    {"task_type": "tell"},
    {"task_type": "tell", "queue": "mail", "priority": 7, "keep_for": 0},
    {"task_type": "rare", "run_after": 4, "on_complete": {"task_type": "tell"}, "context": [1]},
)


@attrs.frozen(kw_only=True, repr=False)
class Wish:
    """A task to be enqueued; *at*: due so many seconds from now, given as an instant."""

    task: NewTask
    at: float | None = None

    def __repr__(self) -> str:
        """Tell what is not as usual."""
        usual = NewTask(task_type="work", params="{}")
        said = [
            f"{field.name}={value!r}"
            for field in attrs.fields(NewTask)
            if (value := getattr(self.task, field.name)) != getattr(usual, field.name)
        ]
        return f"Wish({', '.join(said + [f'at={self.at}'] * (self.at is not None))})"


def _wish(drawn: dict[str, Any]) -> Wish:
    asked = {name: value for name, value in drawn.items() if name != "at"}
    if (on_complete := drawn["on_complete"]) is not None:
        asked |= {"on_complete": json.dumps(on_complete), "context": '{"for": "you"}'}
    return Wish(task=NewTask(params="{}", **asked), at=drawn["at"])


which = st.integers(0, 7)
kinds = st.sampled_from([0, 0, 1, 2])
outcomes = st.sampled_from(["succeeded", "succeeded", *OUTCOMES])
wishes = st.fixed_dictionaries(
    {
        "at": st.sampled_from([None, None, None, -5.0, 2.5]),
        "on_complete": st.sampled_from([None, None, *COMPLETIONS]),
        "task_type": st.sampled_from(["work", "work", "work", *TYPES]),
        "queue": st.sampled_from([QUEUES[0], *QUEUES]),
        "priority": st.sampled_from([0, 7]),
        "key": st.sampled_from([None, "a", "a", "b"]),
        "run_after": st.sampled_from([0.0, 0.0, 4.0, 64.0]),
        "dedup_key": st.sampled_from([None, None, "k", "l"]),
        "max_attempts": st.sampled_from([None, 1, 2]),
        "keep_for": st.sampled_from([None, 16.0, 0.0]),
    }
).map(_wish)
debounces = st.sampled_from([Debounce(4), Debounce(16), Debounce(4, max_wait=6)])
limits = st.sampled_from([1, 2, 1, None, 0])
rates = st.sampled_from([Rate(2, per=8, burst=1), Rate(1, per=16), Rate(3, per=10), None])
_limited = (
    limits.map(lambda most: QueueChanges(max_running=most)),
    limits.map(lambda most: QueueChanges(max_running_per_key=most)),
    rates.map(lambda rate: QueueChanges(rate=rate)),
)
changes = st.one_of(
    *_limited,
    *_limited,  # more often than the others
    rates.map(lambda rate: QueueChanges(rate_per_key=rate)),
    st.booleans().map(lambda paused: QueueChanges(paused=paused)),
)
schedules = st.fixed_dictionaries(
    {
        "task_type": st.sampled_from(["work", "work", "rare", "strange"]),
        "misfire": st.sampled_from(["all", "all", "latest", "skip"]),
        "overlap": st.sampled_from(["allow", "allow", "skip", "cancel"]),
        "paused": st.sampled_from([None, None, True, False]),
    }
)
batches = st.lists(wishes, min_size=1, max_size=3)
queue_slots = st.none() | st.lists(
    st.builds(QueueSlots, queue=st.sampled_from(QUEUES), slots=st.integers(1, 3)),
    min_size=1,
    max_size=2,
    unique_by=lambda each: each.queue,
)
filters = st.builds(
    CancelFilter,
    queue=st.sampled_from([None, *QUEUES]),
    task_type=st.sampled_from([None, *TYPES[:2]]),
)
questions = st.sampled_from(["status", "list", "attempts", "queues", "stats", "workers", "backlog"])
listings = st.builds(
    TaskFilter,
    state=st.sampled_from([None, None, *State]),
    queue=st.sampled_from([None, *QUEUES]),
    task_type=st.sampled_from([None, None, *TYPES[:2]]),
    limit=st.sampled_from([100, 1, 2]),
    after=st.none() | which,
    payloads=st.booleans(),
)
# Steps of a transaction, as tuples: what they are about is found out when it is their turn.
# Rather about the same task again and again.
same = st.sampled_from([0, 0, 0, 1, 7])
flat_steps = st.one_of(
    st.tuples(st.just("enqueue"), batches),
    st.tuples(st.just("cancel"), same, st.booleans()),
    st.tuples(st.just("settle"), same, outcomes, st.booleans()),
)
savepoints = st.tuples(
    st.just("savepoint"), st.lists(flat_steps, min_size=1, max_size=2), st.booleans()
)
steps = st.lists(st.one_of(flat_steps, flat_steps, savepoints), min_size=1, max_size=4)
